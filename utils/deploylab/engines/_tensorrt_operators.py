"""Which ONNX operators TensorRT's parser takes, for a check that needs neither TensorRT nor a GPU.

Facts from the support tables of ONNX-TensorRT, the parser inside TensorRT: https://github.com/onnx/onnx-tensorrt,
docs/operators.md, of the versions named. The tables also restrict data types and attributes; only the parser itself
knows for sure, so an operator that is listed is a necessary condition and not a promise.
"""

from __future__ import annotations

from pathlib import Path

_SINCE_8_5 = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu Clip Concat
Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal
Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool
GlobalMaxPool Greater GreaterOrEqual GridSample HardSigmoid HardSwish Identity If ImageScaler InstanceNormalization
IsNaN LRN LSTM LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean
MeanVarianceNormalization Min Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad ParametricSoftplus Pow
QuantizeLinear RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2
ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
ReverseSequence RoiAlign Round ScaledTanh Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin
Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK
Transpose Trilu Unsqueeze Upsample Where Xor
"""
_SINCE_10_15 = """
Attention BlackmanWindow CastLike DeformConv Gelu GroupNormalization HammingWindow HannWindow Hardmax IsInf
LayerNormalization Mish RMSNormalization RotaryEmbedding STFT TensorScatter
"""

SUPPORTED: dict[str, frozenset[str]] = {
    "8.5": frozenset(_SINCE_8_5.split()),  # JetPack 5
    "10.15": frozenset(f"{_SINCE_8_5} {_SINCE_10_15}".split()),
}
"""TensorRT version to the operators of ONNX's own domain that its table marks as supported."""

OPSETS: dict[str, tuple[int, int]] = {"8.5": (1, 17), "10.15": (9, 24)}
"""TensorRT version to the oldest and newest opset that its table covers."""


def unsupported(path: Path | str, version: str = "10.15") -> dict[str, int]:
    """Operators of an ONNX file that the table of a TensorRT ``version`` lacks, and how many nodes use each.

    Graphs inside nodes (``If``, ``Loop``) and the model's own functions are looked into. An operator of another domain
    than ONNX's, with no function in the file, is listed as ``domain::name``: it needs a TensorRT plug-in.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    own = {(function.domain, function.name) for function in model.functions}
    counts: dict[str, int] = {}
    for node in _nodes(model):
        standard = node.domain in ("", "ai.onnx")
        if (node.domain, node.op_type) in own or (standard and node.op_type in SUPPORTED[version]):
            continue
        name = node.op_type if standard else f"{node.domain}::{node.op_type}"
        counts[name] = counts.get(name, 0) + 1
    return counts


def _nodes(model):
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                waiting.extend(graph.node)
