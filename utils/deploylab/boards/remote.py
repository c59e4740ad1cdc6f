"""Real boards as places to compare engines at: ``deploylab compare --on ssh:pi@host``.

A board needs an SSH server and Python 3.10 or later, nothing else. DeployLab's code and, where they are missing, the
runtimes of :file:`hardware/requirements.txt` (downloaded and checked here, so the board needs neither pip nor a
network) go into ``~/.cache/deploylab/board`` there and stay for the next time; artifacts go with the run.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shlex
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from deploylab import engines as registry
from deploylab import packages, paths
from deploylab.bench import client
from deploylab.bench.place import Place
from deploylab.boards import index, meter, sampler
from deploylab.boards.halt import Halt
from deploylab.boards.index import Pin
from deploylab.boards.meter import Meter
from deploylab.boards.ssh import Address, Connection
from deploylab.engines import Artifact
from deploylab.errors import BoardError, BoardLost, DeployLabError, WorkerDied

Progress = Callable[[str], None]

_MACHINES = {"aarch64": "aarch64", "arm64": "aarch64", "x86_64": "x86_64"}
_LEAST_PYTHON = (3, 10)
_JETPACKS = {"28": "3", "32": "4", "34": "5", "35": "5"}
_EMULATED = "(emulated)"
_SOURCES = ("*.py", "*.c", "*.mplstyle")
_GUIDES = {
    "jetson": 'hardware/jetson/README.md, "JetPack 4 and 5", says what works there',
    "pi": "hardware/raspberry-pi/README.md says which systems fit",
}
_downloading = threading.Lock()


class Remote(Place):
    """A board over SSH. Use as a context manager: leaving it ends what runs there, and the connection.

    ``halt`` ends both from another thread, at any time. Raises :class:`BoardError` if there is no way in, if the board
    cannot run the engines, or if its disk is full.
    """

    def __init__(self, text: str, progress: Progress = lambda step: None, halt: Halt | None = None) -> None:
        address = Address.parse(text)
        pins = index.pins()
        progress(f"connecting to {address}")
        self._halt = halt or Halt()
        self._connection = Connection(address, sorted({pin.name for pin in pins}), self._halt)
        try:
            self._survey = check(self._connection.survey, str(address))
            self._pins = [pin for pin in pins if pin.holds(self._survey["python"])]
            self._code = self._send_code(progress)
            self._runtime = self._send_runtime(progress)
            self._artifacts: dict[Path, str] = {}
            self._latest: dict[str, Any] | None = None
            self.before = self.probe()
        except BaseException as error:
            self._connection.close()
            if self._halt.asked and isinstance(error, BoardError):
                raise self._connection.loss() from None
            raise
        board = self.before["machine"].get("board") or self.before["machine"]["cpu"]
        self.name = f"{board} ({address})"
        self.timed = _EMULATED not in board

    def close(self) -> None:
        self._connection.close()

    @property
    def machine(self) -> str:
        """The same for two connections that end at the same machine."""
        return self._survey["boot"] or str(self._connection.address)

    def engines(self) -> Sequence[str]:
        """Those that are installed there, and those whose package has no wheel for it."""
        return [*self.before["engines"], *(name for name in self.before["missing"] if self._unfit(name))]

    def lacking(self) -> Mapping[str, str]:
        return {name: self._why_lacking(name, reason) for name, reason in self.before["missing"].items()}

    def _why_lacking(self, engine: str, reason: str) -> str:
        unfit, board = self._unfit(engine), self._connection.address
        if not unfit:
            return f"not on {board}: {reason}"
        return (
            f"{unfit.name} {unfit.version} has no wheel for Python {self._survey['python']} and glibc "
            f"{self._survey['libc'][1]} on {board}. The guides in hardware/ say which systems have one; a version that "
            "you install there by hand is used too"
        )

    def _unfit(self, engine: str) -> Pin | None:
        """The package that would have been sent for this engine, if there were a wheel that fits."""
        needed = set(map(packages.plain, registry.get(engine).runtime_packages))
        return next((pin for pin in self._pins if pin.name in needed), None)

    def cores(self) -> int:
        return self.before["machine"]["usable_cores"]

    def load(self) -> float | None:
        return self.before["load"]

    def command(self, engine: str, threads: int) -> Sequence[str]:
        if self._connection.lost:
            raise self._connection.loss()
        self._latest = None
        settings = " ".join(f"{name}={value}" for name, value in client.pinned(threads).items())
        return self._guarded(f"{settings} {self._python} -m deploylab.bench.worker")

    def meter(self, interval_s: float | None = None) -> Meter | None:
        if not self.timed or not (self.before["power"] or self.before["sensors"].get("celsius")):
            return None
        order = shlex.quote(meter.order(interval_s or sampler.INTERVAL_S))
        return Meter(self._guarded(f"{self._python} -m {sampler.__name__} {order}"))

    def _guarded(self, command: str) -> list[str]:
        """What runs a command of the board's shell so that it ends with the connection."""
        # The shell stays, as it tells a signal by its exit code, which sshd does not. The guard looks for its file.
        return self._connection.command(
            f"cd {self._run} && : >pids/$$ && {command}; code=$?; rm -f {self._run}/pids/$$; exit $code"
        )

    def locate(self, artifact: Artifact) -> str:
        if artifact.path not in self._artifacts:
            target = f"{self._survey['run']}/artifacts/{artifact.path.name}"
            with _archive([(artifact.path, ".")]) as archive:
                self._connection.send(archive, target)
            self._artifacts[artifact.path] = target
        return self._artifacts[artifact.path]

    def describe(self) -> dict[str, Any]:
        """The board, with its sensors before and, if it is still there, after the measurement."""
        return {**self.before["machine"], "sensors": {"before": self.before["sensors"], "after": self._after()}}

    def explain(self, error: DeployLabError) -> DeployLabError:
        ended_by_itself = isinstance(error, WorkerDied) and not error.hung
        if not isinstance(error, BoardLost) and ended_by_itself and self._connection.lost:
            return self._connection.loss()
        return error

    def notes(self) -> Sequence[str]:
        """What makes this board's figures worse than they could be."""
        found = ["cold start includes opening a session over SSH"] if self.timed else []
        if self._survey["others"]:
            found.append("another comparison runs on this board at the same time: its times mean little")
        return found + remarks(self.before["sensors"], self._after())

    def probe(self) -> dict[str, Any]:
        """What :func:`deploylab.boards.probe.report` says there. Raises :class:`BoardError`."""
        used = " ".join(shlex.quote(path) for path in (self._code, self._runtime) if path)
        return self._ask(f"touch -c {used}; {self._python} -m deploylab.boards.probe")

    def _ask(self, script: str) -> dict[str, Any]:
        """The JSON that a script prints on the board."""
        said = self._connection.run(script)
        try:
            return json.loads(said.splitlines()[-1])
        except (ValueError, IndexError):
            raise BoardError(f"{self._connection.address} answers nonsense to a probe: {said[-200:]!r}") from None

    @property
    def _run(self) -> str:
        return shlex.quote(self._survey["run"])

    @property
    def _python(self) -> str:
        """The words of a shell that start the board's Python with DeployLab and the engines to import."""
        home = shlex.quote(self._code)
        modules = ":".join(shlex.quote(path) for path in (f"{self._code}/utils", self._runtime) if path)
        own = f"DEPLOYLAB_HOME={home} PYTHONIOENCODING=utf-8 PYTHONPATH={modules}${{PYTHONPATH:+:$PYTHONPATH}}"
        return f"env {own} {shlex.quote(self._survey['executable'])}"

    def _after(self) -> dict[str, Any]:
        """The sensors after the last worker started; empty if the connection is gone."""
        if self._latest is None:
            try:
                self._latest = self._ask(f"{self._python} -m deploylab.boards.probe sensors")
            except BoardError:
                self._latest = {}
        return self._latest

    def _send_code(self, progress: Progress) -> str:
        files = list(_code())
        digest = hashlib.sha256()
        for path, name in files:
            digest.update(name.encode() + b"\0" + path.read_bytes())
        return self._send_once(f"code-{digest.hexdigest()[:16]}", lambda: files, progress, "DeployLab's code")

    def _send_runtime(self, progress: Progress) -> str:
        """The folder of packages on the board; empty if what it has installed is what we would send."""
        installed = self._survey["installed"]
        if all(installed.get(pin.name) == pin.version for pin in self._pins):
            return ""
        kind = hashlib.sha256("\n".join(pin.text for pin in self._pins).encode()).hexdigest()[:16]
        target = {
            "machine": _MACHINES[self._survey["machine"]],
            "python": ".".join(self._survey["python"].split(".")[:2]),
            "glibc": _glibc(self._survey),
        }
        name = "runtime-{python}-{machine}-glibc{glibc}-".format(**target) + kind

        def files() -> list[tuple[Path, str]]:
            with self._halt.here():
                return [(download(self._pins, name, progress, **target), ".")]

        return self._send_once(name, files, progress, "the engines' packages")

    def _send_once(
        self, name: str, files: Callable[[], Sequence[tuple[Path, str]]], progress: Progress, what: str
    ) -> str:
        target = f"{self._survey['folder']}/{name}"
        if name not in self._survey["there"]:
            with _archive(files()) as archive:
                progress(f"sending {what} ({archive.seek(0, os.SEEK_END) / 1e6:.1f} MB)")
                archive.seek(0)
                self._connection.send(archive, target)
        return target


