"""Wheels that crash on some boards, and why: they hold instructions that the CPU does not have.

A wheel's name says which architecture it is for, ``aarch64``, but not which version of it. Here is one that can be
tried on an emulated board (it lies in a folder of its own, from which a board imports only when told to), and one that
is too large for that.
"""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploylab import paths
from deploylab.bench.client import ending
from deploylab.boards import emulator, index
from deploylab.boards.emulator import Board
from deploylab.errors import BoardError

FOLDER = "crashing"
_TIMEOUT_S = 120.0
_LINES = 12


@dataclass(frozen=True)
class Wheel:
    """A release whose aarch64 wheel crashes on some boards. ``sources`` are reports of real ones."""

    package: str
    version: str
    module: str
    sources: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


CRASHING = Wheel(
    *("onnxruntime", "1.21.0", "onnxruntime"),
    sources=(
        "https://github.com/microsoft/onnxruntime/issues/23957",
        "https://github.com/microsoft/onnxruntime/issues/24112",
    ),
)
"""Fetched by ``deploylab boards create``, 14 MB."""
TOO_LARGE = Wheel(
    *("torch", "2.10.0", "torch"),
    sources=(
        "https://github.com/pytorch/pytorch/issues/176993",
        "https://github.com/vectorize-io/hindsight/pull/4201",
    ),
)
"""Named only: its wheel has 146 MB and takes a minute to import under emulation."""


@dataclass(frozen=True)
class Fault:
    """The instruction at which a program ended: its encoding, and the feature of the CPU that it needs.

    ``feature`` is a name of ``/proc/cpuinfo``, such as ``asimdhp``; empty if it is none of :data:`FEATURES`.
    """

    word: int
    feature: str


@dataclass(frozen=True)
class Trial:
    """What importing a wheel did. ``ending`` says how the process ended, ``said`` what it printed last."""

    ok: bool
    illegal_instruction: bool
    ending: str
    said: str


def fetch(progress: Callable[[str], None] = lambda step: None) -> Path:
    """Fetch :data:`CRASHING` for the emulated boards. What is there is left alone. Raises :class:`BoardError`."""

    def install(folder: Path, tell: Callable[[str], None]) -> None:
        tell(f"fetching {CRASHING}, a wheel that crashes on older CPUs (14 MB)")
        index.install(_requirements(), folder, machine="aarch64", python=_python())

    try:
        return emulator.made(FOLDER, install, _kind(), progress)
    except OSError as error:
        raise BoardError(f"cannot fetch {CRASHING}: {error.strerror or error}; is there space on the disk?") from error


def find() -> Path:
    """The folder to import :data:`CRASHING` from. Raises :class:`BoardError` saying how to get it."""
    folder = emulator.existing(FOLDER, _kind())
    if folder is None:
        raise BoardError(f"{CRASHING} for the emulated boards is not there; fetch it with: deploylab boards create all")
    return folder


def try_import(board: Board, folder: Path | None = None, module: str = CRASHING.module) -> Trial:
    """Import a module on an emulated board from ``folder``, or from the board's own packages without one.

    Raises :class:`BoardError` if the process does not end.
    """
    # Python's own name for the signal, and the line that it hit, are worth more than QEMU's.
    command = board.python("-X", "faulthandler", "-c", f"import {module}", first=folder)
    done = _run(board, command)
    said = [line for line in done.stderr.splitlines() if line.strip() and '"<frozen ' not in line]
    return Trial(
        done.returncode == 0, done.returncode == -signal.SIGILL, ending(done.returncode), "\n".join(said[:_LINES])
    )


def fault(board: Board, folder: Path, module: str = CRASHING.module) -> Fault | None:
    """The instruction at which importing a module crashes on a board; None if it does not.

    QEMU notes what it translates: the last instruction is the one that it could not. Raises :class:`BoardError`.
    """
    with tempfile.TemporaryDirectory(prefix="deploylab-fault-") as notes:
        log = Path(notes) / "translated"
        command = board.python("-c", f"import {module}", first=folder, qemu=("-d", "in_asm", "-D", str(log)))
        if _run(board, command).returncode != -signal.SIGILL:
            return None
        return last_translated(log.read_text(encoding="ascii", errors="replace"))


def last_translated(log: str) -> Fault:
    """The last instruction in the log that QEMU's option ``-d in_asm`` writes. Raises :class:`BoardError`."""
    words = re.findall(r"^0x[0-9a-f]+:\s+([0-9a-f]{8})\s", log, re.MULTILINE)
    if not words:
        raise BoardError("this QEMU does not tell which instructions it runs; its option -d in_asm printed none")
    word = int(words[-1], 16)
    return Fault(word, feature_of(word))


FEATURES = {
    "atomics": ((0x3F200C00, 0x38200000), (0x3FA07C00, 0x08A07C00), (0xBFA07C00, 0x08207C00)),
    "fphp": ((0xFFE00C00, 0x1EE00800), (0xFFC00000, 0x1FC00000)),  # two and three operands
    "asimdhp": (
        (0x9F60C400, 0x0E400400),  # three registers
        (0x9F7E0C00, 0x0E780800),  # two registers
        (0x9FC0F400, 0x0F001000),  # FMLA by element
        (0x9FC0F400, 0x0F009000),  # FMUL by element
        (0xBFF8FC00, 0x0F00FC00),  # FMOV of a constant
    ),
    "asimdrdm": ((0xBF20F400, 0x2E008400), (0x3F00D400, 0x2F00D000)),
    "asimddp": ((0x9FE0FC00, 0x0E809400), (0x9FC0F400, 0x0F80E000)),
    "sve": ((0x1E000000, 0x04000000),),
}
"""Encodings that came after the first Armv8, as mask and bits, by the name that Linux gives their feature.

Source: Arm Architecture Reference Manual for A-profile, section C4.1 "A64 instruction set encoding". Not complete."""


def feature_of(word: int) -> str:
    """The CPU feature that an A64 instruction needs, of those in :data:`FEATURES`; else an empty text."""
    fits = (name for name, forms in FEATURES.items() if any(word & mask == bits for mask, bits in forms))
    return next(fits, "")


def _run(board: Board, command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BoardError(f"the emulated {board.name} did not run: {error}") from error


def _requirements() -> Path:
    return paths.root() / "hardware" / "emulator" / "crashing.txt"


def _python() -> str:
    """Which Python the boards have; all have the same."""
    boards = emulator.boards()
    if not boards:
        raise BoardError("no emulated board was made yet; make one with: deploylab boards create pi4")
    return boards[0].python_version


def _kind() -> str:
    return f"{_python()}\n{_requirements().read_text(encoding='utf-8')}"
