"""Many threads, one engine: calls wait in a bounded line, have deadlines, and may be run together (micro-batching).

A server answers each request in a thread of its own, but an engine takes one call at a time. :class:`Direct` lets the
calls take turns. :class:`MicroBatcher` joins calls that wait into one larger call: worth it where an engine runs eight
inputs in less than eight times the time of one, which is usual on a GPU and rare on a CPU. Both know three answers
besides the right one: :class:`QueueFull` (come back later), :class:`DeadlineExceeded` and :class:`Draining`.

There is no thread in here: the caller whose turn it is runs the engine, for itself and for those who share its batch
(the leader/follower pattern: Schmidt et al., Pattern-Oriented Software Architecture 2, 2000). So a lone call costs no
hand-over to another thread, a forked worker process inherits nothing half-alive, and nothing is left to be stopped.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from deploylab.errors import DeployLabError, EngineError, InputError

Run = Callable[[np.ndarray], np.ndarray]
"""An engine: float32 (n, 3, H, W) in, (n, classes) out. A :class:`~deploylab.engines.base.Session` is one."""


class QueueFull(DeployLabError):
    """As many calls wait as may wait. The work was not begun; it is right to try again later."""


class DeadlineExceeded(DeployLabError):
    """No answer came within the call's ``timeout_s``."""


class Draining(DeployLabError):
    """The server is about to stop and takes no new call. The work was not begun."""


class Timed(NamedTuple):
    """An answer and what it took: ``rows`` (n, ...), seconds in the line and in the engine, rows that ran together."""

    rows: np.ndarray
    queue_s: float
    run_s: float
    batch: int


@dataclass(frozen=True)
class Stats:
    """Counts since the start. ``batches``: how many of them had how many rows; ``waiting`` and ``running``: now."""

    batches: Mapping[int, int]
    waiting: int
    running: int
    answered: int
    failed: int
    refused: int
    expired: int


class _Call:
    """One caller's input, and what became of it. Changed under the line's lock only, ``outcome`` while it runs."""

    __slots__ = ("_lock", "_wake", "arrived", "batch", "deadline", "done", "ended", "gone", "outcome", "started", "x")

    def __init__(self, x: np.ndarray, timeout_s: float | None, lock: threading.Lock) -> None:
        self.x = x
        self.arrived = self.started = self.ended = time.perf_counter()
        self.deadline = math.inf if timeout_s is None else self.arrived + timeout_s
        self._lock = lock
        self._wake: threading.Condition | None = None  # made when first needed: most calls never wait
        self.outcome: np.ndarray | Exception | None = None
        self.batch = 0
        self.done = False
        self.gone = False  # nobody waits for the answer any more

    def sleep(self, seconds: float) -> None:
        """Wait until woken, at most so long. With the lock held; it is free meanwhile."""
        self._wake = self._wake or threading.Condition(self._lock)
        self._wake.wait(min(seconds, threading.TIMEOUT_MAX))

    def wake(self) -> None:
        if self._wake is not None:
            self._wake.notify()

    def fits(self, other: _Call) -> bool:
        """Whether the inputs of two calls can be joined along the first axis."""
        return self.x.shape[1:] == other.x.shape[1:] and self.x.dtype == other.x.dtype


