"""What the service counts, in the form Prometheus reads (text format 0.0.4, by prometheus-client).

One process keeps its numbers to itself. Several worker processes share a folder, named by the environment variable
``PROMETHEUS_MULTIPROC_DIR`` before Python starts; then whichever worker is asked answers for all of them.
"""

from __future__ import annotations

import os
import time
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

from deploylab.serving.batcher import CallQueue
from deploylab.serving.limits import Gate
from deploylab.serving.predictor import Answer, Predictor

MULTIPROCESS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_NOTE_EVERY_S = 0.1
_ROWS = (1, 2, 4, 8, 16, 32)
_STAGES = ("read", "decode", "preprocess", "queue", "inference")


class Metrics:
    """The counters of one application in this process, and the page that shows them."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.registry = registry
        self._requests = Counter(
            "deploylab_requests", "Requests answered, by route and status.", ["route", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "deploylab_request_seconds", "Time in the application.", ["route"], buckets=_SECONDS, registry=registry
        )
        self._stage_seconds = Histogram(
            "deploylab_stage_seconds",
            "Time of a prediction by stage: read, decode, preprocess, queue, inference.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_rows = Histogram(
            "deploylab_batch_rows",
            "Pictures that the engine ran together, seen from each request.",
            buckets=_ROWS,
            registry=registry,
        )
        self._pictures = Counter("deploylab_pictures", "Pictures, answered and refused.", ["result"], registry=registry)
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
        self._routes: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        if not several_processes():
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)

    def model(self, predictor: Predictor) -> None:
        """Say which model answers."""
        facts = predictor.facts
        names = (predictor.name, *(str(facts.get(key, "")) for key in ("engine", "version", "precision", "threads")))
        self._info.labels(*names).set(1)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request of whatever route."""
        found = self._routes.get((route, status))
        if found is None:
            found = self._requests.labels(route, str(status)), self._request_seconds.labels(route)
            self._routes[route, status] = found
        count, time = found
        count.inc()
        time.observe(seconds)

    def answer(self, answer: Answer) -> None:
        """Count an answered prediction."""
        stages = self._stages
        for stage, seconds in answer.seconds.items():
            stages[stage].observe(seconds)
        refused = answer.refused
        if refused:
            self._refused.inc(refused)
        if answer.batch:
            self._answered.inc(len(answer.results) - refused)
            self._batch_rows.observe(answer.batch)

    def watch(self, gate: Gate, queue: CallQueue) -> None:
        """Show how much is under way: looked up when asked for, or noted at each :meth:`load` for other processes."""
        self._gate = gate
        looks = ((self._in_flight, lambda: gate.inside), (self._waiting, lambda: queue.stats().waiting))
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
        """All numbers as text, of all worker processes where there are several."""
        if not several_processes():
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)


def several_processes(environ: Mapping[str, str] = os.environ) -> bool:
    return MULTIPROCESS_FOLDER in environ
