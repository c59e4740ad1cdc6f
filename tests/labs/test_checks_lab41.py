"""The graders of lab 41, graded: they name each planted mistake."""

from __future__ import annotations

import re

import pytest

from deploylab.boards import recorded
from deploylab.checks import lab41 as check
from graders import solutions, verdict

right = solutions("41_jetson")


def least_watts(modes, idle_w, fps):
    return min((name for name, (ms, _) in modes.items() if ms * fps <= 1000), key=lambda name: modes[name][1])


WRONG_CHEAPEST = [
    (lambda modes, *_: min(modes, key=lambda name: modes[name][1]), "the camera gives 30"),
    (lambda modes, *_: min(modes, key=lambda name: modes[name][0]), "You chose high"),
    (
        lambda modes, idle_w, fps: min(
            (name for name, (ms, _) in modes.items() if ms * fps <= 1000),
            key=lambda name: modes[name][0] * modes[name][1],
        ),
        "You chose high",
    ),
    (least_watts, "The smaller number of watts is not the cheaper mode"),
    (
        lambda modes, idle_w, fps: right.cheapest({n: m for n, m in modes.items() if m[0] * fps < 1000}, idle_w, fps),
        "slow just keeps up",
    ),
    (lambda *arguments: right.cheapest(*arguments) or "none", "no mode keeps up"),
    (lambda *arguments: [right.cheapest(*arguments)], "not list"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_CHEAPEST)
def test_cheapest_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.cheapest, wrong)


def from_mean(seconds, watts, idle_w, inferences):
    mean, duration = sum(watts) / len(watts), seconds[-1] - seconds[0]
    return 1000 * mean * duration / inferences, 1000 * (mean - idle_w) * duration / inferences


def from_one_end(seconds, watts, idle_w, inferences):
    whole = 1000 * sum((seconds[i + 1] - seconds[i]) * watts[i] for i in range(len(watts) - 1)) / inferences
    return whole, whole


def scaled(factor):
    return lambda *arguments: tuple(value * factor for value in right.energy(*arguments))


WRONG_ENERGY = [
    (from_mean, "not equally far apart"),
    (from_one_end, "the mean of both ends"),
    (scaled(1e-3), "These are joules"),
    (lambda *a: tuple(value * a[3] for value in right.energy(*a)), "divide by their number"),
    (lambda *a: (right.energy(*a)[0],) * 2, "take off what the board draws"),
    (lambda *a: (right.energy(*a)[0], right.energy(*a)[0] - a[2]), "take it off times the duration"),
    (lambda s, w, i, n: (right.energy(s, w, i, n)[0], right.energy(s, w, 4.0, n)[1]), "spends nothing above it"),
    (lambda *a: right.energy(*a)[0], "Return two numbers"),
    (scaled(2), "are 325 mJ each, you say 650"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_ENERGY)
def test_energy_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.energy, wrong)


def changes(places):
    return [index for index in range(len(places) - 1) if places[index] != places[index + 1]]


def moved(places, sizes):
    return right.handover(places, sizes)[1]


WRONG_HANDOVER = [
    (lambda places, sizes: (places.count("DLA"), moved(places, sizes)), "6 layers are on the DLA"),
    (lambda places, sizes: (len(changes(places)), moved(places, sizes)), "There are 4 changes of place"),
    (lambda places, sizes: (len(changes(places)) + 1, moved(places, sizes)), "the runs of the GPU too"),
    (lambda places, sizes: (2, moved(places, sizes)), "The DLA has 3 runs (4 layers, 1, 1), you say 2"),
    (lambda places, sizes: (3, sum(sizes[i + 1] for i in changes(places))), "what layer i gives"),
    (lambda places, sizes: (3, moved(places, sizes) + sizes[-1]), "The last tensor goes to the caller"),
    (lambda places, sizes: (3, sum(sizes)), "= 250 bytes change hands, you say 450"),
    (lambda places, sizes: (max(1, right.handover(places, sizes)[0]), moved(places, sizes)), "(0, 0), not (1, 0)"),
    (lambda places, sizes: moved(places, sizes), "Return two numbers"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_HANDOVER)
def test_handover_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.handover, wrong)


def by(figure, row="GPU Compute Time"):
    """A reader that compares ``figure`` (mean, max, ...) of the enqueue time with that of ``row``."""

    def read(log):
        found = {name: float(value) for name, value in re.findall(rf"\] (\w[\w ]+): .*{figure} = ([\d.]+)", log)}
        return right.bound(log)[0], "CPU" if found["Enqueue Time"] >= 0.9 * found[row] else "GPU"

    return read


WRONG_BOUND = [
    (lambda log: (right.bound(log)[0] * 100, right.bound(log)[1]), "not in percent"),
    (lambda log: (1 / right.bound(log)[0], right.bound(log)[1]), "You divided the wall time"),
    (lambda log: (right.bound(log)[0], "GPU"), "so the CPU limits"),
    (lambda log: (right.bound(log)[0], "CPU"), "the GPU limits, you say 'CPU'"),
    (by("mean", "Latency"), "so the CPU limits"),
    (lambda log: (0.9, right.bound(log)[1]), "a share of 0.5, you say 0.9"),
    (lambda log: right.bound(log)[0], "Return two values"),
    (lambda log: ("0.9", "GPU"), "The share is a number, not str"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_BOUND)
def test_bound_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.bound, wrong)


@pytest.mark.parametrize("name", ["agx-xavier", "xavier-nx"])
def test_the_solution_reads_real_logs(name):
    share, limit = right.bound(recorded.recording("trtexec", name).text)
    assert 0.95 < share < 1
    assert limit == "GPU"
