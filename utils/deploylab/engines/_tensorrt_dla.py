"""Which nodes of an ONNX graph a Jetson's DLA would take, for a check that needs neither TensorRT nor a board.

The DLA (deep learning accelerator) is a fixed-function unit of AGX Xavier, Xavier NX, AGX Orin and Orin NX. Facts from
two documents of NVIDIA: the table "Supported ONNX Operators on Orin DLA" in the repository NVIDIA/Deep-Learning-
Accelerator-SW (operators/README.md; which operator, through TensorRT), and "DLA Supported Layers and Restrictions" in
TensorRT's documentation (sizes). They are a necessary condition: the builder looks closer, and its log has the last
word (``Layers Running on DLA``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploylab.errors import ModelError

if TYPE_CHECKING:
    import onnx

_NATIVE = """
Abs Add AveragePool BatchNormalization Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Equal Gemm LRN
LeakyRelu MatMul Max MaxPool Mul PRelu Relu Reshape Resize Shape Sigmoid Slice Softmax Sub Sum Tanh Transpose Upsample
"""
_REBUILT = "And DepthToSpace GRU Gather Neg Not Or ScatterElements SpaceToDepth Where Xor"

NATIVE = frozenset(_NATIVE.split())
"""Operators that run on an Orin's DLA as they are, or are gone by then (constants and shapes)."""
REBUILT = frozenset(_REBUILT.split())
"""Operators that NVIDIA shows how to rebuild out of such (operators/op_reconstruction in the same repository)."""

MAX_BATCH, MAX_SIZE = 4096, 8192
KERNEL, STRIDE, WINDOW = range(1, 33), range(1, 9), range(1, 9)

Ranges = Mapping[str, tuple[Sequence[int], Sequence[int], Sequence[int]]]


@dataclass(frozen=True)
class Placed:
    """A node and where it would run. ``reason`` says why it is the GPU and is empty on the DLA."""

    name: str
    op: str
    reason: str = ""

    @property
    def where(self) -> str:
        return "GPU" if self.reason else "DLA"


def placement(model: onnx.ModelProto | Path | str, ranges: Ranges) -> list[Placed]:
    """Where each node would run if the engine is built for the DLA, with the GPU for what that cannot do.

    ``ranges`` is the optimization profile: input name to its smallest, usual and largest shape. Raises
    :class:`ModelError` for a profile that does not fit the model's inputs, and where shapes cannot be inferred.
    """
    import onnx

    proto = onnx.load(str(model)) if isinstance(model, (str, Path)) else model
    _check_inputs(proto, ranges)
    open_inputs = [name for name, shapes in ranges.items() if len({*map(tuple, shapes)}) > 1]
    if open_inputs:
        reason = f"the shape of {open_inputs[0]!r} is not fixed, and the DLA takes only fixed ones"
        return [Placed(node.name, node.op_type, reason) for node in proto.graph.node]
    graph = _Graph(proto, {name: shapes[1] for name, shapes in ranges.items()})
    return [Placed(node.name, node.op_type, _refusal(node, graph)) for node in proto.graph.node]


def _check_inputs(proto: onnx.ModelProto, ranges: Ranges) -> None:
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = {value.name for value in proto.graph.input} - constants
    if inputs != set(ranges):
        raise ModelError(f"the profile is for {sorted(ranges)}, the model's inputs are {sorted(inputs)}")


class _Graph:
    """Shapes and constants of a model whose inputs have these shapes."""

    def __init__(self, proto: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> None:
        import onnx

        fixed = onnx.ModelProto()
        fixed.CopyFrom(proto)
        del fixed.graph.value_info[:]
        for value in fixed.graph.input:
            for axis, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
                axis.dim_value = size
        for value in fixed.graph.output:
            value.type.tensor_type.ClearField("shape")
        try:
            inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
        except onnx.shape_inference.InferenceError as error:
            raise ModelError(f"the shapes of the graph cannot be inferred: {error}") from error
        self.constants = {tensor.name: tensor for tensor in inferred.initializer}
        self.shapes = {
            value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
            for value in (*inferred.input, *inferred.value_info, *inferred.output)
        }

    def number(self, name: str) -> float | None:
        """The value of a constant with one element."""
        from onnx import numpy_helper

        if name not in self.constants:
            return None
        array = numpy_helper.to_array(self.constants[name])
        return float(array.reshape(-1)[0]) if array.size == 1 else None


def _refusal(node: onnx.NodeProto, graph: _Graph) -> str:
    """Why the DLA does not take a node, or an empty text."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in NATIVE:
        rebuilt = ", but it can be rebuilt out of others" if node.op_type in REBUILT else ""
        return f"the DLA has no {node.op_type}{rebuilt}"
    for name in (*node.input, *node.output):
        shape = graph.shapes.get(name, ())
        if len(shape) > 1 and (shape[0] > MAX_BATCH or max(shape[1:]) > MAX_SIZE):
            return f"a tensor of {'x'.join(map(str, shape))}; the batch is at most {MAX_BATCH}, other sizes {MAX_SIZE}"
    rule = _RULES.get(node.op_type)
    return rule(node, graph) if rule else ""


def _convolution(node: onnx.NodeProto, graph: _Graph) -> str:
    weights = graph.constants.get(node.input[1])
    if weights is None:
        return "its weights are not constant"
    kernel = list(weights.dims[2:])
    if len(kernel) != 2:
        return f"a convolution over {len(kernel)} axes instead of 2"
    strides = _attribute(node, "strides", [1, 1])
    if not all(size in KERNEL for size in kernel) or not all(step in STRIDE for step in strides):
        return f"kernel {_text(kernel)}, stride {_text(strides)}; at most 32 and 8"
    return ""


def _transposed(node: onnx.NodeProto, graph: _Graph) -> str:
    if _attribute(node, "group", 1) > 1 or max(_attribute(node, "dilations", [1])) > 1:
        return "a transposed convolution with groups or dilation"
    if any(_attribute(node, "pads", [0])):
        return "a transposed convolution with padding"
    return _convolution(node, graph)


def _pooling(node: onnx.NodeProto, graph: _Graph) -> str:
    window = _attribute(node, "kernel_shape", [])
    if len(window) != 2 or not all(size in WINDOW for size in window):
        return f"a window of {_text(window)}; at most 8x8"
    return ""


def _matrix(node: onnx.NodeProto, graph: _Graph) -> str:
    return "" if node.input[1] in graph.constants else "its second factor is not constant"


def _clip(node: onnx.NodeProto, graph: _Graph) -> str:
    least = graph.number(node.input[1]) if len(node.input) > 1 else _attribute(node, "min", None)
    return "" if least == 0 else "it does not clip at 0 from below, as the DLA's clipped ReLU does"


_RULES = {
    "AveragePool": _pooling,
    "Clip": _clip,
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "Gemm": _matrix,
    "MatMul": _matrix,
    "MaxPool": _pooling,
}


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    import onnx

    found = next((each for each in node.attribute if each.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def _text(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes)) or "unknown size"
