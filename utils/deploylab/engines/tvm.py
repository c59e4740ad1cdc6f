"""Apache TVM (https://tvm.apache.org): a compiler. Relax, tensor programs, LLVM for this CPU, a shared library.

Without tuning every tensor program gets a schedule by rule, which measures nothing; facts and tables say ``untuned``.
:meth:`TVM.tune` searches better ones with MetaSchedule and keeps its records beside the artifacts, where the next
conversion of the same model finds them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from deploylab import files, machine
from deploylab.engines import _onnx, _tool, _tvm
from deploylab.engines._tvm_child import BUILT_FOR, LIBRARY, RELAX
from deploylab.engines.base import Artifact, Engine, Session, Source, TensorSpec, hash_source
from deploylab.errors import ConversionError, DeployLabError, EngineError, InputError

RECORDS = "records.json"
_TUNED = "tuned"
_GRACE_S = 60.0  # a tuner that is this late hangs


class TVM(Engine):
    name = "tvm"
    title = "Apache TVM"
    accepts = frozenset({"torch", "onnx"})
    distributions = ("apache-tvm",)
    runtime_packages = ("apache-tvm",)
    modules = ("tvm",)
    converter_modules = ("onnx",)
    extra = "compilers"
    core = False

    def tune(
        self,
        source: Source,
        example: np.ndarray | Sequence[np.ndarray],
        out_dir: Path | str,
        trials: int = 256,
        seconds: float = 60.0,
        progress: Callable[[Trial], None] | None = None,
    ) -> list[Trial]:
        """Search faster schedules for the example's sizes until ``trials`` are on record or ``seconds`` are over.

        The records stay under ``out_dir``: a second call goes on where the first ended, however it ended, and
        :meth:`convert` uses the best. Returns the trials of this call. Raises what :meth:`convert` raises.
        """
        self._require_converter()
        if trials < 1 or seconds <= 0:
            raise InputError(f"tuning needs at least one trial and some time, got {trials} trials and {seconds} s")
        source, source_hash, arrays, _ = self._wanted(source, example, out_dir, "fp32", {"tuning": "off"})
        records = _records(Path(out_dir), source_hash, arrays)
        records.mkdir(parents=True, exist_ok=True)
        made: list[Trial] = []

        def hear(line: str) -> None:
            made.append(Trial(**json.loads(line)))
            if progress:
                progress(made[-1])

        with tempfile.TemporaryDirectory(prefix="deploylab-tvm-") as work:
            module, _ = _imported(_ways(source, arrays, Path(out_dir)), lambda module: None)
            _write_relax(module, Path(work))
            command = _child("tune", work, _sizes(arrays), records.resolve(), trials, seconds)
            _tool.follow("tvm's tuner", command, Path(work), hear, seconds + _GRACE_S)
        return made

    def convert(
        self,
        source: Source,
        example: np.ndarray | Sequence[np.ndarray],
        out_dir: Path | str,
        precision: str = "fp32",
        **options: Any,
    ) -> Artifact:
        """As every engine converts, with what :meth:`tune` recorded for this model; ``tuning="off"`` leaves it out."""
        return super().convert(source, example, out_dir, precision, **options)

    def _wanted(
        self, source: Source, example: Any, out_dir: Path | str, precision: str, options: Mapping[str, Any]
    ) -> tuple[Source, str, tuple[np.ndarray, ...], Path]:
        """The records are part of what is converted, so an artifact made before they were is another one."""
        source, source_hash, arrays, folder = super()._wanted(source, example, out_dir, precision, options)
        records = _records(Path(out_dir), source_hash, arrays) / RECORDS
        if options.get("tuning") == "off" or not records.is_file():
            return source, source_hash, arrays, folder
        digest = hashlib.sha256(records.read_bytes()).hexdigest()[:8]
        return source, source_hash, arrays, folder.with_name(f"{folder.name}-tuned-{digest}")

    def _convert(
        self,
        source: Source,
        example: tuple[np.ndarray, ...],
        folder: Path,
        precision: str,
        tuning: str = "",
        **options: Any,
    ) -> tuple[list[TensorSpec], list[TensorSpec]]:
        _tvm.compiler()
        _require_linker()
        records = _records(folder.parent, hash_source(source), example)
        tuned = tuning != "off" and (records / RECORDS).is_file()
        plain = self.find(source, example, folder.parent, precision, tuning="off") if tuned else None

        def compile_for_any_batch(module: Any) -> None:
            if plain is None:
                _compile(module, folder)
            else:
                for name in plain.files:
                    shutil.copyfile(plain.path / name, folder / name)

        module, specs = _imported(_ways(source, example, folder.parent), compile_for_any_batch)
        if tuned:
            (folder / _TUNED).mkdir()
            _compile(module, folder / _TUNED, _sizes(example), records.resolve())
        return specs

    def _load(self, artifact: Artifact, threads: int) -> Session:
        for name in artifact.files:
            if name.endswith(BUILT_FOR):
                _require_this_cpu(artifact, json.loads((artifact.path / name).read_text(encoding="utf-8")))
        return _TvmSession(artifact, threads)


@dataclass(frozen=True)
class Trial:
    """One schedule tried: how many are on record, seconds since the search began, of which tensor program, the
    milliseconds it took (None if it failed), and the milliseconds of all programs at their best (None until known).
    """

    trials: int
    seconds: float
    program: str
    milliseconds: float | None
    total: float | None


def _records(out_dir: Path, source_hash: str, example: tuple[np.ndarray, ...]) -> Path:
    """Where the records of a model lie: for these sizes and for a CPU like this one."""
    shapes = "_".join("x".join(map(str, array.shape)) for array in example)
    cpu = hashlib.sha256(f"{machine.cpu_model()} {machine.features()}".encode()).hexdigest()[:8]
    return out_dir / f"tvm-tuning-{source_hash[:16]}-{shapes}-{cpu}"


def _sizes(example: tuple[np.ndarray, ...]) -> str:
    return json.dumps([array.shape for array in example])


Imported: TypeAlias = tuple[Any, tuple[list[TensorSpec], list[TensorSpec]]]
"""A model as Relax, and its inputs and outputs."""


def _imported(ways: Sequence[Callable[[], Imported]], use: Callable[[Any], None]) -> Imported:
    """The model by the first way that works, used. Raises :class:`ConversionError` if none does."""
    problems = []
    for way in ways:
        try:
            module, specs = way()
            use(module)
            return module, specs
        except Exception as error:
            problems.append(str(error) if isinstance(error, DeployLabError) else f"{type(error).__name__}: {error}")
    raise ConversionError(f"tvm cannot compile the model: {problems[0]}")


def _ways(source: Source, example: tuple[np.ndarray, ...], out_dir: Path) -> list[Callable[[], Imported]]:
    """How the model may become Relax, the best first: with any batch size, then with the example's."""
    if not isinstance(source, Path):
        return [
            lambda: _from_torch(source, example, out_dir, dynamic=True),
            lambda: _from_torch(source, example, out_dir, dynamic=False),
        ]
    inputs, outputs = _onnx.specs(source, example)

    def imported(shapes: Mapping[str, Sequence[int]] | None) -> Imported:
        module = _tvm.from_onnx(source, shapes)
        found_in, found_out = _tvm.specs(module)
        return module, (
            [TensorSpec(spec.name, found.shape, spec.dtype) for spec, found in zip(inputs, found_in, strict=True)],
            [TensorSpec(spec.name, found.shape, found.dtype) for spec, found in zip(outputs, found_out, strict=True)],
        )

    fixed = {spec.name: array.shape for spec, array in zip(inputs, example, strict=True)}
    symbolic = any(size is None for spec in inputs for size in spec.shape)
    return [lambda: imported(None), *([lambda: imported(fixed)] if symbolic else [])]


