"""The graders of lab 01, graded: they name each planted mistake."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from deploylab.checks import lab01 as check
from graders import solutions, verdict

right = solutions("01_measure_honestly")


def strictly_below(percentile):
    return right.samples_needed(percentile) + 1


WRONG_SAMPLES_NEEDED = [
    (lambda p: math.ceil(math.log(0.01) / math.log(p / 100)), "The rule asks for two"),
    (lambda p: math.log(0.01) / math.log(p / 100), "whole number"),
    (lambda p: round(100 / (100 - p)), "enough on average"),
    (lambda p: round(200 / (100 - p)), "enough on average"),
    (strictly_below, "one off"),
    (lambda p: 1000, "but the rule gives 64"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_SAMPLES_NEEDED)
def test_samples_needed_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.samples_needed, wrong)


def rank(samples, percentile):
    """Position of the right answer among the sorted samples."""
    return sorted(samples).index(right.conservative_percentile(samples, percentile))


def without_refusal(samples, percentile):
    return right.conservative_percentile(samples, percentile) or max(samples)


WRONG_CONSERVATIVE = [
    (np.percentile, "plain percentile"),
    (lambda samples, percentile: max(samples), "you report the largest sample"),
    (lambda samples, percentile: sorted(samples)[::-1][rank(samples, percentile)], "wrong way round"),
    (lambda samples, percentile: sorted(samples)[rank(samples, percentile) - 1], "Drop t - 1, not t"),
    (lambda samples, percentile: np.mean(samples), "none of the samples"),
    (without_refusal, "63 samples do not support a P90"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_CONSERVATIVE)
def test_conservative_percentile_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.conservative_percentile, wrong)


def sequential(time_a, time_b, rounds):
    a = [time_a() for _ in range(rounds)]
    b = [time_b() for _ in range(rounds)]
    return statistics.median(b) / statistics.median(a)


def upside_down(time_a, time_b, rounds):
    return 1 / right.interleaved_ratio(time_a, time_b, rounds)


def by_means(time_a, time_b, rounds):
    pairs = [(time_a(), time_b()) for _ in range(rounds)]
    return sum(b for _, b in pairs) / sum(a for a, _ in pairs)


def all_ratios(time_a, time_b, rounds):
    pairs = [(time_a(), time_b()) for _ in range(rounds)]
    return [b / a for a, b in pairs]


WRONG_INTERLEAVED = [
    (sequential, "Take turns"),
    (upside_down, "time b / time a"),
    (by_means, "take the median of the rounds' ratios"),
    (all_ratios, "Return one number, not list"),
    (lambda time_a, time_b, rounds: time_b() / time_a(), "20 rounds, but a ran 1 and b 1 times"),
    (lambda time_a, time_b, rounds: 2.0, "Neither time_a() nor time_b() was called"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_INTERLEAVED)
def test_interleaved_ratio_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.interleaved_ratio, wrong)


def intensity(macs=2, size=4, inputs=1, outputs=1, weighted=1, grouped=True, power=2):
    def attempt(channels_in, channels_out, kernel, height, width, groups):
        weights = channels_out * (channels_in // (groups if grouped else 1)) * kernel**power
        pixels = height * width
        return (
            macs
            * weights
            * pixels
            / size
            / (inputs * channels_in * pixels + outputs * channels_out * pixels + weighted * weights)
        )

    return attempt


WRONG_INTENSITY = [
    (intensity(macs=1), "two operations"),
    (intensity(size=1), "counted numbers, not bytes"),
    (intensity(weighted=0), "weights are read"),
    (intensity(outputs=0), "output is written"),
    (intensity(grouped=False), "with groups"),
    (intensity(power=1), "kernel x kernel"),
    (lambda *sizes: 1 / intensity()(*sizes), "upside down"),
    (lambda *sizes: 1.0, "FLOP per byte, it is"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_INTENSITY)
def test_arithmetic_intensity_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.arithmetic_intensity, wrong)
