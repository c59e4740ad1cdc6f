"""TensorRT (https://docs.nvidia.com/deeplearning/tensorrt), NVIDIA's compiler and runtime for its own GPUs.

Written for three generations of its Python API: 8.x (JetPack 4 and 5), 10.x (JetPack 6 and 7) and 11.x. What changed:

* 8.0 to 8.4 know inputs and outputs by number ("bindings"); 8.5 and newer know them by name.
* Up to 10 a network may be weakly typed: flags allow float16 and int8, and the builder chooses. From 10 on the adapter
  asks for strong typing, where the ONNX file says each tensor's type; since 11 there is nothing else.
* INT8 calibration inside the builder is gone since 11. The adapter never used it: int8 means an ONNX file with
  ``QuantizeLinear`` and ``DequantizeLinear`` nodes (:func:`deploylab.models.onnx_precision.to_int8` writes it).

Sources: NVIDIA's migration guides "from TensorRT 8.x to 10.x" and "10.x to 11.x". Every name used here is checked
against NVIDIA's own bindings by tests/unit/test_tensorrt_bindings.py.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploylab.engines import _cuda, _onnx, _tensorrt_operators
from deploylab.engines.base import Artifact, Availability, Engine, Session, Source, TensorSpec
from deploylab.errors import ConversionError, EngineError, InputError

if TYPE_CHECKING:
    import tensorrt as trt

_PLAN = "model.engine"
_BUILD = "build.json"
_PACKAGES = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu11")
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
_TYPE_WORDS = re.compile(r"\b(FP32|FP16|BF16|FP8|INT8|INT32|INT64|BOOL|Float|Half|Int8|Int32|Int64|BFloat16|Bool)\b")
_TYPE_NAMES = {"float": "fp32", "half": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Options:
    """What :meth:`TensorRT.convert` takes besides source, example and precision.

    ``batch`` is the smallest, usual and largest batch of the optimization profile; the builder chooses its kernels for
    the usual one. ``workspace_mb`` (10^6 bytes) bounds the scratch memory that a kernel may ask for. ``level`` 0 to 5
    trades build time for speed (TensorRT 8.6 and newer). With ``cuda_graph`` a session records each input shape's work
    once and launches it as one. ``timing_cache`` keeps kernel timings between builds; give a path, or False for none.
    ``calibration`` holds samples for precision int8, from which the range of every tensor is learned; a file that has
    its ``QuantizeLinear`` nodes already needs none.
    ``any_gpu`` makes an engine for every GPU of the Ampere generation or newer, ``any_version`` one that newer versions
    of TensorRT load too; both cost speed.
    """

    batch: tuple[int, int, int] | None = None
    workspace_mb: int = 1000
    level: int = 3
    cuda_graph: bool = False
    timing_cache: str | bool = True
    any_gpu: bool = False
    any_version: bool = False
    calibration: Sequence[Any] | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Checked options. Raises :class:`ConversionError` for an unknown one and for an impossible batch range."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(given) - known):
            raise ConversionError(f"tensorrt has no option {', '.join(unknown)}; there are: {', '.join(sorted(known))}")
        options = cls(**given)
        if options.batch is not None:
            least, usual, most = options.batch
            if not 1 <= least <= usual <= most:
                raise ConversionError(f"batch={options.batch}: give smallest <= usual <= largest, and 1 or more")
        return options


class TensorRT(Engine):
    name = "tensorrt"
    title = "TensorRT"
    accepts = frozenset({"torch", "onnx"})
    precisions = ("fp32", "tf32", "fp16", "int8")
    distributions = ("tensorrt",)
    runtime_packages = ("tensorrt",)
    modules = ("tensorrt",)
    converter_modules = ("onnx", "onnxruntime")
    core = False

    @property
    def install(self) -> str:
        """TensorRT comes from NVIDIA: with JetPack on a Jetson, from its own package index elsewhere."""
        if Path("/etc/nv_tegra_release").exists():
            return "sudo apt install python3-libnvinfer"
        return "pip install tensorrt"

    def available(self) -> Availability:
        """Whether a GPU, the CUDA runtime and the package are there; nothing is imported. Never raises."""
        try:
            if not _cuda.has_gpu():
                reason = "this machine has no NVIDIA GPU, which TensorRT builds and runs on"
                return Availability(False, reason, fix="a machine with an NVIDIA GPU, a Jetson board for example")
            if problem := _cuda.missing():
                return Availability(False, problem, fix=self.install)
            found = super().available()
            return Availability(True, version=_installed_version()) if found.ok else found
        except metadata.PackageNotFoundError:  # unpacked by hand, as NVIDIA's archives are
            return Availability(True, version="unknown")
        except Exception as error:
            return Availability(False, f"broken installation: {error}", fix=self.install)

    def _folder_name(
        self, source_hash: str, example: tuple[np.ndarray, ...], precision: str, options: Mapping[str, Any]
    ) -> str:
        """The GPU belongs to what an engine is made of."""
        gpu = _cuda.runtime().describe()
        return super()._folder_name(source_hash, example, precision, {**options, "machine": gpu})

    def _convert(
        self, source: Source, example: tuple[np.ndarray, ...], folder: Path, precision: str, **options: Any
    ) -> tuple[list[TensorSpec], list[TensorSpec]]:
        import tensorrt as trt

        chosen = Options.of(options)
        path = _onnx.as_onnx(source, example, folder)
        inputs, outputs = _onnx.specs(path, example)
        _require_operators(path)
        ranges = shape_ranges(inputs, example, chosen.batch)
        cache = _timing_cache_path(chosen, folder.parent)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            typed = _in_precision(path, precision, Path(work), strongly_typed(trt), chosen.calibration)
            plan = build(trt, typed, precision, ranges, chosen, cache)
        (folder / _PLAN).write_bytes(plan)
        _write_build_record(folder / _BUILD, trt, precision, ranges, chosen)
        return [_with_range(spec, *ranges[spec.name]) for spec in inputs], outputs

    def _load(self, artifact: Artifact, threads: int) -> Session:
        return _TensorRTSession(artifact, threads)


def _installed_version() -> str:
    """The version of the first of NVIDIA's packages that is installed; they come in one per CUDA generation."""
    for name in _PACKAGES[:-1]:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return metadata.version(_PACKAGES[-1])


