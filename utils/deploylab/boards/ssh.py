"""A connection to a board over OpenSSH: one login that everything shares, and nothing left behind when it ends.

The client is the user's own ``ssh``, with its configuration, keys and agent; ``DEPLOYLAB_SSH`` names another command,
such as ``ssh -F file``. Nothing is asked: a password or an unknown host key is an error that says what to do.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import uuid
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from deploylab.boards import onboard
from deploylab.boards.halt import Halt
from deploylab.errors import BoardError, BoardInterrupted, BoardLost, InputError

LEASE_S = 60.0
"""A board that has heard nothing for so long ends the run by itself."""
BEAT_S = 10.0
START_TIMEOUT_S = 120.0
SEND_TIMEOUT_S = 3600.0
_GRACE_S = 5.0
_ABANDONED_AFTER_S = 600.0
_PREFIX = "dl-ssh-"
_CLIENT = uuid.uuid4().hex
"""Names this process to the boards, so that its own runs there do not count as another's."""
_LEAST_PYTHON = (3, 10)
_OWN_PYTHONS = ("$HOME/.local/bin", "$HOME/miniforge3/bin")
"""Where uv and Miniforge put a Python that an old system lacks. A login without a terminal does not look there."""
_PYTHONS = ("python3", "python3.13", "python3.12", "python3.11", "python3.10")
_LOST = 255
"""The exit code of ssh for errors of its own."""
_SETTINGS = (
    *("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=5", "ServerAliveCountMax=3", "LogLevel=ERROR"),
    *("ClearAllForwardings=yes", "ControlPersist=no", "PermitLocalCommand=no", "RemoteCommand=none"),
)
_ADDRESS = re.compile(
    r"(?:(?P<user>[^\s@:/-][^\s@:/]*)@)?(?P<host>\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[A-Za-z0-9_][\w.-]*)(?::(?P<port>\d{1,5}))?"
)


@dataclass(frozen=True)
class Address:
    """Whom to call: ``user@host`` or a name of the user's configuration, and the port if it is given."""

    target: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """``[user@]host[:port]``, an IPv6 address in brackets. Raises :class:`InputError`."""
        found = _ADDRESS.fullmatch(text)
        port = int(found["port"]) if found and found["port"] else None
        if not found or (port is not None and not 0 < port < 65536):
            raise InputError(
                f"ssh:{text} is no address; give ssh:USER@HOST or ssh:USER@HOST:PORT, such as ssh:pi@pi4 "
                "(an IPv6 address in brackets: ssh:pi@[fe80::1%eth0])"
            )
        host = found["host"].strip("[]")
        return cls(f"{found['user']}@{host}" if found["user"] else host, port)

    def __str__(self) -> str:
        return self.target if self.port is None else f"{self.target}:{self.port}"


