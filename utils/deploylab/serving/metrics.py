"""What the service counts, in the form Prometheus reads (text format 0.0.4, by prometheus-client).

One process keeps its numbers to itself. Several worker processes share a folder, named by the environment variable
``PROMETHEUS_MULTIPROC_DIR`` before Python starts; then whichever worker is asked answers for all of them.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from deploylab.serving.limits import Gate
from deploylab.serving.predictor import Answer, Predictor

MULTIPROCESS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_NOTE_EVERY_S = 0.1
_ROWS = (1, 2, 4, 8, 16, 32)
_STAGES = ("read", "decode", "preprocess", "queue", "inference")


class _Counter(Counter):
    """Counts in a plain number; :meth:`write` adds it to the one that the page shows.

    With several processes that one is in a file, where a change costs some microseconds, and a request has a score.
    """

    def _metric_init(self) -> None:
        super()._metric_init()
        self._pending = 0.0

    def inc(self, amount: float = 1, exemplar: None = None) -> None:
        self._pending += amount

    def write(self) -> None:
        if self._pending:
            super().inc(self._pending)
            self._pending = 0.0


class _Histogram(Histogram):
    """As :class:`_Counter`, for the counts of the buckets and the sum."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._pending = [0] * len(self._upper_bounds)
        self._pending_sum = 0.0

    def observe(self, amount: float, exemplar: None = None) -> None:
        self._pending[bisect_left(self._upper_bounds, amount)] += 1
        self._pending_sum += amount

    def write(self) -> None:
        for index, count in enumerate(self._pending):
            if count:
                self._buckets[index].inc(count)
                self._pending[index] = 0
        if self._pending_sum:
            self._sum.inc(self._pending_sum)
            self._pending_sum = 0.0


class Metrics:
    """The counters of one application in this process, and the page that shows them."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.registry = registry
        self._requests = _Counter(
            "deploylab_requests", "Requests answered, by route and status.", ["route", "status"], registry=registry
        )
        self._request_seconds = _Histogram(
            "deploylab_request_seconds", "Time in the application.", ["route"], buckets=_SECONDS, registry=registry
        )
        self._stage_seconds = _Histogram(
            "deploylab_stage_seconds",
            "Time of a prediction by stage: read, decode, preprocess, queue, inference.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_rows = _Histogram(
            "deploylab_batch_rows",
            "Pictures that the engine ran together, seen from each request.",
            buckets=_ROWS,
            registry=registry,
        )
        self._pictures = _Counter(
            "deploylab_pictures", "Pictures, answered and refused.", ["result"], registry=registry
        )
        self._in_flight = Gauge(
            "deploylab_requests_in_flight",
            "Requests being worked on.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._waiting = Gauge(
            "deploylab_queue_length",
            "Calls waiting for the engine.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._info = Gauge(
            "deploylab_model_info",
            "The model and engine that answer; always 1.",
            ["model", "engine", "version", "precision", "threads"],
            multiprocess_mode="max",
            registry=registry,
        )
        self._stages = {stage: self._stage_seconds.labels(stage) for stage in _STAGES}
        self._answered, self._refused = self._pictures.labels("answered"), self._pictures.labels("refused")
        self._looks: tuple[tuple[Gauge, Callable[[], float]], ...] = ()
        self._note_at, self._noted = 0.0, 0
        self._routes: dict[tuple[str, int], tuple[_Counter, _Histogram]] = {}
        self._written: list[_Counter | _Histogram] = [
            *self._stages.values(),
            self._answered,
            self._refused,
            self._batch_rows,
        ]
        self._answers: deque[Answer] = deque()
        self._gate: Gate | None = None
        self._write_at = 0.0
        self._lock = threading.Lock()
        if not several_processes():
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)

    def model(self, predictor: Predictor) -> None:
        """Say which model answers."""
        facts = predictor.facts
        names = (predictor.name, *(str(facts.get(key, "")) for key in ("engine", "version", "precision", "threads")))
        self._info.labels(*names).set(1)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request of whatever route, as the last that is said about it."""
        with self._lock:
            found = self._routes.get((route, status))
            if found is None:
                found = self._requests.labels(route, str(status)), self._request_seconds.labels(route)
                self._routes[route, status] = found
                self._written += found
            count, time_taken = found
            count.inc()
            time_taken.observe(seconds)
            now = time.monotonic()
            if now >= self._write_at or not (self._gate and self._gate.inside):
                self._write_at = now + _NOTE_EVERY_S
                self._write()

    def answer(self, answer: Answer) -> None:
        """Count an answered prediction. Only noted for now: many are counted faster together than one by one."""
        self._answers.append(answer)

    def _count(self, answer: Answer) -> None:
        for stage, seconds in answer.seconds.items():
            if stage in self._stages:
                self._stages[stage].observe(seconds)
        refused = answer.refused
        if refused:
            self._refused.inc(refused)
        if answer.batch:
            self._answered.inc(len(answer.results) - refused)
            self._batch_rows.observe(answer.batch)

    def rest(self) -> None:
        """There is nothing to do for now: write down what was counted."""
        self.load()
        with self._lock:
            self._write()

    def _write(self) -> None:
        while self._answers:
            self._count(self._answers.popleft())
        for each in self._written:
            each.write()

    def watch(self, gate: Gate, waiting: Callable[[], int]) -> None:
        """Show how much is under way: looked up when asked for, or noted at each :meth:`load` for other processes."""
        self._gate = gate
        looks = ((self._in_flight, lambda: gate.inside), (self._waiting, waiting))
        if several_processes():
            self._looks = looks
        else:
            for gauge, look in looks:
                gauge.set_function(look)

    def load(self) -> None:
        """The number of requests under way has changed. Noted ten times a second, and when there is none left."""
        if not self._looks:
            return
        now, busy = time.monotonic(), self._gate.inside
        if now >= self._note_at or (self._noted and not busy):
            self._note_at, self._noted = now + _NOTE_EVERY_S, busy
            for gauge, look in self._looks:
                gauge.set(look())

    def page(self) -> bytes:
        """All numbers as text, of all worker processes where there are several.

        Those of the others may be a tenth of a second old.
        """
        with self._lock:
            self._write()
        if not several_processes():
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)


def several_processes(environ: Mapping[str, str] = os.environ) -> bool:
    return MULTIPROCESS_FOLDER in environ
