"""The TensorRT adapter's own code, run without a GPU: NVIDIA's bindings for the names, ONNX Runtime for the numbers.

Run in a process whose loader finds the real bindings (tools/tensorrt_api.py). Every class that would need a GPU is
replaced by a double that knows only what the real class of this version has: an attribute it lacks raises
AttributeError, a call must fit one of the real signatures by number, name and type. What a double then does is
written here after NVIDIA's documentation; it says nothing about TensorRT's speed or accuracy. It tells whether the
adapter calls what exists, in an order that works, waits before it reads, and frees what it took.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import pickle
import sys
import tempfile
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import tensorrt_bindings as real

import tensorrt_api
from deploylab.engines import _cuda

API = tensorrt_api.Api(real.__version__, tensorrt_api.dump())
HIDDEN: set[str] = set()  # "Class.member" that an older version lacks
NUMPY = {1: "FLOAT", 10: "HALF", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL"}  # ONNX's numbers
DTYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64, "BOOL": bool}


def has(kind: str, name: str) -> bool:
    return API.member(kind, name) is not None and f"{kind}.{name}" not in HIDDEN


class Double:
    """An object of the real class ``KIND``. Reads, writes and calls are checked, then done by ``do_NAME``."""

    KIND = ""

    def __init__(self) -> None:
        object.__setattr__(self, "values", {})

    def __getattr__(self, name: str) -> Any:
        if not has(self.KIND, name):
            raise AttributeError(f"TensorRT {real.__version__}: {self.KIND} has no {name}")
        if API.member(self.KIND, name)["kind"] == "property":
            return self.values[name] if name in self.values else object.__getattribute__(self, f"get_{name}")()
        return checked(self.KIND, name, object.__getattribute__(self, f"do_{name}"))

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
            return
        if not has(self.KIND, name):
            raise AttributeError(f"TensorRT {real.__version__}: {self.KIND} has no {name}")
        if not API.member(self.KIND, name)["settable"]:
            raise AttributeError(f"{self.KIND}.{name} cannot be set")
        wanted = API.signatures(self.KIND, name)
        if wanted and not suits(value, wanted[0].result):
            raise TypeError(f"{self.KIND}.{name} is a {wanted[0].result}, given {value!r}")
        self.values[name] = value


def checked(kind: str, name: str, function: Callable) -> Callable:
    """``function``, callable only as one of the real signatures allows."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if not any(fits(signature, args, kwargs) for signature in API.signatures(kind, name)):
            told = [str(signature.parameters) for signature in API.signatures(kind, name)]
            raise TypeError(f"{kind}.{name} takes {' or '.join(told)}; given {args} {kwargs}")
        return function(*args, **kwargs)

    return call


def fits(signature: tensorrt_api.Signature, args: tuple, kwargs: dict) -> bool:
    names = [parameter.name for parameter in signature.parameters]
    if len(args) > len(names) or set(kwargs) - set(names) or set(kwargs) & set(names[: len(args)]):
        return False
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return all(
        suits(given[parameter.name], parameter.type) if parameter.name in given else not parameter.required
        for parameter in signature.parameters
    )


def suits(value: Any, wanted: str) -> bool:
    """Whether pybind11 would take the value for this type."""
    if wanted.startswith("list["):
        return isinstance(value, (list, tuple)) and all(suits(each, wanted[5:-1]) for each in value)
    if wanted == "Dims":
        return isinstance(value, real.Dims) or suits(value, "list[int]")
    plain = {"int": int, "float": (int, float), "str": str, "bool": bool, "tuple": tuple, "list": list}
    if wanted in plain:
        return isinstance(value, plain[wanted])
    if wanted == "buffer":
        return isinstance(value, (bytes, bytearray, memoryview))
    kind = getattr(real, wanted, None)
    if not isinstance(kind, type):
        return True
    return isinstance(value, kind) or (isinstance(value, (Double, HostMemory)) and wanted == value.KIND)


class HostMemory(bytes):
    KIND = "IHostMemory"


