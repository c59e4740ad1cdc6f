"""The graders of lab 27, graded: they name each planted mistake."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from deploylab.checks import lab27 as check
from graders import solutions, verdict

right = solutions("27_tensorrt")


def at_the_top(graph, supported):
    return dict(Counter(node.op_type for node in graph.node if node.op_type not in supported))


def one_deep(graph, supported):
    inner = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return dict(sum((Counter(at_the_top(each, supported)) for each in (graph, *inner)), Counter()))


def once_each(graph, supported):
    return dict.fromkeys(right.refused(graph, supported), 1)


def the_supported(graph, supported):
    return dict(Counter(node.op_type for node in graph.node if node.op_type in supported))


WRONG_REFUSED = [
    (at_the_top, "inside the branches of If"),
    (one_deep, "an If inside an If"),
    (once_each, "count the nodes"),
    (the_supported, "operators that are supported"),
    (lambda *_: {"Gelu"}, "Return a dictionary, not set"),
    (lambda *_: {"Gelu": 2, "Unique": 2, "Det": 1}, "the dictionary is empty"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_REFUSED)
def test_refused_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.refused, wrong)


def most_common(sizes):
    return Counter(sizes).most_common(1)[0][0]


WRONG_PROFILE = [
    (lambda sizes: (1, most_common(sizes), most_common(sizes)), "the engine would refuse it"),
    (lambda sizes: (min(sizes), round(sum(sizes) / len(sizes), 1), max(sizes)), "never came"),
    (lambda sizes: (min(sizes), sorted(sizes)[len(sizes) // 2], max(sizes)), "You took the median"),
    (lambda sizes: (min(sizes), max(sizes), max(sizes)), "8 came most often, you say 32"),
    (lambda sizes: (min(sizes), most_common(sizes), max(sizes)), "take the larger"),
    (lambda sizes: (most_common(sizes), most_common(sizes), max(sizes)), "The smallest batch is 1"),
    (lambda sizes: max(sizes), "Return three numbers"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_PROFILE)
def test_profile_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.profile, wrong)


def gone(old, new):
    return {name.rpartition(".")[2] for name in old} - {name.rpartition(".")[2] for name in new}


def by_searching(source, old, new):
    return sorted(name for name in gone(old, new) if name in source)


def behind_trt_only(source, old, new):
    return sorted(set(re.findall(r"trt\.[\w.]*?(\w+)\b(?![\w.])", source)) & gone(old, new))


def everything(source, old, new):
    return sorted(set(re.findall(r"(?<!num)\.(\w+)", source)) - {"num_bindings"} - {n.rpartition(".")[2] for n in new})


def whole_names(source, old, new):
    short = right.vanished(source, old, new)
    return sorted(name for name in old if name.rpartition(".")[2] in short)


WRONG_VANISHED = [
    (by_searching, "in a comment only"),
    (behind_trt_only, "build_engine is called on a variable"),
    (everything, "only what `old` has can have vanished"),
    (whole_names, "the part after the last dot"),
    (lambda *a: right.vanished(*a)[::-1], "Sort the names"),
    (lambda *a: set(right.vanished(*a)), "Return a list, not set"),
    (lambda source, old, new: right.vanished(source, old, set()), "execute_v2 is in the new version too"),
    (lambda *a: [name for name in right.vanished(*a) if name != "FP16"], "FP16 is missing"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_VANISHED)
def test_vanished_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.vanished, wrong)


def never_waits(launch, synchronize, clock, runs):
    launch()
    start = clock()
    for _ in range(runs):
        launch()
    return (clock() - start) / runs


def waits_too_late(launch, synchronize, clock, runs):
    launch()
    synchronize()
    start = clock()
    for _ in range(runs):
        launch()
    seconds = clock() - start
    synchronize()
    return seconds / runs


def counts_what_was_before(launch, synchronize, clock, runs):
    launch()
    start = clock()
    for _ in range(runs):
        launch()
    synchronize()
    return (clock() - start) / runs


def without_warm_up(launch, synchronize, clock, runs):
    synchronize()
    start = clock()
    for _ in range(runs):
        launch()
    synchronize()
    return (clock() - start) / runs


WRONG_TIMED = [
    (never_waits, "You never wait"),
    (waits_too_late, "stop the clock before the work is done"),
    (counts_what_was_before, "counts work from before"),
    (without_warm_up, "launch once before the clock starts"),
    (lambda *a: right.timed(*a) * a[3], "Divide by the number of runs"),
    (lambda *a: str(right.timed(*a)), "Return a number, not str"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_TIMED)
def test_timed_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.timed, wrong)


def test_waiting_after_each_run_is_right_too(capsys):
    def each(launch, synchronize, clock, runs):
        launch()
        synchronize()
        start = clock()
        for _ in range(runs):
            launch()
            synchronize()
        return (clock() - start) / runs

    assert verdict(capsys, check.timed, each).startswith("timed: passed. ")
