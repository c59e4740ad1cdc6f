"""What an ONNX graph costs to run once: multiply-accumulates, parameters and the bytes its nodes move.

Counted from the shapes, before any engine touches the graph. One multiply-accumulate (MAC) is one multiplication and
one addition; papers that write "FLOPs" for convolutional networks often mean this number (MobileNetV2 says MAdds).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deploylab.errors import InputError, ModelError

if TYPE_CHECKING:
    import onnx

MOVES_NOTHING = frozenset({"Constant", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze"})
"""Operators that give another view of memory that is there already."""

UNCOUNTED = frozenset(
    {"Attention", "DFT", "DeformConv", "Einsum", "GRU", "If", "LSTM", "Loop", "QLinearConv", "RNN", "Scan", "STFT"}
)
"""Operators that multiply, or hold graphs that may, and for which no rule is written here."""


@dataclass(frozen=True)
class NodeCost:
    """One node: its multiply-accumulates, and the bytes of all its inputs (weights included) and outputs."""

    name: str
    op: str
    macs: int
    bytes_moved: int


@dataclass(frozen=True)
class GraphCost:
    """A whole graph. ``parameters`` counts the numbers in floating-point constants, shared ones once."""

    nodes: tuple[NodeCost, ...]
    parameters: int

    @property
    def macs(self) -> int:
        return sum(node.macs for node in self.nodes)

    @property
    def bytes_moved(self) -> int:
        """Bytes read and written if every node reads its inputs from memory and writes its outputs to it."""
        return sum(node.bytes_moved for node in self.nodes)

    def by_op(self) -> dict[str, int]:
        """How many nodes there are of each operator, the most frequent first."""
        ops = [node.op for node in self.nodes]
        return {op: ops.count(op) for op in sorted(set(ops), key=lambda op: (-ops.count(op), op))}


def cost(model: onnx.ModelProto | Path | str, shapes: Mapping[str, Sequence[int]] | None = None) -> GraphCost:
    """Count an ONNX model for inputs of the given ``shapes`` (by input name); an open axis otherwise counts as 1.

    Functions of the model are inlined first. ONNX Runtime's ``FusedConv`` counts as the convolution it contains.
    Raises :class:`ModelError` where shapes cannot be inferred or an operator has no rule (:data:`UNCOUNTED`), and
    :class:`InputError` for shapes that do not fit the inputs.
    """
    import onnx
    from onnx import inliner

    model = inliner.inline_local_functions(onnx.load(str(model)) if isinstance(model, (str, Path)) else model)
    tensors = _tensors(model, shapes or {})
    nodes = tuple(_node_cost(node, tensors) for node in model.graph.node)
    return GraphCost(nodes, _parameters(model))


class _Tensor(NamedTuple):
    shape: tuple[int, ...]
    itemsize: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.count * self.itemsize


def _node_cost(node: onnx.NodeProto, tensors: Mapping[str, _Tensor]) -> NodeCost:
    if node.op_type in UNCOUNTED:
        raise ModelError(f"{_named(node)} cannot be counted: there is no rule for {node.op_type}")
    names = [name for name in (*node.input, *node.output) if name]
    lacking = [name for name in names if name not in tensors]
    if lacking:
        raise ModelError(f"{_named(node)} cannot be counted: the shape of {lacking[0]!r} is unknown")
    rule = _MACS.get(node.op_type)
    given = [tensors[name] for name in node.input if name]
    macs = rule(node, given, tensors[node.output[0]]) if rule else 0
    moved = 0 if node.op_type in MOVES_NOTHING else sum(tensors[name].bytes for name in names)
    return NodeCost(node.name or node.output[0], node.op_type, macs, moved)


def _conv(node: onnx.NodeProto, given: Sequence[_Tensor], output: _Tensor) -> int:
    # Weights (out, in / groups, *kernel): every output element is one sum over the last axes.
    return output.count * math.prod(given[1].shape[1:])


def _conv_transpose(node: onnx.NodeProto, given: Sequence[_Tensor], output: _Tensor) -> int:
    # Weights (in, out / groups, *kernel): every input element is spread over the last axes.
    return given[0].count * math.prod(given[1].shape[1:])


def _gemm(node: onnx.NodeProto, given: Sequence[_Tensor], output: _Tensor) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return output.count * given[0].shape[0 if transposed else 1]


def _matmul(node: onnx.NodeProto, given: Sequence[_Tensor], output: _Tensor) -> int:
    return output.count * given[0].shape[-1]


_MACS: dict[str, Callable[[onnx.NodeProto, Sequence[_Tensor], _Tensor], int]] = {
    "Conv": _conv,
    "ConvInteger": _conv,
    "ConvTranspose": _conv_transpose,
    "FusedConv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
}


def _tensors(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> dict[str, _Tensor]:
    """Shape and element size of every value whose shape is known, constants included."""
    import onnx

    plain = _standard(model)
    _fix_inputs(plain.graph, shapes)
    _evaluate_shapes(plain)
    try:
        graph = onnx.shape_inference.infer_shapes(plain, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"the shapes of the graph cannot be inferred: {error}") from error
    found = {tensor.name: _Tensor(tuple(tensor.dims), _itemsize(tensor.data_type)) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(axis.HasField("dim_value") for axis in kind.shape.dim):
            found[value.name] = _Tensor(tuple(axis.dim_value for axis in kind.shape.dim), _itemsize(kind.elem_type))
    return found


def _standard(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without stored shapes, in which a FusedConv is the Conv it contains: inference knows that one."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for node in copy.graph.node:
        if node.op_type == "FusedConv":
            node.op_type, node.domain = "Conv", ""
            del node.input[3:]
            kept = [attribute for attribute in node.attribute if not attribute.name.startswith("activation")]
            del node.attribute[:]
            node.attribute.extend(kept)
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")  # it names the open axes of the inputs
    return copy


def _fix_inputs(graph: onnx.GraphProto, shapes: Mapping[str, Sequence[int]]) -> None:
    constants = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value.type.tensor_type.shape.dim for value in graph.input if value.name not in constants}
    for name in shapes:
        if name not in inputs:
            raise InputError(f"the model has no input {name!r}; it has {', '.join(map(repr, inputs))}")
    for name, axes in inputs.items():
        wanted = shapes.get(name, [axis.dim_value if axis.HasField("dim_value") else 1 for axis in axes])
        fits = len(wanted) == len(axes) and all(
            not axis.HasField("dim_value") or axis.dim_value == size for axis, size in zip(axes, wanted, strict=True)
        )
        if not fits:
            expected = "x".join(str(axis.dim_value or axis.dim_param or "?") for axis in axes)
            raise InputError(f"input {name!r} is {expected}, not {'x'.join(map(str, wanted))}")
        for axis, size in zip(axes, wanted, strict=True):
            axis.dim_value = size


def _evaluate_shapes(model: onnx.ModelProto) -> None:
    """Turn small integers that are computed from constants into constants: inference follows only some operators."""
    from onnx import numpy_helper, reference

    graph, few = model.graph, 64
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    known = {t.name: numpy_helper.to_array(t) for t in graph.initializer if math.prod(t.dims) <= few}
    for node in list(graph.node):
        if node.domain not in ("", "ai.onnx") or node.op_type in UNCOUNTED:
            continue
        if node.op_type == "Shape" and node.input[0] in sizes:
            given = {node.input[0]: np.zeros(sizes[node.input[0]], bool)}
        elif all(name in known for name in node.input if name) and len(node.output) == 1:
            given = {name: known[name] for name in node.input if name}
        else:
            continue
        value = np.asarray(reference.ReferenceEvaluator(node).run(None, given)[0])
        if value.dtype.kind == "i" and value.size <= few:
            known[node.output[0]] = value
            graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
            graph.node.remove(node)


def _parameters(model: onnx.ModelProto) -> int:
    import onnx

    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    used = {name for node in model.graph.node for name in node.input}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in used and tensor.data_type in floats]
    return sum(math.prod(tensor.dims) for tensor in tensors)


def _itemsize(element_type: int) -> int:
    import onnx

    return onnx.helper.tensor_dtype_to_np_dtype(element_type).itemsize


def _named(node: onnx.NodeProto) -> str:
    return f"node {node.name or node.output[0]!r} ({node.op_type})"
