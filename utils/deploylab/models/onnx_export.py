"""A torch module as an ONNX file, through ``torch.export``."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploylab import files
from deploylab.errors import ConversionError

if TYPE_CHECKING:
    import torch

OPSET = 18
"""The opset the exporter's own operator library is written in: no version conversion, and every engine reads it."""


def export_onnx(
    module: torch.nn.Module,
    example: np.ndarray | Sequence[np.ndarray],
    path: Path | str,
    dynamic_batch: bool = True,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    optimize: bool = True,
) -> Path:
    """Write ``module`` as an ONNX file (opset 18, weights inside) and return its path.

    ``example`` holds one array per input of ``forward``. With ``dynamic_batch`` the first axis of every input may
    have any size afterwards. Inputs are called ``input`` (or ``input_0``, ...), outputs likewise, unless named.
    Without ``optimize`` the graph is written as it was traced, batch norms and foldable constants included.
    The file appears complete or not at all. Raises :class:`ConversionError` for what ONNX or the exporter cannot
    express, for a module in training mode, and if the file cannot be written.
    """
    import torch

    arrays = (example,) if isinstance(example, np.ndarray) else tuple(example)
    if module.training:
        raise ConversionError(f"{type(module).__name__} is in training mode; call model.eval() before exporting")
    tensors = tuple(torch.from_numpy(np.array(_two(array) if dynamic_batch else array)) for array in arrays)
    shapes = tuple({0: torch.export.Dim("batch")} for _ in tensors) if dynamic_batch else None
    path = Path(path)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                tensors,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=shapes,
                input_names=list(input_names or _names("input", len(tensors))),
                optimize=optimize,
                verbose=False,
            )
    except Exception as error:
        raise ConversionError(f"{type(module).__name__} cannot be exported to ONNX: {_first_cause(error)}") from error
    outputs = program.model.graph.outputs
    for value, name in zip(outputs, output_names or _names("output", len(outputs)), strict=True):
        value.name = name
    try:
        with files.draft(path) as unfinished:
            unfinished.write_bytes(program.model_proto.SerializeToString())
    except OSError as error:
        raise ConversionError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _two(array: np.ndarray) -> np.ndarray:
    # torch.export takes an axis of size 1 as a constant, so a dynamic batch is traced with a larger one.
    return np.concatenate([array, array]) if array.shape[:1] == (1,) else array


def _names(stem: str, count: int) -> list[str]:
    return [stem] if count == 1 else [f"{stem}_{i}" for i in range(count)]


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress lines and its warnings.

    The warnings are about torch's own internals (deprecated calls inside the exporter and its dependencies), not about
    the model: what the exporter cannot express raises an exception, and parity is measured afterwards in any case.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
