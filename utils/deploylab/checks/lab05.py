"""Checks of lab 05, Model servers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from deploylab.checks.core import exercise, expect, hint


@exercise("Text for people, bytes for numbers: the header says where one ends and what the other means.")
def binary_request(attempt: Callable) -> None:
    """``binary_request(name, x)``: the body of an Open Inference request with ``x`` as binary data, and its header's
    length in bytes."""
    rng = np.random.default_rng(5)
    for name, shape in (("input", (1, 3, 4, 4)), ("größe", (2, 3, 5, 2))):
        x = rng.random(shape, np.float32)
        answer = attempt(name, x.copy())
        expect(
            isinstance(answer, tuple) and len(answer) == 2,
            f"Return two things, the body and the length of its JSON header, not {type(answer).__name__}.",
        )
        body, length = answer
        expect(
            isinstance(body, (bytes, bytearray)),
            f"The body is bytes, not {type(body).__name__}; encode the text as UTF-8.",
        )
        expect(
            isinstance(length, int) and length != len(body),
            "The second value is the length of the JSON text alone; the numbers come after it.",
        )
        _expect_header(_header(bytes(body), length), name, x)
        _expect_numbers(bytes(body[length:]), x)


def _header(body: bytes, length: int) -> dict[str, Any]:
    try:
        header = json.loads(body[:length].decode())
    except ValueError:
        header = None
    if header is None:
        text = body.split(b"]}", 1)[0].decode(errors="ignore")
        if len(text) < len(text.encode()):
            hint("The length counts bytes, not characters: a name may hold letters that take two. Encode first.")
        hint(f"The first {length} bytes of the body are no JSON text. The header comes first, then the numbers.")
    expect(isinstance(header, dict) and header.get("inputs"), 'The JSON text has no list "inputs".')
    return header


def _expect_header(header: dict[str, Any], name: str, x: np.ndarray) -> None:
    [tensor] = header["inputs"]
    expect("data" not in tensor, 'The numbers stand in the JSON text too, as "data"; then they are sent twice.')
    expect(tensor.get("name") == name, f"The input is called {name!r}, the header says {tensor.get('name')!r}.")
    expect(
        tensor.get("datatype") == "FP32",
        f"The protocol's name for float32 is FP32, the header says {tensor.get('datatype')!r}.",
    )
    shape = list(tensor.get("shape") or ())
    expect(
        shape != list(x.shape[1:]),
        f"The shape {shape} lacks the batch dimension; the server expects all of {list(x.shape)}.",
    )
    expect(shape == list(x.shape), f"The shape is {list(x.shape)}, the header says {shape}.")
    size = (tensor.get("parameters") or {}).get("binary_data_size")
    expect(
        size is not None,
        'The server cannot know how many bytes belong to the input: "parameters": {"binary_data_size": ...}.',
    )
    expect(size != x.size, f"binary_data_size is {size}: that is how many numbers there are. A float32 has 4 bytes.")
    expect(size == x.nbytes, f"binary_data_size is {size}, but the array has {x.nbytes} bytes.")


def _expect_numbers(data: bytes, x: np.ndarray) -> None:
    wrong = {
        x.astype(">f4").tobytes(): "The numbers are in big-endian order; the protocol wants little-endian.",
        x.astype(np.float64).tobytes(): "The numbers are float64; FP32 has 4 bytes a number.",
        x.tobytes("F"): "The numbers are in column-major order; the protocol wants row-major.",
    }
    expect(data not in wrong, wrong.get(data, ""))
    expect(len(data) == x.nbytes, f"{len(data)} bytes follow the header; the array has {x.nbytes}.")
    expect(data == x.astype("<f4").tobytes(), "The bytes after the header are not those of the array.")


@exercise("Work that arrives in a second, shared so that nobody is busier than you allow.")
def replicas_needed(attempt: Callable) -> None:
    """``replicas_needed(rate, service_ms, utilisation)``: how many replicas keep each below ``utilisation``."""
    for rate, service_ms, utilisation, want in (
        (400, 20, 0.6, 14),
        (100, 5, 0.7, 1),
        (250, 20, 0.5, 10),
        (30, 100, 0.9, 4),
        (1, 2, 0.8, 1),
    ):
        got = attempt(rate, service_ms, utilisation)
        where = f"{rate} requests a second of {service_ms} ms, at most {utilisation:.0%} busy"
        expect(np.isscalar(got), f"{where}: return one number, not {type(got).__name__}.")
        load = rate * service_ms / 1000
        expect(got >= 1, f"{where}: {got} replicas answer nothing; one is the least.")
        expect(got == int(got), f"{where}: {got} replicas cannot be started; round up to a whole number.")
        mistakes = {
            "service_ms is in milliseconds, the rate in seconds; divide by 1000": math.ceil(
                rate * service_ms / utilisation
            ),
            "with as many replicas as there is work they are busy all the time; divide by the utilisation": math.ceil(
                load
            ),
            "you multiplied by the utilisation; a lower one takes more replicas": max(1, math.ceil(load * utilisation)),
            "you rounded down, and are above the utilisation": max(1, math.floor(load / utilisation)),
        }
        for mistake, value in mistakes.items():
            expect(got != value or value == want, f"{where}: {mistake}.")
        expect(got == want, f"{where}: you have {got}, it takes {want}.")


@exercise("L = rate x time: what is inside and how fast it leaves tell how long it stays.")
def hidden_wait_ms(attempt: Callable) -> None:
    """``hidden_wait_ms(in_flight, rate, measured_ms)``: what the server's own latency does not show."""
    for in_flight, rate, measured_ms in ((64, 400, 2.5), (8, 100, 20.0), (2.0, 500, 4.0), (30.5, 61, 100.0)):
        got, whole = attempt(in_flight, rate, measured_ms), 1000 * in_flight / rate
        want = whole - measured_ms
        where = f"{in_flight:g} in flight, {rate} answered a second, {measured_ms:g} ms measured"
        mistakes = {
            "that is the whole time of a request; take away what the server does show": whole,
            "that is in seconds; times 1000": want / 1000,
            "you took milliseconds from seconds; bring both to one unit": in_flight / rate - measured_ms,
            "Little's law divides what is inside by the rate, not the other way round": 1000 * rate / in_flight
            - measured_ms,
            "Little's law divides by the rate; you multiplied": 1000 * in_flight * rate - measured_ms,
            "it is the other way round: the whole time minus the measured one": -want,
        }
        for mistake, value in mistakes.items():
            expect(not _close(got, value) or _close(value, want), f"{where}: {mistake}.")
        expect(_close(got, want), f"{where}: you have {got:g} ms, it is {want:g} ms.")