# ---------------------------------------------------------------------------------------------------------------------
# Build


def strongly_typed(trt: Any) -> bool:
    """Whether this TensorRT builds networks whose types the ONNX file decides (10 and newer)."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def shape_ranges(
    inputs: Sequence[TensorSpec], example: tuple[np.ndarray, ...], batch: tuple[int, int, int] | None
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Input name to its smallest, usual and largest shape, for the optimization profile.

    A first axis of any size ranges over ``batch``, by default from 1 to 8 or the example's size; other axes of any size
    are fixed at the example's. Raises :class:`ConversionError` if ``batch`` is given for a model of fixed batch.
    """
    ranges = {}
    for spec, array in zip(inputs, example, strict=True):
        dynamic = bool(spec.shape) and spec.shape[0] is None
        if batch is not None and not dynamic:
            raise ConversionError(f"batch={batch}, but input {spec.name!r} has the fixed shape {spec.shape_text}")
        if not dynamic:
            ranges[spec.name] = (array.shape,) * 3
            continue
        usual = array.shape[0]
        sizes = batch or (1, usual, max(8, usual))
        ranges[spec.name] = tuple((size, *array.shape[1:]) for size in sizes)
    return ranges


def _with_range(spec: TensorSpec, least: tuple[int, ...], usual: tuple[int, ...], most: tuple[int, ...]) -> TensorSpec:
    shape = tuple(None if low != high else low for low, high in zip(least, most, strict=True))
    return TensorSpec(spec.name, shape, spec.dtype)


