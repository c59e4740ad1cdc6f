"""Progress of long work: counted by what does it, shown by a command on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int, str], None]
"""Hears how many steps are done, of how many, and which begins."""


class Steps:
    """Counts steps, also those of several threads, and tells of each that begins and of the end of all."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done, self._lock = progress, total, 0, Lock()

    @contextmanager
    def __call__(self, text: str) -> Iterator[None]:
        with self._lock:
            self._tell(text)
        yield
        with self._lock:
            self._done += 1
            if self._done == self._total:
                self._tell("done")

    def _tell(self, text: str) -> None:
        if self._progress:
            self._progress(self._done, self._total, text)


def tell(done: int, total: int, text: str) -> None:
    """Say which of how many steps begins: in one line that is written over on a terminal, else in a line of its own."""
    line = f"[{done}/{total}] {text}"
    sys.stderr.write(f"\r\033[K{line}" if sys.stderr.isatty() else f"{line}\n")
    sys.stderr.flush()