class Network(Double):
    KIND = "INetworkDefinition"

    def __init__(self, flags: int) -> None:
        super().__init__()
        self._flags, self._model = flags, b""


class Profile(Double):
    KIND = "IOptimizationProfile"

    def __init__(self) -> None:
        super().__init__()
        self._shapes: dict[str, tuple] = {}

    def do_set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._shapes[input] = tuple(map(tuple, (min, opt, max)))


class TimingCache(Double):
    KIND = "ITimingCache"

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = data

    def do_serialize(self) -> HostMemory:
        return HostMemory(self._data + b"+")


class Config(Double):
    KIND = "IBuilderConfig"

    def __init__(self) -> None:
        super().__init__()
        self._flags = {real.BuilderFlag.TF32}
        self._profiles: list[Profile] = []
        self._pools: dict[Any, int] = {}
        self._cache: TimingCache | None = None

    def do_set_flag(self, flag: Any) -> None:
        self._flags.add(flag)

    def do_clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag)

    def do_set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._pools[pool] = pool_size

    def get_builder_optimization_level(self) -> int:
        return 3

    def do_add_optimization_profile(self, profile: Profile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def do_create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
        return TimingCache(bytes(serialized_timing_cache))

    def do_set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        fine = ignore_mismatch or not cache._data.startswith(b"another GPU")
        self._cache = cache if fine else self._cache
        return fine

    def do_get_timing_cache(self) -> TimingCache:
        return self._cache


class Builder(Double):
    KIND = "Builder"
    last: Builder

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self._log = logger
        Builder.last = self

    def do_create_network(self, flags: int = 0) -> Network:
        return Network(flags)

    def do_create_builder_config(self) -> Config:
        return Config()

    def do_create_optimization_profile(self) -> Profile:
        return Profile()

    def do_build_serialized_network(self, network: Network, config: Config) -> HostMemory | None:
        self._config, self._network = config, network
        model = onnx.load_from_string(network._model)
        shapes = {value.name: onnx_shape(value) for value in model.graph.input}
        if any(-1 in shape for shape in shapes.values()) and not config._profiles:
            self._log.log(real.ILogger.ERROR, "a dynamic input, but no optimization profile")
            return None
        profile = config._profiles[0]._shapes if config._profiles else {}
        return HostMemory(pickle.dumps({"onnx": network._model, "profile": profile, "flags": network._flags}))


def onnx_shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim)


class ParserError(Double):
    KIND = "ParserError"

    def do_node(self) -> int:
        return 7

    def do_desc(self) -> str:
        return "no importer for operator Stranger"


