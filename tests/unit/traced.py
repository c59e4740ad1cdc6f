"""The networks of the course as ONNX files as they were traced: batch norms and foldable constants still there."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

import numpy as np

from deploylab import models, paths
from deploylab.engines.base import hash_source
from deploylab.models import onnx_export


def traced(name: str) -> Path:
    """The path of the file, kept under ``build/``: an export takes seconds and several tests want it."""
    model = models.load(name)
    exporter = Path(onnx_export.__file__).read_text(encoding="utf-8") + metadata.version("onnxscript")
    key = hashlib.sha256((hash_source(model) + exporter + metadata.version("torch")).encode()).hexdigest()[:16]
    path = paths.build() / "cache" / "traced" / f"{name}-{key}.onnx"
    if not path.is_file():
        onnx_export.export_onnx(model, np.zeros(models.info(name).input_shape, np.float32), path, optimize=False)
    return path
