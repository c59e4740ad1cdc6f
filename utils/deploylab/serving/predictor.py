"""From the bytes of pictures to the most likely classes, with the time of every stage. Knows nothing of HTTP."""

from __future__ import annotations

import dataclasses
import io
import math
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from deploylab import engines, models
from deploylab.engines import Session
from deploylab.errors import DeployLabError, EngineError, InputError, without_frames
from deploylab.image import FORMATS, Preprocessor
from deploylab.serving import artifacts
from deploylab.serving.batcher import CallQueue, DeadlineExceeded, Direct, MicroBatcher, Run
from deploylab.serving.limits import Limits

REDUCING_GAP = 2.0
"""How much larger than needed a JPEG is left by the decoder; see :class:`~deploylab.image.Preprocessor`."""

BULKY_PIXELS = 4_000_000
"""Pictures larger than that are decoded one at a time: Pillow takes 4 bytes a pixel, and twice that to convert it."""

DEFAULT_TOP_K = 5

AT_ONCE = 4
"""Calls that an engine may have at once where it permits several and each has one thread. More than there are cores for
a process: to wait for a core costs nothing, to be woken when the engine is free costs as much as HTTP does."""
_NO_TURN = nullcontext()

Value = TypeVar("Value")
Steps = Generator[None, None, Value]
"""A computation that pauses between its steps."""

Top = list[tuple[str, float]]
"""Labels and probabilities, the most likely first."""


@dataclass(slots=True)
class Answer:
    """What became of pictures given together: for each its :data:`Top` or the error it caused, in their order.

    ``seconds`` by stage: decode, preprocess, queue, inference. ``batch``: rows the engine ran at once.
    """

    results: list[Any]
    seconds: dict[str, float] = field(default_factory=dict)
    batch: int = 0

    @property
    def refused(self) -> int:
        """How many pictures got an error."""
        return sum(isinstance(result, DeployLabError) for result in self.results)


