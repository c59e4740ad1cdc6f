"""How many instructions an inference takes on an emulated board, by kind and by library.

A count is not a time: caches, memory and instructions that run side by side are not in it. But it needs no quiet
machine, and the arithmetic in the engine's own part is the same in every run.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploylab import files, paths
from deploylab.boards.emulator import Board, run
from deploylab.engines import Artifact
from deploylab.errors import BoardError

KINDS = ("all", "memory", "vector", "fmadd", "fmla_fp32", "fmla_fp16", "dot_int8")
"""What is counted, in the order of :file:`icount.c`: all instructions, loads and stores, SIMD and floating point,
scalar multiply-adds, vector multiply-adds of fp32 and fp16, dot products of int8. Each but the first is part of all."""
EXACT = ("vector", "fmadd", "fmla_fp32", "fmla_fp16", "dot_int8")
"""Kinds whose count is the same in every run. The others are so until something about the installation changes, and may
then differ by a few in 100,000: engines look things up by address, and where memory lies depends on more than what is
fixed here."""
SLACK = 1e-3
LANES = {"fmadd": 1, "fmla_fp32": 4, "fmla_fp16": 8, "dot_int8": 16}
"""Multiply-accumulates of one instruction on 128-bit registers."""
GENERATED = "generated code"
"""The name under which code counts that is in no file: an engine compiled it while it ran."""

_SOURCE = Path(__file__).with_name("icount.c")
_COMPILERS = ("cc", "gcc", "clang")
_FIXED = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_ENVIRONMENT = {"PATH": "/usr/bin:/bin"}
"""All of it: the caller's would move the program's memory, and engines look things up by address."""


@dataclass(frozen=True)
class Count:
    """Instructions of one inference in one thread: by library (file name) and kind.

    ``engine`` names the libraries that the engine brings or generates; the others are Python, NumPy and the system's.
    """

    libraries: Mapping[str, Mapping[str, int]]
    engine: frozenset[str]

    def of_engine(self, kind: str = "all") -> int:
        """Instructions in the engine's own libraries. Those of :data:`EXACT` are the same in every run."""
        return sum(counts[kind] for name, counts in self.libraries.items() if name in self.engine)

    def total(self, kind: str = "all") -> int:
        """Instructions of the whole call from Python; memory management makes it vary in the fourth digit."""
        return sum(counts[kind] for counts in self.libraries.values())

    @property
    def multiply_adds(self) -> int:
        """Multiply-accumulates that all lanes of the engine's multiply-add instructions do."""
        return sum(lanes * self.of_engine(kind) for kind, lanes in LANES.items())


def count(board: Board, artifact: Artifact, *inputs: np.ndarray, runs: int = 3, timeout_s: float = 300.0) -> Count:
    """Count one inference of ``artifact`` on ``inputs``: the least of ``runs`` after a first that is not counted.

    Raises :class:`BoardError` without a C compiler, if QEMU takes no plugins, or if the engine does not run there.
    """
    with tempfile.TemporaryDirectory(prefix="deploylab-count-") as folder:
        arrays = Path(folder) / "inputs.npz"
        np.savez(arrays, *inputs)
        before = _last_compiled(board)
        found = _counted(board, artifact, arrays, runs, timeout_s)
        if _last_compiled(board) != before:  # a process that compiles Python has its memory laid out otherwise
            found = _counted(board, artifact, arrays, runs, timeout_s)
        return found


def _counted(board: Board, artifact: Artifact, arrays: Path, runs: int, timeout_s: float) -> Count:
    out = arrays.with_name("counts")
    out.unlink(missing_ok=True)
    settings = [part for name, value in _FIXED.items() for part in ("-E", f"{name}={value}")]
    qemu = (*settings, "-seed", "1", "-plugin", f"{plugin()},out={out}")
    model = str(artifact.path.resolve())
    program = ("-m", "deploylab.boards.counted", artifact.engine, model, str(arrays), str(runs))
    # Python looks for modules in the current folder too, and how many files are there moves its memory.
    printed = run(board, *program, qemu=qemu, environment=_ENVIRONMENT, folder=Path("/"), timeout_s=timeout_s)
    if not out.exists():
        raise BoardError(f"nothing was counted on {board.name}: QEMU there takes no plugin. It said:\n  {printed}")
    code = mapped(printed)
    counts = [by_library(json.loads(line), code) for line in out.read_text(encoding="ascii").splitlines()]
    engine = frozenset(name for _, _, path in code if (name := _library(path)) and _belongs(path, board))
    return min((Count(each, engine) for each in counts), key=Count.total)


def _last_compiled(board: Board) -> int:
    """When the board's Python last compiled a module, in nanoseconds since 1970."""
    return max((file.stat().st_mtime_ns for file in board.compiled.rglob("*.pyc")), default=0)


def agree(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Whether two counts by kind are of the same work: :data:`EXACT` equal, the others within :data:`SLACK`."""
    near = all(abs(one[kind] - other[kind]) <= SLACK * one[kind] for kind in KINDS)
    return near and all(one[kind] == other[kind] for kind in EXACT)


def plugin() -> Path:
    """The compiled plugin, made when it is not there. Raises :class:`BoardError` without a C compiler."""
    source = _SOURCE.read_bytes()
    built = paths.cache() / "boards" / f"icount-{hashlib.sha256(source).hexdigest()[:12]}.so"
    if built.exists():
        return built
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if not compiler:
        raise BoardError("counting instructions needs a C compiler; install one, such as gcc")
    with files.draft(built) as unfinished:
        done = subprocess.run(
            [compiler, "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-o", str(unfinished), str(_SOURCE)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise BoardError(f"{compiler} cannot compile {_SOURCE.name}:\n{done.stderr.strip()}")
    return built


def mapped(lines: str) -> list[tuple[int, int, str]]:
    """Start, end and file of every line of a ``/proc/PID/maps`` that is in ``lines``; others are passed over."""
    found = []
    for line in lines.splitlines():
        fields = line.split(maxsplit=5)
        start, _, end = fields[0].partition("-") if fields else ("", "", "")
        try:
            found.append((int(start, 16), int(end, 16), fields[5] if len(fields) > 5 else ""))
        except ValueError:
            continue
    return found


def by_library(pages: Mapping[str, Sequence[int]], code: Iterable[tuple[int, int, str]]) -> dict[str, dict[str, int]]:
    """Counts by page of code (address to one number a kind) as counts by library and kind."""
    sums: dict[str, Counter[str]] = {}
    code = sorted(code)
    for address, counts in pages.items():
        path = next((path for start, end, path in code if start <= int(address) < end), "")
        sums.setdefault(_library(path), Counter()).update(dict(zip(KINDS, counts, strict=True)))
    return {name: {kind: found[kind] for kind in KINDS} for name, found in sums.items()}


def _library(path: str) -> str:
    return Path(path).name if path.startswith("/") else GENERATED


_NOT_OF_ENGINES = ("numpy", "numpy.libs")


def _belongs(path: str, board: Board) -> bool:
    """Whether code is an engine's: in one of the board's packages other than NumPy, or generated."""
    if not path.startswith("/"):
        return True
    with_root = Path(path)
    if board.packages not in with_root.parents:
        return False
    return with_root.relative_to(board.packages).parts[0] not in _NOT_OF_ENGINES
