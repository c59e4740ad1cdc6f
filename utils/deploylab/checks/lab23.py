"""Checks of lab 23, MNN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from deploylab.checks.core import exercise, expect


@exercise("That is the order in which MNN keeps channels.")
def to_nc4hw4(attempt: Callable) -> None:
    """``to_nc4hw4(x)``: array (n, c, h, w) -> (n, ceil(c / 4), h, w, 4), filled up with zeros."""
    for n, c, h, w in ((1, 4, 3, 3), (2, 8, 2, 3), (2, 6, 3, 2), (1, 3, 1, 1)):
        x = np.arange(1, n * c * h * w + 1, dtype=np.float32).reshape(n, c, h, w)
        blocks = -(-c // 4)
        full = np.zeros((n, blocks * 4, h, w), np.float32)
        full[:, :c] = x
        want = full.reshape(n, blocks, 4, h, w).transpose(0, 1, 3, 4, 2)
        given = x.copy()
        got = attempt(given)
        what = f"{c} channels of {h}x{w}"
        expect(np.array_equal(given, x), "Your function changes the array it is given; work on a copy.")
        expect(isinstance(got, np.ndarray), f"Return a NumPy array, not {type(got).__name__}.")
        expect(
            got.shape != (n, c // 4, h, w, 4) or c % 4 == 0,
            f"{what}: {c % 4} channels are lost; the last block is filled up, so round the number of blocks up.",
        )
        expect(
            got.shape != (n, blocks, 4, h, w) or got.shape == want.shape,
            f"{what}: the blocks are right, but the four channels of a pixel do not lie side by side: "
            "their axis is the last.",
        )
        expect(got.shape == want.shape, f"{what}: the shape should be {want.shape}, yours is {got.shape}.")
        expect(
            not np.array_equal(got, full.reshape(want.shape)) or np.array_equal(got, want),
            f"{what}: you only gave the memory another shape. The numbers must move: split the channels, transpose.",
        )
        spread = full.reshape(n, 4, blocks, h, w).transpose(0, 2, 3, 4, 1)
        expect(
            not np.array_equal(got, spread) or np.array_equal(got, want),
            f"{what}: a block of yours has channels {blocks} apart; channels 0 to 3 are the first block.",
        )
        turned = full.reshape(n, blocks, 4, h, w).transpose(0, 1, 4, 3, 2)
        expect(
            turned.shape != got.shape or not np.array_equal(got, turned) or np.array_equal(got, want),
            f"{what}: height and width have changed places.",
        )
        expect(got.dtype == x.dtype, f"The numbers are right, their type is {got.dtype}; keep {x.dtype}.")
        inside = np.arange(blocks * 4).reshape(blocks, 4) < c
        expect(
            not np.array_equal(got * inside[:, None, None], want) or np.array_equal(got, want),
            f"{what}: the places that are left over hold other numbers than zero.",
        )
        expect(np.array_equal(got, want), f"{what}: the numbers are in another order.")


@exercise("A stall without a single turn is the one to find.")
def longest_stall(attempt: Callable) -> None:
    """``longest_stall(moments, begin, end)``: the longest time within [begin, end] without a moment, in seconds."""

    def asked(moments: list[float], begin: float, end: float) -> float:
        given = list(moments)
        answer = attempt(given, begin, end)
        expect(given == list(moments), "Your function changes the list it is given; sort a copy.")
        expect(isinstance(answer, (int, float, np.number)), f"Return a number, not {type(answer).__name__}.")
        return float(answer)

    def same(a: float, b: float) -> bool:
        return abs(a - b) < 1e-9

    expect(
        same(asked([1.0, 1.5, 1.75, 2.0], 1.0, 2.0), 0.5),
        "Turns at 1, 1.5, 1.75 and 2 seconds: the longest gap is 0.5.",
    )
    silent = asked([], 1.0, 4.0)
    expect(
        same(silent, 3.0),
        f"A call from 1 to 4 without a single turn is a stall of 3 seconds, the worst there is; you say {silent:g}.",
    )
    late = asked([3.0, 3.5], 1.0, 4.0)
    expect(
        same(late, 2.0),
        f"A call from 1 to 4, turns at 3 and 3.5: nothing happened from 1 to 3, so it is 2; you say {late:g}. "
        "The call's own ends count.",
    )
    early = asked([1.5, 2.0], 1.0, 4.0)
    expect(same(early, 2.0), f"A call from 1 to 4, turns at 1.5 and 2: the stall at its end is 2; you say {early:g}.")
    outside = asked([0.0, 0.5, 2.0, 3.0, 9.0], 1.0, 4.0)
    expect(
        same(outside, 1.0),
        f"A call from 1 to 4, turns at 0, 0.5, 2, 3 and 9: within the call it is 1; you say {outside:g}. "
        "Leave out what lies outside of the call.",
    )
    mixed = asked([3.0, 1.5, 2.0], 1.0, 4.0)
    expect(same(mixed, 1.0), f"The moments 3, 1.5, 2 are not in order; sorted, the answer is 1, you say {mixed:g}.")


@exercise("Integers of a file are weights again.")
def dequantise(attempt: Callable) -> None:
    """``dequantise(found)``: {"buffer", "alpha", "aMin"} -> float array (channels, weights of a channel)."""
    rng = np.random.default_rng(8)
    for channels, each, size in ((3, 5, 4), (300, 2, 256), (2, 260, 200)):
        book = np.sort(rng.choice(np.arange(-128, 128), size, replace=False))[::-1].astype(np.int8)
        places = rng.integers(0, size, (channels, each)).astype(np.uint8)
        places.flat[:2] = size - 1, 0  # the last entry, which is negative as a signed byte in a large book
        scales = np.stack([-rng.random(channels) - 0.5, rng.random(channels) / 99 + 0.01], 1)
        least = int(book.min())
        found = _packed(book, places, scales, least)
        want = (book[places].astype(float) - least) * scales[:, 1:] + scales[:, :1]
        _judge_weights(attempt(found), book, places, scales, least, want)


def _packed(book: np.ndarray, places: np.ndarray, scales: np.ndarray, least: int) -> dict[str, Any]:
    sizes = np.array(places.shape, "<u2").view(np.uint8)
    raw = np.concatenate([[2], sizes, [len(book) % 256], book.view(np.uint8), places.reshape(-1)])
    return {
        "buffer": raw.astype(np.uint8).view(np.int8).tolist(),
        "alpha": scales.reshape(-1).tolist(),
        "aMin": least,
    }


def _judge_weights(
    got: Any, book: np.ndarray, places: np.ndarray, scales: np.ndarray, least: int, want: np.ndarray
) -> None:
    expect(isinstance(got, np.ndarray), f"Return a NumPy array, not {type(got).__name__}.")
    what = f"{want.shape[0]} channels of {want.shape[1]} weights, code book of {len(book)}"
    expect(
        got.size == want.size,
        f"{what}: you return {got.size} numbers, there are {want.size} weights. Sizes have two bytes, low byte first; "
        "a code book of size 0 has 256 entries.",
    )
    expect(got.shape == want.shape, f"{what}: the shape should be {want.shape}, yours is {got.shape}.")
    smallest, step = scales[:, :1], scales[:, 1:]
    integers = book[places].astype(float)
    likely = {
        "the place in the code book is not the integer yet: look it up there": places * step + smallest,
        "aMin is missing: the smallest integer stands for the smallest weight": integers * step + smallest,
        "aMin is to be subtracted": (integers + least) * step + smallest,
        "smallest and step are exchanged: alpha has the smallest weight first": (integers - least) * smallest + step,
        "you add no smallest weight": (integers - least) * step,
    }
    for mistake, wrong in likely.items():
        expect(not _close(got, wrong) or _close(got, want), f"{what}: {mistake}.")
    flat = scales.reshape(-1)
    halves = (integers - least) * flat[len(flat) // 2 :, None] + flat[: len(flat) // 2, None]
    expect(
        not _close(got, halves) or _close(got, want),
        f"{what}: alpha is not all smallest weights, then all steps; the two of a channel stand together.",
    )
    expect(_close(got, want), f"{what}: the numbers differ, and by no mistake known to this check.")


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-4, atol=1e-6)
