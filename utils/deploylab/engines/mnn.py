"""MNN (https://github.com/alibaba/MNN), its Module API on the CPU.

Never import ``MNN.tools`` and never call the scripts ``mnnconvert`` and ``mnnquant``: they install an uploader with pip
and send their arguments to the vendor. The compiled converter behind them is called here, in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

from deploylab import machine
from deploylab.engines import _onnx, _tool
from deploylab.engines.base import Artifact, Engine, Session, Source, TensorSpec, onnx_files
from deploylab.errors import ConversionError, EngineError

# The converter reports success for a missing input, an unknown operator and a full disk alike. Loading the result shows
# whether it is whole, here where a crash hurts nobody.
_CONVERT = """
import json, os, sys, _tools
target, names, *arguments = sys.argv[1:]
_tools.mnnconvert(["mnnconvert", *arguments])
if os.path.exists(target):
    from MNN import nn
    if nn.load_module_from_file(target, *json.loads(names)) is not None:
        print("The result loads")
"""


class Mnn(Engine):
    name = "mnn"
    title = "MNN"
    accepts = frozenset({"torch", "onnx"})
    precisions = ("fp32", "fp16")
    distributions = ("MNN",)
    runtime_packages = ("MNN",)
    modules = ("MNN",)
    converter_modules = ("_tools", "onnx")

    def _convert(
        self, source: Source, example: tuple[np.ndarray, ...], folder: Path, precision: str, **options: Any
    ) -> tuple[list[TensorSpec], list[TensorSpec]]:
        path = _onnx.as_onnx(source, example, folder)
        onnx_files(path)
        inputs, outputs = _onnx.specs(path, example)
        _require_own_tools()
        target = folder / "model.mnn"
        names = json.dumps([[spec.name for spec in specs] for specs in (inputs, outputs)])
        arguments = [
            str(target.resolve()),
            names,
            "-f",
            "ONNX",
            "--modelFile",
            str(path.resolve()),
            "--MNNModel",
            str(target.resolve()),
        ]
        arguments += ["--bizCode", "deploylab", *(["--fp16"] if precision == "fp16" else [])]
        said = _tool.run("the MNN converter", [sys.executable, "-c", _CONVERT, *arguments], folder)
        if "Converted Success" not in said or "The result loads" not in said:
            raise ConversionError(f"the MNN converter wrote no usable model. It said last:\n{_tool.tail(said)}")
        return inputs, outputs

    def _load(self, artifact: Artifact, threads: int) -> Session:
        if artifact.precision == "fp16" and "asimdhp" not in machine.features():
            raise EngineError(
                "MNN computes in fp16 only on an Arm CPU with half-precision vectors (asimdhp); "
                "here it would silently compute in fp32: convert with precision fp32"
            )
        return _MnnSession(artifact, threads)


def _require_own_tools() -> None:
    """``_tools`` is a common name; make sure that it is the one beside MNN."""
    tools, mnn = util.find_spec("_tools"), util.find_spec("MNN")
    if Path(tools.origin).parent != Path(mnn.origin).parent.parent:
        raise ConversionError(f"a foreign module _tools at {tools.origin} hides MNN's converter; rename or move it")


class _MnnSession(Session):
    def __init__(self, artifact: Artifact, threads: int) -> None:
        super().__init__(artifact, threads)
        with _tool.listen() as heard:  # MNN greets on stdout, and prints why it fails
            import MNN
            from MNN import expr, nn

            config = {"backend": "CPU", "numThread": threads, "precision": _PRECISIONS[artifact.precision]}
            self._runtime = nn.create_runtime_manager((config,))
            names_in, names_out = [s.name for s in self.inputs], [s.name for s in self.outputs]
            self._net = None
            if self._runtime is not None:
                # Its error says only that there is one; the reason is printed.
                with contextlib.suppress(Exception):
                    self._net = nn.load_module_from_file(
                        str(artifact.file(".mnn")),
                        names_in,
                        names_out,
                        runtime_manager=self._runtime,
                        thread_num=threads,  # its default is 4, whatever the runtime manager says
                    )
        if self._runtime is None:
            raise EngineError(f"MNN refused the settings {config}. It said:\n{_tool.tail(heard.text)}")
        if self._net is None:
            raise EngineError(f"MNN could not load {artifact.path}. It said:\n{_tool.tail(heard.text)}")
        self._version = MNN.version()
        self._expr = expr
        self._types = [_variable_type(expr, spec) for spec in self.inputs]
        self._lock = threading.Lock()  # outputs are read after the call, from memory the next call overwrites

    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        with self._lock:
            variables = []
            for array, (kind, dtype) in zip(arrays, self._types, strict=True):
                variable = self._expr.placeholder(list(array.shape), self._expr.NCHW, kind)
                variable.write(array if array.dtype == dtype else array.astype(dtype))
                variables.append(variable)
            return [
                self._read(variable, spec)
                for variable, spec in zip(self._net.forward(variables), self.outputs, strict=True)
            ]

    def _read(self, variable: Any, spec: TensorSpec) -> np.ndarray:
        if variable.data_format == self._expr.NC4HW4:  # channels in blocks of four
            variable = self._expr.convert(variable, self._expr.NCHW)
        return np.array(variable.read(), dtype=spec.dtype)  # a copy: read() gives memory that MNN owns

    def _facts(self) -> dict[str, Any]:
        return {
            "version": self._version,
            "threads_read_back": False,  # MNN has no call to ask
            "requested_precision": _PRECISIONS[self.artifact.precision],
            "backend": "CPU",
            "layout": "NC4HW4",
            "gil": "held",
        }

    def close(self) -> None:
        self._net = self._runtime = None


_PRECISIONS = {"fp32": "high", "fp16": "low"}  # any other word means "normal", without a complaint


def _variable_type(expr: Any, spec: TensorSpec) -> tuple[Any, np.dtype]:
    """MNN's type for an input, and the NumPy type to write: it has no 64-bit integers and no bool."""
    kind = np.dtype(spec.dtype).kind
    if kind == "f":
        return expr.float, np.dtype(np.float32)
    if spec.dtype == "uint8":
        return expr.uint8, np.dtype(np.uint8)
    return expr.int, np.dtype(np.int32)
