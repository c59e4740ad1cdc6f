"""Checks of lab 11, ONNX."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deploylab.checks.core import exercise, expect, hint


@exercise("Shape, dtype and byte order: that is all there is to a weight in an ONNX file.")
def tensor_to_array(attempt: Callable) -> None:
    """``tensor_to_array(tensor)``: an onnx.TensorProto with raw_data -> array of its shape and dtype."""
    from onnx import numpy_helper

    rng = np.random.default_rng(3)
    for want in (
        rng.standard_normal((4, 3, 2)).astype(np.float32),
        np.array([[-1, 3, 2**40], [5, 6, 7]], np.int64),
        np.array(2.5, np.float32),
    ):
        got = attempt(numpy_helper.from_array(want))
        what = f"A tensor of {want.dtype} with dims {list(want.shape)}"
        expect(isinstance(got, np.ndarray), f"{what}: return a NumPy array, not {type(got).__name__}.")
        if got.dtype.itemsize != want.dtype.itemsize or got.dtype.kind != want.dtype.kind:
            hint(f"{what}: you read it as {got.dtype}. data_type 1 is float32, 7 is int64.")
        expect(got.size == want.size, f"{what}: it holds {want.size} numbers, you return {got.size}.")
        got = got.astype(got.dtype.newbyteorder("="))
        flat = got.reshape(-1)
        swapped = want.reshape(-1).byteswap()
        expect(not _equal(flat, swapped), f"{what}: the bytes are the wrong way round; raw_data is little-endian.")
        expect(
            got.shape == want.shape or got.ndim != 1 or want.ndim == 1,
            f"{what}: the numbers are right but in one row; give them the shape in dims.",
        )
        expect(
            got.shape == want.shape, f"{what}: your array has the shape {list(got.shape)}; dims has it in this order."
        )
        expect(
            want.ndim < 2 or not _equal(got.reshape(-1, order="F"), want.reshape(-1)),
            f"{what}: the first axis runs fastest in yours; in raw_data the last one does (C order).",
        )
        expect(_equal(flat, want.reshape(-1)), f"{what}: the numbers differ, and by no mistake known to this check.")


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()  # a NaN equals itself


class _Model:
    """What stands behind ``run``: counts the batches it was asked for."""

    def __init__(self, answer: Callable[[np.ndarray], np.ndarray], largest: int = 99) -> None:
        self.asked: list[int] = []
        self._answer, self._largest = answer, largest

    def __call__(self, array: np.ndarray) -> np.ndarray:
        self.asked.append(len(array))
        if len(array) > self._largest:
            raise RuntimeError(f"Got: {len(array)} Expected: {self._largest}")
        return self._answer(np.asarray(array))


def _each(x: np.ndarray) -> np.ndarray:
    flat = x.reshape(len(x), -1)
    weights = np.linspace(-1, 1, flat.shape[1] * 4, dtype=np.float32).reshape(4, -1)
    return np.stack([(flat * row).sum(axis=1) for row in weights], axis=1)  # not a matmul, which rounds by its shape


def _mixes(x: np.ndarray) -> np.ndarray:
    flat = _each(x)
    return flat - flat.mean(axis=0) if len(x) > 1 else flat


def _rounds(x: np.ndarray) -> np.ndarray:
    return _each(x) + np.float32(1e-6) * len(x)


@exercise("Sizes never seen, and every row as if it were alone.")
def takes_any_batch(attempt: Callable) -> None:
    """``takes_any_batch(run, x, sizes)``: whether run(x[:n]) works for all sizes and gives each row its own answer."""
    x = np.random.default_rng(5).random((7, 3, 4, 4), np.float32)
    sizes = (2, 5, 7)
    good = _Model(_each)
    got = attempt(good, x, sizes)
    expect(isinstance(got, (bool, np.bool_)), f"Return True or False, not {type(got).__name__}.")
    expect(good.asked, "run was never called. What a file says about its axes proves nothing: run it.")
    expect(set(sizes) <= set(good.asked), f"You tried batches of {sorted(set(good.asked))}; try all of {sizes}.")
    expect(got, "A model that takes every batch was refused.")
    expect(attempt(_Model(_rounds), x, sizes), "A model that differs by rounding alone was refused; use np.allclose.")
    frozen = attempt(_Model(_each, largest=1), x, sizes)
    expect(not frozen, "A model frozen to a batch of one passed, although it raised an exception for two.")
    expect(
        not attempt(_Model(_each, largest=5), x, sizes), "A model that fails at the last of the sizes passed: try all."
    )
    expect(
        not attempt(_Model(lambda a: _each(a)[:1]), x, sizes),
        "A model passed that gives one row of answers whatever the batch; NumPy broadcasts it. Compare shapes too.",
    )
    expect(
        not attempt(_Model(_mixes), x, sizes),
        "A model passed whose rows depend on their neighbours (a batch norm in training mode does that): "
        "compare each row with that row run alone.",
    )
    expect(
        not attempt(_Model(lambda a: _each(a)[::-1]), x, sizes), "A model passed that mixes up the order of the rows."
    )


@exercise("Probabilities come out of the file, whatever the batch.")
def give_probabilities(attempt: Callable) -> None:
    """``give_probabilities(model)``: an ir.Model with one output of logits -> the same with softmax at its end."""
    import onnx_ir as ir
    from onnx import checker

    rows = np.array([[1, 2, 3], [0, 0, 5], [-1, 4, 2]], np.float32)
    exact = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    model = attempt(_classifier())
    expect(isinstance(model, ir.Model), f"Return the ir.Model, not {type(model).__name__}.")
    softmax = [node for node in model.graph if node.op_type == "Softmax"]
    expect(softmax, "There is no Softmax node in the graph; graph.append(node) adds one.")
    names = [value.name for value in model.graph.outputs]
    expect(
        len(names) == 1,
        f"The outputs are {names}: put the new value in the old one's place, graph.outputs[0] = value.",
    )
    expect(
        model.graph.outputs[0].producer() is softmax[-1],
        "The output is still the logits: your node is in the graph and nobody uses it.",
    )
    expect(names == ["probabilities"], f"The output is called {names[0]!r}, it should be 'probabilities'.")
    output = model.graph.outputs[0]
    expect(
        output.type is not None and output.shape is not None,
        "The new output has no type or shape: copy both from the logits.",
    )
    proto = ir.to_proto(model)
    try:
        checker.check_model(proto, full_check=True)
    except Exception as error:
        hint(f"The checker refuses the file: {' '.join(str(error).split())[:120]}")
    got = _run(proto, rows)
    expect(
        not np.allclose(got, np.exp(rows) / np.exp(rows).sum(0), atol=1e-4),
        "The columns add up to 1: that is softmax over the batch. The classes are the last axis, axis=-1.",
    )
    expect(not np.allclose(got.sum(), 1), "All numbers together add up to 1; each row should.")
    expect(np.allclose(got, exact, atol=1e-5), "The rows are not the softmax of the logits.")


def _classifier():
    """x (n, 3) -> logits (n, 3), unchanged, as an ir.Model."""
    import onnx_ir as ir
    from onnx import parser

    text = (
        '<ir_version: 10, opset_import: ["" : 18]> g (float[n, 3] x) => (float[n, 3] logits) { logits = Identity(x) }'
    )
    return ir.from_proto(parser.parse_model(text))


def _run(proto, rows: np.ndarray) -> np.ndarray:
    from onnx import reference

    return reference.ReferenceEvaluator(proto).run(None, {"x": rows})[0]