class Connection:
    """A login that stays open, and with it a guard on the board that ends what runs there when it closes or breaks.

    ``survey`` is what the guard says of the board. ``halt`` ends the connection from another thread. Raises
    :class:`BoardError` if there is no way in, saying why.
    """

    def __init__(self, address: Address, packages: Sequence[str], halt: Halt | None = None) -> None:
        self.address = address
        self._halt = halt or Halt()
        _sweep()
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_short_folder()))
        self._said: deque[str] = deque(maxlen=20)
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._closed = threading.Event()
        order = {"do": "guard", "lease_s": LEASE_S, "packages": list(packages), "client": _CLIENT}
        try:
            self._master = subprocess.Popen(
                [*self._ssh(master=True), _any_python(order)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in the terminal is for us; we close the connection
                env={**os.environ, "SSH_ASKPASS_REQUIRE": "never"},  # a host on the way knows no BatchMode
            )
        except OSError as error:
            self._forget()
            raise BoardError(
                f"cannot start {_client()[0]}: {error.strerror or error}; install OpenSSH's client, such as "
                "`sudo apt install openssh-client`"
            ) from error
        self._halt.ends(self._master)
        self._errors = threading.Thread(target=self._read_errors, daemon=True)
        self._errors.start()
        for work in (self._read_answers, self._beat):
            threading.Thread(target=work, daemon=True).start()
        try:
            self.survey = self._first_answer()
        except BaseException:
            self.close()
            raise

    @property
    def lost(self) -> bool:
        """Whether it broke. A client of the connection ends a moment before it does."""
        if self._closed.is_set():
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._master.wait(0.5)
        return self._master.poll() is not None

    def loss(self) -> BoardLost:
        """What there is to say about a connection that broke, or that was ended by the halt."""
        if self._halt.asked:
            return BoardInterrupted(f"by the user; what ran on {self.address} was ended")
        last = self._last_words()
        return BoardLost(f"the connection to {self.address} was lost" + (f" ({last})" if last else ""))

    def command(self, script: str) -> list[str]:
        """The command that runs a script of the POSIX shell on the board."""
        return [*self._ssh(), f"exec /bin/sh -c {shlex.quote(script)}"]

    def run(self, script: str, *, stdin: IO[bytes] | int = subprocess.DEVNULL, timeout_s: float = 120.0) -> str:
        """What a script of the POSIX shell prints on the board. Raises :class:`BoardError` with its last words."""
        if self.lost:
            raise self.loss()
        try:
            done = subprocess.run(
                self.command(script), stdin=stdin, capture_output=True, timeout=timeout_s, start_new_session=True
            )
        except subprocess.TimeoutExpired:
            raise BoardError(f"{self.address} did not answer within {timeout_s:g} s") from None
        if done.returncode == _LOST and self.lost:
            raise self.loss()
        if done.returncode:
            last = "\n  ".join(done.stderr.decode("utf-8", "replace").strip().splitlines()[-6:])
            raise BoardError(f"a command on {self.address} ended with exit code {done.returncode}:\n  {last}")
        return done.stdout.decode("utf-8", "replace")

    def send(self, archive: IO[bytes], to: str) -> None:
        """Unpack a gzipped tar archive into the folder ``to`` of the board, unless it is there already.

        Raises :class:`BoardError` if it does not fit, and :class:`BoardLost`.
        """
        order = {"do": "receive", "to": to}
        script = f"exec {shlex.quote(self.survey['executable'])} -c {shlex.quote(_program(order))}"
        answer = _answer_in(self.run(script, stdin=archive, timeout_s=SEND_TIMEOUT_S))
        if answer is None or "error" in answer:
            said = answer["error"] if answer else "no answer"
            free = (answer or {}).get("free")
            room = f" ({free / 1e6:.0f} MB are free)" if free is not None else ""
            raise BoardError(
                f"cannot write {to} on {self.address}: {said}{room}; free some space there and run this again"
            )

    def close(self) -> None:
        """End the connection; the guard then ends what runs on the board. Safe to call twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        with contextlib.suppress(OSError, ValueError):
            self._master.stdin.close()
        try:
            self._master.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._master.kill()
            self._master.wait()
        self._halt.leaves(self._master)
        self._forget()

    def _ssh(self, master: bool = False) -> list[str]:
        settings = [part for setting in _SETTINGS for part in ("-o", setting)]
        port = ["-p", str(self.address.port)] if self.address.port else []
        shared = []
        if os.name == "posix":  # OpenSSH for Windows cannot share a connection: there each command logs in
            shared = ["-S", str(self._folder / "s"), *(["-M"] if master else ["-o", "ControlMaster=no"])]
        return [*_client(), "-T", "-x", "-a", *settings, *shared, *port, "--", self.address.target]

    def _first_answer(self) -> dict[str, Any]:
        noise: list[str] = []
        while True:
            try:
                line = self._lines.get(timeout=START_TIMEOUT_S)
            except queue.Empty:
                raise BoardError(
                    f"{self.address} lets us in but starts no Python within {START_TIMEOUT_S:g} s"
                ) from None
            if line is None:
                raise self.loss() if self._halt.asked else self._refused()
            answer = _answer_in(line)
            if answer is None:
                noise.append(line.strip())
                continue
            if noise:
                raise BoardError(
                    f"the shell's start files on {self.address} print {noise[0]!r} also when nobody is there to read "
                    "it, which mixes with our data; let them print in interactive shells only"
                )
            if "error" in answer:
                raise BoardError(f"{self.address}: {answer['error']}")
            return answer

    def _refused(self) -> BoardError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._master.wait(_GRACE_S)
        self._errors.join(_GRACE_S)
        said = "\n".join(self._said)
        for pattern, meaning in _REASONS:
            if found := re.search(pattern, said):
                target, port = self.address.target, f" -p {self.address.port}" if self.address.port else ""
                if re.search(_NO_WAY_THROUGH, said) and found.groupdict().get("by"):
                    target, port = found["by"], ""  # the host on the way refused
                what = meaning.format(target=target, host=target.rpartition("@")[2], port=port)
                end = "" if what.endswith("?") else "."
                return BoardError(f"no connection to {self.address}: {what}{end} ssh said: {self._last_words()}")
        return BoardError(
            f"no connection to {self.address}: ssh ended with exit code {self._master.poll()}. "
            f"It said: {self._last_words() or 'nothing'}"
        )

    def _last_words(self) -> str:
        return "; ".join(line for line in list(self._said)[-2:] if line)

    def _read_answers(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in self._master.stdout:
                self._lines.put(line.decode("utf-8", "replace"))
        self._lines.put(None)

    def _read_errors(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in self._master.stderr:
                self._said.append(line.decode("utf-8", "replace").strip())

    def _beat(self) -> None:
        """Signs of life for the guard."""
        with contextlib.suppress(OSError, ValueError):
            while not self._closed.wait(BEAT_S):
                self._master.stdin.write(b"\n")
                self._master.stdin.flush()

    def _forget(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


_NO_WAY_THROUGH = "kex_exchange_identification|UNKNOWN port"
"""What ssh says beside the reason when it was the host of a ProxyJump that let nobody through."""
_REASONS = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is not the one you have known. Either the board was set up anew or another machine answers in "
        "its place; find out which, and only then forget the old key with `ssh-keygen -R {host}`",
    ),
    (
        "Host key verification failed|No .* host key is known",
        "its host key is not known here yet. Log in once by hand, `ssh{port} {target}`, and compare the fingerprint",
    ),
    (
        r"(?:(?P<by>\S+@[^\s:]+): )?Permission denied|Too many authentication failures",
        "{target} does not accept your key. Put it there with `ssh-copy-id{port} {target}`; no password is asked for",
    ),
    ("Connection refused", "nothing listens there. Is its SSH server switched on, and is the port right?"),
    (
        "No module named",
        "its Python lacks a part of the standard library; install all of it, such as `sudo apt install python3`",
    ),
    ("Could not resolve hostname", "no such host. Is the name right? On many networks it is NAME.local"),
    (
        "No route to host|Network is unreachable|timed out|Timeout",
        "it does not answer. Is it on, and in the same network?",
    ),
)


def _client() -> list[str]:
    return shlex.split(os.environ.get("DEPLOYLAB_SSH", "")) or ["ssh"]


def _sweep() -> None:
    """Remove the folders of connections whose process was killed: those without a socket that answers."""
    if os.name != "posix":  # no sockets there
        return
    for folder in Path(_short_folder() or tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid != os.getuid() or time.time() - folder.stat().st_mtime < _ABANDONED_AFTER_S:
                continue
            for left in folder.iterdir():
                with socket.socket(socket.AF_UNIX) as probe:
                    if probe.connect_ex(str(left)) == 0:
                        break
                left.unlink()
            else:
                folder.rmdir()


def _short_folder() -> str | None:
    """A socket's path may have no more than about 100 characters."""
    return None if len(tempfile.gettempdir()) < 60 or not os.path.isdir("/tmp") else "/tmp"


def _program(order: Mapping[str, Any]) -> str:
    """Python code in one line that does ``order`` on the board."""
    source = Path(onboard.__file__).read_text(encoding="utf-8") + f"\nmain(json.loads({json.dumps(order)!r}))\n"
    packed = base64.b64encode(zlib.compress(source.encode(), 9)).decode("ascii")
    too_old = f"sys.version_info<(3,6)and sys.exit({onboard.TOO_OLD})"  # it could not even read the program
    return f"import base64,sys,zlib;{too_old};exec(zlib.decompress(base64.b64decode('{packed}')))"


def _any_python(order: Mapping[str, Any]) -> str:
    """A command that does ``order`` with the first Python that is new enough, or with whichever there is."""
    program = _program({**order, "least": list(_LEAST_PYTHON)})
    missing = _say_error("it has no python3; install it, such as `sudo apt install python3`")
    ancient = _say_error("its python3 is older than 3.6; it needs 3.10 or later, and so a newer system")
    script = (
        f'PATH="$PATH:{":".join(_OWN_PYTHONS)}"; '
        f"for p in {' '.join(_PYTHONS)}; do if command -v $p >/dev/null 2>&1; then $p -c {shlex.quote(program)}; c=$?; "
        f"[ $c = {onboard.TOO_OLD} ] || exit $c; old=$p; fi; done; "
        f'if [ "$old" ]; then $old -c {shlex.quote(_program(order))} || {ancient}; else {missing}; fi'
    )
    return f"exec /bin/sh -c {shlex.quote(script)}"


def _say_error(text: str) -> str:
    """The shell command that answers as :mod:`.onboard` does."""
    return "echo " + shlex.quote(onboard.MARK + json.dumps({"error": text}))


def _answer_in(text: str) -> dict[str, Any] | None:
    """The last answer of :mod:`.onboard` in what a command printed."""
    for line in reversed(text.splitlines()):
        if line.startswith(onboard.MARK):
            with contextlib.suppress(ValueError):
                return json.loads(line[len(onboard.MARK) :])
    return None