def _require_operators(path: Path) -> None:
    """Name the operators that no TensorRT takes before minutes of building; plug-ins are not supported here."""
    if lacking := _tensorrt_operators.unsupported(path):
        told = ", ".join(f"{name} ({count})" for name, count in lacking.items())
        raise ConversionError(f"{path.name} uses operators that TensorRT does not have: {told}")


def _in_precision(path: Path, precision: str, folder: Path, strong: bool, calibration: Sequence[Any] | None) -> Path:
    """The file to build from. A strongly typed network gets float16 from the file, a weakly typed one from a flag."""
    from deploylab.models import onnx_precision

    if precision == "fp16" and strong:
        return onnx_precision.to_float16(path, folder / "float16.onnx")
    if precision != "int8":
        return path
    if onnx_precision.quantized_nodes(path):
        if faults := onnx_precision.faults_for_tensorrt(path):
            raise ConversionError(f"{path.name}: TensorRT takes symmetric int8 only. {faults[0]}")
        return path
    if not calibration:
        raise ConversionError(
            f"{path.name} has no QuantizeLinear nodes, so the ranges of int8 must be learned: give calibration=[...], "
            "samples like those that will come"
        )
    batches = [sample if isinstance(sample, np.ndarray) else sample[0] for sample in calibration]
    return onnx_precision.to_int8(path, folder / "int8.onnx", batches)


def build(
    trt: Any,
    path: Path,
    precision: str,
    ranges: Mapping[str, tuple[tuple[int, ...], ...]],
    options: Options,
    timing_cache: Path | None = None,
) -> bytes:
    """The serialized engine ("plan") of an ONNX file, for the GPU of this machine.

    Raises :class:`ConversionError` with the parser's or the builder's own words.
    """
    log = _logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        raise ConversionError(f"TensorRT cannot read {path.name}: {_parser_errors(parser) or log.told()}")
    config = builder.create_builder_config()
    _set_precision(trt, config, precision)
    _set_effort(trt, config, options)
    if any(least != most for least, _, most in ranges.values()):
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in ranges.items():
            profile.set_shape(name, least, usual, most)
        if config.add_optimization_profile(profile) < 0:
            raise ConversionError(f"TensorRT refuses the optimization profile {dict(ranges)}: {log.told()}")
    _read_timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ConversionError(f"TensorRT could not build {path.name}: {log.told()}")
    _write_timing_cache(config, timing_cache)
    return bytes(plan)


def _network_flags(trt: Any) -> int:
    kinds = trt.NetworkDefinitionCreationFlag
    if not hasattr(kinds, "STRONGLY_TYPED"):  # 8.x: the batch is an axis like any other, which was not the default
        return 1 << int(kinds.EXPLICIT_BATCH)
    if hasattr(kinds, "EXPLICIT_BATCH"):  # 10.x
        return 1 << int(kinds.STRONGLY_TYPED)
    return 0  # 11.x: always strongly typed


def _set_precision(trt: Any, config: trt.IBuilderConfig, precision: str) -> None:
    if precision != "tf32":
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default: it rounds float32 to 10 bits of mantissa
    if strongly_typed(trt):
        return
    if precision == "fp16":
        config.set_flag(trt.BuilderFlag.FP16)
    if precision == "int8":
        config.set_flag(trt.BuilderFlag.INT8)


def _set_effort(trt: Any, config: trt.IBuilderConfig, options: Options) -> None:
    workspace = options.workspace_mb * 1_000_000
    if hasattr(config, "set_memory_pool_limit"):  # 8.4 and newer
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    else:
        config.max_workspace_size = workspace
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector; it costs no speed
    if hasattr(config, "builder_optimization_level"):  # 8.6 and newer
        config.builder_optimization_level = options.level
    if options.any_gpu:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.any_version:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)


def _parser_errors(parser: trt.OnnxParser) -> str:
    errors = [parser.get_error(position) for position in range(parser.num_errors)]
    return "; ".join(f"node {error.node()}: {error.desc()}" for error in errors)


