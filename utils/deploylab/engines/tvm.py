"""Apache TVM (https://tvm.apache.org): a compiler. Relax, tensor programs, LLVM for this CPU, a shared library.

Without tuning every tensor program gets a schedule by rule, which measures nothing; facts and tables say ``untuned``.
:meth:`TVM.tune` searches better ones with MetaSchedule and keeps its records beside the artifacts, where the next
conversion of the same model finds them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploylab import machine
from deploylab.engines import _onnx, _tool, _tvm
from deploylab.engines.base import Artifact, Engine, Session, Source, TensorSpec
from deploylab.errors import ConversionError, EngineError

_BUILT_FOR = "built_for.json"


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

    def _convert(
        self, source: Source, example: tuple[np.ndarray, ...], folder: Path, precision: str, **options: Any
    ) -> tuple[list[TensorSpec], list[TensorSpec]]:
        _require_linker()
        _tvm.compiler()
        built, problems = None, []
        for imported in _ways(source, example):
            try:
                module, specs = imported()
                built = _build(module, folder / "model.so")
                break
            except Exception as error:
                problems.append(_reason(error))
        if built is None:
            raise ConversionError(f"tvm cannot compile the model: {problems[0]}")
        (folder / _BUILT_FOR).write_text(json.dumps(built, indent=1) + "\n", encoding="utf-8")
        return specs

    def _load(self, artifact: Artifact, threads: int) -> Session:
        built = json.loads((artifact.path / _BUILT_FOR).read_text(encoding="utf-8"))
        _require_this_cpu(artifact, built)
        return _TvmSession(artifact, threads, built)


def _ways(source: Source, example: tuple[np.ndarray, ...]) -> list[Any]:
    """How the model may become Relax, the best first: with any batch size, then with the example's."""
    if not isinstance(source, Path):
        return [lambda: _from_torch(source, example, dynamic=True), lambda: _from_torch(source, example, dynamic=False)]
    inputs, outputs = _onnx.specs(source, example)

    def imported(shapes: Mapping[str, Sequence[int]] | None) -> tuple[Any, Any]:
        module = _tvm.from_onnx(source, shapes)
        found_in, found_out = _tvm.specs(module)
        return module, (
            [TensorSpec(spec.name, found.shape, spec.dtype) for spec, found in zip(inputs, found_in, strict=True)],
            [TensorSpec(spec.name, found.shape, found.dtype) for spec, found in zip(outputs, found_out, strict=True)],
        )

    fixed = {spec.name: array.shape for spec, array in zip(inputs, example, strict=True)}
    symbolic = any(size is None for spec in inputs for size in spec.shape)
    return [lambda: imported(None), *([lambda: imported(fixed)] if symbolic else [])]


def _from_torch(module: Any, example: tuple[np.ndarray, ...], dynamic: bool) -> tuple[Any, Any]:
    relax = _tvm.from_torch(module, example, dynamic)
    return relax, _tvm.specs(relax)


def _build(module: Any, path: Path) -> dict[str, Any]:
    """Compile for this CPU into a shared library; return what it was built for."""
    import tvm
    from tvm import relax

    target = _tvm.target()
    with _tvm.quiet(), _tool.listen(), target:
        programs = _tvm.scheduled(_tvm.lowered(module))
        library = tvm.compile(programs, target, relax_pipeline=relax.get_pipeline("default_build"))
        library.export_library(str(path), workspace_dir=str(path.parent))
    for leftover in path.parent.iterdir():
        if leftover != path:
            leftover.unlink()
    return {
        "target": str(target),
        "architecture": machine.architecture(),
        "features": list(machine.features()),
        "programs": len(programs.functions) - 1,
        "schedule": "untuned: by rule, nothing measured",
    }


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"


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
    def __init__(self, artifact: Artifact, threads: int, built: Mapping[str, Any]) -> None:
        super().__init__(artifact, threads)
        self._tvm = _tvm.imported()
        self._built = built
        self._machine = self._tvm.runtime.vm.VirtualMachine(
            self._tvm.runtime.load_module(str(artifact.file(".so"))), self._tvm.cpu()
        )
        self._main = self._machine["main"]
        self._fed: list[tuple[Any, np.ndarray] | None] = [None] * len(self.inputs)
        self._lock = threading.Lock()  # one virtual machine runs one inference at a time
        _use_threads(self._tvm, threads)

    def _run(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        with self._lock:
            _use_threads(self._tvm, self.threads)
            result = self._main(*(self._feed(position, array) for position, array in enumerate(arrays)))
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
        return {
            "version": self._tvm.__version__,
            "threads": self._tvm.get_global_func("runtime.NumThreads")(),
            "target": self._built["target"],
            "schedule": self._built["schedule"],
            "tensor_programs": self._built["programs"],
            "layout": "NCHW",
            "gil": "released",
        }

    def close(self) -> None:
        self._machine = self._main = None
        self._fed = []


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
