"""Checks of lab 12, Graph optimisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from deploylab.checks.core import exercise, expect, hint


@exercise("Two layers in one: the same answers for grouped convolutions and for those with a bias.")
def fold(attempt: Callable) -> None:
    """``fold(weights, bias, gamma, beta, mean, variance, epsilon)`` -> weights and bias of one convolution."""
    rng = np.random.default_rng(12)
    for shape in ((4, 4, 1, 1), (6, 1, 3, 3), (5, 3, 3, 3)):
        weights, out = rng.standard_normal(shape), shape[0]
        bias, gamma, beta, mean = rng.standard_normal((4, out))
        variance, epsilon = rng.uniform(0.01, 2, out), 0.01
        arguments = (weights, bias, gamma, beta, mean, variance, epsilon)
        scale = gamma / np.sqrt(variance + epsilon)
        right = weights * scale[:, None, None, None], (bias - mean) * scale + beta
        got = attempt(*(np.copy(a) if isinstance(a, np.ndarray) else a for a in arguments))
        what = f"Weights {list(shape)}"
        expect(isinstance(got, tuple) and len(got) == 2, f"{what}: return two arrays, weights and bias.")
        w, b = (np.asarray(part) for part in got)
        expect(w.shape == weights.shape, f"{what}: your new weights have the shape {list(w.shape)}. {_FIRST_AXIS}")
        expect(b.shape == bias.shape, f"{what}: your new bias has the shape {list(b.shape)}, it should be [{out}].")
        for mistake, (wrong_w, wrong_b) in _wrong_folds(*arguments).items():
            distinct = not (_near(wrong_w, right[0]) and _near(wrong_b, right[1]))
            expect(not (distinct and _near(w, wrong_w) and _near(b, wrong_b)), f"{what}: {mistake}")
        expect(_near(w, right[0]), f"{what}: the new weights are off. Each output channel is multiplied by its scale.")
        expect(_near(b, right[1]), f"{what}: the new bias is off. Put x = 0 into both layers and compare.")


_FIRST_AXIS = "Output channels are the first axis: the scale must be shaped (out, 1, 1, 1)."


def _wrong_folds(w, b, gamma, beta, mean, variance, epsilon) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    def column(scale: np.ndarray) -> np.ndarray:
        return scale[:, None, None, None]

    scale, bare = gamma / np.sqrt(variance + epsilon), gamma / np.sqrt(variance)
    outside, power = gamma / (np.sqrt(variance) + epsilon), gamma / (variance + epsilon)
    wrong = {
        "epsilon is missing. It is small, and so is the variance of some channels.": (
            w * column(bare),
            (b - mean) * bare + beta,
        ),
        "epsilon belongs under the square root.": (w * column(outside), (b - mean) * outside + beta),
        "the square root of the variance is missing.": (w * column(power), (b - mean) * power + beta),
        "the convolution's own bias got lost.": (w * column(scale), -mean * scale + beta),
        "the convolution's own bias must be scaled as well.": (w * column(scale), b - mean * scale + beta),
        "the mean is added; it has to be taken away.": (w * column(scale), (b + mean) * scale + beta),
        "beta is missing.": (w * column(scale), (b - mean) * scale),
    }
    if w.shape[0] == w.shape[1]:
        rows = w * scale[None, :, None, None]
        wrong[f"the scale went along the input channels. {_FIRST_AXIS}"] = (rows, (b - mean) * scale + beta)
    return wrong


def _near(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=1e-9)


@exercise("The batch norm is gone, and nobody else noticed.")
def put_in_place(attempt: Callable) -> None:
    """``put_in_place(model, conv, norm, weights, bias)``: let conv do the work of norm; return the ir.Model."""
    import onnx_ir as ir
    from onnx import checker

    model = two_users()
    before = ir.to_proto(model)
    x = np.random.default_rng(1).standard_normal((2, 4, 5, 5)).astype(np.float32)
    exact = _run(before, x)
    conv, norm = model.graph[0], model.graph[1]
    weights, bias = _folded(model)
    model = attempt(model, conv, norm, weights, bias)
    expect(isinstance(model, ir.Model), f"Return the ir.Model, not {type(model).__name__}.")
    ops = [node.op_type for node in model.graph]
    expect(
        "BatchNormalization" not in ops,
        "The batch norm is still in the graph. Let its users use the convolution's output, then remove it.",
    )
    expect(ops.count("Conv") == 2, f"There should be two convolutions, there are {ops.count('Conv')}.")
    shared = model.graph.initializers.get("shared")
    expect(
        shared is not None and np.array_equal(shared.const_value.numpy(), before_shared(before)),
        "You changed the old weights, and another convolution uses them too. Register new initializers.",
    )
    proto = ir.to_proto(model)
    try:
        checker.check_model(proto, full_check=True)
    except Exception as error:
        hint(f"The checker refuses the graph: {' '.join(str(error).split())[:120]}")
    expect(
        len(model.graph[0].inputs) == 3 and model.graph[0].inputs[2] is not None,
        "The first convolution has no bias. resize_inputs(3) makes room for it, then replace_input_with(2, value).",
    )
    others = [node.inputs[1].name for node in model.graph if node.op_type == "Conv"]
    expect(others[1] == "shared", "The second convolution lost its weights: it should still use the old ones.")
    got = _run(proto, x)
    expect(got.shape == exact.shape and np.allclose(got, exact, atol=1e-4), "The answers of the graph have changed.")


def before_shared(proto: Any) -> np.ndarray:
    from onnx import numpy_helper

    return next(numpy_helper.to_array(tensor) for tensor in proto.graph.initializer if tensor.name == "shared")


def two_users() -> Any:
    """Conv, BatchNormalization, Relu, Conv, in which both convolutions have the same weights, as an ir.Model."""
    import onnx_ir as ir
    from onnx import numpy_helper, parser

    text = """<ir_version: 10, opset_import: ["" : 18]> g (float[n, 4, 5, 5] x) => (float[n, 4, 5, 5] y) {
        c = Conv(x, shared)  b = BatchNormalization<epsilon = 0.01>(c, gamma, beta, mean, variance)
        r = Relu(b)  y = Conv(r, shared) }"""
    rng, proto = np.random.default_rng(2), parser.parse_model(text)
    arrays = {"shared": rng.standard_normal((4, 4, 1, 1)), "variance": rng.uniform(0.1, 2, 4)}
    arrays |= {name: rng.standard_normal(4) for name in ("gamma", "beta", "mean")}
    for name, array in arrays.items():
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    return ir.from_proto(proto)


def _folded(model: Any) -> tuple[np.ndarray, np.ndarray]:
    values = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    scale = values["gamma"] / np.sqrt(values["variance"] + np.float32(0.01))
    bias = values["beta"] - values["mean"] * scale
    return values["shared"] * scale[:, None, None, None], bias


def _run(proto: Any, x: np.ndarray) -> np.ndarray:
    from onnx import reference

    return reference.ReferenceEvaluator(proto).run(None, {"x": x})[0]


@exercise("Two small kernels are one large one, as long as nothing stands between them.")
def compose(attempt: Callable) -> None:
    """``compose(first, second)``: (mid, in, 3, 3), (out, mid, 3, 3) -> (out, in, 5, 5)."""
    rng = np.random.default_rng(9)
    for inputs, middle, outputs in ((2, 3, 4), (3, 3, 3)):
        first, second = rng.standard_normal((middle, inputs, 3, 3)), rng.standard_normal((outputs, middle, 3, 3))
        want, got = _composed(first, second), np.asarray(attempt(first.copy(), second.copy()))
        what = f"{inputs} -> {middle} -> {outputs} channels"
        expect(got.shape[-2:] == (5, 5), f"{what}: the kernel is {list(got.shape[-2:])}; 3 and 3 reach 5 pixels.")
        expect(
            got.shape == want.shape or got.shape[:2] != (inputs, outputs),
            f"{what}: input and output channels are swapped; weights are (out, in, 5, 5).",
        )
        expect(got.shape == want.shape, f"{what}: your weights have the shape {list(got.shape)}, not {_list(want)}.")
        expect(
            not _near(got, _composed(first[..., ::-1, ::-1], second))
            and not _near(got, _composed(first, second[..., ::-1, ::-1])),
            f"{what}: one kernel is turned upside down. Convolutions of networks do not flip (they correlate).",
        )
        expect(
            not _near(got, _composed(np.swapaxes(first, -1, -2), np.swapaxes(second, -1, -2))),
            f"{what}: rows and columns are swapped.",
        )
        expect(
            middle != inputs or not _near(got, _composed(second, first)),
            f"{what}: that is the second kernel first. The order matters, for the channels mix.",
        )
        expect(_near(got, want), f"{what}: the weights are off. Every pair of taps (i, j) adds to tap i + j.")


def _list(array: np.ndarray) -> list[int]:
    return list(array.shape)


def _composed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    result = np.zeros((second.shape[0], first.shape[1], 5, 5))
    for i in range(3):
        for j in range(3):
            result[:, :, i : i + 3, j : j + 3] += np.einsum("om,mikl->oikl", second[:, :, i, j], first)
    return result