class CallQueue:
    """What :class:`Direct` and :class:`MicroBatcher` share: a line of calls in order of arrival.

    Calling it with x (n, ...) returns the engine's rows for x. ``max_queue`` calls may wait, besides those that run.
    ``parallel`` runs may be under way at once; ``run`` must then allow it. An exception of the engine goes to the
    caller whose input caused it. Safe to use from any number of threads.
    """

    def __init__(self, run: Run, *, max_queue: int = 64, max_batch: int | None = None, parallel: int = 1) -> None:
        for name, value in (("max_queue", max_queue), ("max_batch", max_batch), ("parallel", parallel)):
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        self._run = run
        self._max_queue = max_queue
        self._max_batch = max_batch
        self._parallel = parallel
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # for drain() and close()
        self._waiting: deque[_Call] = deque()
        self._runs = 0
        self._draining = False
        self._batches: Counter[int] = Counter()
        self._counts: Counter[str] = Counter()

    def __call__(self, x: np.ndarray, timeout_s: float | None = None) -> np.ndarray:
        """The engine's answer for x (n, ...): n rows, in order. Blocks the calling thread.

        Raises :class:`QueueFull` and :class:`Draining` at once, :class:`DeadlineExceeded` if no answer came within
        ``timeout_s`` seconds, and whatever the engine raises for this input. A call that gave up before its turn is
        never computed; one that runs the engine itself cannot be interrupted and returns its answer even if late.
        """
        return self.timed(x, timeout_s).rows

    def timed(self, x: np.ndarray, timeout_s: float | None = None) -> Timed:
        """As calling it, with the times it took."""
        if not isinstance(x, np.ndarray) or x.ndim < 1 or not len(x):
            raise InputError(f"expected an array of at least one row, got {_describe(x)}")
        call = _Call(x, timeout_s, self._lock)
        with self._lock:
            self._admit(call)
            try:
                while not call.done:
                    self._take_turn(call)
            finally:
                self._leave(call)
        if isinstance(call.outcome, Exception):
            raise call.outcome
        return Timed(call.outcome, call.started - call.arrived, call.ended - call.started, call.batch)

    def drain(self, timeout_s: float = 10.0) -> bool:
        """Refuse new calls from now on and wait until those under way are answered; False if time ran out before.

        Not for signal handlers: the interrupted thread may be one of those this waits for.
        """
        with self._lock:
            self._draining = True
            self._wake_next()
            return self._changed.wait_for(lambda: not self._waiting and not self._runs, timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Refuse new calls and those that wait; return when the engine is free, or after ``timeout_s``.

        Safe to call twice.
        """
        with self._lock:
            self._draining = True
            self._counts["refused"] += len(self._waiting)
            for call in self._waiting:
                call.outcome, call.done = self._refusal(), True
                call.wake()
            self._waiting.clear()
            self._changed.wait_for(lambda: not self._runs, timeout_s)

    def __enter__(self) -> CallQueue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stats(self) -> Stats:
        """What happened so far, and how many calls wait now."""
        with self._lock:
            counts = {name: self._counts[name] for name in ("answered", "failed", "refused", "expired")}
            return Stats(dict(sorted(self._batches.items())), len(self._waiting), self._runs, **counts)

    # What the two kinds decide: called with the lock held and at least one call waiting.

    def _next(self) -> list[_Call]:
        """The calls at the head of the line that run together."""
        raise NotImplementedError

    def _pause(self) -> float:
        """Seconds that the head of the line should still wait for company; 0 or less: it runs now."""
        raise NotImplementedError

    # All below with the lock held, except _compute() and _rows().

    def _admit(self, call: _Call) -> None:
        if self._draining:
            self._counts["refused"] += 1
            raise self._refusal()
        if len(self._waiting) >= self._max_queue:
            self._counts["refused"] += 1
            raise QueueFull(f"{len(self._waiting)} calls wait already, the most this server allows; try again later")
        self._waiting.append(call)
        if call is not self._waiting[0] and self._pause() <= 0:
            self._wake_next()

    def _take_turn(self, call: _Call) -> None:
        """Run the next calls if this one stands first and the engine is free, else sleep until something changes."""
        left = call.deadline - time.perf_counter()
        if not left > 0:
            self._counts["expired"] += 1
            raise DeadlineExceeded(
                f"no answer within {call.deadline - call.arrived:g} s; "
                + ("the engine was still at it" if call.batch else f"{len(self._waiting)} calls waited for the engine")
            )
        pause = self._pause() if self._leads(call) else math.inf
        if pause <= 0:
            self._run_next()
        else:
            call.sleep(min(pause, left))

    def _leads(self, call: _Call) -> bool:
        return bool(self._waiting) and call is self._waiting[0] and self._runs < self._parallel

    def _wake_next(self) -> None:
        if self._waiting and self._runs < self._parallel:
            self._waiting[0].wake()

    def _tell_the_drain(self) -> None:
        if self._draining:
            self._changed.notify_all()

    def _leave(self, call: _Call) -> None:
        """The caller goes, answered or not: after a deadline or Ctrl-C it may still stand in the line."""
        call.gone = True
        if not call.done and call in self._waiting:
            self._waiting.remove(call)
            self._wake_next()
            self._tell_the_drain()

    def _run_next(self) -> None:
        batch = self._next()
        rows = sum(len(call.x) for call in batch)
        started = time.perf_counter()
        for call in batch:
            self._waiting.popleft()
            call.started, call.batch = started, rows
        self._runs += 1
        self._wake_next()
        self._lock.release()
        try:
            self._compute(batch)
        finally:
            self._lock.acquire()
            self._runs -= 1
            self._batches[rows] += 1
            self._hand_out(batch)
            self._wake_next()
            self._tell_the_drain()

    def _hand_out(self, batch: list[_Call]) -> None:
        ended = time.perf_counter()
        for call in reversed(batch):
            if call.outcome is not None:
                call.ended, call.done = ended, True
                self._counts["failed" if isinstance(call.outcome, Exception) else "answered"] += not call.gone
                call.wake()
            elif not call.gone:  # the thread that ran the engine was interrupted, by Ctrl-C for instance
                call.batch = 0
                self._waiting.appendleft(call)

    def _compute(self, batch: list[_Call]) -> None:
        """Give each call its rows, or the exception that its own input caused. Without the lock."""
        if len(batch) > 1:
            try:
                rows = self._rows(np.concatenate([call.x for call in batch]))
            except Exception:  # whose fault it is shows when each runs alone, below
                pass
            else:
                ends = np.cumsum([len(call.x) for call in batch])
                for call, end in zip(batch, ends, strict=True):
                    call.outcome = rows[end - len(call.x) : end]
                return
        for call in batch:
            try:
                call.outcome = None if call.gone else self._rows(call.x)
            except Exception as error:
                call.outcome = error

    def _rows(self, x: np.ndarray) -> np.ndarray:
        most = self._max_batch or len(x)
        parts = [self._run(x[first : first + most]) for first in range(0, len(x), most)]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if not isinstance(rows, np.ndarray) or rows.shape[:1] != (len(x),):
            raise EngineError(f"the engine was given {len(x)} rows and returned {_describe(rows)}")
        return rows

    def _refusal(self) -> Draining:
        return Draining("the server is stopping and takes no new work; send it to another one or try again later")


class Direct(CallQueue):
    """One call after the other, in order of arrival, none joined: for engines whose batch does not pay or is fixed.

    ``max_batch``: the most rows the engine takes at once (1 for an artifact with a fixed batch of 1); a call with more
    is run in pieces.
    """

    def _next(self) -> list[_Call]:
        return [self._waiting[0]]

    def _pause(self) -> float:
        return 0.0


class MicroBatcher(CallQueue):
    """Joins calls that wait into batches of at most ``max_batch`` rows.

    The first of a batch waits at most ``max_wait_s`` for company, and not at all once the batch is full. With
    ``max_wait_s=0`` only calls that queued up behind a running batch are joined, and a lone call never waits. A batch
    in which the engine fails is run again call by call, so that only the call at fault fails. Calls whose inputs
    differ in shape or dtype are never joined; a call of more than ``max_batch`` rows runs alone, in pieces.
    """

    def __init__(
        self, run: Run, *, max_batch: int = 8, max_wait_s: float = 0.002, max_queue: int = 64, parallel: int = 1
    ) -> None:
        super().__init__(run, max_queue=max_queue, max_batch=max_batch, parallel=parallel)
        if not 0 <= max_wait_s < math.inf:
            raise InputError(f"max_wait_s must be 0 or more seconds, got {max_wait_s}")
        self._most = max_batch
        self._max_wait_s = max_wait_s

    def _next(self) -> list[_Call]:
        first, rows, batch = self._waiting[0], 0, []
        for call in self._waiting:
            rows += len(call.x)
            if batch and (rows > self._most or not call.fits(first)):
                break
            batch.append(call)
        return batch

    def _pause(self) -> float:
        batch = self._next()
        full = len(batch) < len(self._waiting) or sum(len(call.x) for call in batch) >= self._most
        if full or self._draining:
            return 0.0
        return self._waiting[0].arrived + self._max_wait_s - time.perf_counter()


def _describe(value: object) -> str:
    return f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