def _from_torch(module: Any, example: tuple[np.ndarray, ...], out_dir: Path, dynamic: bool) -> Imported:
    """The exported module. An export takes seconds, so it is kept for tuning and for converting again."""
    import tvm

    shapes = "_".join("x".join(map(str, array.shape)) for array in example)
    batch = "any" if dynamic else "fixed"
    path = out_dir / f"relax-{tvm.__version__}-{hash_source(module)[:16]}-{shapes}-{batch}.json"
    if path.is_file():
        relax = tvm.ir.load_json(path.read_text(encoding="utf-8"))
    else:
        relax = _tvm.from_torch(module, example, dynamic)
        with files.draft(path) as unfinished:
            unfinished.write_text(tvm.ir.save_json(relax), encoding="utf-8")
    return relax, _tvm.specs(relax)


def _compile(module: Any, folder: Path, *tuned: Any) -> None:
    """Compile ``module`` in ``folder``; ``tuned``: the sizes of its inputs and the records that are to be used."""
    _write_relax(module, folder)
    _tool.run("tvm's compiler", _child("build", ".", *tuned), folder)
    if not (folder / LIBRARY).is_file():
        raise ConversionError(f"tvm's compiler ended well but wrote no {LIBRARY}")
    (folder / RELAX).unlink()


def _write_relax(module: Any, folder: Path) -> None:
    import tvm

    (folder / RELAX).write_text(tvm.ir.save_json(module), encoding="utf-8")


def _child(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "deploylab.engines._tvm_child", *map(str, arguments)]


