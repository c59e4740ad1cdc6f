"""What the routes share and Flask has no part in: the model and its life, and a prediction as JSON."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from deploylab.errors import DeployLabError
from deploylab.serving import problems
from deploylab.serving.limits import Gate, Limits
from deploylab.serving.metrics import Metrics
from deploylab.serving.predictor import Answer, Predictor, Steps, finished
from deploylab.serving.problems import RETRY_AFTER_S, Problem
from deploylab.serving.uploads import Upload

ARRIVED = "deploylab.arrived"
"""Where a request's WSGI environment says when its head was there (``time.perf_counter``), if the server tells."""
STAGES = ("read", "decode", "preprocess", "queue", "inference", "total")
"""What an answer gives the times of, in milliseconds."""

_TAIL = '], "timings_ms": {' + ", ".join(f'"{stage}": %s' for stage in STAGES) + "}}\n"
_TIMING = ", ".join(f"{stage};dur=%s" for stage in STAGES)


class Reply(NamedTuple):
    """A prediction as it is sent: JSON, and the value of the header Server-Timing."""

    body: bytes
    timing: str


class Service:
    """The model once it is loaded, the limits, the gate, and the two switches of its life.

    ``predictor`` may be a callable that loads one; it then runs in a thread, and until it is done the service is alive
    but not ready.
    """

    def __init__(self, predictor: Predictor | Callable[[], Predictor], limits: Limits, metrics: Metrics) -> None:
        self.limits = limits
        self.metrics = metrics
        self.gate = Gate(limits.max_queue)
        self.predictor: Predictor | None = None
        self.failure: str | None = None
        self.leaving = False  # set shortly before the end: still answers, but wants no more traffic
        if isinstance(predictor, Predictor):
            self._use(predictor)
        else:
            self.loader = threading.Thread(target=self._load, args=(predictor,), name="load", daemon=True)
            self.loader.start()

    def ready(self) -> Predictor:
        """The predictor. Raises :class:`Problem` 503 while it is loading, if that failed, and while draining."""
        if not self.gate.open:
            raise Problem("draining", "The server is shutting down.", retry_after_s=RETRY_AFTER_S)
        if self.predictor is None:
            detail = self.failure or "The model is being loaded."
            raise Problem("loading", detail, retry_after_s=RETRY_AFTER_S)
        return self.predictor

    def drain(self, timeout_s: float = 10.0) -> bool:
        """Stop being ready, refuse new requests, wait for those under way. False if ``timeout_s`` was too short."""
        self.gate.close()
        return self.gate.wait_until_empty(timeout_s)

    def predict(self, read: Callable[[], Sequence[Upload]], started: float, top_k: int | None = None) -> Reply:
        """Answer a request that began at ``started`` (``time.perf_counter``) and whose pictures ``read`` gives.

        Raises what ``read`` raises, :class:`Problem` if no picture can be answered, and the errors of
        :meth:`Predictor.predict`.
        """
        return finished(self.steps(read, started, top_k))

    def steps(self, read: Callable[[], Sequence[Upload]], started: float, top_k: int | None = None) -> Steps[Reply]:
        """As :meth:`predict`, with the pauses of :meth:`Predictor.steps`."""
        predictor = self.ready()
        try:
            with self.gate:
                self.metrics.load()
                uploads = read()
                read_s = time.perf_counter() - started
                answer = yield from predictor.steps(
                    [upload.data for upload in uploads], top_k=top_k, timeout_s=self.limits.timeout_s - read_s
                )
        finally:
            self.metrics.load()
        seconds = answer.seconds = {"read": read_s, **answer.seconds}
        self.metrics.answer(answer)
        if not answer.batch:
            raise _all_bad(uploads, answer)
        seconds["total"] = time.perf_counter() - started
        return self._reply(uploads, answer)

    def _reply(self, uploads: Sequence[Upload], answer: Answer) -> Reply:
        """By hand instead of with ``json.dumps``, as all but a few numbers is the same in every answer."""
        times = tuple(["%.3f" % (1000 * answer.seconds[stage]) for stage in STAGES])
        predictions = ", ".join(
            [self._prediction(upload.name, result) for upload, result in zip(uploads, answer.results, strict=True)]
        )
        return Reply((self._head + predictions + _TAIL % times).encode(), _TIMING % times)

    def _prediction(self, name: str, result: Any) -> str:
        if isinstance(result, DeployLabError):
            return json.dumps(_refusal(name, result))
        quoted = self._quoted
        top = ", ".join([f"{quoted[label]}{share}}}" for label, share in result])
        return f'{{"name": {json.dumps(name)}, "top": [{top}]}}'

    def _use(self, predictor: Predictor) -> None:
        name, facts = json.dumps(predictor.name), json.dumps(predictor.facts, default=str)
        self._head = f'{{"model": {name}, "engine": {facts}, "predictions": ['
        self._quoted = {label: f'{{"label": {json.dumps(label)}, "probability": ' for label in predictor.labels}
        self.metrics.model(predictor)
        self.metrics.watch(self.gate, lambda: predictor.queue.stats().waiting)
        self.predictor = predictor

    def _load(self, load: Callable[[], Predictor]) -> None:
        try:
            self._use(load())
        except DeployLabError as error:
            self.failure = f"The model could not be loaded: {error}"


def _refusal(name: str, error: DeployLabError) -> dict[str, Any]:
    return {"name": name, "problem": problems.of(error).document()}


def _all_bad(uploads: Sequence[Upload], answer: Answer) -> DeployLabError:
    if len(uploads) == 1:
        return answer.results[0]
    refusals = [_refusal(upload.name, error) for upload, error in zip(uploads, answer.results, strict=True)]
    return Problem("pictures", f"None of the {len(uploads)} pictures can be read.", predictions=refusals)
