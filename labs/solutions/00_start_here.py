"""Solutions of lab 00: one function per exercise."""

from __future__ import annotations

from collections import Counter

import numpy as np
from PIL import Image


def top_k(logits, names, k):
    scores = np.exp(logits[0] - logits[0].max())
    probabilities = scores / scores.sum()
    best = np.argsort(probabilities)[::-1][:k]
    return [(names[i], float(probabilities[i])) for i in best]


def preprocess(pixels):
    small = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR)
    scaled = np.asarray(small, np.float32) / 255
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def diagnose(truth, answers):
    wrong = [(want, got) for want, got in zip(truth, answers, strict=True) if want != got]
    swapped = [
        got
        for want, got in wrong
        if got == want.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right")
    ]
    if len(wrong) < len(truth) / 10:
        return "none"
    if Counter(answers).most_common(1)[0][1] > len(answers) / 2:
        return "no_255"
    return "mirrored" if len(swapped) > len(wrong) / 2 else "bgr"


def require_eval(model):
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(f"in training mode: {', '.join(training)}; call model.eval() first")
    return model