def _require_linker() -> None:
    from tvm.support import cc

    if cc.get_cc() is None:
        raise EngineError(
            "tvm links what it compiled with a C compiler, and there is none; "
            "apt-get install g++ (Debian, Ubuntu), xcode-select --install (macOS)"
        )


def _require_this_cpu(artifact: Artifact, built: Mapping[str, Any]) -> None:
    here = machine.architecture()
    lacking = sorted(set(built["features"]) - set(machine.features()))
    if built["architecture"] != here or lacking:
        what = f"a {built['architecture']} CPU" + (f" with {', '.join(lacking)}" if lacking else "")
        raise EngineError(f"{artifact.path} was compiled for {what}, this one is {here}; convert it again here")


class _TvmSession(Session):
    def __init__(self, artifact: Artifact, threads: int) -> None:
        super().__init__(artifact, threads)
        self._tvm = _tvm.imported()
        self._loaded = [self._load(artifact.path)]
        self._tuned_shapes: list[tuple[int, ...]] | None = None
        if any(name.startswith(_TUNED) for name in artifact.files):
            self._loaded.append(self._load(artifact.path / _TUNED))
            self._tuned_shapes = [tuple(shape) for shape in self._loaded[1][1]["shapes"]]
        self._fed: list[tuple[Any, np.ndarray] | None] = [None] * len(self.inputs)
        self._lock = threading.Lock()  # one virtual machine runs one inference at a time
        _use_threads(self._tvm, threads)

    def _load(self, folder: Path) -> tuple[Any, dict[str, Any]]:
        """The function ``main`` of a compiled model, and what it was built for."""
        library = self._tvm.runtime.load_module(str(folder / LIBRARY))
        virtual = self._tvm.runtime.vm.VirtualMachine(library, self._tvm.cpu())
        return virtual["main"], json.loads((folder / BUILT_FOR).read_text(encoding="utf-8"))

    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        with self._lock:
            _use_threads(self._tvm, self.threads)
            main = self._loaded[[array.shape for array in arrays] == self._tuned_shapes][0]
            result = main(*(self._feed(position, array) for position, array in enumerate(arrays)))
            tensors = [result] if hasattr(result, "numpy") else list(result)
            return [tensor.numpy() for tensor in tensors]  # copies

    def _feed(self, position: int, array: np.ndarray) -> Any:
        """Copy into a tensor of TVM's own, aligned as its vectors want it; only a new shape needs another one."""
        own = self._fed[position]
        if own is None or own[1].shape != array.shape:
            tensor = self._tvm.runtime.empty(array.shape, str(array.dtype), self._tvm.cpu())
            own = self._fed[position] = tensor, np.from_dlpack(tensor)
        np.copyto(own[1], array)
        return own[0]

    def _facts(self) -> dict[str, Any]:
        _use_threads(self._tvm, self.threads)
        built = self._loaded[-1][1]
        return {
            "version": self._tvm.__version__,
            "threads": self._tvm.get_global_func("runtime.NumThreads")(),
            "target": built["target"],
            "tensor_programs": built["tensor_programs"],
            **self._schedule(built),
            "layout": "NCHW",
            "gil": "released",
        }

    def _schedule(self, built: Mapping[str, Any]) -> dict[str, str]:
        if self._tuned_shapes is None:
            note = "untuned: its schedules follow a rule; engines.get('tvm').tune(...) searches better ones"
            return {"schedule": "untuned: by rule, nothing measured", "note": note}
        shapes = ", ".join(map(str, self._tuned_shapes))
        return {"schedule": f"tuned for {shapes}: {built['tuned_programs']} of {built['tensor_programs']} programs"}

    def close(self) -> None:
        self._loaded, self._fed = [], []


_configured = threading.local()
_SHARE_ALL_CORES = -3  # tvm::runtime::threading::ThreadGroup::kSpecifyThreadShareAllCore


def _use_threads(tvm: Any, threads: int) -> None:
    """Let TVM compute on ``threads`` threads when this thread calls it.

    Each calling thread has a pool of its own, made at first use with the size it then keeps, so it is made large enough
    for all cores; how many of its threads work can be changed.
    """
    if getattr(_configured, "threads", None) == threads:
        return
    configure = tvm.get_global_func("runtime.config_threadpool")
    if not hasattr(_configured, "size"):
        _configured.size = max(machine.usable_cores(), threads)
        configure(_SHARE_ALL_CORES, _configured.size, [str(core) for core in range(_configured.size)])
    if threads > _configured.size:
        raise EngineError(f"tvm's pool in this thread has {_configured.size} threads, it cannot grow to {threads}")
    configure(_SHARE_ALL_CORES, threads, [str(core) for core in range(threads)])
    _configured.threads = threads
