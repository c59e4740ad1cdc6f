"""What the engines that read ONNX share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploylab.engines.base import Source, TensorSpec, hash_source, onnx_files
from deploylab.errors import ConversionError

if TYPE_CHECKING:
    import onnx


def as_onnx(source: Source, example: tuple[np.ndarray, ...], folder: Path) -> Path:
    """``source`` as an ONNX file: itself, or the torch module exported, with a dynamic batch where it can have one.

    An export takes seconds, so it is kept beside the artifact ``folder`` for the other engines that want it.
    """
    if isinstance(source, Path):
        return source
    from deploylab.models.onnx_export import export_onnx

    shapes = "_".join("x".join(map(str, array.shape)) for array in example)
    path = folder.parent / f"onnx-{hash_source(source)[:16]}-{shapes}.onnx"
    if path.is_file():
        return path
    if any(array.shape[:1] != example[0].shape[:1] or not array.ndim for array in example):
        return export_onnx(source, example, path, dynamic_batch=False)
    try:
        return export_onnx(source, example, path)
    except ConversionError:  # a module that is written for one batch size
        return export_onnx(source, example, path, dynamic_batch=False)


def copy(path: Path, folder: Path) -> Path:
    """Copy an ONNX file as ``model.onnx``, with its external data, into ``folder``."""
    for part in onnx_files(path):
        target = folder / ("model.onnx" if part == path else part.relative_to(path.parent))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(part, target)
    return folder / "model.onnx"


def specs(path: Path, example: tuple[np.ndarray, ...]) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs of an ONNX file. Raises :class:`ConversionError` if ``example`` does not fit the inputs."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [_spec(value) for value in graph.input if value.name not in constants]
    outputs = [_spec(value) for value in graph.output]
    if len(inputs) != len(example):
        names = ", ".join(spec.name for spec in inputs)
        raise ConversionError(f"{path.name} has {len(inputs)} input(s) ({names}), the example holds {len(example)}")
    for spec, array in zip(inputs, example, strict=True):
        if not spec.fits(array):
            raise ConversionError(
                f"{path.name}: input {spec.name!r} is {spec.dtype} {spec.shape_text}, "
                f"the example is {array.dtype} {array.shape}"
            )
    return inputs, outputs


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise ConversionError(f"{value.name!r} is not a tensor; sequences and maps are not supported")
    shape = tuple(size.dim_value if size.HasField("dim_value") else None for size in kind.shape.dim)
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return TensorSpec(value.name, shape, dtype)
