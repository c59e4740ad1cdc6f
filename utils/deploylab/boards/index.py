"""Python packages for another machine than this one, from the package index that pip is set up for here."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploylab import engines, packages, paths
from deploylab.boards import halt
from deploylab.errors import BoardError

OLDEST_GLIBC = {"aarch64": 17, "x86_64": 5}
_NEWEST_GLIBC = {"aarch64": 36, "x86_64": 36}
_UNREACHED = "connection broken|Could not fetch URL|Failed to establish|timed out|SSLError|ProxyError|name resolution"
_NO_WHEEL = r"No matching distribution found for (\S+)"
_NO_SPACE = "No space left on device|Errno 28"


class NoWheel(BoardError):
    """The package index answers, but has no wheel of ``requirement`` (``name==version``) for that machine."""

    def __init__(self, requirement: str, message: str) -> None:
        super().__init__(message)
        self.requirement = requirement


@dataclass(frozen=True)
class Pin:
    """A package that a board needs: its name, version, the lines that pin it with hashes, and for which Pythons."""

    name: str
    version: str
    text: str
    marker: str

    def holds(self, python: str) -> bool:
        """Whether a board with this version of Python needs it."""
        from packaging.markers import Marker

        if not self.marker:
            return True
        board = {"python_full_version": python, "python_version": ".".join(python.split(".")[:2])}
        return Marker(self.marker).evaluate({**board, "sys_platform": "linux", "platform_system": "Linux"})


def pins(path: Path | None = None) -> list[Pin]:
    """The packages that a requirements file pins; by default those of a board, :file:`hardware/requirements.txt`."""
    text = (path or paths.root() / "hardware" / "requirements.txt").read_text(encoding="utf-8")
    found: list[Pin] = []
    for block in text.replace("\\\n", " ").splitlines():
        words, *hashes = block.partition("#")[0].split("--hash=")
        pinned, _, marker = words.partition(";")
        name, equals, version = pinned.strip().partition("==")
        if equals:
            lines = " \\\n    ".join([f"{name}=={version}", *(f"--hash={each.strip()}" for each in hashes)])
            found.append(Pin(packages.plain(name), version, lines, marker.strip()))
    return found


def runtimes(path: Path | None = None) -> dict[str, set[str]]:
    """The engines that a requirements file brings to a board, each with the names of its own packages."""
    brought = {pin.name for pin in pins(path)}
    needed = {name: set(map(packages.plain, engines.get(name).runtime_packages)) for name in engines.names()}
    return {name: own for name, own in needed.items() if own and own <= brought}


def install(requirements: Path, folder: Path, *, machine: str, python: str, glibc: int | None = None) -> None:
    """Unpack the wheels that ``requirements`` pins, all of them, into a folder to import from, hashes checked.

    ``machine`` is ``aarch64`` or ``x86_64``, ``python`` a version such as ``3.11``, ``glibc`` the minor version of its
    C library. Raises :class:`NoWheel` if the index has no such wheel, :class:`BoardError` if it does not answer.
    """
    _pip_for("install", requirements, ("--target", str(folder), "--no-compile"), machine, python, glibc)


def download(requirements: Path, folder: Path, *, machine: str, python: str, glibc: int | None = None) -> None:
    """Put the wheels that ``requirements`` pins into a folder as they are, hashes checked; else as :func:`install`.

    What lies in the folder already is kept.
    """
    _pip_for("download", requirements, ("--dest", str(folder)), machine, python, glibc)


def platforms(machine: str, glibc: int) -> list[str]:
    """The platform tags that a glibc of that age accepts, the newest first (PEP 600)."""
    minors = reversed(range(OLDEST_GLIBC[machine], glibc + 1))
    return [*(f"manylinux_2_{minor}_{machine}" for minor in minors), f"manylinux2014_{machine}"]


def pip(command: str, *arguments: str) -> None:
    """Run pip quietly. Raises :class:`NoWheel`, or :class:`BoardError` with what it said last."""
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--retries", "2")
    done = halt.run([sys.executable, "-m", "pip", command, *quiet, *arguments])
    if done.returncode:
        raise _failure(command, done.stderr)


def _failure(command: str, told: str) -> BoardError:
    lines = [line for line in told.strip().splitlines() if line.startswith("ERROR")] or told.strip().splitlines()
    said = "It said last:\n  " + "\n  ".join(line if len(line) < 300 else f"{line[:300]} ..." for line in lines[-4:])
    if re.search(_NO_SPACE, told):
        return BoardError(f"pip {command} failed: the disk is full; free some space and run this again")
    if re.search(_UNREACHED, told):
        return BoardError(
            f"pip {command} failed: the package index was not reached; is there a network, and are PIP_INDEX_URL, "
            f"PIP_PROXY and PIP_CERT right? {said}"
        )
    missing = re.search(_NO_WHEEL, told)
    if missing:
        return NoWheel(missing[1], f"the package index has no wheel of {missing[1]} for that machine. {said}")
    return BoardError(f"pip {command} failed; is the package index reachable? {said}")


def _pip_for(
    command: str, requirements: Path, options: Sequence[str], machine: str, python: str, glibc: int | None
) -> None:
    newest = glibc or _NEWEST_GLIBC[machine]
    accepted = [part for tag in platforms(machine, newest) for part in ("--platform", tag)]
    checked = ("--no-deps", "--only-binary", ":all:", "--require-hashes", "--python-version", python)
    with tempfile.TemporaryDirectory(prefix="deploylab-") as folder:
        held = Path(folder) / "requirements.txt"  # pip would evaluate the markers for the Python that runs it
        held.write_text("".join(f"{pin.text}\n" for pin in pins(requirements) if pin.holds(python)), encoding="utf-8")
        try:
            pip(command, *options, "--requirement", str(held), *checked, *accepted)
        except NoWheel as error:
            error.args = (f"{error}\n  It was asked for Python {python} on {machine} with glibc 2.{newest}.",)
            raise