class OnnxParser(Double):
    KIND = "OnnxParser"

    def __init__(self, network: Network, logger: Any) -> None:
        super().__init__()
        self._network = network
        explicit = getattr(real.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
        if real.__version__.startswith("8.") and network._flags != 1 << int(explicit):
            raise RuntimeError("the parser wants an explicit batch")

    def get_num_errors(self) -> int:
        return 1

    def do_get_error(self, index: int) -> ParserError:
        return ParserError()

    def do_parse_from_file(self, model: str) -> bool:
        loaded = onnx.load(model)
        self._network._model = loaded.SerializeToString()
        return loaded.producer_name != "refused by the parser"


class Runtime(Double):
    KIND = "Runtime"

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self._log = logger

    def do_deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        try:
            return Engine(pickle.loads(serialized_engine))
        except Exception:
            self._log.log(real.ILogger.ERROR, "the plan is damaged")
            return None


class Engine(Double):
    KIND = "ICudaEngine"

    def __init__(self, plan: dict[str, Any]) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(plan["onnx"], options, providers=["CPUExecutionProvider"])
        graph = onnx.load_from_string(plan["onnx"]).graph
        self._inputs = {value.name: onnx_shape(value) for value in graph.input}
        self._outputs = [value.name for value in graph.output]
        self._stored = {v.name: NUMPY[v.type.tensor_type.elem_type] for v in (*graph.input, *graph.output)}
        narrow = {} if hasattr(real.DataType, "INT64") else {"INT64": "INT32"}  # as TensorRT 8 does with int64
        self._types = {name: narrow.get(kind, kind) for name, kind in self._stored.items()}
        self._names = list(self._types)
        self._profile = plan["profile"]

    def get_num_io_tensors(self) -> int:
        return len(self._names)

    def get_num_bindings(self) -> int:
        return len(self._names)

    def do_get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def do_get_binding_name(self, index: int) -> str:
        return self._names[index]

    def do_get_tensor_dtype(self, name: str) -> Any:
        return getattr(real.DataType, self._types[name])

    def do_get_binding_dtype(self, index: int) -> Any:
        return getattr(real.DataType, self._types[self._names[index]])

    def do_create_execution_context(self) -> Context:
        return Context(self)

    def do_create_engine_inspector(self) -> Inspector:
        return Inspector()


class Inspector(Double):
    KIND = "EngineInspector"

    def do_get_engine_information(self, format: Any) -> str:
        field = {"DataType": "Half"} if real.__version__.startswith("11.") else {"Format/Datatype": "Row major FP16"}
        return json.dumps({"Layers": [{"Name": "a", "LayerType": "Conv", "Outputs": [{"Name": "x", **field}]}]})


class Context(Double):
    KIND = "IExecutionContext"
    running: ClassVar[list[Any]] = []  # callbacks that the queue still refers to

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._shapes = dict(engine._inputs)
        self._addresses: dict[str, int] = {}

    def do_set_input_shape(self, name: str, shape: Any) -> bool:
        least, _, most = self._engine._profile.get(name, [self._engine._inputs[name]] * 3)
        assert all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)), "not checked"
        self._shapes[name] = tuple(shape)
        return True

    def do_set_binding_shape(self, binding: int, shape: Any) -> bool:
        return self.do_set_input_shape(self._engine._names[binding], shape)

    def do_get_tensor_shape(self, name: str) -> Any:
        if name not in self._shapes:
            zeros = {n: np.zeros(s, DTYPES[self._engine._stored[n]]) for n, s in self._shapes.items()}
            found = self._engine._session.run([name], zeros)[0].shape
            return real.Dims(list(found))
        return real.Dims(list(self._shapes[name]))

    def do_get_binding_shape(self, binding: int) -> Any:
        return self.do_get_tensor_shape(self._engine._names[binding])

    def do_set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def do_execute_async_v3(self, stream_handle: int) -> bool:
        assert set(self._addresses) == set(self._engine._names), "a tensor has no address"
        return self._start(self._addresses, stream_handle)

    def do_execute_async_v2(self, bindings: list[int], stream_handle: int) -> bool:
        return self._start(dict(zip(self._engine._names, bindings, strict=True)), stream_handle)

    def _start(self, addresses: dict[str, int], stream: int) -> bool:
        """Queue the work; the shapes are those of now, whatever is set before the queue gets there."""
        shapes, engine = dict(self._shapes), self._engine

        def work() -> None:
            given = {
                name: at(addresses[name], DTYPES[engine._types[name]], shape).astype(DTYPES[engine._stored[name]])
                for name, shape in shapes.items()
            }
            for name, array in zip(engine._outputs, engine._session.run(engine._outputs, given), strict=True):
                there = at(addresses[name], DTYPES[engine._types[name]], array.shape)
                np.copyto(there, array, casting="same_kind")

        callback = ctypes.CFUNCTYPE(None)(work)
        Context.running.append(callback)
        return cuda_library().stand_in_enqueue(ctypes.c_void_p(stream), callback) == 0


def at(address: int, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_byte * size).from_address(address), dtype=dtype).reshape(shape)


def cuda_library() -> ctypes.CDLL:
    return CUDA


def checked_class(double: type[Double]) -> Callable:
    return checked(double.KIND, "__init__", double)


def install(library: Path) -> None:
    """Put the doubles in TensorRT's place and the stand-in in CUDA's, for this process."""
    global CUDA
    CUDA = ctypes.CDLL(str(library))
    CUDA.stand_in_live.restype = ctypes.c_long
    module = types.ModuleType("tensorrt")
    module.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec("tensorrt", None)
    for name in API.classes[""]:
        setattr(module, name, getattr(real, name))
    for double in (Builder, Runtime, OnnxParser):
        setattr(module, double.KIND, checked_class(double))
    sys.modules["tensorrt"] = module
    _cuda.DEVICES = (os.devnull,)
    _cuda.library = cuda_library


