"""Solutions of lab 23: one function per exercise."""

from __future__ import annotations

import numpy as np


def to_nc4hw4(x):
    n, c, h, w = x.shape
    blocks = -(-c // 4)
    full = np.zeros((n, blocks * 4, h, w), x.dtype)
    full[:, :c] = x
    return full.reshape(n, blocks, 4, h, w).transpose(0, 1, 3, 4, 2)


def longest_stall(moments, begin, end):
    inside = sorted(moment for moment in moments if begin <= moment <= end)
    return max(np.diff([begin, *inside, end]))


def dequantise(found):
    raw = np.array(found["buffer"], np.int8).view(np.uint8)
    axes = int(raw[0])
    sizes = raw[1 : 1 + 2 * axes].view("<u2").astype(int)
    place = 1 + 2 * axes
    entries = int(raw[place]) or 256
    book = raw[place + 1 : place + 1 + entries].view(np.int8).astype(float)
    integers = book[raw[place + 1 + entries :]].reshape(sizes)
    smallest, step = np.array(found["alpha"]).reshape(-1, 2).T[:, :, None]
    return (integers - found["aMin"]) * step + smallest
