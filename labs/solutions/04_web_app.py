"""Solutions of lab 04: one function per exercise."""

from __future__ import annotations

import numpy as np


def is_isolated(headers):
    values = {name.lower(): value for name, value in headers.items()}
    opener = values.get("cross-origin-opener-policy")
    embedder = values.get("cross-origin-embedder-policy")
    return opener == "same-origin" and embedder in ("require-corp", "credentialless")


def to_tensor(rgba, width, height):
    pixels = rgba.reshape(height, width, 4)[..., :3]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32) / np.float32(255)


def largest_difference(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def photos_to_break_even(download, upload, answer):
    return download // (upload + answer) + 1
