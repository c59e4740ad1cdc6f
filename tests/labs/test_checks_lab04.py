"""The graders of lab 04, graded: they name each planted mistake."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deploylab.checks import lab04 as check
from graders import solutions, verdict

right = solutions("04_web_app")

OPENER, EMBEDDER = "Cross-Origin-Opener-Policy", "Cross-Origin-Embedder-Policy"

WRONG_IS_ISOLATED = [
    (lambda headers: headers.get(OPENER) == "same-origin", "the opener policy alone is not enough"),
    (lambda headers: EMBEDDER in headers, "the embedder policy alone is not enough"),
    (lambda headers: OPENER in headers and EMBEDDER in headers, "same-origin-allow-popups is not same-origin"),
    (
        lambda headers: headers.get(OPENER) == "same-origin" and EMBEDDER in headers,
        "unsafe-none allows everything",
    ),
    (
        lambda headers: headers == {OPENER: "same-origin", EMBEDDER: "require-corp"},
        "credentialless isolates as well",
    ),
    (
        lambda headers: (
            headers.get(OPENER) == "same-origin" and headers.get(EMBEDDER) in ("require-corp", "credentialless")
        ),
        "names of headers ignore upper and lower case",
    ),
    (lambda headers: False, "do isolate a page"),
    (lambda headers: headers.get(OPENER, ""), "Return True or False, not str"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_IS_ISOLATED)
def test_is_isolated_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.is_isolated, wrong)


def rgb(rgba, width, height):
    return rgba.reshape(height, width, 4)[..., :3]


def scaled(array):
    return np.ascontiguousarray(array, np.float32) / np.float32(255)


def in_place(rgba, width, height):
    tensor = right.to_tensor(rgba, width, height)
    rgba[3::4] = 0
    return tensor


WRONG_TO_TENSOR = [
    (lambda rgba, w, h: scaled(rgba.reshape(h, w, 4).transpose(2, 0, 1)[None]), "The alpha has to go"),
    (lambda rgba, w, h: scaled(rgb(rgba, w, h)[None]), "pixel by pixel (NHWC)"),
    (lambda rgba, w, h: scaled(rgb(rgba, w, h).transpose(2, 0, 1)), "a batch of one"),
    (lambda rgba, w, h: scaled(rgb(rgba, w, h).transpose(2, 1, 0)[None]), "Width and height are exchanged"),
    (lambda rgba, w, h: scaled(rgb(rgba, w, h).reshape(1, 3, h, w)), "reshape moves nothing"),
    (lambda rgba, w, h: scaled(rgba[: 3 * w * h].reshape(1, 3, h, w)), "Drop every fourth"),
    (lambda rgba, w, h: right.to_tensor(rgba, w, h)[:, ::-1].copy(), "The planes come as B, G, R"),
    (lambda rgba, w, h: right.to_tensor(rgba, w, h) * 255, "levels from 0 to 255"),
    (lambda rgba, w, h: right.to_tensor(rgba, w, h).astype(np.float64), "wants float32"),
    (lambda rgba, w, h: rgb(rgba, w, h).transpose(2, 0, 1)[None] / np.float32(255), "contiguous"),
    (lambda rgba, w, h: right.to_tensor(rgba, w, h).tolist(), "a NumPy array, not list"),
    (lambda rgba, w, h: right.to_tensor(rgba, w, h) + np.float32(0.1), "differ from the picture's"),
    (in_place, "Work on a copy"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_TO_TENSOR)
def test_to_tensor_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.to_tensor, wrong)


WRONG_LARGEST_DIFFERENCE = [
    (lambda a, b: (a - b).max(), "Bytes wrap around"),
    (lambda a, b: np.abs(a - b).max(), "Bytes wrap around"),
    (lambda a, b: np.abs(a.astype(int) - b.astype(int)).mean(), "that is the mean"),
    (lambda a, b: (a.astype(int) - b.astype(int)).max(), "absolute value"),
    (lambda a, b: right.largest_difference(a, b) / 255, "not in 0 to 1"),
    (lambda a, b: np.abs(a.astype(int) - b), "Return one number"),
    (lambda a, b: 1, "differ by 0 levels"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_LARGEST_DIFFERENCE)
def test_largest_difference_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.largest_difference, wrong)


WRONG_PHOTOS = [
    (lambda download, upload, answer: download / (upload + answer), "whole number"),
    (lambda download, upload, answer: download // (upload + answer), "One more"),
    (lambda download, upload, answer: download // upload + 1, "the answers travel as well"),
    (lambda download, upload, answer: math.ceil(download / (upload + answer)), "both moved the same"),
    (lambda download, upload, answer: 10**9, "the answer is 25"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_PHOTOS)
def test_photos_to_break_even_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.photos_to_break_even, wrong)
