"""The graders of lab 24, graded, and the reader of .tflite files that the lab uses."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from deploylab.checks import lab24 as check
from graders import solutions, verdict
from lab_contract import LABS

right = solutions("24_litert")


WRONG_TO_TFLITE = [
    (lambda weight, depthwise: weight, "came back in PyTorch's order"),
    (lambda weight, depthwise: right.to_tflite(weight, False), "treated as ordinary ones"),
    (lambda weight, depthwise: weight.reshape(4, 5, 2, 3), "the numbers lie in the old order"),
    (lambda weight, depthwise: weight.transpose(0, 2, 3, 1), "A transposed view"),
    (lambda weight, depthwise: np.ascontiguousarray(weight.transpose(2, 3, 1, 0)), "became [5, 2, 3, 4]"),
    (lambda weight, depthwise: right.to_tflite(weight[:, :, ::-1], depthwise), "are mixed up"),
    (lambda weight, depthwise: weight.tolist(), "Return an array, not list"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_TO_TFLITE)
def test_to_tflite_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.to_tflite, wrong)


def fed(make):
    """An attempt that makes the stored input by ``make(real, scale, zero_point, dtype)`` and reads the output right."""

    def attempt(interpreter, real):
        source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        interpreter.set_tensor(source["index"], make(real, *source["quantization"], source["dtype"]))
        interpreter.invoke()
        scale, zero_point = sink["quantization"]
        stored = interpreter.get_tensor(sink["index"]).astype(np.float32)
        return (stored - np.float32(zero_point)) * np.float32(scale) if scale else stored

    return attempt


def read(make):
    """An attempt that stores the input right and makes the result by ``make(stored, scale, zero_point)``."""

    def attempt(interpreter, real):
        right.infer(interpreter, real)
        sink = interpreter.get_output_details()[0]
        return make(interpreter.get_tensor(sink["index"]), *sink["quantization"])

    return attempt


def quantised(real, scale, zero_point, dtype, rounded=np.rint, limits=None):
    if not scale:
        return real.astype(dtype)
    low_high = np.iinfo(limits or dtype)
    return np.clip(rounded(real / scale + zero_point), low_high.min, low_high.max).astype(dtype)


def wrapping(real, scale, zero_point, dtype):
    return (np.rint(real / scale) + zero_point).astype(np.int64).astype(dtype) if scale else real


def cut_to_int8(real, scale, zero_point, dtype):
    return quantised(real, scale, zero_point, dtype, limits=np.int8)


def without_zero_point(real, scale, zero_point, dtype):
    return np.rint(real / scale).astype(dtype) if scale else real


WRONG_INFER = [
    (lambda interpreter, real: real, "set_tensor was never called"),
    (fed(lambda real, scale, zero_point, dtype: real.astype(dtype)), "you cast the real numbers"),
    (fed(without_zero_point), "the zero point is missing"),
    (fed(lambda *given: quantised(*given, rounded=np.trunc)), "astype cuts the fraction off"),
    (fed(cut_to_int8), "the limits of int8"),
    (fed(wrapping), "must be cut off, not wrap round"),
    (fed(lambda real, *_: real), "raised ValueError: Got value of type float32, expected int8"),
    (read(lambda stored, *_: stored), "these are the integers themselves"),
    (read(lambda stored, scale, zero_point: (stored * scale - zero_point).astype(np.float32)), "before you multiply"),
    (
        read(lambda stored, scale, zero_point: (stored - stored.dtype.type(zero_point)) * np.float32(scale)),
        "ran over the limits of 8 bits",
    ),
    (read(lambda stored, scale, zero_point: (stored + 0.0 - zero_point) * (scale or 1)), "are float64, not float32"),
    (read(lambda stored, scale, zero_point: None), "returned None"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_INFER)
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_infer_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.infer, wrong)


def alive(tensors, step, closed=True):
    return sum(size for first, last, size in tensors if first <= step and (step <= last if closed else step < last))


def bound(tensors, steps, count=alive):
    sums = [count(tensors, step) for step in steps]
    return max(sums), list(steps)[sums.index(max(sums))]


WRONG_LEAST_ARENA = [
    (lambda tensors: 400, "Return two numbers"),
    (lambda tensors: (sum(size for *_, size in tensors), 0), "the sum of all tensors"),
    (lambda tensors: (max(size for *_, size in tensors), 1), "the largest tensor"),
    (lambda tensors: right.least_arena(tensors)[::-1], "The bytes come first"),
    (lambda tensors: bound(tensors, range(10), lambda t, s: alive(t, s, closed=False)), "the largest tensor"),
    (
        lambda tensors: bound(tensors, range(10), lambda t, s: sum(z for a, b, z in t if s in (a, b))),
        "alive at all operators between",
    ),
    (lambda tensors: (right.least_arena(tensors)[0], 3), "at operator 1, not 3"),
    (lambda tensors: bound(tensors, range(9, -1, -1)), "name the first"),
    (lambda tensors: bound(tensors, range(tensors[-1][1] + 1)), "in any order"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_LEAST_ARENA)
def test_least_arena_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.least_arena, wrong)


@pytest.mark.skipif(importlib.util.find_spec("litert_torch") is None, reason="no converter of LiteRT here")
def test_a_file_is_read_as_it_is(tmp_path, monkeypatch):
    """Operators, constants and sizes of a converted network, with and without names."""
    monkeypatch.syspath_prepend(LABS)
    import tflite_file
    import torch

    from deploylab import engines

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 4)).eval()
    x = np.ones((1, 2, 3), np.float32)
    samples = [np.random.default_rng(i).random((1, 2, 3), np.float32) for i in range(8)]
    for precision, options in (("fp32", {}), ("int8", {"calibration": samples})):
        artifact = engines.get("litert").convert(net, x, tmp_path, precision, **options)
        data = artifact.file(".tflite").read_bytes()
        graph, parts = tflite_file.read(data), tflite_file.megabytes(data)
        layer = next(op for op in graph.operators if op.kind == "FULLY_CONNECTED")
        weight, values = layer.inputs[1], net[1].weight.detach().numpy()
        real = weight.values * weight.scales.reshape(-1, 1) if precision == "int8" else weight.values
        assert np.abs(real - values).max() <= (np.abs(values).max() / 254 * 1.01 if precision == "int8" else 0)
        assert graph.inputs[0].shape == x.shape
        assert graph.inputs[0].values is None
        assert graph.inputs[0].bytes == x.size * (1 if precision == "int8" else 4)
        assert round(1e6 * sum(parts.values())) == len(data)
        bare = tflite_file.without_names(data)
        assert len(bare) < len(data)
        assert tflite_file.megabytes(bare)["names"] == 0
        assert [op.kind for op in tflite_file.read(bare).operators] == [op.kind for op in graph.operators]