class Predictor:
    """A model behind a queue, with what comes before it (decode, preprocess) and after it (softmax, top-k).

    ``run`` takes float32 (n, 3, H, W) and returns logits (n, classes): a session, which is then run one call at a
    time, or a :class:`MicroBatcher` or :class:`Direct`. ``labels`` name the classes; None numbers them. Safe to use
    from any number of threads.
    """

    def __init__(
        self,
        run: Run | CallQueue,
        preprocess: Preprocessor,
        labels: Sequence[str] | None,
        *,
        name: str = "model",
        tensors: tuple[str, str] = ("input", "output"),
        facts: Mapping[str, Any] | None = None,
        top_k: int = DEFAULT_TOP_K,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.queue = run if isinstance(run, CallQueue) else Direct(run, max_queue=self.limits.max_queue)
        self.preprocess = preprocess
        self.name = name
        self.input_name, self.output_name = tensors
        self.facts = dict(facts or {})
        self.top_k = top_k
        self._bulky = threading.Lock()
        self.input_shape = (3, preprocess.size, preprocess.size)
        classes = len(self._warm_up())
        self.labels = tuple(labels) if labels is not None else tuple(f"class {index}" for index in range(classes))
        if len(self.labels) != classes:
            raise InputError(f"{len(self.labels)} labels were given for a model with {classes} classes")

    @classmethod
    def load(
        cls,
        model: str = "signnet",
        engine: str = "onnxruntime",
        threads: int = 1,
        *,
        precision: str = "fp32",
        batch: int | None = None,
        max_wait_s: float = 0.002,
        top_k: int = DEFAULT_TOP_K,
        limits: Limits | None = None,
    ) -> Predictor:
        """Load ``model`` (a name of the course, or an ONNX file that takes a picture), converting it if need be.

        ``threads`` is the number of intra-op threads. ``batch`` joins up to that many pictures of waiting requests
        into one call, waiting at most ``max_wait_s`` for company; None answers them one after the other. Raises
        :class:`DeployLabError` if the model, the engine or the conversion fails, or if ``batch`` is wanted of an
        artifact that has a fixed batch.
        """
        limits = limits or Limits()
        chosen = engines.get(engine)
        session = chosen.load(artifacts.prepare(model, engine, precision), threads)
        facts = session.facts()
        _, _, _, size = session.inputs[0].shape
        return cls(
            _queue(session, facts["batch"], batch, max_wait_s, limits),
            dataclasses.replace(artifacts.preprocessor(model, size), reducing_gap=REDUCING_GAP),
            None if artifacts.is_file(model) else models.info(model).labels,
            name=artifacts.name(model),
            tensors=(session.inputs[0].name, session.outputs[0].name),
            facts=facts | {"max_batch": batch or 1},
            top_k=top_k,
            limits=limits,
        )

    def predict(self, pictures: Sequence[bytes], *, top_k: int | None = None, timeout_s: float | None = None) -> Answer:
        """The ``top_k`` most likely classes of each encoded picture.

        A picture that cannot be decoded gets its error as its result; the others are answered. Raises what concerns
        all of them: :class:`QueueFull`, :class:`Draining`, :class:`DeadlineExceeded`, :class:`EngineError`.
        """
        return finished(self.steps(pictures, top_k=top_k, timeout_s=timeout_s))

    def steps(
        self, pictures: Sequence[bytes], *, top_k: int | None = None, timeout_s: float | None = None
    ) -> Steps[Answer]:
        """As :meth:`predict`, but pausing after the decoding and after the inference.

        So a thread can take several predictions through each step together. They then find the step's code in the
        processor's caches, which the steps would otherwise keep taking from each other.
        """
        answer, rows = yield from self._answer(pictures, timeout_s)
        tops = iter([self._top(row, top_k or self.top_k) for row in rows.tolist()])
        answer.results = [next(tops) if result is None else result for result in answer.results]
        return answer

    def probabilities(self, pictures: Sequence[bytes], *, timeout_s: float | None = None) -> np.ndarray:
        """Probabilities of all classes, float64 (n, classes). Raises also :class:`InputError` for a bad picture."""
        answer, rows = finished(self._answer(pictures, timeout_s))
        for index, result in enumerate(answer.results):
            if result is not None:
                raise type(result)(f"picture {index}: {result}") from result
        return softmax(rows)

    def logits(self, x: np.ndarray, *, timeout_s: float | None = None) -> np.ndarray:
        """The engine's own output (n, classes) for preprocessed input, float32 (n, 3, H, W)."""
        return _finite(self.queue(x, timeout_s))

    @property
    def alone(self) -> bool:
        """Whether a prediction is the work of one thread, which gains nothing from company."""
        return isinstance(self.queue, Direct) and self.facts.get("threads") == 1

    def drain(self, timeout_s: float = 10.0) -> bool:
        """Refuse new work and wait for what is under way; False if that took longer than ``timeout_s``."""
        return self.queue.drain(timeout_s)

    def close(self) -> None:
        self.queue.close()

    def _answer(self, pictures: Sequence[bytes], timeout_s: float | None) -> Steps[tuple[Answer, np.ndarray]]:
        """Decode, preprocess and run: logits of the pictures that could be read, which are None in this answer."""
        deadline = math.inf if timeout_s is None else time.perf_counter() + timeout_s
        answer, resized = Answer([], {"decode": 0.0, "preprocess": 0.0}), []
        for picture in pictures:
            try:
                resized.append(self._resize(picture, deadline, answer.seconds))
                answer.results.append(None)
            except InputError as error:
                answer.results.append(without_frames(error))
        yield
        if not resized:
            return answer, np.empty((0, len(self.labels)), np.float32)
        before = time.perf_counter()
        x = self.preprocess.normalise(np.stack(resized) if len(resized) > 1 else resized[0][None])
        now = time.perf_counter()
        answer.seconds["preprocess"] += now - before
        timed = self.queue.timed(x, None if timeout_s is None else deadline - now)
        answer.seconds["queue"] = timed.queue_s
        answer.seconds["inference"] = timed.run_s
        answer.batch = timed.batch
        yield
        return answer, _finite(timed.rows)

    def _resize(self, picture: bytes, deadline: float, seconds: dict[str, float]) -> np.ndarray:
        """One picture decoded and resized at once, so that never two of a request are in memory at full size."""
        started = time.perf_counter()
        if started > deadline:
            raise DeadlineExceeded("decoding the pictures of this request took too long")
        opened = self.preprocess.open(picture, max_bytes=self.limits.max_bytes, max_pixels=self.limits.max_pixels)
        with self._turn(opened.pixels, deadline):
            decoded = opened.load()
            after = time.perf_counter()
            pixels = self.preprocess.resize(decoded)
        seconds["decode"] += after - started
        seconds["preprocess"] += time.perf_counter() - after
        return pixels

    def _turn(self, pixels: int, deadline: float) -> AbstractContextManager[Any]:
        """Held while a picture is decoded: a bulky one alone, so that uploads together do not exhaust the memory."""
        return _NO_TURN if pixels <= BULKY_PIXELS else self._bulky_turn(deadline)

    @contextmanager
    def _bulky_turn(self, deadline: float) -> Iterator[None]:
        left = max(0.0, deadline - time.perf_counter())
        if not self._bulky.acquire(timeout=min(left, threading.TIMEOUT_MAX)):
            raise DeadlineExceeded("large pictures of other requests had to be decoded first")
        try:
            yield
        finally:
            self._bulky.release()

    def _top(self, logits: list[float], top_k: int) -> Top:
        """The best of one picture. In plain Python, which is quicker than NumPy for so few numbers."""
        highest, labels = max(logits), self.labels
        shares = [math.exp(logit - highest) for logit in logits]
        total = math.fsum(shares)
        best = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)[:top_k]
        return [(labels[index], shares[index] / total) for index in best]

    def _warm_up(self) -> np.ndarray:
        """Run once, so that the first request does not pay for it and a broken model never becomes ready."""
        for form in FORMATS:  # Pillow imports a decoder when it is first used
            stream = io.BytesIO()
            Image.new("RGB", (8, 8)).save(stream, form)
            self.preprocess(stream.getvalue())
        return self.queue(np.zeros((1, *self.input_shape), np.float32))[0]


def finished(steps: Steps[Value]) -> Value:
    """What a computation comes to, without its pauses."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities, float64 (n, classes), of finite logits (n, classes)."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    return shifted / shifted.sum(axis=1, keepdims=True)


def _finite(logits: np.ndarray) -> np.ndarray:
    if not (math.isfinite(np.vdot(logits, logits)) or np.isfinite(logits).all()):
        raise EngineError("the engine's output contains NaN or infinity")
    return logits


def _queue(session: Session, fixed: Any, batch: int | None, max_wait_s: float, limits: Limits) -> CallQueue:
    dynamic = fixed == "dynamic"
    if batch is None:
        return Direct(
            session,
            max_queue=limits.max_queue,
            max_batch=None if dynamic else fixed,
            parallel=AT_ONCE if session.concurrent and session.threads == 1 else 1,
        )
    if not dynamic and batch > 1:
        name = session.artifact.engine
        raise EngineError(f"{name}'s artifact runs {fixed} picture at a time: leave batch out, or use another engine")
    return MicroBatcher(session, max_batch=batch, max_wait_s=max_wait_s, max_queue=limits.max_queue)
