"""The graders of lab 21, graded: they name each planted mistake."""

from __future__ import annotations

import numpy as np
import pytest

from deploylab.checks import lab21 as check
from graders import solutions, verdict

right = solutions("21_openvino")


def attributes(layer):
    data = layer.find("data").attrib
    shape = [int(size) for size in data["shape"].split(",") if size.strip()]
    return right.DTYPES[data["element_type"]], shape, int(data["offset"]), int(data["size"])


def from_the_beginning(layer, weights):
    dtype, shape, _, size = attributes(layer)
    return np.frombuffer(weights[:size], dtype).reshape(shape)


def always_float32(layer, weights):
    _, shape, offset, size = attributes(layer)
    numbers = np.frombuffer(weights[offset : offset + size], np.float32)
    return numbers.reshape(shape) if numbers.size == np.prod(shape) else numbers


def to_the_end(layer, weights):
    dtype, _, offset, _ = attributes(layer)
    return np.frombuffer(weights[offset : len(weights) // 8 * 8], dtype)


def size_in_numbers(layer, weights):
    dtype, _, offset, size = attributes(layer)
    return np.frombuffer(weights[offset:], dtype, count=min(size, (len(weights) - offset) // np.dtype(dtype).itemsize))


def flat(layer, weights):
    return right.read_constant(layer, weights).ravel()


def wrong_byte_order(layer, weights):
    good = right.read_constant(layer, weights)
    return good.byteswap().reshape(good.shape)


WRONG_READ_CONSTANT = [
    (from_the_beginning, "you read from the beginning of the file"),
    (always_float32, "element_type"),
    (to_the_end, "how many *bytes*"),
    (size_in_numbers, "how many *bytes*"),
    (flat, "your array has shape [24]"),
    (wrong_byte_order, "the numbers are wrong"),
    (lambda layer, weights: weights, "not bytes"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_READ_CONSTANT)
def test_read_constant_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.read_constant, wrong)


def run(queue, arrays, keep):
    answers = []
    queue.set_callback(lambda request, number: keep(answers, request.get_output_tensor().data, number))
    for number, array in enumerate(arrays):
        queue.start_async(array, userdata=number)
    queue.wait_all()
    return answers


def as_they_come(queue, arrays):
    return run(queue, arrays, lambda answers, data, _: answers.append(data.copy()))


def views(queue, arrays):
    return run(queue, arrays, lambda answers, data, _: answers.append(data))


def first_row_only(queue, arrays):
    return [answer[0] for answer in right.in_order(queue, arrays)]


def impatient(queue, arrays):
    queue.wait_all()
    answers = [None] * len(arrays)
    for number, array in enumerate(arrays):
        queue.start_async(array, userdata=number)
    return answers


WRONG_IN_ORDER = [
    (as_they_come, "in the order in which they came"),
    (views, "keep a copy"),
    (impatient, "Call queue.wait_all() before you return"),
    (first_row_only, "the shape of the model's output"),
    (lambda queue, arrays: right.in_order(queue, arrays[:3]), "3 answers for 6 arrays"),
    (lambda queue, arrays: [answer + 1 for answer in right.in_order(queue, arrays)], "The answers are wrong"),
    (lambda queue, arrays: right.in_order(queue, arrays)[0], "not ndarray"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_IN_ORDER)
def test_in_order_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.in_order, wrong)


def one_stream(submitted, done, streams):
    return np.maximum(submitted, np.concatenate([[0], done[:-1]]))


def never_idle(submitted, done, streams):
    return np.concatenate([submitted[:streams], np.sort(done)[: len(done) - streams]])


def no_overtaking(submitted, done, streams):
    return np.maximum(submitted, np.concatenate([np.zeros(streams), done[:-streams]]))


WRONG_BEGAN = [
    (lambda submitted, done, streams: submitted, "If all streams are busy it waits"),
    (one_stream, "right for one stream"),
    (never_idle, "A stream may stand idle"),
    (no_overtaking, "Requests overtake each other"),
    (lambda *given: right.began(*given) - given[0], "not how long it waited"),
    (lambda *given: right.began(*given)[:1], "one time a request"),
    (lambda submitted, done, streams: done, "expected [0.0, 5.0, 10.0, 15.0]"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_BEGAN)
def test_began_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.began, wrong)


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_began_agrees_with_a_queue_that_is_played_through(streams):
    chance = np.random.default_rng(streams)
    for _ in range(50):
        submitted = np.sort(chance.uniform(0, 30, 12))
        begun, done = check._queue(submitted, chance.uniform(1, 9, 12), streams)
        assert np.allclose(right.began(submitted, done, streams), begun)
