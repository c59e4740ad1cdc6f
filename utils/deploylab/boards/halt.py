"""Ending what other threads wait for."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar


class Halt:
    """A wish to end that ends processes: whoever waits for one of them goes on, and finds :attr:`asked` set."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen] = set()
        self._asked = threading.Event()

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def ask(self) -> None:
        """End the processes that are known, and each that becomes known."""
        with self._lock:
            self._asked.set()
            for process in self._processes:
                _end(process)

    def ends(self, process: subprocess.Popen) -> None:
        """Let the wish end ``process``."""
        with self._lock:
            self._processes.add(process)
            if self.asked:
                _end(process)

    def leaves(self, process: subprocess.Popen) -> None:
        """Forget ``process``, which has ended."""
        with self._lock:
            self._processes.discard(process)

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """In this block, what :func:`run` starts in this thread ends by this wish."""
        token = _here.set(self)
        try:
            yield
        finally:
            _here.reset(token)


_here: ContextVar[Halt | None] = ContextVar("halt", default=None)


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """What a program said on its two outputs, and its exit code. It hears no input."""
    halt = _here.get()
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=halt is not None,  # else Ctrl-C in the terminal would be faster than the halt
    )
    with process:
        if halt:
            halt.ends(process)
        try:
            said = process.communicate()
        except BaseException:
            process.kill()
            raise
        finally:
            if halt:
                halt.leaves(process)
    return subprocess.CompletedProcess(process.args, process.returncode, *said)


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(OSError):
        process.terminate()
