"""Python packages for another machine than this one, from the package index that pip is set up for here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from deploylab.errors import BoardError

_NEWEST_GLIBC = {"aarch64": 36, "x86_64": 36}


def install(requirements: Path, folder: Path, *, machine: str, python: str, glibc: int | None = None) -> None:
    """Unpack the wheels that ``requirements`` pins, all of them, into a folder to import from, hashes checked.

    ``machine`` is ``aarch64`` or ``x86_64``, ``python`` a version such as ``3.11``, ``glibc`` the minor version of its
    C library. Raises :class:`BoardError` if the index does not answer or has no such wheel.
    """
    pip(
        "install",
        "--target",
        str(folder),
        "--no-compile",
        "--requirement",
        str(requirements),
        *_for(machine, python, glibc),
    )


def pip(command: str, *arguments: str) -> None:
    """Run pip quietly. Raises :class:`BoardError` with what it said last."""
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input", "--progress-bar", "off")
    done = subprocess.run(
        [sys.executable, "-m", "pip", command, *quiet, *arguments], capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        said = "\n  ".join(done.stderr.strip().splitlines()[-8:])
        raise BoardError(f"pip {command} failed; is the package index reachable? It said last:\n  {said}")


def _for(machine: str, python: str, glibc: int | None) -> Sequence[str]:
    """pip's options for wheels of another machine: every tag that a glibc of that age accepts (PEP 600)."""
    minors = range(17, (glibc or _NEWEST_GLIBC[machine]) + 1)
    tags = [f"manylinux_2_{minor}_{machine}" for minor in reversed(minors)] + [f"manylinux2014_{machine}"]
    platforms = [part for tag in tags for part in ("--platform", tag)]
    return ("--no-deps", "--only-binary", ":all:", "--require-hashes", "--python-version", python, *platforms)
