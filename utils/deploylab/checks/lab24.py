"""Checks of lab 24, LiteRT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from deploylab.checks.core import exercise, expect


@exercise("The channels are last, for both kinds of convolution.")
def to_tflite(attempt: Callable) -> None:
    """``to_tflite(weight, depthwise)``: PyTorch's weights of a convolution in the order of a .tflite file."""
    for depthwise, shape, axes in ((False, (4, 3, 5, 2), (0, 2, 3, 1)), (True, (6, 1, 5, 2), (1, 2, 3, 0))):
        weight = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        want, name = weight.transpose(axes), "depthwise" if depthwise else "ordinary"
        got = attempt(weight.copy(), depthwise)
        expect(isinstance(got, np.ndarray), f"Return an array, not {type(got).__name__}.")
        expect(
            got.shape != shape or got.shape == want.shape,
            f"The {name} weights {list(shape)} came back in PyTorch's order.",
        )
        expect(
            depthwise is False or got.shape != weight.transpose(0, 2, 3, 1).shape,
            "The depthwise weights were treated as ordinary ones: here the channels of PyTorch's first axis go last.",
        )
        expect(got.shape == want.shape, f"The {name} weights {list(shape)} became {list(got.shape)}.")
        expect(
            not np.array_equal(got.ravel(), weight.ravel()),
            "The shape is right and the numbers lie in the old order: reshape only counts them differently. Transpose.",
        )
        expect(np.array_equal(got, want), f"The axes of the {name} weights are mixed up.")
        expect(got.flags.c_contiguous, "A transposed view: the file stores the numbers in order. Copy them.")


class _Interpreter:
    """A model that adds one to a real number, behind the ends of a LiteRT interpreter."""

    def __init__(self, source: tuple[Any, float, int], sink: tuple[Any, float, int]) -> None:
        self.source, self.sink = self._end(3, *source), self._end(8, *sink)
        self.fed: np.ndarray | None = None
        self.result: np.ndarray | None = None

    @staticmethod
    def _end(index: int, dtype: Any, scale: float, zero_point: int) -> dict[str, Any]:
        return {"index": index, "dtype": dtype, "quantization": (scale, zero_point), "shape": np.array([1, 5])}

    def get_input_details(self) -> list[dict[str, Any]]:
        return [self.source]

    def get_output_details(self) -> list[dict[str, Any]]:
        return [self.sink]

    def set_tensor(self, index: int, array: np.ndarray) -> None:
        if index != self.source["index"]:
            raise ValueError(f"tensor {index} is not the input; its details have the index")
        if np.asarray(array).dtype != self.source["dtype"]:
            raise ValueError(f"Got value of type {array.dtype}, expected {np.dtype(self.source['dtype'])}")
        self.fed = np.array(array)

    def invoke(self) -> None:
        self.result = self._stored(self._real(self.fed, self.source) + 1, self.sink)

    def get_tensor(self, index: int) -> np.ndarray:
        if index != self.sink["index"] or self.result is None:
            raise ValueError(f"tensor {index} holds no result; invoke first, and take the index from the details")
        return self.result.copy()

    @staticmethod
    def _real(stored: np.ndarray, end: dict[str, Any]) -> np.ndarray:
        scale, zero_point = end["quantization"]
        return (stored.astype(np.float64) - zero_point) * scale if scale else stored.astype(np.float64)

    @staticmethod
    def _stored(real: np.ndarray, end: dict[str, Any]) -> np.ndarray:
        scale, zero_point = end["quantization"]
        if not scale:
            return real.astype(end["dtype"])
        limits = np.iinfo(end["dtype"])
        return np.clip(np.rint(real / scale) + zero_point, limits.min, limits.max).astype(end["dtype"])


_WHOLE = (np.float32, 0.0, 0)
_ENDS = {
    "int8": ((np.int8, 0.02, -20), (np.int8, 0.05, 7)),
    "uint8": ((np.uint8, 0.02, 100), (np.uint8, 0.05, 60)),
    "float32 on both sides": (_WHOLE, _WHOLE),
    "int8 in and float32 out": ((np.int8, 0.02, -20), _WHOLE),
}


