"""Emulated boards: make one, run programs in it, remove it.

Everything lies in the user's cache folder and is made without root. ``base`` holds an arm64 Debian userland and the
engines' aarch64 packages, ``tools`` QEMU and proot; a board is a copy of ``base`` by hard links, with the files that
describe its CPU. A program in a board sees the folders of this machine too, under their own names.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploylab import paths
from deploylab.bench.client import ending
from deploylab.boards import index, userland
from deploylab.boards.profiles import PROFILES, Profile
from deploylab.errors import BoardError

USERLAND = ("python3", "libstdc++6", "libgomp1", "dash", "coreutils")
PROGRAMS = ("qemu-user", "proot")
_QEMU, _PROOT, _PYTHON = "qemu-aarch64", "proot", "usr/bin/python3"
# What a program in a board must not see: QEMU's libraries, and a wish to compile Python's modules at every start.
_HIDDEN = ("LD_LIBRARY_PATH", "PYTHONDONTWRITEBYTECODE")
_OF_THE_CPU = ("proc/cpuinfo", "proc/device-tree", "sys/devices/system/cpu")
_STAMP = "deploylab.stamp"
_UNFINISHED = ".unfinished-"
_ABANDONED_AFTER_S = 3600.0

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Board:
    """An emulated board: ``folder`` is the root of its file system, ``tools`` holds QEMU."""

    profile: Profile
    folder: Path
    tools: Path

    @property
    def name(self) -> str:
        return self.profile.name

    @property
    def packages(self) -> Path:
        """Where its Python packages are."""
        return self.folder / "packages"

    @property
    def compiled(self) -> Path:
        """Where its Python keeps what it compiled."""
        return self.folder / "var" / "cache" / "python"

    @property
    def python_version(self) -> str:
        """Such as ``3.11``."""
        return _version(self.folder)

    def python(self, *arguments: str, qemu: Sequence[str] = (), first: Path | None = None) -> list[str]:
        """The command that runs the board's Python; with DeployLab and the engines to import. ``qemu`` adds options.

        What lies in the folder ``first`` is imported instead of the board's own. The program cannot start others: those
        would run on this machine's CPU. :meth:`shell` can.
        """
        folders = (*([first] if first else []), paths.root() / "utils", self.packages)
        modules = os.pathsep.join(map(str, folders))
        inside = {
            "PYTHONPATH": modules,
            "PYTHONNOUSERSITE": "1",
            "PYTHONPYCACHEPREFIX": str(self.compiled),
            "DEPLOYLAB_HOME": str(paths.root()),
        }
        settings = [part for name, value in inside.items() for part in ("-E", f"{name}={value}")]
        return self.program(str(self.folder / _PYTHON), *arguments, qemu=(*settings, *qemu))

    def program(self, *command: str, qemu: Sequence[str] = ()) -> list[str]:
        """The command that runs an aarch64 program that lies on this machine. ``qemu`` adds options."""
        return [*self._qemu(), "-L", str(self.folder), *qemu, *command]

    def shell(self, *command: str) -> list[str]:
        """The command that runs a program of the board, or its shell, as the whole system: it may start others."""
        emulator = " ".join(self._qemu()[2:])
        seen = [part for folder in ("/dev", "/tmp", "/proc", "/sys", str(paths.root())) for part in ("-b", folder)]
        own = [part for name in _OF_THE_CPU for part in ("-b", f"{self.folder / name}:/{name}")]
        run = [str(self.tools / _PROOT), "-q", emulator, "-r", str(self.folder), *seen, *own, "-w", "/"]
        inside = (
            *("PYTHONPATH=/packages", "PYTHONPYCACHEPREFIX=/var/cache/python"),
            *("HOME=/", "PATH=/usr/local/bin:/usr/bin:/bin"),
        )
        return [*self._qemu()[:2], *inside, *run, *(command or ("/bin/sh",))]

    def _qemu(self) -> list[str]:
        libraries = f"LD_LIBRARY_PATH={self.tools}"
        hidden = [part for name in _HIDDEN for part in ("-U", name)]
        return ["env", libraries, str(self.tools / _QEMU), *hidden, "-cpu", self.profile.cpu]


def create(name: str, progress: Progress = lambda step: None) -> Board:
    """Make the board of a profile, or complete it, and try it. Takes seconds; what is up to date is left alone.

    Raises :class:`BoardError` naming what is missing: apt, the network, space on the disk.
    """
    profile = _profile(name)
    try:
        tools = made("tools", _tools, _kind_of_tools(), progress)
        base = made("base", _base, _kind_of_base(), progress)
        board = Board(profile, _folder() / name, tools)
        made(name, lambda folder, _: _describe(base, folder, profile), _kind(profile), progress)
    except OSError as error:
        raise BoardError(
            f"cannot make the board {name} in {_folder()}: {error.strerror or error}; free some space there (it takes "
            "about 500 MB for the first board, little for others) or set DEPLOYLAB_CACHE to another folder"
        ) from error
    progress(f"starting Python on the emulated {profile.core}")
    _try(board)
    return board


def find(name: str) -> Board:
    """The board, if it was made. Raises :class:`BoardError` saying how to make it."""
    profile = _profile(name)
    board = Board(profile, _folder() / name, _folder() / "tools")
    if not _is(board.folder, _kind(profile)) or not _is(board.tools, _kind_of_tools()):
        what = "is of another version of DeployLab" if board.folder.exists() else "was not made yet"
        raise BoardError(f"the emulated board {name} {what}; make it with: deploylab boards create {name}")
    return board


def boards() -> list[Board]:
    """The boards that were made."""
    found = []
    for name in PROFILES:
        with contextlib.suppress(BoardError):
            found.append(find(name))
    return found


def remove(name: str) -> None:
    """Remove a board; with the last one go the userland, QEMU and the downloads. Raises :class:`BoardError`."""
    board = find(name)
    _discard(board.folder)
    if not boards():
        shutil.rmtree(_folder(), ignore_errors=True)


def run(
    board: Board,
    *arguments: str,
    qemu: Sequence[str] = (),
    first: Path | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    timeout_s: float = 120.0,
) -> str:
    """What the board's Python prints for these arguments. Raises :class:`BoardError` with its last words.

    ``environment`` is that of QEMU, this process's by default; the program sees it too. ``folder`` is its current one.
    """
    command = board.python(*arguments, qemu=qemu, first=first)
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BoardError(f"the emulated {board.name} did not run: {error}") from error
    if done.returncode:
        last = "\n  ".join(done.stderr.strip().splitlines()[-6:])
        raise BoardError(f"Python on the emulated {board.name} {ending(done.returncode)}:\n  {last}")
    return done.stdout


def _folder() -> Path:
    return paths.cache() / "boards"


def _requirements() -> Path:
    return paths.root() / "hardware" / "requirements.txt"


def _profile(name: str) -> Profile:
    if name not in PROFILES:
        raise BoardError(f"there is no board {name!r} to emulate; there are: {', '.join(PROFILES)}")
    if sys.platform != "linux":
        raise BoardError(f"boards are emulated on Linux, this is {sys.platform}; use a Linux container or WSL")
    return PROFILES[name]


def made(name: str, make: Callable[[Path, Progress], None], wanted: str, progress: Progress) -> Path:
    """A folder beside the boards that is complete and of this kind: made aside and moved there, or as it was."""
    folder = _folder() / name
    if _is(folder, wanted):
        return folder
    with _draft(folder) as draft:
        make(draft, progress)
        (draft / _STAMP).write_text(_stamp(wanted), encoding="utf-8")
    return folder


def existing(name: str, wanted: str) -> Path | None:
    """The folder that :func:`made` makes, if it is there."""
    folder = _folder() / name
    return folder if _is(folder, wanted) else None


def _is(folder: Path, wanted: str) -> bool:
    """Whether a folder is complete and of this kind."""
    try:
        return (folder / _STAMP).read_text(encoding="utf-8") == _stamp(wanted)
    except OSError:
        return False


def _stamp(wanted: str) -> str:
    return hashlib.sha256(wanted.encode()).hexdigest() + "\n"


def _kind_of_tools() -> str:
    return " ".join(PROGRAMS)


def _kind_of_base() -> str:
    return " ".join(USERLAND) + "\n" + _requirements().read_text(encoding="utf-8")


def _kind(profile: Profile) -> str:
    return f"{_kind_of_base()}\n{profile}\n{list(profile.files())}"


@contextlib.contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of ``folder`` if the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for old in folder.parent.glob(f"{_UNFINISHED}*"):  # of a process that was killed
        if time.time() - old.stat().st_mtime > _ABANDONED_AFTER_S:
            shutil.rmtree(old, ignore_errors=True)
    draft = folder.parent / f"{_UNFINISHED}{folder.name}-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        if folder.exists():
            _discard(folder)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _discard(folder: Path) -> None:
    """Remove a folder so that a part of it is never taken for the whole."""
    doomed = folder.parent / f"{_UNFINISHED}{folder.name}-{os.getpid()}-old"
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _tools(folder: Path, progress: Progress) -> None:
    progress(f"fetching {' and '.join(PROGRAMS)} (13 MB)")
    unpacked = folder / "unpacked"
    userland.unpack(userland.fetch(PROGRAMS, _folder() / "downloads"), unpacked)
    for program in (_QEMU, _PROOT):
        own = unpacked / "usr" / "bin" / program
        source = own if own.is_file() else shutil.which(program)  # installed here, so not fetched
        if not source:
            raise BoardError(f"Debian's packages {', '.join(PROGRAMS)} hold no program {program} here")
        shutil.copy2(source, folder / program)
    for library in unpacked.glob("usr/lib/*/*.so.*"):
        shutil.copy2(library, folder / library.name)
    shutil.rmtree(unpacked)


def _base(folder: Path, progress: Progress) -> None:
    progress("fetching an arm64 Debian userland (20 MB)")
    files = userland.fetch(USERLAND, _folder() / "downloads", "arm64")
    progress(f"unpacking {len(files)} packages")
    userland.unpack(files, folder)
    progress("fetching the engines' aarch64 packages (150 MB)")
    _install_packages(folder)


def _install_packages(folder: Path) -> None:
    index.install(_requirements(), folder / "packages", machine="aarch64", python=_version(folder))


def _version(folder: Path) -> str:
    """The version of the Python in a userland, such as ``3.11``."""
    return (folder / _PYTHON).resolve().name.removeprefix("python")


def _describe(base: Path, folder: Path, profile: Profile) -> None:
    shutil.copytree(base, folder, symlinks=True, copy_function=_link, dirs_exist_ok=True)
    (folder / _STAMP).unlink()
    for name, content in profile.files():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target, follow_symlinks=False)


def _try(board: Board) -> None:
    said = run(board, "-c", "import platform, numpy; print(platform.machine())").strip()
    if said != "aarch64":
        raise BoardError(
            f"the emulated {board.name} says it is {said!r} instead of aarch64; remove it and make it again"
        )
