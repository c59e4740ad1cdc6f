"""Checks of lab 22, ncnn."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from deploylab.checks.core import exercise, expect, hint, refuses


def layer(kind: str, **params: int) -> Any:
    """A layer of a ``.param`` file; ``k6=9`` is the key 6 with the value 9."""
    numbered = {int(key[1:]): value for key, value in params.items()}
    return SimpleNamespace(type=kind, name="a", inputs=["0"], outputs=["1"], params=numbered)


@exercise("Every byte of the weights is accounted for.")
def weight_bytes(attempt: Callable) -> None:
    """``weight_bytes(layer)``: how many bytes of the ``.bin`` file belong to a layer."""
    relu = attempt(layer("ReLU"))
    expect(isinstance(relu, int), f"Return a whole number, not {type(relu).__name__}.")
    expect(relu == 0, f"A ReLU has no weights, and no flag either; you found {relu} bytes.")
    bare = layer("Convolution", k0=8, k1=3, k6=216)
    got = attempt(bare)
    expect(got != 216, "You counted numbers; a float32 number has 4 bytes.")
    expect(got != 864, "The weights begin with a flag of 4 bytes.")
    expect(
        got not in (868 + 32, 864 + 32), "This convolution has no bias: a key that is missing (5 here) has the value 0."
    )
    expect(got == 868, f"A convolution of 216 weights without bias takes 868 bytes, you found {got}.")
    for kind in ("Convolution", "ConvolutionDepthWise"):
        got = attempt(layer(kind, k0=8, k1=3, k5=1, k6=216))
        expect(got != 868 + 4, "The bias (key 5 is 1) has one number for each output channel, which is key 0.")
        expect(got != 868, f"The bias of a {kind} is missing: key 5 says that there is one, key 0 how long it is.")
        expect(got != 868 + 36, "Only the weights have a flag; the bias follows without one.")
        expect(got != 0, f"A {kind} has weights too.")
        expect(got == 900, f"A {kind} of 216 weights with 8 biases takes 900 bytes, you found {got}.")
    for bias, want in ((0, 644), (1, 684)):
        got = attempt(layer("InnerProduct", k0=10, k1=bias, k2=160))
        expect(got != 0, "An InnerProduct has weights too.")
        expect(
            got == want, f"An InnerProduct has other keys: 1 for the bias, 2 for the weights; you found {got} bytes."
        )


@exercise("The range of float32 with the precision of three decimal digits at most.")
def bfloat16(attempt: Callable) -> None:
    """``bfloat16(values)``: float32 values rounded to bfloat16 (nearest, ties to even), as float32."""
    third = np.array([1 / 3, -1 / 3, 1.0, 0.0, -2.5], np.float32)
    keep = third.copy()
    got = attempt(third)
    expect(isinstance(got, np.ndarray), f"Return an array, not {type(got).__name__}.")
    expect(got.dtype == np.float32, f"Return float32, not {got.dtype}: view the bits as numbers again.")
    expect(got.shape == third.shape, f"The shape {third.shape} became {got.shape}.")
    expect(np.array_equal(third, keep), "Your function changed its argument: a view shares the memory. Copy first.")
    expect(not np.array_equal(got, third), "Nothing was rounded: one third does not fit into 8 bits.")
    expect(
        not np.array_equal(got, third.astype(np.float16).astype(np.float32)),
        "That is float16. bfloat16 keeps the upper half of a float32's bits.",
    )
    cut = (third.view(np.uint32) & 0xFFFF0000).view(np.float32)
    expect(not np.array_equal(got, cut), "You cut the lower bits off, which always rounds towards zero. Add first.")
    expect(np.array_equal(got, _rounded(third)), f"One third becomes {_rounded(third)[0]}, not {got[0]}.")
    large = np.array([70000.0, 1e38, 1e-38], np.float32)
    expect(np.array_equal(attempt(large), _rounded(large)), "Very large or very small numbers are wrong.")
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8], np.float32)
    got = attempt(ties)
    up = np.array([1 + 2**-7, 1 + 2**-6], np.float32)
    expect(
        not np.array_equal(got, up),
        "Right, but for numbers exactly in the middle: they go to the even neighbour. Add 0x7FFF and the lowest bit "
        "that stays.",
    )
    expect(
        np.array_equal(got, _rounded(ties)), f"{ties[0]:.9g} and {ties[1]:.9g} became {got[0]:.9g} and {got[1]:.9g}."
    )
    random = np.random.default_rng(0).standard_normal((4, 250)).astype(np.float32)
    got = attempt(random)
    expect(
        got.shape == random.shape and np.array_equal(got, _rounded(random)), "Some of 1000 random numbers are wrong."
    )


def _rounded(values: np.ndarray) -> np.ndarray:
    import torch

    return torch.from_numpy(values).bfloat16().float().numpy()


@exercise("Any array, its own copy, a new extractor, and no error unheard.")
def infer_guarded(attempt: Callable) -> None:
    """``infer_guarded(net, photo)``: the guarded inference; ``net`` may be any ``ncnn.Net``."""
    photo = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    keep = photo.copy()
    _check_answer(attempt, photo, keep, "a plain float32 array")
    expect(np.array_equal(photo, keep), "Your function changed the photo.")
    net = Net(photo)
    attempt(net, photo)
    expect(
        not any(extractor.shared for extractor in net.extractors),
        "The Mat still points into the caller's array: layers that work in place write there or crash. Clone it.",
    )
    turned = np.ascontiguousarray(photo.transpose(1, 2, 0)).transpose(2, 0, 1)
    _check_answer(attempt, turned, photo, "a view that was transposed")
    _check_answer(attempt, photo.astype(np.float64), photo, "a float64 array")
    _check_answer(attempt, photo.astype(np.uint8), photo, "a uint8 array")
    for code in ({"input_code": -1}, {"extract_code": -100}):
        error = refuses(attempt, Net(photo, **code), photo)
        (name, value), *_ = code.items()
        step = name.removesuffix("_code")
        expect(error is not None, f"{step}() returned {value}, and your function went on: raise an exception.")
        if not isinstance(error, RuntimeError):
            hint(f"{step}() returned {value}: raise a RuntimeError, not {type(error).__name__} ({error}).")
    net = Net(photo)
    attempt(net, photo)
    attempt(net, photo)
    expect(
        len(net.extractors) >= 2,
        "Two inferences used one extractor. It remembers its results: the second answer would be the first one again.",
    )


def _check_answer(attempt: Callable, given: np.ndarray, photo: np.ndarray, what: str) -> None:
    net = Net(photo)
    got = attempt(net, given)
    seen = next((extractor.seen for extractor in net.extractors if extractor.seen is not None), None)
    expect(seen is not None, "Your function ran nothing: create_extractor(), input('in0', ...), extract('out0').")
    if isinstance(seen, str):
        hint(f"For {what}: {seen}")
    expect(
        np.array_equal(seen, photo),
        f"For {what} the network saw other numbers: ncnn ignores strides. Make the array contiguous first.",
    )
    if not isinstance(got, np.ndarray):
        hint(f"Return a NumPy array, not {type(got).__name__}: np.array(mat) copies.")
    expect(np.array_equal(np.ravel(got), net.answer), f"For {what}, the answer is not what extract('out0') gave.")


class Net:
    """Looks like an ``ncnn.Net`` and notes what it is fed, where a real one would crash on a wrong answer."""

    def __init__(self, photo: np.ndarray, input_code: int = 0, extract_code: int = 0) -> None:
        self.photo, self.codes = photo, (input_code, extract_code)
        self.answer = np.array([1.0, 5.0, 2.0], np.float32)
        self.extractors: list[_Extractor] = []

    def create_extractor(self) -> _Extractor:
        self.extractors.append(_Extractor(self))
        return self.extractors[-1]


class _Extractor:
    def __init__(self, net: Net) -> None:
        self.net, self.seen, self.shared = net, None, False

    def __enter__(self) -> _Extractor:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def input(self, name: str, mat: Any) -> int:
        if name != "in0":
            hint(f"The input is called in0, not {name}.")
        if mat.elemsize != 4:
            self.seen = f"the Mat has {mat.elemsize} bytes a number, ncnn computes with 4. Convert to float32 first."
        elif mat.n * mat.c * mat.h * mat.w != self.net.photo.size:
            self.seen = f"the Mat has {mat.c} x {mat.h} x {mat.w} numbers, the photo {self.net.photo.shape}."
        else:
            self.seen = np.array(mat).reshape(self.net.photo.shape)
            self.shared = self._is_shared(mat)
        return self.net.codes[0]

    def _is_shared(self, mat: Any) -> bool:
        """Whether the Mat changes with the photo."""
        before = self.net.photo[0, 0, 0]
        self.net.photo[0, 0, 0] = 99
        shared = np.array(mat).flat[0] == 99
        self.net.photo[0, 0, 0] = before
        return bool(shared)

    def extract(self, name: str) -> tuple[int, Any]:
        import ncnn

        if name != "out0":
            hint(f"The output is called out0, not {name}.")
        return self.net.codes[1], ncnn.Mat(self.net.answer).clone()