# ---------------------------------------------------------------------------------------------------------------------
# What is tried. Each case gets the engine, a folder of its own and the folder with the ONNX files.


def truth(path: Path, *arrays: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: array for value, array in zip(session.get_inputs(), arrays, strict=True)})


def pictures(count: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 32, 32), np.float32)


def refused(kind: type[Exception], text: str, call: Callable, *args: Any, **kwargs: Any) -> None:
    told = None
    try:
        call(*args, **kwargs)
    except kind as error:
        told = str(error)
    assert told is not None, f"{kind.__name__} with {text!r} was not raised"
    assert text in told, f"{text!r} is not in {told}"


def case_any_batch_in_the_profile(engine, folder, models):
    with engine.load(engine.convert(models / "tiny.onnx", pictures(), folder)) as session:
        results = []
        for count in (3, 1, 8, 2, 1):
            x = pictures(count, seed=count)
            y = session(x)
            assert y.shape == (count, 7)
            assert y.dtype == np.float32
            assert np.abs(y - truth(models / "tiny.onnx", x)[0]).max() < 1e-5
            results.append((y, y.copy()))
        assert all(np.array_equal(now, then) for now, then in results), "an output was overwritten"
        y += 1  # the caller's own
        refused(errors.InputError, "from (1, 3, 32, 32) to (8, 3, 32, 32), got (9,", session, pictures(9))
        refused(errors.InputError, "expected dtype float32", session, pictures().astype(np.float64))
        facts = session.facts()
        assert facts["gpu"] == "Stand-in GPU"
        assert facts["compute_capability"] == "9.0"
        assert facts["cuda"] == "12.9"
        assert facts["version"] == real.__version__
        assert facts["executed"] == {"fp16": 1}
        assert facts["batch"] == "dynamic"
        json.dumps(facts)
        assert session.gpu_ms() == 1.5


def case_fixed_shapes_and_several_types(engine, folder, models):
    rng = np.random.default_rng(0)
    given = rng.standard_normal((2, 3, 8, 8), np.float32), rng.integers(0, 10, (2, 4))
    with engine.load(engine.convert(models / "two.onnx", given, folder)) as session:
        assert session.inputs[0].shape[0] == 2
        for got, want in zip(session(*given), truth(models / "two.onnx", *given), strict=True):
            assert got.dtype == want.dtype
            assert np.abs(got - want).max() < 1e-5
    refused(
        errors.ConversionError,
        "has the fixed shape",
        engine.convert,
        models / "two.onnx",
        given,
        folder,
        batch=(1, 2, 4),
    )