OWN, TRITON, RAY = "deploylab serve", "Triton", "Ray Serve"


@exercise("The smallest server that does what is asked; the next one when it no longer does.")
def choose_server(attempt: Callable) -> None:
    """``choose_server(models, frameworks, gpu, machines)``: one of the three names."""
    scenarios = (
        ({"models": 1, "frameworks": 1, "gpu": False, "machines": 1}, OWN, "one model on one CPU"),
        ({"models": 2, "frameworks": 1, "gpu": False, "machines": 1}, OWN, "two models of one framework on one CPU"),
        ({"models": 30, "frameworks": 3, "gpu": True, "machines": 1}, TRITON, "many models sharing a GPU"),
        ({"models": 12, "frameworks": 3, "gpu": False, "machines": 1}, TRITON, "three frameworks on one machine"),
        ({"models": 1, "frameworks": 1, "gpu": True, "machines": 1}, TRITON, "a GPU, which batching keeps busy"),
        ({"models": 1, "frameworks": 1, "gpu": False, "machines": 6}, RAY, "one model on six machines"),
        ({"models": 12, "frameworks": 3, "gpu": True, "machines": 6}, RAY, "replicas on six machines"),
    )
    for scenario, want, words in scenarios:
        got = attempt(**scenario)
        expect(got not in ("TorchServe", "torchserve"), f"{words}: TorchServe gets no security fixes any more.")
        expect(got in (OWN, TRITON, RAY), f"{words}: {got!r} is none of {OWN!r}, {TRITON!r}, {RAY!r}.")
        if want == RAY:
            expect(got == want, f"{words}: who starts, finds and replaces the replicas on the other machines? {RAY}.")
        if want == OWN:
            expect(got == want, f"{words}: {got} would work, at more memory and more to learn than the job needs.")
        expect(got == want, f"{words}: {got} would leave you to build what {want} brings.")


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
