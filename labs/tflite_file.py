"""A .tflite file as plain objects, read with the schema in LiteRT. Lab 24 reads along."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

TYPES = {
    schema.TensorType.FLOAT32: np.dtype("<f4"),
    schema.TensorType.INT8: np.dtype("i1"),
    schema.TensorType.INT32: np.dtype("<i4"),
    schema.TensorType.INT64: np.dtype("<i8"),
}
KINDS = {number: name for name, number in vars(schema.BuiltinOperator).items()}


@dataclass(frozen=True, eq=False)
class Tensor:
    """``values`` is None where the tensor is computed. ``scales`` is empty if not quantised."""

    number: int
    shape: tuple[int, ...]
    dtype: np.dtype
    values: np.ndarray | None
    scales: np.ndarray
    zero_points: np.ndarray
    name: str

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


@dataclass(frozen=True)
class Operator:
    kind: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Graph:
    operators: tuple[Operator, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    tensors: tuple[Tensor, ...]


def read(data: bytes) -> Graph:
    """The first subgraph of a file. A type beyond :data:`TYPES` is a KeyError."""
    model = _unpacked(data)
    graph = model.subgraphs[0]
    tensors = tuple(
        _tensor(number, tensor, model.buffers[tensor.buffer].data)
        for number, tensor in enumerate(graph.tensors)
    )

    def those(numbers) -> tuple[Tensor, ...]:
        return tuple(tensors[number] for number in numbers if number >= 0)  # -1: left out

    codes = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in model.operatorCodes]
    operators = tuple(
        Operator(KINDS[codes[op.opcodeIndex]], those(op.inputs), those(op.outputs))
        for op in graph.operators
    )
    return Graph(operators, those(graph.inputs), those(graph.outputs), tensors)


def without_names(data: bytes) -> bytes:
    """The same file without the names of tensors and its other texts."""
    model = _unpacked(data)
    flatbuffer_utils.strip_strings(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def megabytes(data: bytes) -> dict[str, float]:
    """How the size of a file adds up, in MB."""
    parts = Counter()
    for tensor in read(data).tensors:
        quantised_sum = tensor.dtype == np.int32 and len(tensor.scales)
        values = 0 if tensor.values is None else tensor.values.nbytes
        parts["int32 biases" if quantised_sum else "weights"] += values
        parts["scales"] += tensor.scales.nbytes
        parts["zero points"] += tensor.zero_points.nbytes
        parts["names"] += len(tensor.name)
    parts["the rest"] = len(data) - parts.total()
    return {name: count / 1e6 for name, count in parts.items()}


def _unpacked(data: bytes) -> schema.ModelT:
    return schema.ModelT.InitFromPackedBuf(data, 0)


def _tensor(number: int, tensor: schema.TensorT, buffer: np.ndarray | None) -> Tensor:
    dtype, shape = TYPES[tensor.type], tuple(map(int, tensor.shape))
    given = buffer is not None and len(buffer) > 0
    scales, zero_points = np.zeros(0, np.float32), np.zeros(0, np.int64)
    if tensor.quantization is not None and tensor.quantization.scale is not None:
        scales, zero_points = tensor.quantization.scale, tensor.quantization.zeroPoint
    return Tensor(
        number,
        shape,
        dtype,
        np.frombuffer(buffer, dtype).reshape(shape) if given else None,
        np.asarray(scales, np.float32),
        np.asarray(zero_points, np.int64),
        (tensor.name or b"").decode(),
    )
