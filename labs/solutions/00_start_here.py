"""Solutions of lab 00: one function per exercise."""

from __future__ import annotations

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
    pairs = list(zip(truth, answers, strict=True))
    other_side = {"turn_left_ahead": "turn_right_ahead", "keep_left": "keep_right"}
    other_side |= {right: left for left, right in other_side.items()}
    if len(set(answers)) == 1:
        return "twice_255"
    if sum(want == got for want, got in pairs) > 0.8 * len(pairs):
        return "right"
    sided = [(want, got) for want, got in pairs if want in other_side]
    swapped = sum(got == other_side[want] for want, got in sided)
    return "mirrored" if swapped > len(sided) / 2 else "bgr"


def require_eval(model):
    training = [
        name or "the model" for name, module in model.named_modules() if module.training
    ]
    if training:
        raise ValueError(f"in training mode: {', '.join(training)}; call model.eval() first")
    return model
