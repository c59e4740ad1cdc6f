"""The graders of lab 05, graded: they accept the solution and name each planted mistake."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from deploylab.checks import lab05 as check
from graders import solutions, verdict

right = solutions("05_model_servers")


def request(x_bytes=lambda x: x.tobytes(), length=lambda header: len(header.encode()), **changes):
    """A binary request with ``changes`` to its only input; a callable is given (name, x), None leaves the key out."""

    def attempt(name, x):
        tensor = {
            "name": name,
            "datatype": "FP32",
            "shape": list(x.shape),
            "parameters": {"binary_data_size": x.nbytes},
        }
        for key, value in changes.items():
            tensor[key] = value(name, x) if callable(value) else value
        tensor = {key: value for key, value in tensor.items() if value is not None}
        header = json.dumps({"inputs": [tensor]}, ensure_ascii=False)
        return header.encode() + x_bytes(x), length(header)

    return attempt


WRONG_REQUEST = [
    (lambda name, x: request()(name, x)[0], "Return two things"),
    (lambda name, x: ("text", 4), "The body is bytes, not str"),
    (lambda name, x: (request()(name, x)[0], len(request()(name, x)[0])), "length of the JSON text alone"),
    (request(length=len), "counts bytes, not characters"),
    (request(length=lambda header: 7), "are no JSON text"),
    (request(data=lambda name, x: x.ravel().tolist()), "sent twice"),
    (request(name="x"), "is called 'input'"),
    (request(datatype="float32"), "name for float32 is FP32"),
    (request(shape=lambda name, x: list(x.shape[1:])), "lacks the batch dimension"),
    (request(shape=lambda name, x: [x.size]), "the header says [48]"),
    (request(parameters=None), "cannot know how many bytes"),
    (request(parameters=lambda name, x: {"binary_data_size": x.size}), "A float32 has 4 bytes"),
    (request(parameters=lambda name, x: {"binary_data_size": 8 * x.size}), "but the array has 192 bytes"),
    (request(lambda x: x.astype(">f4").tobytes()), "big-endian"),
    (request(lambda x: x.astype(np.float64).tobytes()), "are float64"),
    (request(lambda x: x.tobytes("F")), "column-major"),
    (request(lambda x: x.tobytes()[:-4]), "188 bytes follow the header"),
    (request(lambda x: (1 - x).tobytes()), "not those of the array"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_REQUEST)
def test_binary_request_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.binary_request, wrong)


WRONG_REPLICAS = [
    (lambda rate, ms, busy: rate * ms / 1000 / busy, "round up to a whole number"),
    (lambda rate, ms, busy: math.ceil(rate * ms / busy), "divide by 1000"),
    (lambda rate, ms, busy: math.ceil(rate * ms / 1000), "divide by the utilisation"),
    (lambda rate, ms, busy: math.ceil(rate * ms / 1000 * busy), "a lower one takes more replicas"),
    (lambda rate, ms, busy: max(1, math.floor(rate * ms / 1000 / busy)), "above the utilisation"),
    (lambda rate, ms, busy: 0, "one is the least"),
    (lambda rate, ms, busy: [1], "return one number"),
    (lambda rate, ms, busy: 99, "you have 99, it takes 14"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_REPLICAS)
def test_replicas_needed_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.replicas_needed, wrong)


WRONG_WAIT = [
    (lambda inside, rate, ms: 1000 * inside / rate, "the whole time of a request"),
    (lambda inside, rate, ms: inside / rate - ms / 1000, "in seconds; times 1000"),
    (lambda inside, rate, ms: inside / rate - ms, "bring both to one unit"),
    (lambda inside, rate, ms: 1000 * rate / inside - ms, "not the other way round"),
    (lambda inside, rate, ms: 1000 * inside * rate - ms, "you multiplied"),
    (lambda inside, rate, ms: ms - 1000 * inside / rate, "minus the measured one"),
    (lambda inside, rate, ms: 7, "you have 7 ms, it is 157.5 ms"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_WAIT)
def test_hidden_wait_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.hidden_wait_ms, wrong)


def without_gpus(models, frameworks, gpu, machines):
    return right.choose_server(models, frameworks, False, machines)


WRONG_CHOICE = [
    (lambda **scenario: "TorchServe", "no security fixes"),
    (lambda **scenario: "TF Serving", "is none of"),
    (lambda **scenario: "Ray Serve", "more to learn than the job needs"),
    (lambda **scenario: "deploylab serve", "leave you to build what Triton brings"),
    (without_gpus, "a GPU, which batching keeps busy"),
    (lambda **scenario: right.choose_server(**{**scenario, "machines": 1}), "on the other machines"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_CHOICE)
def test_choose_server_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.choose_server, wrong)
