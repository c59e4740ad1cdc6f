"""Graph optimisation by hand: every pass changes an ``onnx_ir`` model and says how often.

A pass looks for a small pattern, checks that rewriting it cannot change an answer, and rewrites
it. Where a check fails it leaves the graph alone. Lab 12 takes these passes apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import isclose

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from deploylab.parity.reference import unoptimised_session

LARGEST_CONSTANT = 1_000_000
NOT_FOLDED = {
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
}

Fold = Callable[..., tuple[np.ndarray, np.ndarray]]


# ---------------------------------------------------------------------------------------------
# Algebra, on arrays


def folded(weights, bias, gamma, beta, mean, variance, epsilon):
    """Weights (out, in / groups, ...) and bias (out,) with the batch norm after it."""
    scale = gamma / np.sqrt(variance + epsilon)
    return weights * _along(scale, 0, weights.ndim), (bias - mean) * scale + beta


def folded_before(weights, bias, gamma, beta, mean, variance, epsilon, groups=1):
    """The same for the batch norm before it: that scales *input* channels."""
    scale = gamma / np.sqrt(variance + epsilon)
    shift = beta - mean * scale
    each = len(weights) // groups  # output channels of a group

    def per_weight(values):
        return _along(
            np.repeat(values.reshape(groups, -1), each, axis=0), 0, weights.ndim, axes=2
        )

    passed = (weights * per_weight(shift)).sum(axis=tuple(range(1, weights.ndim)))
    return weights * per_weight(scale), bias + passed


def composed(first, second):
    """Weights (out, in, k + l - 1, ...) of the one that equals ``second`` after ``first``."""
    (_, inputs, *k), (outputs, _, *size) = first.shape, second.shape
    result = np.zeros((outputs, inputs, k[0] + size[0] - 1, k[1] + size[1] - 1))
    for row in range(size[0]):
        for column in range(size[1]):
            moved = np.einsum("om,mikl->oikl", second[:, :, row, column], first)
            result[:, :, row : row + k[0], column : column + k[1]] += moved
    return result


def _along(values, axis, ndim, axes=1):
    """``values`` shaped so that they multiply an array of ``ndim`` axes from ``axis`` on."""
    return values.reshape(*[1] * axis, *values.shape, *[1] * (ndim - axis - axes))


# ---------------------------------------------------------------------------------------------
# Passes


def fold_constants(model: ir.Model) -> int:
    """Compute what depends on constants alone, once and for all."""
    count = 0
    for node in list(model.graph):
        value = _computed(node, model.graph.opset_imports.get("", 18))
        if value is not None and value.size <= LARGEST_CONSTANT and not _is_output(node):
            folded_value = _initializer(model, value, f"{node.outputs[0].name}_folded")
            _replace(node, folded_value)
            count += 1
    return count


def drop_identities(model: ir.Model) -> int:
    """Take out nodes that hand on what they get: Identity, Dropout, Cast to the same type."""
    count = 0
    for node in list(model.graph):
        if _does_nothing(node) and not _is_output(node):
            _replace(node, node.inputs[0])
            count += 1
    return count


def merge_pads(model: ir.Model) -> int:
    """Let a convolution pad by itself, instead of a Pad with zeros before it."""
    count = 0
    for conv in _nodes(model, "Conv"):
        pad = conv.inputs[0].producer()
        amounts = _zero_padding(pad)
        if amounts is None or not _own_padding(conv) or not _only_for(pad.outputs[0], conv):
            continue
        rank = len(amounts) // 2
        spatial = [*amounts[2:rank], *amounts[rank + 2 :]]
        own = _ints(conv, "pads") or [0] * len(spatial)
        total = [a + b for a, b in zip(own, spatial, strict=True)]
        conv.attributes["pads"] = ir.AttrInt64s("pads", total)
        conv.replace_input_with(0, pad.inputs[0])
        _remove(pad)
        count += 1
    return count


def fold_batch_norms(model: ir.Model, fold: Fold = folded) -> int:
    """Fold each batch norm into the convolution before it.

    The new weights get new names, because another node may use the old ones.
    """
    count = 0
    for norm in _nodes(model, "BatchNormalization"):
        conv = norm.inputs[0].producer()
        constants = _fold_arguments(conv, norm)
        if constants is None or not _only_for(norm.inputs[0], norm):
            continue
        weights, bias = fold(*constants, _float(norm, "epsilon", 1e-5))
        _set_weights(model, conv, weights, bias, norm.outputs[0].name)
        _take_over(norm, conv.outputs[0])
        count += 1
    return count


def fold_batch_norms_before(model: ir.Model) -> int:
    """Fold each batch norm into the convolution after it.

    Not if that pads: the zeros come *after* the batch norm, which would have changed them.
    """
    count = 0
    for conv in _nodes(model, "Conv"):
        norm = conv.inputs[0].producer()
        constants = _fold_arguments(conv, norm)
        if constants is None or not _only_for(norm.outputs[0], conv) or not _pads_nothing(conv):
            continue
        groups = _int(conv, "group", 1)
        weights, bias = folded_before(*constants, _float(norm, "epsilon", 1e-5), groups)
        _set_weights(model, conv, weights, bias, norm.outputs[0].name)
        _replace(norm, norm.inputs[0])
        count += 1
    return count


def recognise_hard_swish(model: ir.Model) -> int:
    """x * clip(x + 3, 0, 6) / 6, in the ways people write it, becomes HardSwish (https://arxiv.org/abs/1905.02244)."""
    count = 0
    for node in [node for node in list(model.graph) if node.op_type in ("Mul", "Div")]:
        x = _hard_swish_input(node)
        if x is not None:
            swish = _insert(model, node, "HardSwish", [x], {})
            _take_over(node, swish.outputs[0])
            count += 1
    _sweep(model)
    return count


def fuse_residual_adds(model: ir.Model) -> int:
    """Let the convolution add the short cut.

    ``FusedConv`` is ONNX Runtime's own operator; no other engine reads it.
    """
    count = 0
    for add in _nodes(model, "Add"):
        for conv, other in zip(
            (value.producer() for value in add.inputs), reversed(add.inputs), strict=True
        ):
            alone = (
                conv is not None and conv.op_type == "Conv" and _only_for(conv.outputs[0], add)
            )
            if alone and _same_shape(conv.outputs[0], other) and not other.is_initializer():
                bias = conv.inputs[2] if len(conv.inputs) > 2 else None
                inputs = [*conv.inputs[:2], bias, other]
                _fuse(model, add, conv, inputs, {})
                count += 1
                break
    return count


def fuse_activations(model: ir.Model) -> int:
    """Let the convolution clip its result before it writes it to memory."""
    count = 0
    for node in [node for node in list(model.graph) if node.op_type in ("Relu", "Clip")]:
        conv = node.inputs[0].producer()
        what = _activation(node)
        fusable = (
            conv is not None
            and conv.op_type in ("Conv", "FusedConv")
            and "activation" not in conv.attributes
        )
        if what and fusable and _only_for(node.inputs[0], node):
            _fuse(model, node, conv, conv.inputs, what)
            count += 1
    return count


STANDARD = (
    drop_identities,
    fold_constants,
    merge_pads,
    fold_batch_norms,
    fold_batch_norms_before,
    recognise_hard_swish,
)
"""What keeps the file plain ONNX; each pass finds what the one before has made visible."""

FUSIONS = (fuse_residual_adds, fuse_activations)
"""What makes it a file for ONNX Runtime alone."""


def optimise(
    model: ir.Model, passes: Iterable[Callable[[ir.Model], int]] = STANDARD
) -> dict[str, int]:
    """Run the passes until none finds anything; return how often each of them did."""
    passes = tuple(passes)
    counts = {each.__name__: 0 for each in passes}
    changed = True
    while changed:
        changed = False
        for each in passes:
            found = each(model)
            counts[each.__name__] += found
            changed = changed or found > 0
    _sweep(model)
    return counts


# ---------------------------------------------------------------------------------------------
# Reading a graph


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array behind a value that never changes, else ``None``."""
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        return value.const_value.numpy()
    producer = value.producer()
    if producer is None or producer.op_type != "Constant":
        return None
    held = next(iter(producer.attributes.values()))
    return (
        held.value.numpy()
        if held.type == ir.AttributeType.TENSOR
        else np.asarray(held.value, _dtype(held))
    )


def _dtype(held: ir.Attr) -> type:
    return (
        np.float32
        if held.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS)
        else np.int64
    )


def _nodes(model: ir.Model, op: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op and node.domain == ""]


def _int(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _float(node: ir.Node, name: str, default: float) -> float:
    return node.attributes[name].as_float() if name in node.attributes else default


def _ints(node: ir.Node, name: str) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else []


def _is_output(node: ir.Node) -> bool:
    return any(value.is_graph_output() for value in node.outputs)


def _only_for(value: ir.Value, user: ir.Node) -> bool:
    return not value.is_graph_output() and all(node is user for node in value.consumers())


def _computed(node: ir.Node, opset: int) -> np.ndarray | None:
    """What a node gives, if that is known before it runs; else ``None``.

    Of some inputs only the type (CastLike) or the shape (Shape) matters.
    """
    if (
        node.op_type in NOT_FOLDED
        or node.domain != ""
        or len(node.outputs) != 1
        or node.op_type == "Constant"
    ):
        return None
    given = [constant(value) for value in node.inputs]
    if node.op_type == "CastLike" and given[0] is not None and node.inputs[1].dtype is not None:
        return given[0].astype(node.inputs[1].dtype.numpy())
    if (
        node.op_type == "Shape"
        and node.inputs[0].shape is not None
        and node.inputs[0].shape.is_static()
    ):
        begin, end = _int(node, "start", 0), _int(node, "end", len(node.inputs[0].shape))
        return np.array([int(size) for size in node.inputs[0].shape[begin:end]], np.int64)
    known = [
        value is None or array is not None
        for value, array in zip(node.inputs, given, strict=True)
    ]
    if (
        not node.inputs
        or not all(known)
        or any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values())
    ):
        return None
    proto = ir.to_proto(node)
    tensors = [
        onnx.numpy_helper.from_array(array, value.name)
        for value, array in zip(node.inputs, given, strict=True)
        if value is not None
    ]
    result = onnx.ValueInfoProto(name=proto.output[0])
    graph = onnx.helper.make_graph([proto], "one_node", [], [result], tensors)
    opsets = [onnx.helper.make_opsetid("", opset)]  # operators change their meaning
    whole = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return unoptimised_session(whole.SerializeToString()).run(None, {})[0]


def _does_nothing(node: ir.Node) -> bool:
    if node.op_type == "Identity":
        return not node.inputs[0].is_graph_input()
    if node.op_type == "Dropout":
        training = (
            constant(node.inputs[2])
            if len(node.inputs) > 2 and node.inputs[2] is not None
            else False
        )
        unused_mask = len(node.outputs) == 1 or not node.outputs[1].consumers()
        return training is not None and not bool(training) and unused_mask
    same = node.op_type == "Cast" and node.inputs[0].dtype is not None
    return same and node.inputs[0].dtype == ir.DataType(_int(node, "to", 0))


def _zero_padding(pad: ir.Node | None) -> list[int] | None:
    """How much a Pad node adds on each side, if it adds zeros and to no batch or channel."""
    if (
        pad is None
        or pad.op_type != "Pad"
        or (len(pad.inputs) > 3 and pad.inputs[3] is not None)
    ):
        return None
    mode = pad.attributes["mode"].as_string() if "mode" in pad.attributes else "constant"
    filler = (
        constant(pad.inputs[2])
        if len(pad.inputs) > 2 and pad.inputs[2] is not None
        else np.zeros(1)
    )
    amounts = constant(pad.inputs[1])
    if mode != "constant" or filler is None or filler.any() or amounts is None:
        return None
    rank = len(amounts) // 2
    outer = [*amounts[:2], *amounts[rank : rank + 2]]
    return amounts.tolist() if not any(outer) and (amounts >= 0).all() else None


def _own_padding(conv: ir.Node) -> bool:
    return (
        "auto_pad" not in conv.attributes or conv.attributes["auto_pad"].as_string() == "NOTSET"
    )


def _pads_nothing(conv: ir.Node) -> bool:
    auto = (
        conv.attributes["auto_pad"].as_string() if "auto_pad" in conv.attributes else "NOTSET"
    )
    return auto == "VALID" or (auto == "NOTSET" and not any(_ints(conv, "pads")))


def _fold_arguments(
    conv: ir.Node | None, norm: ir.Node | None
) -> tuple[np.ndarray, ...] | None:
    """weights, bias, gamma, beta, mean, variance in float64, if all of them are constants."""
    if (
        conv is None
        or norm is None
        or conv.op_type != "Conv"
        or norm.op_type != "BatchNormalization"
    ):
        return None
    if _int(norm, "training_mode", 0) or any(value.consumers() for value in norm.outputs[1:]):
        return None
    weights, statistics = (
        constant(conv.inputs[1]),
        [constant(value) for value in norm.inputs[1:]],
    )
    if (
        weights is None
        or weights.dtype != np.float32
        or any(array is None for array in statistics)
    ):
        return None
    has_bias = len(conv.inputs) > 2 and conv.inputs[2] is not None
    bias = constant(conv.inputs[2]) if has_bias else np.zeros(len(weights))
    if bias is None:
        return None
    return tuple(array.astype(np.float64) for array in (weights, bias, *statistics))


def _hard_swish_input(node: ir.Node) -> ir.Value | None:
    """x, if the value of ``node`` is x * clip(x + 3, 0, 6) / 6."""
    if node.op_type == "Div":  # (x * relu6(x + 3)) / 6
        product = node.inputs[0].producer()
        if _is_number(node.inputs[1], 6) and product is not None and product.op_type == "Mul":
            return _gated(product, _relu6_of_shifted)
        return None
    return _gated(node, _hard_sigmoid_of)


def _gated(product: ir.Node, gate: Callable[[ir.Value], ir.Value | None]) -> ir.Value | None:
    for x, other in (product.inputs, reversed(product.inputs)):
        if gate(other) is x:
            return x
    return None


def _hard_sigmoid_of(value: ir.Value) -> ir.Value | None:
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "HardSigmoid":
        right = (
            isclose(_float(node, "alpha", 0.2), 1 / 6, rel_tol=1e-6)
            and _float(node, "beta", 0.5) == 0.5
        )
        return node.inputs[0] if right else None
    if node.op_type == "Div" and _is_number(node.inputs[1], 6):
        return _relu6_of_shifted(node.inputs[0])
    return None


def _relu6_of_shifted(value: ir.Value) -> ir.Value | None:
    clip = value.producer()
    if clip is None or clip.op_type != "Clip" or _activation(clip) != _clip(0.0, 6.0):
        return None
    shift = clip.inputs[0].producer()
    if shift is None or shift.op_type != "Add":
        return None
    return next(
        (x for x, three in (shift.inputs, reversed(shift.inputs)) if _is_number(three, 3)), None
    )


def _is_number(value: ir.Value, number: float) -> bool:
    array = constant(value)
    return array is not None and array.size == 1 and array.item() == number


def _activation(node: ir.Node) -> dict[str, object] | None:
    """How FusedConv calls an activation; ``None`` for one it does not know."""
    if node.op_type == "Relu":
        return {"activation": "Relu"}
    bounds = [constant(value) if value is not None else None for value in node.inputs[1:]]
    if len(bounds) != 2 or any(bound is None for bound in bounds):
        return None
    return _clip(*(bound.item() for bound in bounds))


def _clip(low: float, high: float) -> dict[str, object]:
    return {"activation": "Clip", "activation_params": [float(low), float(high)]}


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    return a.shape is not None and b.shape is not None and list(a.shape) == list(b.shape)


# ---------------------------------------------------------------------------------------------
# Changing a graph


def _initializer(model: ir.Model, array: np.ndarray, name: str) -> ir.Value:
    while name in model.graph.initializers:
        name += "_"
    value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    model.graph.register_initializer(value)
    return value


def _set_weights(
    model: ir.Model, conv: ir.Node, weights: np.ndarray, bias: np.ndarray, name: str
) -> None:
    conv.resize_inputs(3)
    for place, part, array in ((1, "weights", weights), (2, "bias", bias)):
        conv.replace_input_with(
            place, _initializer(model, array.astype(np.float32), f"{name}.{part}")
        )


def _replace(node: ir.Node, new: ir.Value) -> None:
    """Let everybody who used the output of ``node`` use ``new``, and take the node out."""
    node.outputs[0].replace_all_uses_with(new)
    node.graph.remove(node, safe=True)


def _take_over(node: ir.Node, new: ir.Value) -> None:
    """Like ``_replace``, and ``new`` is called what the output of ``node`` was called.

    So an output of the graph keeps its name, and parity.bisect finds the same value again.
    """
    old = node.outputs[0]
    name, new.shape, new.type = old.name, old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)
    old.name = f"{name}_replaced"
    new.name = name


def _insert(
    model: ir.Model, at: ir.Node, op: str, inputs: Sequence[ir.Value | None], attributes: dict
) -> ir.Node:
    node = ir.node(
        op, list(inputs), attributes, domain="com.microsoft" if op == "FusedConv" else ""
    )
    node.outputs[0].type, node.outputs[0].shape = at.outputs[0].type, at.outputs[0].shape
    model.graph.insert_before(at, node)
    return node


def _fuse(
    model: ir.Model, end: ir.Node, conv: ir.Node, inputs: Sequence[ir.Value | None], more: dict
) -> None:
    """A FusedConv in the place of ``end`` that does the work of ``conv`` as well."""
    attributes = dict(conv.attributes.items()) | {
        held.name: held for held in ir.convenience.convert_attributes(more)
    }
    fused = _insert(model, end, "FusedConv", inputs, attributes)
    model.graph.opset_imports.setdefault("com.microsoft", 1)
    _take_over(end, fused.outputs[0])
    _remove(conv)


def _remove(node: ir.Node) -> None:
    if not any(value.consumers() or value.is_graph_output() for value in node.outputs):
        node.graph.remove(node, safe=True)


def _sweep(model: ir.Model) -> None:
    """Remove nodes and initializers that nobody uses."""
    common.RemoveUnusedNodesPass()(model)


def loaded(path, passes: Iterable[Callable[[ir.Model], int]] = ()) -> ir.Model:
    """An ``onnx_ir`` model from a file, with shapes, after some passes."""
    model = ir.load(path)
    common.ShapeInferencePass()(model)
    optimise(model, passes)
    return model
