"""MNN (https://github.com/alibaba/MNN) on the CPU, through its Module API or its Session API.

Never import ``MNN.tools`` and never call the scripts ``mnnconvert`` and ``mnnquant``: they install an uploader with pip
and send their arguments to the vendor. The compiled converter behind them is called here, in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import struct
import sys
import tempfile
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
        self,
        source: Source,
        example: tuple[np.ndarray, ...],
        folder: Path,
        precision: str,
        *,
        weight_bits: int | None = None,
        memory: str = "normal",
        api: str = "module",
    ) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """Options of MNN: ``weight_bits`` (2 to 8) stores the weights of convolutions and matrix products as integers.

        With ``memory="low"`` they stay integers when they are loaded, and activations are quantised for each run;
        otherwise they become float32 again, so that only the file is smaller. ``api="session"`` runs the model through
        the Session API, which releases the GIL but cannot run control flow; ``"module"`` holds it.
        """
        _check_options(precision, weight_bits, memory, api)
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
        arguments += ["--weightQuantBits", str(weight_bits)] if weight_bits else []
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
        return _APIS[artifact.options.get("api", "module")](artifact, threads)


def _require_own_tools() -> None:
    """``_tools`` is a common name; make sure that it is the one beside MNN."""
    tools, mnn = util.find_spec("_tools"), util.find_spec("MNN")
    if Path(tools.origin).parent != Path(mnn.origin).parent.parent:
        raise ConversionError(f"a foreign module _tools at {tools.origin} hides MNN's converter; rename or move it")


def _check_options(precision: str, weight_bits: int | None, memory: str, api: str) -> None:
    if weight_bits is not None and weight_bits not in range(2, 9):
        raise ConversionError(f"MNN stores weights in 2 to 8 bits, not in {weight_bits}")
    if weight_bits is not None and precision != "fp32":
        raise ConversionError("MNN stores weights as integers or as fp16, not both: leave out weight_bits or fp16")
    for name, value, known in (("memory", memory, _MEMORY), ("api", api, _APIS)):
        if value not in known:
            raise ConversionError(f"MNN has no {name} {value!r}; choose from {', '.join(known)}")


class _MnnSession(Session):
    """What both APIs share. Outputs are read after a run, from memory that the next one overwrites: hence the lock."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        super().__init__(artifact, threads)
        self._config = {
            "backend": "CPU",
            "numThread": threads,
            "precision": _PRECISIONS[artifact.precision],
            "memory": _MEMORY[artifact.options.get("memory", "normal")],
        }
        self._granted: int | None = None
        with _tool.listen() as heard:  # MNN greets on stdout, and prints why it fails
            import MNN

            # Its errors say only that there is one; the reason is printed.
            with contextlib.suppress(Exception):
                self._open(str(artifact.file(".mnn")))
                self._granted = _granted_threads(threads)
        if not self._is_open():
            raise EngineError(
                f"MNN could not load {artifact.path} with {self._config}. It said:\n{_tool.tail(heard.text)}"
            )
        self._version = MNN.version()
        self._lock = threading.Lock()

    def _facts(self) -> dict[str, Any]:
        options = self.artifact.options
        facts = {
            "version": self._version,
            "threads": self._granted or self.threads,
            "threads_read_back": self._granted is not None,
            "requested_precision": self._config["precision"],
            "backend": "CPU",
            "layout": "NC4HW4",
            "api": options.get("api", "module"),
        }
        if options.get("weight_bits"):
            low = options.get("memory") == "low"
            facts |= {"weights_in_file": f"int{options['weight_bits']}", "weights_in_memory": "int" if low else "fp32"}
            facts |= {"precision": "int8 activations (requested)"} if low else {}
        return facts


class _ModuleSession(_MnnSession):
    def _open(self, path: str) -> None:
        from MNN import expr, nn

        self._net = None
        self._expr = expr
        self._types = [_variable_type(expr, spec) for spec in self.inputs]
        self._runtime = nn.create_runtime_manager((self._config,))
        names_in, names_out = [s.name for s in self.inputs], [s.name for s in self.outputs]
        if self._runtime is not None:
            self._net = nn.load_module_from_file(
                path, names_in, names_out, runtime_manager=self._runtime, thread_num=self.threads
            )

    def _is_open(self) -> bool:
        return getattr(self, "_net", None) is not None

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
        return {**super()._facts(), "gil": "held"}

    def close(self) -> None:
        self._net = self._runtime = None


