"""ONNX Runtime (https://onnxruntime.ai), on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploylab.engines import _onnx
from deploylab.engines.base import Artifact, Engine, Session, Source, TensorSpec
from deploylab.errors import ConversionError, EngineError

PROVIDER = "CPUExecutionProvider"
_QUIET = 3  # log errors only


class OnnxRuntime(Engine):
    name = "onnxruntime"
    title = "ONNX Runtime"
    accepts = frozenset({"torch", "onnx"})
    distributions = ("onnxruntime",)
    runtime_packages = ("onnxruntime",)
    modules = ("onnxruntime",)
    converter_modules = ("onnx",)

    def _convert(
        self, source: Source, example: tuple[np.ndarray, ...], folder: Path, precision: str
    ) -> tuple[list[TensorSpec], list[TensorSpec]]:
        path = _onnx.as_onnx(source, example, folder)
        inputs, outputs = _onnx.specs(path, example)
        copy = _onnx.copy(path, folder)
        try:
            _inference_session(copy, threads=1)  # finds an operator it does not have
        except Exception as error:
            raise ConversionError(f"onnxruntime cannot run {path.name}: {error}") from error
        return inputs, outputs

    def _load(self, artifact: Artifact, threads: int) -> Session:
        return _OnnxRuntimeSession(artifact, threads)


def _inference_session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _QUIET
    return onnxruntime.InferenceSession(str(path), options, providers=[PROVIDER])


class _OnnxRuntimeSession(Session):
    concurrent = True  # "multiple threads can invoke the Run() method on the same session" (ONNX Runtime, C API)

    def __init__(self, artifact: Artifact, threads: int) -> None:
        super().__init__(artifact, threads)
        self._session = _inference_session(artifact.file(".onnx"), threads)
        providers = self._session.get_providers()
        if providers[0] != PROVIDER:
            raise EngineError(f"onnxruntime took {providers[0]} instead of {PROVIDER}")
        self._names = [spec.name for spec in self.inputs]

    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        return self._session.run(None, dict(zip(self._names, arrays, strict=True)))

    def _facts(self) -> dict[str, Any]:
        import onnxruntime

        options = self._session.get_session_options()
        return {
            "version": onnxruntime.__version__,
            "threads": options.intra_op_num_threads,
            "inter_op_threads": options.inter_op_num_threads,
            "provider": self._session.get_providers()[0],
            "graph_optimization": options.graph_optimization_level.name,
            "layout": "NCHW",
            "gil": "released",
        }
