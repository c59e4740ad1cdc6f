"""The graders of lab 25, graded: they name each planted mistake."""

from __future__ import annotations

from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploylab.checks import lab25 as check
from graders import solutions, verdict

right = solutions("25_executorch")

WRONG_PARTS = [
    (sum, "neighbours share one part"),
    (lambda taken: max(1, right.parts(taken)), "nothing is delegated there, you say 1"),
    (lambda taken: len(list(groupby(taken))) if any(taken) else 0, "you count the parts that are kept as well"),
    (
        lambda taken: sum(a != b for a, b in pairwise(taken)) if any(taken) else 0,
        "you count the borders between parts, 0 of them",
    ),
    (lambda taken: [], "Return a number, not list"),
    (lambda taken: 1 if any(taken) else 0, "it is 2 part(s), you say 1"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_PARTS)
def test_parts_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.parts, wrong)


def of_first(programs):
    return right.needed(programs[:1])


def of_last(programs):
    return right.needed(programs[-1:])


def everything_is_a_kernel(programs):
    return {name for program in programs for _, name in program}, set()


def with_jumps(programs):
    kernels, delegates = right.needed(programs)
    return kernels | {name for program in programs for kind, name in program if kind == "jump"}, delegates


def without_delegates(programs):
    return right.needed(programs)[0], set()


WRONG_NEEDED = [
    (of_first, "you list what the first needs"),
    (of_last, "you list what the last needs"),
    (with_jumps, "they are no kernels"),
    (without_delegates, "XnnpackBackend is missing"),
    (everything_is_a_kernel, "XnnpackBackend is missing"),
    (lambda programs: right.needed(programs)[::-1], "the other way round"),
    (lambda programs: tuple(map(sorted, right.needed(programs))), "Return sets"),
    (lambda programs: right.needed(programs)[0], "Return two sets"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_NEEDED)
def test_needed_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.needed, wrong)


def piled_up(tensors):
    offsets, end = [], 0
    for _, _, size in tensors:
        offsets.append(end)
        end += -(-size // 16) * 16
    return offsets


def one_place(tensors):
    return [0] * len(tensors)


def in_and_out_together(tensors):
    """Reuses the memory of an operator's input for its output."""
    return right.plan([(first, last - (last > first), size) for first, last, size in tensors])


def crooked(tensors):
    """Packs without looking at the alignment."""
    return [offset - offset % 16 + (offset > 0) * 4 for offset in piled_up([(a, b, c + 16) for a, b, c in tensors])]


def in_order(tensors):
    """Lowest gap first, but in the order of time instead of size."""
    placed, offsets = [], []
    for first, last, size in tensors:
        place = 0
        for begin, end in sorted((b, e) for f, g, b, e in placed if f <= last and first <= g):
            if place + size <= begin:
                break
            place = max(place, -(-end // 16) * 16)
        placed.append((first, last, place, place + size))
        offsets.append(place)
    return offsets


WRONG_PLAN = [
    (piled_up, "no memory is used twice"),
    (one_place, "both are alive in step 1. An operator reads its input while it writes its output."),
    (in_and_out_together, "An operator reads its input while it writes its output"),
    (crooked, "no multiple of 16"),
    (in_order, "placing the largest first needs"),
    (lambda tensors: right.plan(tensors)[1:], "one offset for each of the 2 tensors"),
    (lambda tensors: [float(offset) for offset in right.plan(tensors)], "whole numbers"),
    (lambda tensors: [offset - 64 for offset in right.plan(tensors)], "begins at 0"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_PLAN)
def test_plan_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.plan, wrong)


TENSORS = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 4), st.integers(1, 200)).map(lambda t: (t[0], t[0] + t[1], t[2])),
    max_size=12,
)


@given(TENSORS)
def test_the_reference_plan_never_collides_and_is_never_larger_than_a_pile(tensors):
    offsets = check.greedy_by_size(tensors)
    assert check._clash(tensors, offsets) is None
    assert all(offset % check.ALIGNMENT == 0 for offset in offsets)
    assert check.arena(tensors, offsets) <= sum(check._aligned(size) for _, _, size in tensors)
    assert right.plan(tensors) == offsets