def case_precisions_reach_the_builder(engine, folder, models):
    strong = hasattr(real.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    weak = {} if strong else {"fp16": real.BuilderFlag.FP16, "int8": real.BuilderFlag.INT8}
    for precision, name in {"fp32": "tiny", "tf32": "tiny", "fp16": "tiny", "int8": "tiny-int8"}.items():
        artifact = engine.convert(models / f"{name}.onnx", pictures(), folder, precision)
        flags, model = Builder.last._config._flags, onnx.load_from_string(Builder.last._network._model)
        assert (real.BuilderFlag.TF32 in flags) == (precision == "tf32"), precision
        assert flags - {real.BuilderFlag.TF32} == ({weak[precision]} if precision in weak else set()), precision
        half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
        assert half == (strong and precision == "fp16"), precision
        with engine.load(artifact) as session:
            assert session.facts()["precision"] == precision
            assert session.facts()["strongly_typed"] == strong
            off = np.abs(session(pictures()) - truth(models / "tiny.onnx", pictures())[0]).max()
            assert off < (1e-5 if precision in ("fp32", "tf32") else 0.1), (precision, off)
    refused(
        errors.ConversionError,
        "give calibration=[...]",
        engine.convert,
        models / "tiny.onnx",
        pictures(),
        folder,
        "int8",
    )
    samples = [pictures(2, seed=seed) for seed in range(3)]
    with engine.load(engine.convert(models / "tiny.onnx", pictures(), folder, "int8", calibration=samples)) as session:
        kinds = {node.op_type for node in onnx.load_from_string(Builder.last._network._model).graph.node}
        assert "QuantizeLinear" in kinds
        assert np.abs(session(pictures()) - truth(models / "tiny.onnx", pictures())[0]).max() < 0.1
    uneven = models / "tiny-uneven.onnx"
    refused(errors.ConversionError, "symmetric int8 only", engine.convert, uneven, pictures(), folder, "int8")


def case_a_cuda_graph_gives_the_same(engine, folder, models):
    artifact = engine.convert(models / "tiny.onnx", pictures(), folder, cuda_graph=True)
    with engine.load(artifact) as session:
        for step, count in enumerate((1, 1, 2, 2, 3, 1, 1, 2)):
            x = pictures(count, seed=step)
            assert np.abs(session(x) - truth(models / "tiny.onnx", x)[0]).max() < 1e-5, step
            assert session.facts()["cuda_graph"]
    assert CUDA.stand_in_live() == 0


def case_everything_is_freed_even_after_a_failure(engine, folder, models):
    artifact = engine.convert(models / "tiny.onnx", pictures(), folder)
    session = engine.load(artifact)
    assert CUDA.stand_in_live() > 0
    session.close()
    session.close()
    assert CUDA.stand_in_live() == 0
    CUDA.stand_in_fail_next_allocation()
    refused(
        errors.EngineError, "cudaMalloc failed: cudaErrorMemoryAllocation (2), out of memory", engine.load, artifact
    )
    assert CUDA.stand_in_live() == 0


def case_an_engine_of_another_machine_is_refused(engine, folder, models):
    artifact = engine.convert(models / "tiny.onnx", pictures(), folder)
    CUDA.stand_in_set_compute_capability(8)
    try:
        refused(errors.EngineError, "built for compute capability 9.0, this machine has 8.0", engine.load, artifact)
        assert engine.find(models / "tiny.onnx", pictures(), folder) is None, "found for another GPU"
    finally:
        CUDA.stand_in_set_compute_capability(9)
    record = artifact.path / "build.json"
    text = record.read_text()
    record.write_text(text.replace(f'"tensorrt": "{real.__version__}"', f'"tensorrt": "{"0" * len(real.__version__)}"'))
    refused(errors.EngineError, "built for tensorrt 000", engine.load, artifact)
    record.write_text(text)
    plan = artifact.path / "model.engine"
    plan.write_bytes(b"\0" * plan.stat().st_size)
    refused(errors.EngineError, "the plan is damaged", engine.load, artifact)


def case_the_parsers_and_the_builders_words_are_told(engine, folder, models):
    refused(
        errors.ConversionError,
        "node 7: no importer for operator Stranger",
        engine.convert,
        models / "refused.onnx",
        pictures(),
        folder,
    )
    refused(
        errors.ConversionError,
        "uses operators that TensorRT does not have: com.example::Odd (1)",
        engine.convert,
        models / "odd.onnx",
        pictures(),
        folder,
    )
    refused(
        errors.ConversionError,
        "has no option colour; there are: any_gpu",
        engine.convert,
        models / "tiny.onnx",
        pictures(),
        folder,
        colour=1,
    )
    refused(
        errors.ConversionError,
        "smallest <= usual <= largest",
        engine.convert,
        models / "tiny.onnx",
        pictures(),
        folder,
        batch=(4, 2, 8),
    )
    build = Builder.do_build_serialized_network
    Builder.do_build_serialized_network = lambda self, network, config: self._log.log(real.ILogger.ERROR, "no kernel")
    try:
        refused(
            errors.ConversionError,
            "could not build tiny.onnx: no kernel",
            engine.convert,
            models / "tiny.onnx",
            pictures(),
            folder,
        )
    finally:
        Builder.do_build_serialized_network = build
    assert not [path for path in folder.iterdir() if path.is_dir()], "something half-done is left"


def case_the_timing_cache_is_kept_and_one_of_another_gpu_replaced(engine, folder, models):
    engine.convert(models / "tiny.onnx", pictures(), folder)
    assert (folder / "tensorrt.timing").read_bytes() == b"+"
    engine.convert(models / "tiny.onnx", pictures(), folder, level=4)
    assert (folder / "tensorrt.timing").read_bytes() == b"++"
    (folder / "tensorrt.timing").write_bytes(b"another GPU")
    engine.convert(models / "tiny.onnx", pictures(), folder, level=5)
    assert (folder / "tensorrt.timing").read_bytes() == b"+"
    engine.convert(models / "tiny.onnx", pictures(), folder / "none", timing_cache=False)
    assert not list((folder / "none").glob("*.timing"))
    engine.convert(models / "tiny.onnx", pictures(), folder / "named", timing_cache=str(folder / "mine"))
    assert (folder / "mine").read_bytes() == b"+"


def case_profile_and_limits_reach_the_builder(engine, folder, models):
    artifact = engine.convert(models / "tiny.onnx", pictures(), folder, batch=(2, 4, 16), workspace_mb=64, level=5)
    config = Builder.last._config
    assert config._profiles[0]._shapes["input"] == ((2, 3, 32, 32), (4, 3, 32, 32), (16, 3, 32, 32))
    limit = config._pools.get(real.MemoryPoolType.WORKSPACE, config.values.get("max_workspace_size"))
    assert limit == 64_000_000
    assert config.values["profiling_verbosity"] == real.ProfilingVerbosity.DETAILED
    if has("IBuilderConfig", "builder_optimization_level"):
        assert config.values["builder_optimization_level"] == 5
    with engine.load(artifact) as session:
        assert session(pictures(16)).shape == (16, 7)
        refused(errors.InputError, "got (1, 3, 32, 32)", session, pictures())


def case_engines_that_travel(engine, folder, models):
    if HIDDEN:
        return  # hardware and version compatibility came with 8.6
    artifact = engine.convert(models / "tiny.onnx", pictures(), folder, any_gpu=True, any_version=True)
    config = Builder.last._config
    assert config.values["hardware_compatibility_level"] == real.HardwareCompatibilityLevel.AMPERE_PLUS
    assert real.BuilderFlag.VERSION_COMPATIBLE in config._flags
    CUDA.stand_in_set_compute_capability(8)
    try:
        with engine.load(artifact) as session:
            assert session(pictures()).shape == (1, 7)
    finally:
        CUDA.stand_in_set_compute_capability(9)


# What TensorRT 8.2 of JetPack 4 lacks, of what 8.6 has (NVIDIA's release notes of 8.4, 8.5 and 8.6).
BEFORE_8_4 = {
    "IBuilderConfig.set_memory_pool_limit",
    "IBuilderConfig.builder_optimization_level",
    "ICudaEngine.num_io_tensors",
    "ICudaEngine.get_tensor_name",
    "ICudaEngine.get_tensor_dtype",
    "IExecutionContext.set_input_shape",
    "IExecutionContext.get_tensor_shape",
    "IExecutionContext.set_tensor_address",
    "IExecutionContext.execute_async_v3",
}


def main() -> None:
    """Arguments: the CUDA stand-in, the folder of ONNX files, and ``old`` to hide what TensorRT 8.2 lacks."""
    global errors
    install(Path(sys.argv[1]))
    from deploylab import engines, errors

    if "old" in sys.argv[3:]:
        HIDDEN.update(BEFORE_8_4)
    engine = engines.get("tensorrt")
    engine.available = lambda: engines.Availability(True, version=real.__version__)
    report = {}
    for name, case in list(globals().items()):
        if name.startswith("case_"):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    case(engine, Path(folder), Path(sys.argv[2]))
                    report[name] = "ok"
                except Exception:
                    text = io.StringIO()
                    traceback.print_exc(file=text)
                    report[name] = text.getvalue()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
