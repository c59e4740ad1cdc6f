"""The parent's end of a worker: start it, ask it within a time limit, and end it whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploylab.bench import worker
from deploylab.errors import WorkerDied, WorkerError

COMMAND = (sys.executable, "-m", "deploylab.bench.worker")
LONGEST_LINE = 1 << 28
GRACE_S = 2.0
LATER_S = 60.0
_SIGNALLED = 128
"""A shell, such as that of a board, tells a signal by adding this to its number."""


def pinned(threads: int) -> dict[str, str]:
    """What a worker must find in its environment before an engine is imported."""
    counts = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS")
    # TVM would pin this process, and all it starts, to one core.
    return {**dict.fromkeys(counts, str(threads)), "TVM_BIND_THREADS": "0", "ORT_DISABLE_TELEMETRY": "1"}


def environment(threads: int) -> dict[str, str]:
    """The environment of a worker on this machine."""
    return {**os.environ, **pinned(threads), "PYTHONIOENCODING": "utf-8"}


class Worker:
    """A worker process. Use as a context manager; leaving it, by whatever way, ends the process and its children.

    ``label`` names it in messages. ``command`` starts it elsewhere, over SSH or in an emulator. ``start_s`` is how long
    the process took from its start to its first answer, in seconds.
    """

    def __init__(
        self,
        label: str = "worker",
        *,
        threads: int = 1,
        command: Sequence[str] = COMMAND,
        start_timeout_s: float = 60.0,
    ) -> None:
        self.label = label
        self._stderr: deque[str] = deque(maxlen=40)
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        begin = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment(threads),
                start_new_session=True,  # Ctrl-C in the terminal is for us; we end the workers
            )
        except OSError as error:
            raise WorkerError(f"{label}: cannot start {command[0]}: {error.strerror or error}") from error
        self._readers = [
            threading.Thread(target=self._read_answers, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        try:
            self.greeting = self.request("hello", start_timeout_s)
        except BaseException:
            self.kill()
            raise
        self.start_s = time.perf_counter() - begin

    @property
    def pid(self) -> int:
        return self._process.pid

    def request(self, op: str, timeout_s: float, **options: Any) -> dict[str, Any]:
        """Send one request and return its answer.

        Raises :class:`WorkerError` if the worker reports an error, and :class:`WorkerDied` if it crashes, answers
        nonsense or does not answer within ``timeout_s`` seconds; it is ended then.
        """
        line = json.dumps({"op": op, "deadline_s": timeout_s, **options}).encode() + b"\n"
        begin = time.monotonic()
        sender = threading.Thread(target=self._send, args=(line,), daemon=True)
        sender.start()
        try:
            reply = self._lines.get(timeout=timeout_s + GRACE_S)
        except queue.Empty:
            reply = None
        if reply is None:
            hung = time.monotonic() - begin >= timeout_s
            raise self._dead(f"did not answer {op!r} within {timeout_s:g} s and was ended" if hung else None, op, hung)
        try:
            answer = json.loads(reply)
            ok = answer["ok"]
        except (ValueError, KeyError, TypeError):
            raise self._dead(f"answered {op!r} with nonsense: {_shorten(reply)!r}", op) from None
        if not ok:
            raise WorkerError(f"{self.label}: {answer.get('error', 'no reason given')}")
        return answer

    def run(self, inputs: Sequence[np.ndarray], timeout_s: float) -> tuple[tuple[np.ndarray, ...], float]:
        """Run samples: one array per model input, each with a leading axis of samples.

        Returns one array per model output with the same leading axis, and the seconds the first inference took.
        """
        answer = self.request("check", timeout_s, inputs=[worker.encode(array) for array in inputs])
        return tuple(worker.decode(text) for text in answer["outputs"]), answer["first_s"]

    def convert(
        self,
        engine: str,
        source: Mapping[str, str],
        example: Sequence[np.ndarray],
        out_dir: Path,
        precision: str,
        options: Mapping[str, Any],
        timeout_s: float,
    ) -> Path:
        """Convert a model in the worker; ``source`` is what :func:`deploylab.bench.worker.source` takes.

        Returns the artifact's folder. A conversion that takes too long, or that Ctrl-C ends, cleans up behind itself.
        """
        try:
            answer = self.request(
                "convert",
                timeout_s,
                deadline_s=timeout_s + LATER_S,  # its own watchdog would leave files and converter programs behind
                engine=engine,
                source=dict(source),
                example=[worker.encode(array) for array in example],
                out_dir=str(out_dir),
                precision=precision,
                options=dict(options),
            )
        except KeyboardInterrupt:
            self.interrupt()
            raise
        return Path(answer["artifact"])

    def interrupt(self) -> None:
        """Let Python in the worker end what it does and clean up, if it can do so quickly; then end it."""
        if os.name == "posix" and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)
        self.kill()

    def close(self) -> None:
        """Ask the worker to stop; end it if it does not. Safe to call twice."""
        if self._process.poll() is None:
            threading.Thread(target=self._send, args=(b'{"op": "stop"}\n',), daemon=True).start()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)
        self.kill()

    def kill(self) -> None:
        """End the process and everything it started, now."""
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(GRACE_S)
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.close()
        for reader, stream in zip(self._readers, (self._process.stdout, self._process.stderr), strict=True):
            if not reader.is_alive():  # else a stray grandchild holds the pipe, and closing would wait for it
                stream.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.kill() if kind else self.close()

    def _send(self, line: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):  # a dead worker is noticed where its answer is missing
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _read_answers(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while line := self._process.stdout.readline(LONGEST_LINE):
                self._lines.put(line)
        self._lines.put(None)

    def _read_stderr(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in iter(lambda: self._process.stderr.readline(4096), b""):
                self._stderr.append(line.decode("utf-8", "replace").rstrip())

    def _dead(self, what: str | None, op: str, hung: bool = False) -> WorkerDied:
        if what is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)
            what = f"{ending(self._process.poll())} during {op!r}"
        self.interrupt()
        last = [line for line in self._stderr if line.strip()][-8:]
        error = WorkerDied(f"{self.label}: {what}" + (". It said last:\n  " + "\n  ".join(last) if last else ""))
        error.hung = hung
        return error


def ending(code: int | None) -> str:
    """How a process ended, from its exit code: ``crashed with SIGILL (signal 4)``, ``ended with exit code 1``."""
    if code is None:
        return "closed its output"
    if code < 0:
        try:
            return f"crashed with {signal.Signals(-code).name} (signal {-code})"
        except ValueError:
            return f"crashed with signal {-code}"
    if code > _SIGNALLED:
        with contextlib.suppress(ValueError):
            return f"crashed with {signal.Signals(code - _SIGNALLED).name} (exit code {code})"
    return f"ended with exit code {code}"


def _shorten(reply: bytes, longest: int = 80) -> str:
    text = reply.decode("utf-8", "replace").strip()
    return text if len(text) <= longest else text[:longest] + "..."


__all__ = ["COMMAND", "Worker", "ending", "environment"]
