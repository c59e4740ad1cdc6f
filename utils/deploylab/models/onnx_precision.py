"""An ONNX file in another precision: float16, or int8 with explicit quantize and dequantize nodes.

A strongly typed runtime (TensorRT 10 and newer) computes each node in the type that the file gives it, so the precision
is decided here, before the engine is built.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from deploylab.errors import ConversionError

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
WEIGHTED = ["Conv", "ConvTranspose", "Gemm", "MatMul"]


def to_float16(path: Path | str, target: Path | str) -> Path:
    """Write the model with float16 weights and arithmetic; inputs and outputs stay float32 behind ``Cast`` nodes.

    ONNX Runtime's converter does it; it leaves a few operators in float32 that lose too much (``Range``, ``Resize``,
    ``CumSum``, ...) and clips weights beyond float16's largest number, 65504. Raises :class:`ConversionError`.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    try:
        with _quiet():
            half = convert_float_to_float16(onnx.load(str(path)), keep_io_types=True)
            OnnxModel(half).topological_sort()  # the converter appends its casts, ONNX wants nodes in order of use
            onnx.checker.check_model(half)
            onnx.save(half, str(target))
    except Exception as error:
        raise ConversionError(f"{Path(path).name} cannot be written in float16: {error}") from error
    return Path(target)


def to_int8(path: Path | str, target: Path | str, batches: Iterable[np.ndarray]) -> Path:
    """Write the model with ``QuantizeLinear`` and ``DequantizeLinear`` before each convolution and matrix product.

    Symmetric int8 as TensorRT demands: every zero point is 0, weights have one scale a channel, biases stay float32.
    The inputs of these operators are quantised and not their outputs, so that an activation behind one can be fused
    into it (TensorRT's documentation, "Explicit Quantization", where to place the nodes). ``batches`` are inputs in the
    model's own form; the range of each tensor over them gives its scale. One-input models only. Raises
    :class:`ConversionError` for a model that cannot be quantised and for no batch at all.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    graph = onnx.load(str(path), load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    names = [value.name for value in graph.input if value.name not in constants]
    if len(names) != 1:
        raise ConversionError(f"{Path(path).name} has {len(names)} inputs; only models with one can be calibrated here")
    reader = _Batches(names[0], batches)
    try:
        with _quiet():
            quantize_static(
                str(path),
                str(target),
                reader,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=WEIGHTED,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    "DedicatedQDQPair": True,
                    "OpTypesToExcludeOutputQuantization": WEIGHTED,
                },
            )
    except Exception as error:
        reason = error if reader.count else "no batch was given"
        raise ConversionError(f"{Path(path).name} cannot be quantised: {reason}") from error
    return Path(target)


def quantized_nodes(path: Path | str) -> int:
    """How many ``QuantizeLinear`` and ``DequantizeLinear`` nodes an ONNX file has."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    return sum(node.op_type in (QUANTIZE, DEQUANTIZE) for node in graph.node)


def faults_for_tensorrt(path: Path | str) -> list[str]:
    """What TensorRT would refuse in a quantised file, one sentence each: it takes symmetric int8 only.

    Source: TensorRT's documentation, "Explicit Quantization", and the restrictions in ONNX-TensorRT's operator table
    (``x_zero_point must be zero``).
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type not in (QUANTIZE, DEQUANTIZE) or len(node.input) < 3 or not node.input[2]:
            continue
        zero = constants.get(node.input[2])
        if zero is None:
            found.append(f"{node.name}: the zero point {node.input[2]} is computed, not stored")
        elif zero.dtype != np.int8:
            found.append(f"{node.name}: the quantised type is {zero.dtype}, not int8")
        elif zero.any():
            found.append(f"{node.name}: the zero point is {zero.ravel()[np.argmax(np.abs(zero))]}, not 0")
    return found


class _Batches:
    """ONNX Runtime's calibration data reader: a dictionary per call, then None."""

    def __init__(self, name: str, batches: Iterable[np.ndarray]) -> None:
        self._name, self._batches = name, iter(batches)
        self.count = 0

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        batch = next(self._batches, None)
        self.count += batch is not None
        return None if batch is None else {self._name: batch}


@contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's tools warn through the root logger, about preprocessing that was done already."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
