"""Running an engine's converter, and hearing what an engine says."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from deploylab.errors import ConversionError

TIME_LIMIT = 600.0
"""Seconds after which a converter counts as hung."""


def run(title: str, command: Sequence[str], folder: Path) -> str:
    """Run a converter in ``folder`` and return what it printed; it ends with us, whatever happens.

    Raises :class:`ConversionError` with the end of its output if it fails, crashes or hangs.
    """
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C goes to us only, and we end it with all its children
        )
        try:
            child.wait(TIME_LIMIT)
        except subprocess.TimeoutExpired as error:
            raise ConversionError(f"{title} did not finish within {TIME_LIMIT:.0f} s") from error
        finally:
            _end(child)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        raise ConversionError(f"{title} crashed ({name}). It said last:\n{tail(text)}")
    if child.returncode != 0:
        raise ConversionError(f"{title} failed with exit code {child.returncode}. It said last:\n{tail(text)}")
    return text


def follow(title: str, command: Sequence[str], folder: Path, hear: Callable[[str], None], seconds: float) -> None:
    """Run a program that reports line by line on stdout, for ``seconds`` at most; ``hear`` gets each line at once.

    It ends with us, whatever happens. Raises :class:`ConversionError` with the end of its stderr if it fails or hangs.
    """
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
        late = threading.Timer(seconds, _end, [child])
        late.daemon = True
        late.start()
        try:
            for line in child.stdout:
                hear(line.decode(errors="replace"))
            child.wait()
        finally:
            hung = not late.is_alive()
            late.cancel()
            _end(child)
            child.stdout.close()
        errors.seek(0)
        text = errors.read().decode(errors="replace")
    if hung:
        raise ConversionError(f"{title} did not finish within {seconds:.0f} s")
    if child.returncode != 0:
        raise ConversionError(f"{title} failed with exit code {child.returncode}. It said last:\n{tail(text)}")


def tail(text: str, lines: int = 12) -> str:
    """The last lines of a converter's output, indented."""
    kept = [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]
    return "\n".join(f"    {line}" for line in kept) or "    (nothing)"


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is not None:
        return
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.wait()


class Heard:
    """What was printed inside :func:`listen`."""

    text = ""


@contextlib.contextmanager
def listen() -> Iterator[Heard]:
    """Catch what native code prints, on the level of file descriptors and, as some bindings do, through Python.

    ncnn and MNN report errors only by printing, and greet on stdout, which in a worker carries the protocol. In a
    notebook ``sys.stderr`` is no file: ExecuTorch, which prints through it, would be heard in the cell.
    """
    heard, spoken = Heard(), io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a stream may be closed or missing
            stream.flush()
    saved = {number: os.dup(number) for number in (1, 2)}
    with tempfile.TemporaryFile() as sink:
        try:
            for number in saved:
                os.dup2(sink.fileno(), number)
            with contextlib.redirect_stdout(spoken), contextlib.redirect_stderr(spoken):
                yield heard
        finally:
            for number, copy in saved.items():
                os.dup2(copy, number)
                os.close(copy)
            sink.seek(0)
            heard.text = sink.read().decode(errors="replace") + spoken.getvalue()
