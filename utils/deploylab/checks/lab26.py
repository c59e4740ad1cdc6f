"""Checks of lab 26, TVM."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from deploylab.checks.core import exercise, expect, hint

OUTPUTS, INPUTS, PIXELS = 32, 20, 96


@exercise("The loops run as asked, and the product is the same: a schedule changes when, never what.")
def blocked(attempt: Callable) -> None:
    """``blocked(schedule, rows, columns)``: order o, p, k, rows, columns; the last one vectorised."""
    from deploylab.engines import get

    get("tvm").require()
    for rows, columns in ((4, 16), (8, 8)):
        schedule = _product()
        given = attempt(schedule, rows, columns)
        expect(
            hasattr(given, "mod") and hasattr(given, "get_loops"), f"Return the schedule, not {type(given).__name__}."
        )
        loops = _loops(given)
        what = f"rows={rows}, columns={columns}"
        expect(len(loops) != 3, f"{what}: there are still three loops. split(loop, [None, size]) makes two of one.")
        extents = [extent for extent, _ in loops]
        swapped = [OUTPUTS // columns, PIXELS // rows, INPUTS, columns, rows]
        want = [OUTPUTS // rows, PIXELS // columns, INPUTS, rows, columns]
        expect(
            rows == columns or extents != swapped,
            f"{what}: rows belong to o, the output channels, columns to p, the pixels. Yours are the other way round.",
        )
        expect(sorted(extents) == sorted(want), f"{what}: the loops run {extents} times; they should run {want} times.")
        expect(
            extents.index(INPUTS) == 2 and extents == want,
            f"{what}: from outside to inside the loops run {extents} times, asked for are {want}. reorder() takes all.",
        )
        expect(
            loops[-1][1] == "vectorized",
            f"{what}: the innermost loop is not vectorised. vectorize(loop) takes the loop that split() gave you.",
        )
        expect(_right(given), f"{what}: the product has changed.")


def _product() -> Any:
    from tvm import s_tir, te

    w, x = te.placeholder((OUTPUTS, INPUTS), name="w"), te.placeholder((INPUTS, PIXELS), name="x")
    k = te.reduce_axis((0, INPUTS), name="k")
    y = te.compute((OUTPUTS, PIXELS), lambda o, p: te.sum(w[o, k] * x[k, p], axis=k), name="y")
    return s_tir.Schedule(te.create_prim_func([w, x, y]))


def _loops(schedule: Any) -> list[tuple[int, str]]:
    """Extent and kind of the loops around the block ``y``, from outside to inside."""
    kinds = {0: "serial", 1: "parallel", 2: "vectorized", 3: "unrolled"}
    found = [schedule.get(loop) for loop in schedule.get_loops(schedule.get_sblock("y"))]
    return [(int(loop.extent), kinds.get(int(loop.kind), "other")) for loop in found]


def _right(schedule: Any) -> bool:
    import tvm

    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((OUTPUTS, INPUTS), np.float32), rng.standard_normal((INPUTS, PIXELS), np.float32)
    y = tvm.runtime.empty((OUTPUTS, PIXELS), "float32")
    tvm.compile(schedule.mod, tvm.target.Target("llvm"))["main"](tvm.runtime.tensor(w), tvm.runtime.tensor(x), y)
    return np.allclose(y.numpy(), w @ x, atol=1e-4)


@exercise("A tuning curve only falls, and a failed trial does not end it.")
def best_so_far(attempt: Callable) -> None:
    """``best_so_far(milliseconds)``: the best of all trials up to each one; None where a trial failed."""
    cases = [
        ([5.0, 3.0, 4.0, 1.0, 2.0], [5.0, 3.0, 3.0, 1.0, 1.0]),
        ([5.0, None, 6.0, None], [5.0, 5.0, 5.0, 5.0]),
        ([None, None, 2.0, 3.0], [None, None, 2.0, 2.0]),
        ([0.0, 1.0, None], [0.0, 0.0, 0.0]),
        ([], []),
    ]
    for given, want in cases:
        got = attempt(list(given))
        expect(isinstance(got, (list, tuple)), f"Return a list with a value for each trial, not {type(got).__name__}.")
        got = list(got)
        expect(len(got) == len(given), f"{given}: your list has {len(got)} values; each trial has one, failed or not.")
        if got == want:
            continue
        if got == given:
            hint("Those are the trials themselves. Each value is the smallest of all up to there.")
        if 0.0 in given:
            hint(f"{given}: you give {got}. Zero is a time and not a failure: compare with None, not with `if value`.")
        if None in given and given[0] is not None and None in got:
            hint(f"{given}: a failed trial leaves the best as it was; you give {got}.")
        if given[:1] == [None]:
            hint(f"{given}: before the first trial that worked there is no best: None. You give {got}.")
        hint(f"{given}: expected {want}, you give {got}.")


@exercise("Tuning is an investment: count how many inferences pay for it.")
def pays_after(attempt: Callable) -> None:
    """``pays_after(tuning_seconds, before_ms, after_ms)``: inferences until the tuning is paid, None if never."""
    for seconds, before, after in ((60.0, 2.0, 1.0), (90.0, 20.0, 17.5), (7.0, 3.0, 0.5), (1.0, 4.0, 1.0)):
        got, want = attempt(seconds, before, after), math.ceil(1000 * seconds / (before - after))
        text = f"{seconds:g} s of tuning, {before:g} ms before, {after:g} ms after"
        expect(isinstance(got, (int, float)) and not isinstance(got, bool), f"{text}: return a number, not {got!r}.")
        expect(got != seconds / (before - after) and got != math.ceil(seconds / (before - after)), f"{text}: {_UNITS}")
        expect(
            got != math.ceil(1000 * seconds / before), f"{text}: what an inference saves is the difference of the two."
        )
        expect(
            got == want,
            f"{text}: {want} inferences save as much time as the tuning took, you say {got}."
            + (" Half an inference saves nothing: round up." if abs(got - want) <= 1 else ""),
        )
    for before, after in ((2.0, 2.0), (1.0, 3.0)):
        answer: Any = _never(attempt, before, after)
        expect(answer is None, f"{before:g} ms before, {after:g} ms after: it never pays, return None, not {answer!r}.")


_UNITS = "the tuning is counted in seconds, the latencies in milliseconds."


def _never(attempt: Callable, before: float, after: float) -> Any:
    """The answer itself, as None is right here; ``attempt`` as it was handed over would take it for a lost return."""
    return attempt.__wrapped__(10.0, before, after)
