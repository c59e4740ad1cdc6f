"""Lab 40: builds ``native/neon/gemm.cpp`` for an Arm core, and counts its instructions.

The program runs on an emulated board; QEMU's plugin counts between two marks.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from deploylab import paths
from deploylab.boards import emulator, instructions
from deploylab.boards.emulator import Board
from deploylab.errors import BoardError

KERNELS = {
    "scalar": "one number at a time",
    "compiler": "vectors by the compiler",
    "neon": "NEON by hand",
    "fp16": "half precision",
    "int8": "8-bit dot products",
}
SOURCE = paths.root() / "labs" / "native" / "neon" / "gemm.cpp"
_CROSS = "aarch64-linux-gnu-g++"
_FLAGS = ("-std=c++17", "-O3", "-static", "-Wall", "-Wextra", "-Werror")
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Outcome:
    """One product on one core.

    ``ended`` is empty if all went well, else how the program ended, such as ``SIGILL``.
    ``error`` is the largest difference from double precision, as a part of the largest result.
    ``counts`` are the instructions of the product, by the kinds of
    :data:`deploylab.boards.instructions.KINDS`.
    """

    ended: str = ""
    error: float | None = None
    multiplications: int = 0
    counts: dict[str, int] = field(default_factory=dict)


def compiler() -> str | None:
    """A C++ compiler for 64-bit Arm: GCC's cross compiler, or an Arm machine's own."""
    own = ("c++", "g++") if platform.machine() in ("aarch64", "arm64") else ()
    return next(filter(None, map(shutil.which, (_CROSS, *own))), None)


def cannot_count(board: Board) -> str:
    """Why instructions cannot be counted: no C compiler, a QEMU without plugins. Else empty."""
    try:
        plugin = f"{instructions.plugin()},out={os.devnull}"
        emulator.run(board, "-c", "pass", qemu=("-plugin", plugin))
    except BoardError as error:
        return " ".join(str(error).split())
    return ""


def build(folder: Path) -> Path:
    """The program, compiled into ``folder``. Raises RuntimeError with the compiler's words."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder.resolve() / "gemm"
    command = [compiler() or _CROSS, *_FLAGS, "-o", str(program), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} cannot compile {SOURCE.name}: {done.stderr[-800:]}")
    return program


def hwcap(program: Path, board: Board) -> int:
    """The bits with which Linux tells a program what the core can do (``AT_HWCAP``)."""
    return int(_run(board.program(str(program), "hwcap"), program.parent).stdout, 16)


def run(program: Path, kernel: str, board: Board) -> Outcome:
    """Multiply with one kernel on an emulated board and count the instructions."""
    out = program.with_name(f"{board.name}-{kernel}.counts")
    out.unlink(missing_ok=True)
    plugin = ("-plugin", f"{instructions.plugin()},out={out}")
    done = _run(board.program(str(program), kernel, qemu=plugin), program.parent)
    if done.returncode:
        return Outcome(_ending(done.returncode))
    told = json.loads(done.stdout)
    pages = json.loads(out.read_text(encoding="ascii")).values()
    sums = map(sum, zip(*pages, strict=True))
    counts = dict(zip(instructions.KINDS, sums, strict=True))
    return Outcome("", told["error"], told["multiplications"], counts)


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    return subprocess.run(command, cwd=folder, timeout=_TIMEOUT_S, **options)


def _ending(code: int) -> str:
    """A signal is a negative number, or 128 and its number where a shell tells it."""
    number = -code if code < 0 else code - 128
    known = number in set(signal.Signals)
    return signal.Signals(number).name if known else f"exit code {code}"