@exercise("Integers in, integers out, and real numbers on your side of both.")
def infer(attempt: Callable) -> None:
    """``infer(interpreter, real)``: float32 outputs for float32 inputs, whatever types the file has."""
    x = np.array([[-1.0, -0.019, 0.0, 0.331, 1.5]], np.float32)
    for name, (source, sink) in _ENDS.items():
        model = _Interpreter(source, sink)
        got = attempt(model, x.copy())
        expect(model.fed is not None, "set_tensor was never called.")
        expect(model.result is not None, "invoke was never called.")
        _check_fed(name, model, x)
        expect(isinstance(got, np.ndarray), f"Return an array, not {type(got).__name__}.")
        expect(
            not np.array_equal(got, model.result) or not sink[1],
            f"{name}: these are the integers themselves. Take off the zero point and multiply by the scale.",
        )
        exact = _Interpreter._real(model.result, model.sink)
        scale, zero_point = sink[1:]
        with np.errstate(over="ignore"):
            wrapped = (model.result - np.asarray(zero_point).astype(model.result.dtype)).astype(np.float64) * scale
        expect(
            np.allclose(exact, wrapped) or not np.allclose(got, wrapped, atol=1e-4),
            f"{name}: the subtraction of the zero point ran over the limits of 8 bits. Convert to float32 first.",
        )
        swapped = model.result.astype(np.float64) * scale - zero_point
        expect(
            not sink[1] or not np.allclose(got, swapped, atol=1e-4),
            f"{name}: the zero point is an integer of the file; take it off before you multiply by the scale.",
        )
        expect(np.allclose(got, exact, atol=1e-4), f"{name}: the outputs are not scale * (stored - zero point).")
        expect(got.dtype == np.float32, f"{name}: the outputs are {got.dtype}, not float32.")
    model = _Interpreter(*_ENDS["int8"])
    attempt(model, np.array([[-900.0, 900.0, 0.0, 0.0, 0.0]], np.float32))
    expect(
        model.fed[0, :2].tolist() == [-128, 127],
        f"900 became the integer {model.fed[0, 1]}: what is out of range must be cut off, not wrap round.",
    )


def _check_fed(name: str, model: _Interpreter, x: np.ndarray) -> None:
    want, end = _Interpreter._stored(x, model.source), model.source
    scale, zero_point = end["quantization"]
    if not scale:
        expect(np.array_equal(model.fed, x), f"{name}: a scale of 0 means not quantised; hand the numbers over as is.")
        return
    fed = model.fed.astype(int)
    expect(not np.array_equal(fed, x.astype(int)), f"{name}: you cast the real numbers. Divide by the scale first.")
    expect(
        not np.array_equal(fed, np.rint(x / scale).astype(end["dtype"])),
        f"{name}: the zero point is missing: q = real / scale + zero point.",
    )
    limits = np.iinfo(np.int8)
    as_int8 = np.clip(np.rint(x / scale) + zero_point, limits.min, limits.max)
    expect(
        name != "uint8" or not np.array_equal(fed, as_int8),
        "uint8: you cut off at the limits of int8. Each type has its own, np.iinfo(dtype).",
    )
    cut = np.clip(np.trunc(x / scale + zero_point), np.iinfo(end["dtype"]).min, np.iinfo(end["dtype"]).max)
    expect(
        np.array_equal(cut, want) or not np.array_equal(fed, cut),
        f"{name}: astype cuts the fraction off; round first, with np.rint.",
    )
    expect(np.abs(fed - want.astype(int)).max() <= 1, f"{name}: the integers fed are not real / scale + zero point.")


@exercise("No plan can be smaller than this.")
def least_arena(attempt: Callable) -> None:
    """``least_arena(tensors)``: for (first, last, bytes) the most bytes alive at one operator, and its number."""
    simple = [(0, 1, 100), (1, 2, 300), (2, 3, 50), (3, 4, 60)]
    got = attempt(list(simple))
    expect(isinstance(got, tuple) and len(got) == 2, "Return two numbers: the bytes and the number of the operator.")
    expect(got[0] != 510, "That is the sum of all tensors. Those that do not live at the same time can share memory.")
    expect(got[0] != 300, "That is the largest tensor. An operator needs its inputs and its outputs at once.")
    expect(tuple(got) != (1, 400), "The bytes come first, then the operator.")
    expect(got[0] == 400, f"For {simple} you say {got[0]} bytes; count who is alive at each operator.")
    expect(got[1] == 1, f"400 bytes is right, and it is at operator 1, not {got[1]}.")
    kept = [(0, 6, 80), (0, 1, 10), (2, 2, 500), (3, 4, 200), (4, 6, 310), (6, 7, 5)]
    got = tuple(attempt(list(kept)))
    expect(
        got[0] != 510 and got != (500, 2),
        "A tensor in the middle is missing: one that is needed much later is alive at all operators between.",
    )
    expect(got == (590, 4), f"For {kept} it is (590, 4), you say {got}. First and last both count.")
    got = tuple(attempt([(0, 0, 7), (1, 1, 7), (2, 2, 3)]))
    expect(got == (7, 0), f"Where several operators need as much, name the first: (7, 0), not {got}.")
    got = tuple(attempt([(2, 2, 3), (5, 9, 4), (0, 0, 1)]))
    expect(got == (4, 5), f"The tensors may come in any order: (4, 5), not {got}.")
