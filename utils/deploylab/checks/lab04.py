"""Checks of lab 04, A web app."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deploylab.checks.core import exercise, expect


@exercise("Both headers, each with the right value: then there is shared memory, and with it threads.")
def is_isolated(attempt: Callable) -> None:
    """``is_isolated(headers)``: whether a page with these headers is cross-origin isolated (HTML standard)."""
    opener, embedder = "Cross-Origin-Opener-Policy", "Cross-Origin-Embedder-Policy"
    both = {opener: "same-origin", embedder: "require-corp"}
    expect(attempt(dict(both)) is not False, "Same-origin and require-corp together do isolate a page; you said no.")
    cases = [
        ({}, False, "a page without any header is not isolated"),
        ({opener: "same-origin"}, False, "the opener policy alone is not enough: embedded files must agree too"),
        ({embedder: "require-corp"}, False, "the embedder policy alone is not enough: the opener policy is missing"),
        ({**both, opener: "same-origin-allow-popups"}, False, "same-origin-allow-popups is not same-origin"),
        ({**both, embedder: "unsafe-none"}, False, "unsafe-none allows everything, so it isolates nothing"),
        ({**both, embedder: "credentialless"}, True, "credentialless isolates as well as require-corp"),
        ({name.lower(): value for name, value in both.items()}, True, "names of headers ignore upper and lower case"),
    ]
    for headers, want, reason in cases:
        got = attempt(dict(headers))
        expect(isinstance(got, (bool, np.bool_)), f"Return True or False, not {type(got).__name__}.")
        expect(got == want, f"For {headers} you return {got}: {reason}.")


@exercise("Three planes of floats in 0..1, in the order R, G, B: what the network was trained on.")
def to_tensor(attempt: Callable) -> None:
    """``to_tensor(rgba, width, height)``: a canvas' flat uint8 R, G, B, A, ... to float32 (1, 3, height, width)."""
    width, height = 5, 6
    pixels = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3) * 2
    rgba = np.dstack([pixels, np.full((height, width), 255, np.uint8)]).reshape(-1)
    want = pixels.transpose(2, 0, 1)[None] / np.float32(255)
    given = rgba.copy()
    got = attempt(given, width, height)
    expect(isinstance(got, np.ndarray), f"Return a NumPy array, not {type(got).__name__}.")
    expect(np.array_equal(given, rgba), "You changed the canvas' own numbers. Work on a copy.")
    expect(got.ndim == 4, f"The shape is {got.shape}; the network wants a batch of one: (1, 3, {height}, {width}).")
    expect(got.shape[1] != 4, f"The shape is {got.shape}: four planes. The alpha has to go.")
    expect(
        got.shape != (1, height, width, 3),
        "That is pixel by pixel (NHWC). The network wants plane by plane (NCHW): transpose.",
    )
    expect(got.shape != (1, 3, width, height), "Width and height are exchanged: rows come first, so height does.")
    expect(got.shape == want.shape, f"The shape is {got.shape}, not {want.shape}.")
    expect(got.dtype == np.float32, f"The dtype is {got.dtype}; the network wants float32.")
    values = np.asarray(got, np.float64)
    mistakes = {
        "These are levels from 0 to 255; the network wants 0 to 1.": want * 255,
        "The planes come as B, G, R. The first plane must be red.": want[:, ::-1],
        "These are the right numbers in the wrong places: reshape moves nothing. Transpose before.": _reshaped(pixels),
        "You cut the first numbers off as they lie, the alpha among them. Drop every fourth.": _as_they_lie(rgba, want),
    }
    for hint, wrong in mistakes.items():
        expect(not np.allclose(values, wrong, atol=1e-6), hint)
    expect(np.array_equal(got, want), "The numbers differ from the picture's, divided by 255.")
    expect(got.flags["C_CONTIGUOUS"], "The array is a view in another order. Make it contiguous, as engines expect it.")


def _reshaped(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(1, 3, *pixels.shape[:2]) / 255


def _as_they_lie(rgba: np.ndarray, like: np.ndarray) -> np.ndarray:
    return rgba[: like.size].reshape(like.shape) / 255


@exercise("One number that every pixel has to answer for.")
def largest_difference(attempt: Callable) -> None:
    """``largest_difference(a, b)``: by how many levels two uint8 pictures differ at most."""
    a = np.full((2, 3, 3), 100, np.uint8)
    same = attempt(a.copy(), a.copy())
    expect(np.ndim(same) == 0, f"Return one number, not an array of shape {np.shape(same)}.")
    expect(same == 0, "A picture and its copy differ by 0 levels; you said otherwise.")
    for one, other, want in ((100, 102, 2), (102, 100, 2), (0, 255, 255), (255, 0, 255)):
        a, b = np.full((2, 3, 3), one, np.uint8), np.full((2, 3, 3), one, np.uint8)
        b[1, 2, 0] = other
        got = attempt(a, b)
        where = f"Pictures of level {one}, one value of {other}"
        wrapped = int((a - b).max()), int(np.abs(a - b).max())
        expect(
            got == want or got not in wrapped,
            f"{where}: you said {got}. Bytes wrap around: 100 - 102 is 254. Convert to a wider integer first.",
        )
        expect(
            got == want or got != want / a.size, f"{where}: that is the mean. One bad pixel must not be averaged away."
        )
        expect(got == want or got > 0, f"{where}: you said {got}. Take the absolute value before the maximum.")
        expect(got == want or not np.isclose(got, want / 255), f"{where}: count in levels of 0 to 255, not in 0 to 1.")
        expect(got == want, f"{where}: they differ by {want} levels, you said {got}.")


@exercise("After so many photos, sending the network once was cheaper than sending the photos.")
def photos_to_break_even(attempt: Callable) -> None:
    """``photos_to_break_even(download, upload, answer)``: the fewest photos after which the browser moved less."""
    for download, upload, answer in ((1_000_000, 40_000, 500), (15_000_000, 45_000, 700), (100, 90, 10), (10, 90, 10)):
        want = download // (upload + answer) + 1
        got = attempt(download, upload, answer)
        where = f"With a download of {download:,}, {upload:,} a photo and {answer:,} an answer"
        expect(got == int(got), f"{where}: a count of photos is a whole number, not {got}.")
        without_answer = download // upload + 1
        expect(got == want or got != without_answer, f"{where}: you left out that the answers travel as well.")
        expect(
            got == want or got * (upload + answer) != download,
            f"{where}: after {got} photos both moved the same. The browser must have moved fewer bytes.",
        )
        expect(got != want - 1, f"{where}: after {got} photos the server way still moved no more. One more.")
        expect(got == want, f"{where}: the answer is {want}, not {got}.")
