"""The graders of lab 00, graded: they name each planted mistake."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from deploylab.checks import lab00 as check
from graders import solutions, verdict

right = solutions("00_start_here")


def ranked(scores, names, k):
    return [(names[i], float(scores[i])) for i in np.argsort(scores)[::-1][:k]]


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def overflowing(logits, names, k):
    with np.errstate(all="ignore"):
        e = np.exp(logits[0])
        return ranked(e / e.sum(), names, k)


WRONG_TOP_K = [
    (lambda logits, names, k: ranked(logits[0], names, k), "softmax is missing"),
    (lambda logits, names, k: ranked(softmax(logits[0]), names, k)[:1], "Asked for 3 pairs, got 1"),
    (lambda logits, names, k: [(names[i], 0.0) for i in np.argsort(logits[0])[:k]], "sorts upwards"),
    (overflowing, "subtract the largest logit"),
    (
        lambda logits, names, k: [
            (n, p)
            for (n, _), p in zip(
                ranked(logits[0], names, k), np.sort(softmax(np.sort(logits[0])[-k:]))[::-1], strict=True
            )
        ],
        "softmax runs over all classes",
    ),
    (lambda logits, names, k: ranked(softmax(logits), names, k), "Your function raised"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_TOP_K)
def test_top_k_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.top_k, wrong)


def resized(pixels, method=Image.Resampling.BILINEAR):
    return np.asarray(Image.fromarray(pixels).resize((64, 64), method), np.float32)


def nchw(pixels):
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


WRONG_PREPROCESS = [
    (lambda p: nchw(resized(p)), "divide by 255"),
    (lambda p: nchw(resized(p)[..., ::-1] / 255), "Red and blue are swapped"),
    (lambda p: nchw(resized(p)[:, ::-1] / 255), "mirrored"),
    (lambda p: resized(p)[None] / 255, "NHWC"),
    (lambda p: nchw(resized(p) / 255)[0], "batch axis is missing"),
    (lambda p: (resized(p) / 255).reshape(1, 3, 64, 64), "reshape() only relabels"),
    (lambda p: (resized(p) / 255).transpose(2, 0, 1)[None], "transposed view"),
    (lambda p: np.ascontiguousarray((resized(p) / 255).transpose(2, 1, 0)[None]), "Height and width are swapped"),
    (lambda p: nchw(resized(p).astype(np.float64) / 255), "dtype is float64"),
    (lambda p: nchw(resized(p, Image.Resampling.NEAREST) / 255), "bilinear"),
    (lambda p: nchw(resized(p, Image.Resampling.BICUBIC) / 255), "bilinear"),
    (lambda p: nchw((resized(p) / 255 - 0.5) / 0.5), "by no mistake known to this check"),
    (lambda p: "array", "Return a NumPy array, not str"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_PREPROCESS)
def test_preprocess_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.preprocess, wrong)


def never_bgr(truth, answers):
    found = right.diagnose(truth, answers)
    return "mirrored" if found == "bgr" else found


def never_mirrored(truth, answers):
    found = right.diagnose(truth, answers)
    return "bgr" if found == "mirrored" else found


def never_dark(truth, answers):
    found = right.diagnose(truth, answers)
    return "bgr" if found == "twice_255" else found


WRONG_DIAGNOSE = [
    (lambda truth, answers: "bgr", "You said 'bgr', it was 'right'"),
    (never_bgr, "no swap of left and right"),
    (never_mirrored, "look only at the signs that have a left and a right"),
    (never_dark, "count the different answers"),
    (lambda truth, answers: "swapped", "Return one of 'right', 'bgr'"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_DIAGNOSE)
def test_diagnose_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.diagnose, wrong)


def top_level_only(model):
    if model.training:
        raise ValueError("training")
    return model


def by_assertion(model):
    assert not any(module.training for module in model.modules())
    return model


def without_return(model):
    right.require_eval(model)


def refuses_everything(model):
    raise ValueError("no")


WRONG_REQUIRE_EVAL = [
    (lambda model: model.eval(), "A guard that repairs in silence"),
    (lambda model: not model.training, "A model in training mode passed"),
    (top_level_only, "look at every module"),
    (by_assertion, "Raise ValueError, not AssertionError"),
    (without_return, "returned None"),
    (refuses_everything, "wholly in eval mode was refused"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_REQUIRE_EVAL)
def test_require_eval_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.require_eval, wrong)
