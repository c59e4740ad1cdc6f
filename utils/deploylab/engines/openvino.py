"""OpenVINO (https://docs.openvino.ai), its CPU plug-in."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from deploylab.engines import _onnx
from deploylab.engines.base import Artifact, Engine, Session, Source, TensorSpec, onnx_files
from deploylab.errors import ConversionError, EngineError

_NO_ARITHMETIC = {"Const", "Input", "Output", "Reorder", "Reshape"}
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVino(Engine):
    name = "openvino"
    title = "OpenVINO"
    accepts = frozenset({"torch", "onnx"})
    precisions = ("fp32", "bf16", "fp16")
    distributions = ("openvino",)
    runtime_packages = ("openvino",)
    modules = ("openvino",)
    converter_modules = ("onnx",)

    def _convert(
        self, source: Source, example: tuple[np.ndarray, ...], folder: Path, precision: str, **options: Any
    ) -> tuple[list[TensorSpec], list[TensorSpec]]:
        import openvino

        path = _onnx.as_onnx(source, example, folder)
        onnx_files(path)  # OpenVINO's own message about missing external data names no file
        inputs, outputs = _onnx.specs(path, example)
        try:
            model = openvino.convert_model(str(path))
        except Exception as error:
            raise ConversionError(f"openvino cannot convert {path.name}: {error}") from error
        openvino.save_model(model, str(folder / "model.xml"), compress_to_fp16=precision == "fp16")
        return inputs, outputs

    def _load(self, artifact: Artifact, threads: int) -> Session:
        return _OpenVinoSession(artifact, threads)


@cache
def core() -> Any:
    """The one ``openvino.Core`` of this process, for good.

    Its CPU plugin gives the thread a stack for signals and takes it away at its end. Where several end in another order
    than last in, first out, the thread is left with a stack that is gone, and the next Ctrl-C ends the process.
    """
    os.environ.setdefault("ONEDNN_JIT_PROFILE", "0")  # on Arm it else leaves a file in /tmp for every process
    import openvino

    return openvino.Core()


class _OpenVinoSession(Session):
    def __init__(self, artifact: Artifact, threads: int) -> None:
        import openvino

        super().__init__(artifact, threads)
        self._tensor = openvino.Tensor
        self._compiled = core().compile_model(str(artifact.file(".xml")), "CPU", _settings(artifact, threads))
        self._require_precision()
        self._request = self._compiled.create_infer_request()
        self._fed: dict[int, np.ndarray] = {}
        self._outputs = range(len(self._compiled.outputs))
        self._lock = threading.Lock()  # a request runs one inference at a time, others are refused

    def _require_precision(self) -> None:
        """OpenVINO takes a precision as a hint and silently uses another where the CPU lacks it."""
        wanted = _HINTS[self.artifact.precision]
        got = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if got != wanted:
            raise EngineError(
                f"openvino would run {got} instead of {wanted} on this CPU; convert with another precision"
            )

    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        with self._lock:
            for position, array in enumerate(arrays):
                self._feed(position, array)
            self._request.infer()
            return [self._request.get_output_tensor(position).data.copy() for position in self._outputs]

    def _feed(self, position: int, array: np.ndarray) -> None:
        """Copy into the request's own tensor. Handing it another one takes longer; only a new shape needs that."""
        own = self._fed.get(position)
        if own is not None and own.shape == array.shape:
            np.copyto(own, array)
            return
        tensor = self._tensor(array, shared_memory=False)
        self._request.set_input_tensor(position, tensor)
        self._fed[position] = tensor.data

    def _facts(self) -> dict[str, Any]:
        import openvino

        get = self._compiled.get_property
        return {
            "version": openvino.get_version(),
            "threads": get("INFERENCE_NUM_THREADS"),
            "streams": get("NUM_STREAMS"),
            "pinning": get("ENABLE_CPU_PINNING"),
            "hint": str(get("PERFORMANCE_HINT")),
            "execution_mode": get("EXECUTION_MODE_HINT").name,
            "executed": _executed(self._compiled),
            "layout": "NCHW",
            "gil": "released",
        }

    def close(self) -> None:
        self._request = self._compiled = None
        self._fed = {}


def _settings(artifact: Artifact, threads: int) -> dict[str, Any]:
    fp32 = artifact.precision == "fp32"
    return {
        "INFERENCE_PRECISION_HINT": _HINTS[artifact.precision],
        "EXECUTION_MODE_HINT": "ACCURACY" if fp32 else "PERFORMANCE",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # pinned threads would bind the process, and what is measured beside it
    }


def _executed(compiled: Any) -> dict[str, int]:
    """How many layers compute in which precision, from the plug-in's own execution graph."""
    counts: Counter[str] = Counter()
    for layer in compiled.get_runtime_model().get_ops():
        info = layer.get_rt_info()
        if "runtimePrecision" in info and info["layerType"].astype(str) not in _NO_ARITHMETIC:
            counts[info["runtimePrecision"].astype(str)] += 1
    return dict(counts)
