"""The graders of lab 23, graded: they name each planted mistake."""

from __future__ import annotations

import numpy as np
import pytest

from deploylab.checks import lab23 as check
from graders import solutions, verdict

right = solutions("23_mnn")


def padded(x, fill=0.0):
    n, c, h, w = x.shape
    full = np.full((n, -(-c // 4) * 4, h, w), fill, x.dtype)
    full[:, :c] = x
    return full


def blocks(x, split=(-1, 4), axes=(0, 1, 3, 4, 2), fill=0.0):
    full = padded(x, fill)
    n, _, h, w = full.shape
    return full.reshape(n, *split, h, w).transpose(axes)


def rounded_down(x):
    n, c, h, w = x.shape
    return x[:, : c // 4 * 4].reshape(n, c // 4, 4, h, w).transpose(0, 1, 3, 4, 2)


def in_place(x):
    x *= 2
    return blocks(x / 2)


WRONG_TO_NC4HW4 = [
    (rounded_down, "channels are lost"),
    (lambda x: blocks(x, axes=(0, 1, 2, 3, 4)), "their axis is the last"),
    (lambda x: blocks(x).reshape(len(x), -1), "the shape should be"),
    (lambda x: padded(x).reshape(blocks(x).shape), "only gave the memory another shape"),
    (lambda x: blocks(x, split=(4, -1), axes=(0, 2, 3, 4, 1)), "channels 0 to 3 are the first block"),
    (lambda x: blocks(x, axes=(0, 1, 4, 3, 2)), "have changed places"),
    (lambda x: blocks(x).astype(np.float64), "their type is float64"),
    (lambda x: blocks(x, fill=7), "hold other numbers than zero"),
    (lambda x: blocks(x)[..., ::-1], "in another order"),
    (lambda x: blocks(x).tolist(), "Return a NumPy array, not list"),
    (in_place, "changes the array it is given"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_TO_NC4HW4)
def test_to_nc4hw4_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.to_nc4hw4, wrong)


def test_to_nc4hw4_is_what_mnn_does():
    """Read raw, a value of MNN in NC4HW4 shows its memory: the first numbers of the solution's."""
    from deploylab import engines

    with engines.listen():
        from MNN import expr

        x = np.arange(1, 1 + 2 * 6 * 3 * 2, dtype=np.float32).reshape(2, 6, 3, 2)
        for channels in (4, 6):
            given = np.ascontiguousarray(x[:1, :channels])
            value = expr.convert(expr.const(given, list(given.shape), expr.NCHW), expr.NC4HW4)
            shown = np.array(value.read()).reshape(-1)
            assert np.array_equal(shown, right.to_nc4hw4(given).reshape(-1)[: shown.size])


def between_turns(moments, begin, end):
    return max(np.diff(sorted(moments)), default=0.0)


def no_turn_is_no_stall(moments, begin, end):
    return right.longest_stall(moments, begin, end) if moments else 0.0


def without_begin(moments, begin, end):
    inside = sorted(moment for moment in moments if begin <= moment <= end)
    return max(np.diff([*inside, end])) if inside else end - begin


def without_end(moments, begin, end):
    inside = sorted(moment for moment in moments if begin <= moment <= end)
    return max(np.diff([begin, *inside])) if inside else end - begin


def everything(moments, begin, end):
    return max(np.diff(sorted([begin, *moments, end])))


def unsorted(moments, begin, end):
    inside = [moment for moment in moments if begin <= moment <= end]
    return max(np.diff([begin, *inside, end]))


def sorts_in_place(moments, begin, end):
    moments.sort()
    return right.longest_stall(moments, begin, end)


WRONG_LONGEST_STALL = [
    (no_turn_is_no_stall, "without a single turn is a stall of 3 seconds"),
    (between_turns, "without a single turn"),
    (without_begin, "own ends count"),
    (without_end, "the stall at its end is 2"),
    (everything, "Leave out what lies outside"),
    (unsorted, "are not in order"),
    (sorts_in_place, "changes the list"),
    (lambda moments, begin, end: (end - begin) / (len(moments) + 1), "the longest gap is 0.5"),
    (lambda moments, begin, end: [1.0], "Return a number, not list"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_LONGEST_STALL)
def test_longest_stall_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.longest_stall, wrong)


def test_a_plain_number_will_do(capsys):
    assert "passed" in verdict(capsys, check.longest_stall, lambda *given: float(right.longest_stall(*given)))


def weights(found, sizes="<u2", full=256, look_up=True, least="subtracted", pairs="together", swapped=False, add=True):
    """The solution with one part exchanged."""
    raw = np.array(found["buffer"], np.int8).view(np.uint8)
    end = 1 + 2 * int(raw[0])
    shape = raw[1:end].view(sizes).astype(int)
    entries = int(raw[end]) or full
    book = raw[end + 1 : end + 1 + entries].view(np.int8).astype(float)
    places = raw[end + 1 + entries :]
    integers = book[places] if look_up else places.astype(float) + found["aMin"]
    integers = integers[: np.prod(shape)].reshape(shape)
    alpha = np.array(found["alpha"])
    smallest, step = alpha.reshape(-1, 2).T if pairs == "together" else alpha.reshape(2, -1)
    if swapped:
        smallest, step = step, smallest
    shift = {"subtracted": -found["aMin"], "added": found["aMin"], "missing": 0}[least]
    return (integers + shift) * step[:, None] + (smallest[:, None] if add else 0)


WRONG_DEQUANTISE = [
    (lambda found: weights(found, look_up=False), "look it up there"),
    (lambda found: weights(found, least="missing"), "aMin is missing"),
    (lambda found: weights(found, least="added"), "aMin is to be subtracted"),
    (lambda found: weights(found, swapped=True), "smallest and step are exchanged"),
    (lambda found: weights(found, add=False), "you add no smallest weight"),
    (lambda found: weights(found, pairs="apart"), "the two of a channel stand together"),
    (lambda found: weights(found).T, "the shape should be"),
    (lambda found: weights(found)[:, :-1], "Sizes have two bytes"),
    (lambda found: 2 * weights(found), "by no mistake known"),
    (lambda found: weights(found).tolist(), "Return a NumPy array, not list"),
    (lambda found: weights(found, full=0), "Your function raised"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_DEQUANTISE)
def test_dequantise_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.dequantise, wrong)


def test_dequantise_reads_what_the_converter_writes(tmp_path):
    """The weights of a file of eight bits, and of the float32 file of the same model: no more than a step apart."""
    import json
    import subprocess
    import sys

    import onnx

    text = "<ir_version: 10, opset_import: ['' : 18]> g (float[1,3,8,8] x) => (float[1,4,8,8] y) { y = Conv(x, w) }"
    model = onnx.parser.parse_model(text.replace("'", '"'))
    kernel = np.random.default_rng(0).standard_normal((4, 3, 1, 1)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(kernel, "w"))
    onnx.save(model, tmp_path / "model.onnx")

    def run(*arguments):
        program = "import sys, _tools; _tools.mnnconvert(sys.argv)"
        command = [sys.executable, "-c", program, *map(str, arguments), "--bizCode", "test"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)

    run("-f", "ONNX", "--modelFile", tmp_path / "model.onnx", "--MNNModel", tmp_path / "m.mnn", "--weightQuantBits", 8)
    run("-f", "MNN", "--modelFile", tmp_path / "m.mnn", "--JsonFile", tmp_path / "m.json")
    ops = json.loads((tmp_path / "m.json").read_text())["oplists"]
    found = next(op["main"]["quanParameter"] for op in ops if op["type"] == "Convolution")
    steps = np.array(found["alpha"])[1::2, None]
    assert (np.abs(right.dequantise(found) - kernel.reshape(4, 3)) < steps).all()
