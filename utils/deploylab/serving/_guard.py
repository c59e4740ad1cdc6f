"""Stands between a program and the server it started, so that the server ends when the program does.

``python -I -S _guard.py LOG COMMAND...`` starts COMMAND with its output in LOG and prints its process id (or
``error TEXT``). It ends the server and all it started as soon as its standard input closes, which is what the kernel
does to a program that was killed, or when its parent is another. It prints the exit code when all of them are gone.

A byte on standard input is a request: ``t`` ends the server as a service manager would (SIGTERM to its first process),
``k`` ends all of its processes at once. Needs the standard library only, so that it starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

GRACE_S = 5.0
# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LINUX = sys.platform == "linux"


def main(log: str, *command: str) -> None:
    parent = os.getppid()
    if LINUX:
        _prctl(PR_SET_CHILD_SUBREAPER, 1)  # a process whose parent ended becomes our child and is found
    try:
        with open(log, "wb") as output:
            server = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_guard if LINUX else None,
            )
    except OSError as error:
        print(f"error {error.strerror or error}", flush=True)
        return
    print(server.pid, flush=True)
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program in front
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=_end, args=(server,), daemon=True).start())
    for watch in (lambda: _obey(server), lambda: _watch_parent(server, parent)):
        threading.Thread(target=watch, daemon=True).start()
    code = server.wait()
    _kill_tree(server.pid)
    with contextlib.suppress(OSError):
        print(code, flush=True)


def _obey(server: subprocess.Popen) -> None:
    """Do what the bytes on standard input say; their end means that the program is gone."""
    while request := os.read(0, 1):
        if request == b"t":
            server.terminate()
        elif request == b"k":
            _kill_tree(server.pid)
    _end(server)


def _watch_parent(server: subprocess.Popen, parent: int) -> None:
    """A process forked off the program holds our standard input open after it; then the parent tells."""
    while os.getppid() == parent:
        time.sleep(0.5)
    _end(server)


def _end(server: subprocess.Popen) -> None:
    server.terminate()
    try:
        server.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        _kill_tree(server.pid)


def _kill_tree(pid: int) -> None:
    """SIGKILL the server and everything it started, until nothing of it is left."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(pid)], capture_output=True)
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline and (alive := _descendants()):
        for one in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(one, signal.SIGKILL)
        time.sleep(0.01)


def _descendants() -> list[int]:
    """Processes below this one that still run (Linux; elsewhere the process group is all there is)."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc") if LINUX else ():
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{name}/stat", "rb") as stat:
                state, parent = stat.read().rpartition(b")")[2].split()[:2]  # the name before may hold anything
            if state != b"Z":
                parents[int(name)] = int(parent)
    found, unseen = [], [os.getpid()]
    while unseen:
        above = unseen.pop()
        below = [pid for pid, parent in parents.items() if parent == above]
        found += below
        unseen += below
    return found


def _end_with_guard() -> None:
    """Runs in the server before its program: should even the guard be killed, the kernel tells the server to end."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
