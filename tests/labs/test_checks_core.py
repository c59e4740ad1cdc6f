"""The part all graders share: one line for every way an attempt can go."""

from __future__ import annotations

import pytest

from deploylab.checks import core


@core.exercise("Two and two make four.")
def double(attempt):
    answer = attempt(2)
    core.expect(answer != 2, "You returned the input itself.")
    core.expect(answer == 4, f"double(2) gave {answer}, not 4.")


@core.exercise("A guard that refuses.")
def guard(attempt):
    core.expect(core.refuses(attempt, -1), "A negative number passed.")


def returns_nothing(x):
    x * 2


def crashes(x):
    raise KeyError("no\nsuch key")


@pytest.mark.parametrize(
    ("attempt", "line"),
    [
        (lambda x: ..., "double: not attempted yet"),
        (lambda x: 2 * x, "double: passed. Two and two make four."),
        (lambda x: x, "double: not yet. You returned the input itself."),
        (lambda x: 5, "double: not yet. double(2) gave 5, not 4."),
        (returns_nothing, "double: not yet. Your function returned None; is a `return` missing?"),
        (crashes, "double: not yet. Your function raised KeyError: 'no\\nsuch key'"),
        (
            lambda: 4,
            "double: not yet. Your function raised TypeError: <lambda>() takes 0 positional arguments but 1 was given",
        ),
        (4, "double: hand over the function itself, check.double(double), not int"),
    ],
)
def test_one_line_for_every_attempt(capsys, attempt, line):
    assert double(attempt) is None
    assert capsys.readouterr().out.replace("test_one_line_for_every_attempt.<locals>.", "") == line + "\n"


def test_an_answer_the_check_did_not_foresee_is_no_traceback(capsys):
    @core.exercise("")
    def shape(attempt):
        core.expect(attempt().shape == (1,), "wrong shape")

    shape(lambda: "text")
    assert capsys.readouterr().out == (
        "shape: not yet. The answer cannot be used: AttributeError: 'str' object has no attribute 'shape'\n"
    )


def refuse_negative(x):
    if x < 0:
        raise ValueError(x)


@pytest.mark.parametrize(
    ("attempt", "word"),
    [(refuse_negative, "passed"), (lambda x: x, "A negative number passed"), (lambda x: ..., "not attempted")],
)
def test_a_guard_is_asked_to_raise(capsys, attempt, word):
    guard(attempt)
    assert word in capsys.readouterr().out


def test_ctrl_c_is_not_swallowed():
    def interrupted(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        double(interrupted)
