"""Checks of lab 00, Start here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deploylab.checks.core import exercise, expect, hint, refuses

_NAMES = ("stop", "yield", "no_entry", "roundabout", "none")


@exercise("Probabilities from logits, the best first, whatever the size of the logits.")
def top_k(attempt: Callable) -> None:
    """``top_k(logits, names, k)``: float32 (1, N), N names -> k pairs (name, probability), the most probable first."""
    logits = np.array([[1.0, 3.0, 0.5, 2.0, -1.0]], np.float32)
    best = [(name, float(p)) for name, p in attempt(logits, _NAMES, 3)]
    expect(len(best) == 3, f"Asked for 3 pairs, got {len(best)}.")
    found = [name for name, _ in best]
    expect(found != ["none", "stop", "no_entry"] and found != ["none", "no_entry", "stop"], _ASCENDING)
    expect(found == ["yield", "roundabout", "stop"], f"The best three are yield, roundabout, stop; you have {found}.")
    expect(not np.allclose([p for _, p in best], [3.0, 2.0, 1.0]), "Those are the logits; a softmax is missing.")
    expect(
        not np.isclose(sum(p for _, p in best), 1), "Your 3 probabilities add up to 1: softmax runs over all classes."
    )
    expect(np.allclose([p for _, p in best], _softmax(logits)[0, [1, 3, 0]], atol=1e-5), "The probabilities are off.")
    with np.errstate(all="ignore"):
        large = [float(p) for _, p in attempt(1000 * logits, _NAMES, 1)]
    expect(np.isfinite(large).all(), "exp() overflows for large logits: subtract the largest logit first.")


_ASCENDING = "The least probable come first: np.argsort sorts upwards."


def _softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@exercise("The same array as the course's own preprocessor makes.")
def preprocess(attempt: Callable) -> None:
    """``preprocess(pixels)``: uint8 RGB (H, W, 3) -> float32 (1, 3, 64, 64) in [0, 1], C-contiguous."""
    from deploylab.image import SIGNNET

    pixels = _test_picture()
    want, got = SIGNNET(pixels), attempt(pixels.copy())
    expect(isinstance(got, np.ndarray), f"Return a NumPy array, not {type(got).__name__}.")
    expect(got.shape != (3, 64, 64), "The batch axis is missing: (3, 64, 64) should be (1, 3, 64, 64).")
    expect(got.shape != (1, 64, 64, 3), "Channels come last (NHWC); the network takes NCHW: transpose the axes.")
    expect(got.shape == want.shape, f"The shape is {got.shape}, it should be {want.shape}.")
    expect(got.dtype == np.float32, f"The dtype is {got.dtype}, it should be float32.")
    expect(not np.allclose(got, 255 * want, atol=2), "The values go up to 255: divide by 255.")
    _expect_same_picture(got, want)
    expect(got.flags.c_contiguous, "The array is a transposed view; an engine reads raw memory: np.ascontiguousarray.")


def _expect_same_picture(got: np.ndarray, want: np.ndarray) -> None:
    expect(not np.allclose(got, want[:, ::-1], atol=0.03), "Red and blue are swapped (BGR); the network takes RGB.")
    expect(not np.allclose(got, want[..., ::-1], atol=0.03), "The picture is mirrored.")
    turned = want.transpose(0, 1, 3, 2)
    expect(
        not np.allclose(got, turned, atol=0.03), "Height and width are swapped: transpose to (channel, row, column)."
    )
    interleaved = want[0].transpose(1, 2, 0).reshape(want.shape)
    expect(
        not np.allclose(got, interleaved, atol=0.03),
        "reshape() only relabels the axes and leaves the pixels where they are; transpose() moves them.",
    )
    if not np.allclose(got, want, atol=2e-3):
        near = np.abs(got - want).mean() < 0.08
        hint(
            "Nearly the same picture: is it resized with the bilinear filter? Pillow's default is another."
            if near
            else "The values differ from the course's preprocessor, and by no mistake known to this check."
        )


def _test_picture() -> np.ndarray:
    """uint8 (90, 120, 3), different in every direction and every channel, with fine detail for the resize filter."""
    y, x = np.mgrid[0:90, 0:120]
    red, green, blue = 2 * x, 1.2 * y, 40 + 0.5 * x + 0.5 * y
    stripes = 60 * ((x // 2 + y // 3) % 2)
    return np.clip(np.stack([red, green, blue], -1) + stripes[..., None] - 30, 0, 255).astype(np.uint8)


_MISTAKES = {
    "right": "The preprocessing is fine there.",
    "bgr": "Red and blue were swapped there: no swap of left and right, and yet most answers are wrong.",
    "mirrored": "The picture was mirrored there: look only at the signs that have a left and a right.",
    "twice_255": "The pixels were divided by 255 twice there, so all pictures are black: count the different answers.",
}


@exercise("Each mistake leaves its own trace in the answers.")
def diagnose(attempt: Callable) -> None:
    """``diagnose(truth, answers)``: two lists of class names -> "right", "bgr", "mirrored" or "twice_255"."""
    for mistake, (truth, answers) in answers_with_mistakes().items():
        got = attempt(list(truth), list(answers))
        expect(got in _MISTAKES, f"Return one of {', '.join(map(repr, _MISTAKES))}, not {got!r}.")
        expect(got == mistake, f"You said {got!r}, it was {mistake!r}. {_MISTAKES[mistake]}")


def answers_with_mistakes() -> dict[str, tuple[list[str], list[str]]]:
    """For each mistake in preprocessing, the true classes of the sample photos and what SignNet then answers."""
    import torch

    from deploylab import models
    from deploylab.image import SIGNNET
    from deploylab.signs import CLASSES, dataset

    photos = dataset.samples()
    x = SIGNNET.batch(photo.path for photo in photos)
    broken = {"right": x, "bgr": x[:, ::-1], "mirrored": x[..., ::-1], "twice_255": x / 255}
    truth = [photo.label for photo in photos]
    model = models.load("signnet")
    with torch.inference_mode():
        best = {name: model(torch.from_numpy(a.copy())).argmax(1).tolist() for name, a in broken.items()}
    return {name: (truth, [CLASSES[i] for i in indices]) for name, indices in best.items()}


@exercise("A model that would answer by chance cannot be shipped.")
def require_eval(attempt: Callable) -> None:
    """``require_eval(model)``: return the model if every module is in eval mode, else raise ValueError."""
    from torch import nn

    def net() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5)))

    in_training = net().train()
    error = refuses(attempt, in_training)
    if error is None and not in_training.training:
        hint("You called eval() on a model in training mode. A guard that repairs in silence hides the mistake: raise.")
    expect(error is not None, "A model in training mode passed; raise ValueError.")
    expect(
        isinstance(error, ValueError),
        f"Raise ValueError, not {type(error).__name__}: a caller must know what to catch.",
    )
    half = net().eval()
    half[1][1].train()
    expect(
        refuses(attempt, half) is not None,
        "Only the dropout layer was in training mode, and it passed: look at every module of model.modules().",
    )
    ready = net().eval()
    expect(refuses(attempt, ready) is None, "A model that is wholly in eval mode was refused.")
    expect(attempt(ready) is ready, "Return the model, so that the guard can stand inside an expression.")