def check(survey: dict[str, Any], address: str) -> dict[str, Any]:
    """The survey, if that machine can run the engines. Raises :class:`BoardError` saying what it is instead."""
    python = tuple(int(part) for part in survey["python"].split(".")[:2])
    if survey["system"] != "Linux":
        raise BoardError(f"{address} runs {survey['system']}; boards are measured under Linux")
    if survey["machine"] not in _MACHINES or survey["bits"] != 64:
        kernel = ", and only its kernel is 64-bit" if survey["machine"] in _MACHINES else ""
        raise BoardError(
            f"{address} runs a {survey['bits']}-bit system on {survey['machine']}{kernel}; the engines publish "
            f"packages for 64-bit aarch64 and x86_64 only. Install a 64-bit system; {_GUIDES['pi']}"
        )
    if survey["libc"][0] != "glibc":
        raise BoardError(f"{address} has no GNU C library, which the engines' packages need; use Debian or Ubuntu")
    if python < _LEAST_PYTHON:
        raise BoardError(_too_old(survey, address))
    return survey


def _too_old(survey: dict[str, Any], address: str) -> str:
    """What to do where Python is too old, which on a Jetson is not a matter of updates."""
    system, cure = "", f"install a newer system; {_GUIDES['pi']}"
    release = re.match(r"# R(\d+)", survey.get("l4t", ""))
    if release:
        system = f" (L4T {release[1]}, so JetPack {_JETPACKS.get(release[1], 'of an unknown version')})"
        cure = (
            "leave the system's Python alone, NVIDIA's packages need it, and put one beside it, such as "
            f"`uv python install 3.10`; it is found in ~/.local/bin. {_GUIDES['jetson']}, also with TensorRT"
        )
    return f"{address} has Python {survey['python']}{system}; DeployLab needs 3.10 or later there: {cure}"