def _timing_cache_path(options: Options, folder: Path) -> Path | None:
    """Beside the artifacts by default, one for all builds: TensorRT itself refuses one of another GPU or version."""
    if options.timing_cache is False:
        return None
    return folder / "tensorrt.timing" if options.timing_cache is True else Path(options.timing_cache)


def _read_timing_cache(config: trt.IBuilderConfig, path: Path | None) -> None:
    if path is None:
        return
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known)
    if not config.set_timing_cache(cache, ignore_mismatch=False):  # of another GPU or version: begin a new one
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _write_timing_cache(config: trt.IBuilderConfig, path: Path | None) -> None:
    if path is None:
        return
    cache = config.get_timing_cache()
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    with os.fdopen(handle, "wb") as stream:
        stream.write(cache.serialize())
    shutil.move(temporary, path)


def _write_build_record(path: Path, trt: Any, precision: str, ranges: Mapping[str, Any], options: Options) -> None:
    record = {
        "tensorrt": trt.__version__,
        **_cuda.runtime().describe(),
        "strongly_typed": strongly_typed(trt),
        "precision": precision,
        "profile": ranges,
        "any_gpu": options.any_gpu,
        "any_version": options.any_version,
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _logger(trt: Any) -> Any:
    """TensorRT's logger, kept in memory: its last warnings and errors explain a refusal."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # the binding has no cooperative constructor
            self.lines: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                self.lines.append(msg)

        def told(self) -> str:
            return " | ".join(self.lines[-4:]) or "it gave no reason"

    return Log()


# ---------------------------------------------------------------------------------------------------------------------
# Run


class _TensorRTSession(Session):
    """Copies in, runs, copies out and waits, all on one CUDA stream: a call's time is the whole of it."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        import tensorrt as trt

        super().__init__(artifact, threads)
        self._record = json.loads(artifact.file(_BUILD).read_text(encoding="utf-8"))
        self._cuda = _cuda.runtime()
        self._machine = {"tensorrt": trt.__version__, **self._cuda.describe()}
        require_same_machine(self._record, self._machine, artifact.path)
        self._trt, self._log = trt, _logger(trt)
        self._runtime = trt.Runtime(self._log)
        self._engine = _deserialized(self._runtime, artifact, self._log, self._record["any_version"])
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"no GPU memory for the engine's intermediate tensors: {self._log.told()}")
        self._tensors = tensors_of(self._engine, self._context)
        self._shapes: tuple[tuple[int, ...], ...] = ()
        self._graph: _cuda.Graph | None = None
        self._lock = threading.Lock()  # a context runs one inference at a time
        with contextlib.ExitStack() as opened:
            self._stream = opened.enter_context(contextlib.closing(_cuda.Stream(self._cuda)))
            self._memory = self._reserve(opened)
            self._open = opened.pop_all()

    def _reserve(self, opened: contextlib.ExitStack) -> dict[str, _cuda.Memory]:
        """Memory for each input and output at its largest, bound to the context once and for all."""
        self._set_shapes([self._record["profile"][spec.name][2] for spec in self.inputs])
        memory = {}
        for spec in (*self.inputs, *self.outputs):
            if min(self._tensors.shape(spec.name), default=0) < 0:
                raise EngineError(f"the size of output {spec.name!r} depends on the data; that is not supported")
            memory[spec.name] = _cuda.Memory(self._cuda, self._bytes(spec.name))
            opened.enter_context(contextlib.closing(memory[spec.name]))
            self._tensors.bind(spec.name, memory[spec.name].device.value)
        return memory

    def _set_shapes(self, shapes: Sequence[Sequence[int]]) -> None:
        """Tell the context new input shapes. A graph recorded before is void: it holds the context's old state."""
        shapes = tuple(map(tuple, shapes))
        if shapes == self._shapes:
            return
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        for spec, shape in zip(self.inputs, shapes, strict=True):
            self._tensors.set_shape(spec.name, shape)
        self._shapes = shapes

    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        for spec, array in zip(self.inputs, arrays, strict=True):
            self._check_range(spec.name, array.shape)
        with self._lock:
            self._set_shapes([array.shape for array in arrays])
            for spec, array in zip(self.inputs, arrays, strict=True):
                np.copyto(self._view(spec.name), array, casting="same_kind")
            self._launch()
            self._stream.synchronize()
            return [self._view(spec.name).astype(spec.dtype) for spec in self.outputs]  # a copy, which the caller owns

    def _check_range(self, name: str, shape: tuple[int, ...]) -> None:
        least, _, most = self._record["profile"][name]
        if not all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
            raise InputError(
                f"input {name!r}: the engine was built for shapes from {tuple(least)} to {tuple(most)}, got {shape}; "
                "convert with another batch=(smallest, usual, largest)"
            )

    def _view(self, name: str) -> np.ndarray:
        return self._memory[name].view(self._tensors.dtype(name), self._tensors.shape(name))

    def _bytes(self, name: str) -> int:
        return math.prod(self._tensors.shape(name)) * self._tensors.dtype(name).itemsize

    def _launch(self) -> None:
        if self._graph is not None:
            self._graph.launch()
            return
        self._enqueue()
        if self.artifact.options.get("cuda_graph"):  # after a run: the first of a shape does work that a graph cannot
            self._stream.synchronize()
            self._graph = self._stream.captured(self._enqueue)

    def _enqueue(self) -> None:
        """Queue the copies in, the engine and the copies out. Returns before any of it is done."""
        for spec in self.inputs:
            self._stream.to_device(self._memory[spec.name], self._bytes(spec.name))
        if not self._tensors.enqueue(self._stream.handle):
            raise EngineError(f"TensorRT could not start the inference: {self._log.told()}")
        for spec in self.outputs:
            self._stream.to_host(self._memory[spec.name], self._bytes(spec.name))

    def gpu_ms(self) -> float:
        """Milliseconds between two CUDA events around one more run of the last input: the GPU's share of a call."""
        with self._lock:
            return self._stream.timed(self._enqueue)

    def layers(self) -> list[dict[str, Any]]:
        """The engine's layers after fusion, from the inspector: ``name``, ``kind`` and the outputs' ``types``."""
        inspector = self._engine.create_engine_inspector()
        return parse_layers(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def _facts(self) -> dict[str, Any]:
        layers = self.layers()
        return {
            "version": self._machine["tensorrt"],
            "gpu": self._machine["gpu"],
            "compute_capability": self._machine["compute_capability"],
            "cuda": self._machine["cuda"],
            "strongly_typed": self._record["strongly_typed"],
            "profile": self._record["profile"],
            "layers": len(layers),
            "executed": dict(Counter(kind for layer in layers for kind in layer["types"][:1])),
            "cuda_graph": self._graph is not None,
            "layout": "NCHW",
            "gil": "released",  # by the call guards of the binding, and by ctypes
        }

    def close(self) -> None:
        if self._graph is not None:
            self._graph.close()
        self._open.close()
        self._memory = {}
        self._graph = self._tensors = self._context = self._engine = self._runtime = None


def require_same_machine(record: Mapping[str, Any], machine: Mapping[str, str], path: Path | str) -> None:
    """An engine holds machine code: it runs with the TensorRT and on the kind of GPU that built it.

    ``record`` is what the build wrote down. Raises :class:`EngineError` naming the first difference that matters.
    """
    same = ["tensorrt"] * (not record["any_version"]) + ["compute_capability", "gpu"] * (not record["any_gpu"])
    for key in same:
        if record[key] != machine[key]:
            raise EngineError(
                f"{path}: built for {key.replace('_', ' ')} {record[key]}, this machine has {machine[key]}. "
                "An engine is not portable: carry the ONNX file and convert it here"
            )


def _deserialized(runtime: trt.Runtime, artifact: Artifact, log: Any, any_version: bool) -> trt.ICudaEngine:
    if any_version:
        runtime.engine_host_code_allowed = True  # such a plan carries its own runtime: code, so from trusted files only
    engine = runtime.deserialize_cuda_engine(artifact.file(_PLAN).read_bytes())
    if engine is None:
        raise EngineError(f"TensorRT cannot load {artifact.path}: {log.told()}")
    return engine


def parse_layers(text: str) -> list[dict[str, Any]]:
    """Layers of the inspector's JSON: ``name``, ``kind`` and ``types`` of the outputs (``fp32``, ``fp16``, ``int8``).

    An engine without details gives names only. TensorRT 8 to 10 write one field ``Format/Datatype``; 11 splits it into
    ``Format`` and ``DataType`` (NVIDIA, "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x").
    """
    found = []
    for layer in json.loads(text).get("Layers", []):
        if isinstance(layer, str):
            found.append({"name": layer, "kind": "", "types": []})
            continue
        types = [_type_name(output) for output in layer.get("Outputs", [])]
        found.append({"name": layer.get("Name", ""), "kind": layer.get("LayerType", ""), "types": types})
    return found


def _type_name(tensor: Mapping[str, Any]) -> str:
    text = str(tensor.get("DataType") or tensor.get("Datatype") or tensor.get("Format/Datatype") or "")
    word = _TYPE_WORDS.search(text)
    if word is None:
        return text or "unknown"
    return _TYPE_NAMES.get(word.group(1).lower(), word.group(1).lower())


# ---------------------------------------------------------------------------------------------------------------------
# Inputs and outputs, by name or by number


def tensors_of(engine: trt.ICudaEngine, context: trt.IExecutionContext) -> _NamedTensors | _NumberedTensors:
    """The engine's inputs and outputs, through the API that this TensorRT has."""
    if hasattr(engine, "num_io_tensors"):
        return _NamedTensors(engine, context)
    return _NumberedTensors(engine, context)


class _NamedTensors:
    """TensorRT 8.5 and newer: every tensor has a name and an address."""

    def __init__(self, engine: trt.ICudaEngine, context: trt.IExecutionContext) -> None:
        self._context = context
        names = [engine.get_tensor_name(position) for position in range(engine.num_io_tensors)]
        self._dtypes = {name: _numpy_dtype(engine.get_tensor_dtype(name)) for name in names}

    def dtype(self, name: str) -> np.dtype:
        return self._dtypes[name]

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self._context.set_input_shape(name, shape)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._context.get_tensor_shape(name))

    def bind(self, name: str, address: int) -> None:
        self._context.set_tensor_address(name, address)

    def enqueue(self, stream: int) -> bool:
        return self._context.execute_async_v3(stream)


