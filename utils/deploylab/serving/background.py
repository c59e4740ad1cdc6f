"""Start a server as a child process for a lab, a test or a benchmark, and be sure that it ends::

    port = background.free_port()
    command = [sys.executable, "server.py", str(port)]
    with background.start(command, "/healthz", port=port, log=Path("build/lab02/server.log")) as server:
        requests.get(server.url + "/healthz")

The server and everything it starts end when the ``with`` block is left, when :meth:`Server.stop` is called, when the
object is forgotten, and when this program ends in whatever way, be it ``kill -9``: a small guard process
(``_guard.py``) holds one end of a pipe and sees the other one close.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deploylab.errors import InputError, ServerError

HOST = "127.0.0.1"
PORTS = (20_000, 32_000)
_GUARD = Path(__file__).with_name("_guard.py")
_GUARD_ENDS_WITHIN_S = 15.0


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses at this moment.

    Taken from below the range out of which systems give ports to outgoing connections (32768 and up on Linux, 49152 on
    others), so that no client under load takes it before the server does.
    """
    choose = random.SystemRandom()  # two processes with one seed would choose the same
    while True:
        port = choose.randrange(*PORTS)
        with contextlib.suppress(ServerError):
            _require_free(port)
            return port


def start(
    command: Sequence[str | os.PathLike],
    ready: str,
    *,
    port: int,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 60.0,
) -> Server:
    """Start ``command`` and return when ``GET ready`` is answered with a status below 400.

    ``ready`` is a path such as ``/healthz`` on ``port`` of the loopback interface, or a whole URL. ``env`` is added to
    this program's environment. What the server prints goes to the file ``log``, which is made anew.

    Raises :class:`ServerError`, with the end of the log, if the port is taken, the command cannot be started, it ends
    before it is ready, or it is not ready after ``timeout_s`` seconds; nothing is left running then.
    """
    _require_free(port)
    log = Path(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    server = Server(_spawn(command, log, env, cwd), command=[str(word) for word in command], port=port, log=log)
    try:
        server._wait_until_ready(ready if "://" in ready else f"{server.url}/{ready.lstrip('/')}", timeout_s)
    except BaseException:
        server.kill()
        raise
    return server


class Server:
    """A running server; made by :func:`start`. As a context manager it is stopped at the end of the block.

    ``url`` is ``http://127.0.0.1:PORT``, ``pid`` the server's first process, ``ready_s`` the seconds from its start to
    its first good answer, ``log`` the file with what it printed.
    """

    def __init__(self, guard: subprocess.Popen, *, command: list[str], port: int, log: Path) -> None:
        self._guard = guard
        self._forget = weakref.finalize(self, _end_guard, guard, close_output=True)
        self.command, self.port, self.log = command, port, log
        self.url = f"http://{HOST}:{port}"
        self.ready_s = float("nan")
        self._exit_code: int | None = None
        greeting = guard.stdout.readline().decode("utf-8", "replace").strip()
        self._started = time.perf_counter()
        if not greeting.isdigit():
            self._forget()
            raise ServerError(f"cannot start {command[0]}: {greeting.removeprefix('error ') or 'no reason given'}")
        self.pid = int(greeting)

    @property
    def exit_code(self) -> int | None:
        """None while it runs; else the exit code, negative for the number of the signal that ended it."""
        if self._exit_code is None and self._guard.poll() is not None:
            self._exit_code = self._last_word()
        return self._exit_code

    def stop(self, timeout_s: float = 10.0) -> int:
        """End the server as a service manager would: SIGTERM to its first process, and time to finish its work.

        What still runs after ``timeout_s`` seconds is killed. Returns the exit code, negative for a signal; every
        process of the server is gone then. Safe to call twice.
        """
        self._ask(b"t")
        try:
            self._guard.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return self.kill()
        return self._gone()

    def kill(self) -> int:
        """End every process of the server now, without a chance to tidy up. Returns the exit code."""
        self._ask(b"k")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._guard.wait(_GUARD_ENDS_WITHIN_S)
        return self._gone()

    def memory_mib(self) -> float:
        """Memory of all processes of the server in MiB.

        On Linux the proportional set size, so that what processes share counts once; elsewhere what is theirs alone.
        """
        total = 0
        for process in self._tree():
            with _vanishing():
                info = process.memory_full_info()
                total += getattr(info, "pss", info.uss)
        return total / 2**20

    def cpu_s(self) -> float:
        """CPU seconds that all processes of the server, also those that ended meanwhile, have used since the start."""
        total = 0.0
        for process in self._tree():
            with _vanishing():
                times = process.cpu_times()
                total += times.user + times.system
                total += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
        return total

    def processes(self) -> list[int]:
        """Ids of the server's processes, the first one in front."""
        return [process.pid for process in self._tree()]

    def log_tail(self, lines: int = 20) -> str:
        """The last lines that the server printed."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.kill() if kind else self.stop()

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.exit_code is None else f"ended with {self.exit_code}"
        return f"<Server {self.url} {state}>"

    def _wait_until_ready(self, url: str, timeout_s: float) -> None:
        deadline, pause = self._started + timeout_s, 0.005
        while not _answers_well(url):
            if self.exit_code is not None:
                raise self._failed(f"ended with {_in_words(self.exit_code)} before it was ready")
            if time.perf_counter() > deadline:
                self.kill()
                raise self._failed(f"was not ready after {timeout_s:g} s ({url} gave no good answer) and was ended")
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        self.ready_s = time.perf_counter() - self._started
        if self.exit_code is not None:
            raise self._failed(f"ended with {_in_words(self.exit_code)}, and another one answers on port {self.port}")

    def _failed(self, what: str) -> ServerError:
        said = self.log_tail()
        tail = f"It said last:\n{said}" if said else "It printed nothing"
        return ServerError(f"the server {what}. Command: {shlex.join(self.command)[:200]}. {tail}")

    def _tree(self) -> list[Any]:
        import psutil

        with _vanishing():
            processes = psutil.Process(self._guard.pid).children(recursive=True)
            return sorted(processes, key=lambda process: process.pid != self.pid)
        return []

    def _ask(self, request: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):  # it is gone already
            self._guard.stdin.write(request)
            self._guard.stdin.flush()

    def _gone(self) -> int:
        self._forget.detach()
        _end_guard(self._guard)
        return self.exit_code

    def _last_word(self) -> int:
        with self._guard.stdout as output:
            words = output.read().split()
        return int(words[-1]) if words else self._guard.returncode  # the second: even the guard was killed


def _spawn(
    command: Sequence[str | os.PathLike], log: Path, env: Mapping[str, str] | None, cwd: Path | None
) -> subprocess.Popen:
    if not command:
        raise InputError("an empty command cannot be started")
    guard = [sys.executable, "-I", "-S", str(_GUARD), str(log.resolve()), *map(str, command)]
    return subprocess.Popen(
        guard,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        cwd=cwd,
        start_new_session=True,  # Ctrl-C in the terminal is for us
    )


def _end_guard(guard: subprocess.Popen, close_output: bool = False) -> None:
    """Close the guard's standard input, whereupon it ends the server, and wait for it."""
    with contextlib.suppress(OSError):
        guard.stdin.close()
    try:
        guard.wait(_GUARD_ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        guard.kill()
        guard.wait()
    if close_output:
        guard.stdout.close()


def _require_free(port: int) -> None:
    if not 1 <= port <= 65535:
        raise InputError(f"a port is a number from 1 to 65535, got {port}; background.free_port() gives a free one")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, sys.platform != "win32")
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ServerError(
                f"port {port} cannot be used: {error.strerror}; background.free_port() gives one"
            ) from None


def _answers_well(url: str) -> bool:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=5)
    try:
        connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        return connection.getresponse().status < 400
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextlib.contextmanager
def _vanishing() -> Any:
    """A process may end while it is looked at."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        yield


def _in_words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


__all__ = ["HOST", "Server", "free_port", "start"]