def download(pins: Sequence[Pin], name: str, progress: Progress, **target: Any) -> Path:
    """The packages for such a board in a folder of this user's cache; one download serves all boards of a kind.

    A runtime without a wheel for it is left out. Raises :class:`BoardError` if another package has none, as all
    runtimes need it, and if the index does not answer.
    """
    folder = paths.cache() / "remote" / name
    runtimes = {packages.plain(each) for engine in registry.names() for each in registry.get(engine).runtime_packages}
    wanted = list(pins)
    with _downloading:
        if folder.is_dir():
            return folder
        progress("downloading the engines' packages for it (about 150 MB)")
        folder.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                _install(wanted, folder, **target)
                return folder
            except index.NoWheel as error:
                missing = packages.plain(error.requirement.partition("==")[0])
                if missing not in runtimes:
                    raise
                progress(f"no wheel of {error.requirement} for it: left out")
                wanted = [pin for pin in wanted if pin.name != missing]


def _install(pins: Sequence[Pin], folder: Path, **target: Any) -> None:
    """Make ``folder`` with these packages, complete or not at all."""
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=folder.parent) as draft:
        wanted = Path(draft) / "requirements.txt"
        wanted.write_text("\n".join(pin.text for pin in pins) + "\n", encoding="utf-8")
        index.install(wanted, Path(draft) / "packages", **target)
        (Path(draft) / "packages").rename(folder)


def remarks(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What the sensors say about a measurement between the two readings."""
    found = []
    held_back, earlier = (state.get("throttling", {}) for state in (after, before))
    now = set(held_back.get("now", ()))
    since = set(held_back.get("since_start", ())) - set(earlier.get("since_start", ()))
    if now | since:
        found.append(f"the board was held back while it was measured: {', '.join(sorted(now | since))}")
    governor = before.get("governor")
    if governor not in (None, "performance"):
        found.append(f"its clock follows the load (governor {governor}); `performance` gives steadier times")
    return found


def _glibc(survey: dict[str, Any]) -> int:
    return int(survey["libc"][1].split(".")[1])


def _code() -> Iterator[tuple[Path, str]]:
    """Files of DeployLab that a board needs, and their names there."""
    package = Path(__file__).resolve().parents[1]
    for pattern in _SOURCES:
        for path in sorted(package.rglob(pattern)):
            yield path, f"utils/deploylab/{path.relative_to(package).as_posix()}"
    yield paths.root() / "hardware" / "requirements.txt", "hardware/requirements.txt"


@contextmanager
def _archive(files: Sequence[tuple[Path, str]]) -> Iterator[IO[bytes]]:
    """A gzipped tar archive of files or folders under the names given, to read from its start."""
    with tempfile.TemporaryFile(prefix="deploylab-") as file:
        with (
            gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as packed,
            tarfile.open(fileobj=packed, mode="w|") as tar,
        ):
            for path, name in files:
                tar.add(path, name, filter=_plain)
        file.seek(0)
        yield file


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return None if "__pycache__" in info.name.split("/") else info