class _InterpreterSession(_MnnSession):
    def _open(self, path: str) -> None:
        import MNN

        self._mnn = MNN
        self._interpreter = MNN.Interpreter(path)
        self._session = self._interpreter.createSession(self._config)

    def _is_open(self) -> bool:
        return getattr(self, "_session", None) is not None

    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        with self._lock:
            inputs = [self._interpreter.getSessionInput(self._session, spec.name) for spec in self.inputs]
            stale = [tensor.getShape() != array.shape for tensor, array in zip(inputs, arrays, strict=True)]
            if any(stale):
                for tensor, array in zip(inputs, arrays, strict=True):
                    self._interpreter.resizeTensor(tensor, array.shape)
                self._interpreter.resizeSession(self._session)
            # MNN reads these arrays while it copies: they must live until then.
            hosts = [self._host(array) for array in arrays]
            for tensor, host in zip(inputs, hosts, strict=True):
                tensor.copyFrom(host)
            code = self._interpreter.runSession(self._session)
            if code:
                raise EngineError(f"MNN could not run {self.artifact.path}: error {code}")
            return [self._read(spec) for spec in self.outputs]

    def _host(self, array: np.ndarray) -> Any:
        """A tensor of MNN over an array in NCHW order; the Session API knows float32, int32 and uint8."""
        kinds = {"f": (self._mnn.Halide_Type_Float, np.float32), "u": (self._mnn.Halide_Type_Uint8, np.uint8)}
        kind, dtype = kinds.get(array.dtype.kind, (self._mnn.Halide_Type_Int, np.int32))
        return self._mnn.Tensor(
            array.shape, kind, np.ascontiguousarray(array, dtype), self._mnn.Tensor_DimensionType_Caffe
        )

    def _read(self, spec: TensorSpec) -> np.ndarray:
        tensor = self._interpreter.getSessionOutput(self._session, spec.name)
        host = self._host(np.zeros(tensor.getShape(), spec.dtype))
        tensor.copyToHostTensor(host)
        return np.array(host.getNumpyData(), dtype=spec.dtype).reshape(tensor.getShape())

    def _facts(self) -> dict[str, Any]:
        return {**super()._facts(), "gil": "released"}

    def close(self) -> None:
        self._interpreter = self._session = None


def _granted_threads(wanted: int) -> int:
    """How many threads MNN gives a session that wants ``wanted``: the first wish above one in a process fixes its pool.

    A module cannot be asked, a session can; so a session of one operator asks. To be called after the model's own wish.
    """
    import MNN
    from MNN import expr

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "one.mnn")
        expr.save([expr.abs(expr.placeholder([1], expr.NCHW, expr.float))], path)
        interpreter = MNN.Interpreter(path)
        session = interpreter.createSession({"backend": "CPU", "numThread": wanted})
        number = interpreter.getSessionInfo(session, _THREAD_NUMBER)
    return struct.unpack("<i", struct.pack("<f", number))[0]  # the binding takes the integer's bits for a float's


_APIS = {"module": _ModuleSession, "session": _InterpreterSession}
_THREAD_NUMBER = 4  # Interpreter::SessionInfoCode in MNN/Interpreter.hpp
_MEMORY = {"normal": 0, "low": 2}  # BackendConfig::MemoryMode; a word instead of the number is ignored
_PRECISIONS = {"fp32": "high", "fp16": "low"}  # any other word means "normal", without a complaint


def _variable_type(expr: Any, spec: TensorSpec) -> tuple[Any, np.dtype]:
    """MNN's type for an input, and the NumPy type to write: it has no 64-bit integers and no bool."""
    kind = np.dtype(spec.dtype).kind
    if kind == "f":
        return expr.float, np.dtype(np.float32)
    if spec.dtype == "uint8":
        return expr.uint8, np.dtype(np.uint8)
    return expr.int, np.dtype(np.int32)
