"""Solutions of lab 01: one function per exercise."""

from __future__ import annotations

import itertools
import math
import statistics


def at_most_beyond(k, n, percentile):
    """Probability that at most k of n samples lie beyond the percentile (as in the lab)."""
    p = 1 - percentile / 100
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))


def samples_needed(percentile):
    return next(n for n in itertools.count(1) if at_most_beyond(1, n, percentile) <= 0.01)


def conservative_percentile(samples, percentile):
    n = len(samples)
    if n < samples_needed(percentile):
        return None
    t = 1
    while at_most_beyond(t + 1, n, percentile) <= 0.01:
        t += 1
    return sorted(samples)[n - t]


def interleaved_ratio(time_a, time_b, rounds):
    ratios = []
    for _ in range(rounds):
        a = time_a()
        ratios.append(time_b() / a)
    return statistics.median(ratios)


def arithmetic_intensity(channels_in, channels_out, kernel, height, width, groups):
    weights = channels_out * (channels_in // groups) * kernel**2
    flops = 2 * weights * height * width
    numbers = (channels_in + channels_out) * height * width + weights
    return flops / (4 * numbers)
