"""``torch.compile``: the module, compiled to C++ by TorchInductor when it is loaded.

The artifact is the module itself; there is nothing to ship. Compiling belongs to loading, so the cold start contains
it: in full the first time, afterwards from the cache in ``$TORCHINDUCTOR_CACHE_DIR`` or else in the artifact's folder.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from deploylab.engines import _torch
from deploylab.engines.base import Artifact, Availability, Engine, Session, Source, TensorSpec

_COMPILERS = ("cl",) if sys.platform == "win32" else ("g++", "clang++", "c++")
_CACHE = "inductor"


class TorchCompile(Engine):
    name = "torch-compile"
    title = "torch.compile"
    accepts = frozenset({"torch"})
    distributions = ("torch",)
    runtime_packages = ("torch",)
    modules = ("torch",)
    core = False  # needs a C++ compiler, which is not ours to install

    def available(self) -> Availability:
        found = super().available()
        if found.ok and compiler() is None:
            return Availability(
                False,
                f"no C++ compiler found (looked for {', '.join(_COMPILERS)} and $CXX)",
                version=found.version,
                fix="apt-get install g++ (Debian, Ubuntu), xcode-select --install (macOS)",
            )
        return found

    def _convert(
        self, source: Source, example: tuple[np.ndarray, ...], folder: Path, precision: str, **options: Any
    ) -> tuple[list[TensorSpec], list[TensorSpec]]:
        found = _torch.specs(source, example)
        _torch.save_module(source, example, folder)
        return found

    def _load(self, artifact: Artifact, threads: int) -> Session:
        module, runs = _torch.load_module(artifact)
        return _TorchCompileSession(artifact, threads, module, runs)


def compiler() -> str | None:
    """The C++ compiler that TorchInductor will use, None if there is none."""
    chosen = os.environ.get("CXX")
    return next((name for name in ([chosen] if chosen else _COMPILERS) if shutil.which(name)), None)


class _TorchCompileSession(_torch.TorchSession):
    def __init__(self, artifact: Artifact, threads: int, module: Any, runs: str) -> None:
        import torch
        import torch._dynamo

        # Without it TorchInductor writes to /tmp/torchinductor_<user>.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_cache_folder(artifact)))
        # Sessions of one class share a limit of compiled variants, beyond which torch silently runs eager.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 256)
        # One compile thread: more would be a pool of processes that outlives the session.
        with _torch.deprecation_expected():
            super().__init__(artifact, threads, torch.compile(module, options={"compile_threads": 1}))
            hits = _cache_hits()
            self._run([np.zeros([size or 1 for size in spec.shape], spec.dtype) for spec in self.inputs])
        self._cached = _cache_hits() > hits
        self._runs = runs

    def _facts(self) -> dict[str, Any]:
        from torch._dynamo.utils import counters

        return {
            **super()._facts(),
            "runs": f"{self._runs}, compiled by TorchInductor",
            "compiler": compiler(),
            "compiled": "from the cache" if self._cached else "at load",
            "graph_breaks": sum(counters["graph_break"].values()),
        }


def _cache_hits() -> int:
    from torch._dynamo.utils import counters

    return counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"]


def _cache_folder(artifact: Artifact) -> Path:
    folder = artifact.path / _CACHE
    try:
        folder.mkdir(exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:  # a read-only artifact
        pass
    return Path(tempfile.mkdtemp(prefix="deploylab-inductor-"))