class _NumberedTensors:
    """TensorRT 8.0 to 8.4 (JetPack 4): every tensor has a number, and a run takes the list of addresses."""

    def __init__(self, engine: trt.ICudaEngine, context: trt.IExecutionContext) -> None:
        self._context = context
        count = engine.num_bindings
        self._numbers = {engine.get_binding_name(position): position for position in range(count)}
        self._dtypes = [_numpy_dtype(engine.get_binding_dtype(position)) for position in range(count)]
        self._addresses = [0] * count

    def dtype(self, name: str) -> np.dtype:
        return self._dtypes[self._numbers[name]]

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self._context.set_binding_shape(self._numbers[name], shape)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._context.get_binding_shape(self._numbers[name]))

    def bind(self, name: str, address: int) -> None:
        self._addresses[self._numbers[name]] = address

    def enqueue(self, stream: int) -> bool:
        return self._context.execute_async_v2(self._addresses, stream)


def _numpy_dtype(dtype: trt.DataType) -> np.dtype:
    """NumPy's type. TensorRT's own ``nptype`` of 8.x uses names that NumPy has dropped."""
    if dtype.name not in _DTYPES:
        raise EngineError(f"an input or output of type {dtype.name} has no NumPy type")
    return np.dtype(_DTYPES[dtype.name])
