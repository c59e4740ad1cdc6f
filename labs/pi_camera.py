"""Lab 40: plays a camera and systemd for ``hardware/classify.py``."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_MOMENT_S = 0.5
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Film:
    """A row for each picture that was classified, messages for systemd, last words."""

    rows: list[dict]
    messages: list[str]
    said: str
    shown: int


def missing() -> str:
    """Why there can be no film here; empty if there can."""
    return (
        "" if hasattr(socket, "AF_UNIX") else "no sockets with a path, by which systemd is told"
    )


def film(
    command: Callable[[dict[str, str]], Sequence[str]], pictures: Sequence[bytes], rate: int
) -> Film:
    """Show JPEG ``pictures``, ``rate`` a second and over and over, to a program until it ends.

    ``command`` takes the environment that systemd gives a service, and returns the program with
    ``--source - --json``. The camera starts when the program says that it is ready.
    """
    with tempfile.TemporaryDirectory(prefix="dl-") as folder:
        path = str(Path(folder) / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(path)
            systemd.settimeout(_MOMENT_S)
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            service = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "3000000"}
            with subprocess.Popen(command(service), **pipes) as process:
                try:
                    return _shown(process, systemd, pictures, rate)
                finally:
                    process.kill()


def _shown(
    process: subprocess.Popen, systemd: socket.socket, pictures: Sequence[bytes], rate: int
) -> Film:
    messages: list[str] = []
    shown = 0

    def show() -> None:
        nonlocal shown
        with contextlib.suppress(OSError, ValueError):  # the program ended
            while process.poll() is None:
                process.stdin.write(pictures[shown % len(pictures)])
                process.stdin.flush()
                shown += 1
                time.sleep(1 / rate)

    camera = threading.Thread(target=show, daemon=True)
    while process.poll() is None:
        with contextlib.suppress(TimeoutError):
            messages.append(systemd.recv(4096).decode())
            if len(messages) == 1:  # READY=1
                camera.start()
    out, said = process.stdout.read(), process.stderr.read()
    if not messages:
        raise RuntimeError(f"the program ended before it was ready: {said.decode()[-500:]}")
    camera.join(_TIMEOUT_S)
    return Film([json.loads(line) for line in out.splitlines()], messages, said.decode(), shown)
