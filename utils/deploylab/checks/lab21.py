"""Checks of lab 21, OpenVINO."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np

from deploylab.checks.core import exercise, expect, hint
from deploylab.engines.openvino import core

_STORED = {"f32": "<f4", "f16": "<f2", "i64": "<i8"}


@exercise("Offset, size, type and shape, a single number too.")
def read_constant(attempt: Callable) -> None:
    """``read_constant(layer, weights)``: the array of a Const layer of an IR, from the bytes of its .bin file."""
    first, *others = constants = _constants()
    weights = b"".join(array.tobytes() for array, _ in constants)
    for want, layer in (first, *others):
        got = attempt(layer, weights)
        expect(isinstance(got, np.ndarray), f"Return an array, not {type(got).__name__}.")
        what = f"The constant of type {layer.find('data').get('element_type')} and shape {list(want.shape)}"
        start = np.frombuffer(weights, want.dtype, count=want.size).reshape(want.shape)
        if want is not first[0] and got.shape == want.shape and np.array_equal(got, start):
            hint(f"{what}: you read from the beginning of the file. Where its numbers begin stands in `offset`.")
        expect(got.dtype == want.dtype, f"{what}: your array is {got.dtype}; the type stands in `element_type`.")
        expect(got.size <= want.size, f"{what}: {got.size} numbers are too many. `size` says how many *bytes* to take.")
        expect(got.shape == want.shape, f"{what}: your array has shape {list(got.shape)}.")
        expect(np.array_equal(got, want), f"{what}: the numbers are wrong.")


def _constants() -> list[tuple[np.ndarray, ElementTree.Element]]:
    """Arrays and the Const layers that describe them, in the order of a .bin file."""
    numbers = np.random.default_rng(0)
    arrays = [
        ("f32", numbers.normal(size=(4, 3, 2))),
        ("i64", np.array([2, 3])),
        ("f16", numbers.normal(size=(5, 2))),
        ("f32", np.array(6.0)),
        ("f32", numbers.normal(size=7)),
    ]
    found, offset = [], 0
    for kind, array in arrays:
        stored = array.astype(_STORED[kind])
        shape = ", ".join(map(str, stored.shape))
        data = f'<data element_type="{kind}" shape="{shape}" offset="{offset}" size="{stored.nbytes}" />'
        found.append((stored, ElementTree.fromstring(f'<layer type="Const">{data}</layer>')))
        offset += stored.nbytes
    return found


@exercise("Every answer at its place, and in memory of its own.")
def in_order(attempt: Callable) -> None:
    """``in_order(queue, arrays)``: the answers of an AsyncInferQueue in the order of the arrays, as copies."""
    arrays = [np.full((1, 3), number, np.float32) for number in range(1, 7)]
    got = attempt(_Backwards(_doubling_model()), arrays)
    expect(isinstance(got, Sequence), f"Return a list, not {type(got).__name__}.")
    expect(
        len(got) and not any(answer is None for answer in got),
        "Answers are missing: they come later, in the callback. Call queue.wait_all() before you return.",
    )
    expect(len(got) == len(arrays), f"You returned {len(got)} answers for {len(arrays)} arrays.")
    values = [float(np.asarray(answer).ravel()[0]) for answer in got]
    wanted = [2.0 * number for number in range(1, 7)]
    expect(
        len(set(values)) == len(values),
        "Several answers are the same. `data` is a view of the request's own memory, and the next inference writes "
        "there: keep a copy.",
    )
    expect(
        values == wanted or sorted(values) != wanted,
        "All answers are there, in the order in which they came. Hand start_async a `userdata` that says whose it is.",
    )
    expect(values == wanted, "The answers are wrong.")
    shape = np.shape(got[0])
    expect(shape == (1, 3), f"Each answer has the shape of the model's output, (1, 3); yours has {shape}.")


def _doubling_model() -> Any:
    """A model (1, 3) -> (1, 3) that doubles, compiled."""
    import openvino as ov
    from openvino import opset13 as ops

    x = ops.parameter([1, 3], np.float32)
    doubled = ov.Model([ops.multiply(x, np.float32(2))], [x])
    return core().compile_model(doubled, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False})


class _Backwards:
    """A real AsyncInferQueue with one request, which takes its work up in the opposite order when it is waited for."""

    def __init__(self, compiled: Any) -> None:
        import openvino as ov

        self._queue = ov.AsyncInferQueue(compiled, 1)
        self._waiting: list[tuple[Any, Any, dict]] = []

    def start_async(self, inputs: Any = None, userdata: Any = None, **options: Any) -> None:
        self._waiting.append((inputs, userdata, options))

    def wait_all(self) -> None:
        while self._waiting:
            inputs, userdata, options = self._waiting.pop()
            self._queue.start_async(inputs, userdata, **options)
            self._queue.wait_all()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)


@exercise("Idle streams, full streams, and requests that overtake.")
def began(attempt: Callable) -> None:
    """``began(submitted, done, streams)``: when each request left the queue; first in, first out."""
    for submitted, service, streams in _QUEUES:
        want, done = _queue(submitted, service, streams)
        got = np.asarray(attempt(np.array(submitted), done.copy(), streams), dtype=float)
        case = f"{len(want)} requests, {streams} stream{'s' if streams > 1 else ''}"
        expect(got.shape == want.shape, f"{case}: return one time a request; your answer has shape {got.shape}.")
        if np.allclose(got, want):
            continue
        submitted = np.array(submitted)
        mistakes = {
            "Return when each one began, not how long it waited.": want - submitted,
            "You let each one begin when it was submitted. If all streams are busy it waits.": submitted,
            "That is right for one stream. With several, a request need not wait for the one just before it.": _after(
                submitted, done, 1
            ),
            "A stream may stand idle: no request begins before it was submitted.": _after(
                np.full_like(submitted, submitted[0]), np.sort(done), streams
            ),
            "Requests overtake each other: what counts is how many of those before it are done, not which.": _after(
                submitted, done, streams
            ),
        }
        for sentence, wrong in mistakes.items():
            expect(not np.allclose(got, wrong), f"{case}: {sentence}")
        hint(f"{case}: expected {want.tolist()}, got {got.tolist()}.")


_QUEUES = (
    ([0.0, 1.0, 1.0, 1.0], [5.0, 5.0, 5.0, 5.0], 1),
    ([0.0, 1.0, 20.0, 21.0], [5.0, 5.0, 5.0, 5.0], 1),
    ([0.0, 1.0, 2.0, 3.0, 40.0, 41.0], [6.0, 6.0, 6.0, 6.0, 6.0, 6.0], 2),
    ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [30.0, 4.0, 4.0, 4.0, 4.0, 4.0], 2),
    ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [9.0, 2.0, 7.0, 3.0, 3.0, 1.0, 5.0], 3),
)
"""Times of submission, times of computing, streams."""


def _queue(submitted: Sequence[float], service: Sequence[float], streams: int) -> tuple[np.ndarray, np.ndarray]:
    """When each request began and was done, by playing the queue through."""
    free, begun, done = [0.0] * streams, [], []
    for sent, work in zip(submitted, service, strict=True):
        begun.append(max(sent, min(free)))
        done.append(begun[-1] + work)
        free[free.index(min(free))] = done[-1]
    return np.array(begun), np.array(done)


def _after(submitted: np.ndarray, done: np.ndarray, streams: int) -> np.ndarray:
    """The mistake of waiting for the request that came ``streams`` places before."""
    earlier = itertools.chain([0.0] * streams, done)
    return np.array([max(sent, before) for sent, before in zip(submitted, earlier, strict=False)])
