"""The graders of lab 26, graded: they name each planted mistake."""

from __future__ import annotations

import itertools
import math

import pytest

from deploylab import engines
from deploylab.checks import lab26 as check
from graders import solutions, verdict

right = solutions("26_tvm")


def order(schedule, rows, columns, swap=False, reorder=True, vector=True):
    o, p, k = schedule.get_loops(schedule.get_sblock("y"))
    rows, columns = (columns, rows) if swap else (rows, columns)
    o, row = schedule.split(o, [None, rows])
    p, column = schedule.split(p, [None, columns])
    if reorder:
        schedule.reorder(o, p, k, row, column)
    if vector:
        schedule.vectorize(column)
    return schedule


WRONG_BLOCKED = [
    (lambda s, r, c: s, "still three loops"),
    (lambda s, r, c: s.mod, "Return the schedule"),
    (lambda s, r, c: order(s, r, c, swap=True), "the other way round"),
    (lambda s, r, c: order(s, r, c, reorder=False, vector=False), "reorder"),
    (lambda s, r, c: order(s, r, c, vector=False), "not vectorised"),
    (lambda s, r, c: order(s, r, 2 * c), "should run"),
]


@pytest.mark.skipif(not engines.get("tvm").available().ok, reason="needs the extra 'compilers'")
@pytest.mark.parametrize(("attempt", "told"), WRONG_BLOCKED)
def test_blocked(capsys, attempt, told):
    assert told in verdict(capsys, check.blocked, attempt)


WRONG_BEST = [
    (lambda ms: ms, "the trials themselves"),
    (lambda ms: min((v for v in ms if v is not None), default=None) or 0, "Return a list"),
    (lambda ms: list(itertools.accumulate((v for v in ms if v is not None), min)), "failed or not"),
    (lambda ms: [min((v for v in ms[: i + 1] if v), default=None) for i in range(len(ms))], "Zero is a time"),
    (
        lambda ms: [None if v is None else min(x for x in ms[: i + 1] if x is not None) for i, v in enumerate(ms)],
        "leaves the best as it was",
    ),
    (
        lambda ms: [min((v for v in ms[: i + 1] if v is not None), default=0.0) for i in range(len(ms))],
        "there is no best",
    ),
]


@pytest.mark.parametrize(("attempt", "told"), WRONG_BEST)
def test_best_so_far(capsys, attempt, told):
    assert told in verdict(capsys, check.best_so_far, attempt)


WRONG_PAYS = [
    (lambda s, b, a: s / (b - a) if b > a else None, "counted in seconds"),
    (lambda s, b, a: math.ceil(1000 * s / b), "difference of the two"),
    (lambda s, b, a: 1000 * s // (b - a) if b > a else None, "round up"),
    (lambda s, b, a: math.ceil(1000 * s / (b - a)) if b != a else None, "never pays"),
    (lambda s, b, a: str(right.pays_after(s, b, a)), "return a number"),
]


@pytest.mark.parametrize(("attempt", "told"), WRONG_PAYS)
def test_pays_after(capsys, attempt, told):
    assert told in verdict(capsys, check.pays_after, attempt)
