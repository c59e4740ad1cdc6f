"""Checks of lab 01, Measure honestly."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from deploylab.bench import latency
from deploylab.checks.core import exercise, expect


@exercise("The higher the percentile, the more samples it takes; the harness uses the same rule.")
def samples_needed(attempt: Callable) -> None:
    """``samples_needed(percentile)``: the fewest samples of which two lie beyond the percentile, 99 times in 100."""
    for percentile in (90, 95, 99):
        got, want = attempt(percentile), latency.samples_needed(percentile)
        expect(got == int(got), f"A count of samples is a whole number, not {got}.")
        one_beyond = math.ceil(math.log(0.01) / math.log(percentile / 100))
        expect(got != one_beyond, f"P{percentile}: after {got} samples one lies beyond it. The rule asks for two.")
        on_average = (round(100 / (100 - percentile)), round(200 / (100 - percentile)))
        expect(
            got not in on_average,
            f"P{percentile}: {got} samples are enough on average, which is wrong every other time. Ask for 99 in 100.",
        )
        expect(
            got not in (want - 1, want + 1),
            f"P{percentile}: {got} is one off {want}: the smallest n whose probability is *at most* 0.01.",
        )
        expect(got == want, f"P{percentile}: {got} samples, but the rule gives {want}.")


@exercise("A bound that the true percentile exceeds once in a hundred runs, or no number at all.")
def conservative_percentile(attempt: Callable) -> None:
    """``conservative_percentile(samples, percentile)``: an upper bound from the sorted samples, None if too few."""
    rng = np.random.default_rng(1)
    for n, percentile in ((100, 90), (64, 90), (1000, 90), (1000, 99)):
        samples = 1 + rng.permutation(n).astype(float)  # so the value says which of the sorted samples it is
        got, want = attempt(samples.copy(), percentile), int(latency.upper_bound(samples, percentile))
        where = f"P{percentile} of {n} samples"
        expect(
            want == n or got != n,
            f"{where}: you report the largest sample. The rule lets you drop the {n - want} largest first.",
        )
        expect(
            want == n or abs(got - np.percentile(samples, percentile)) > 1,
            f"{where}: that is the plain percentile. In half of all runs it lies below the true one.",
        )
        expect(want == n or got != 1 + n - want, f"{where}: sorted the wrong way round; the slowest are to be dropped.")
        expect(got in samples, f"{where}: {got} is none of the samples.")
        expect(got != want - 1, f"{where}: you dropped one sample too many. Drop t - 1, not t.")
        expect(got == want, f"{where}: you report sorted sample number {got:.0f}; the rule gives number {want}.")
    few = attempt.__wrapped__(rng.random(63), 90)
    expect(few is None, "63 samples do not support a P90 (64 do), and you gave a number: return None instead.")


class _Drifting:
    """Two pretended programs on a machine that slows down: b takes twice as long as a at any moment."""

    def __init__(self, spike: bool = False) -> None:
        self.calls: list[str] = []
        self._spike = spike

    def _pace(self) -> float:
        hiccup = 50 if self._spike and len(self.calls) == 8 else 1
        return (1 + len(self.calls) / 10) * hiccup

    def a(self) -> float:
        self.calls.append("a")
        return 0.001 * self._pace()

    def b(self) -> float:
        self.calls.append("b")
        return 0.002 * self._pace()


@exercise("The machine slowed down meanwhile, and the ratio did not notice.")
def interleaved_ratio(attempt: Callable) -> None:
    """``interleaved_ratio(time_a, time_b, rounds)``: how many times as long b takes, measured a b a b ..."""
    machine = _Drifting()
    got = attempt(machine.a, machine.b, 20)
    expect(machine.calls, "Neither time_a() nor time_b() was called; each call measures once and returns seconds.")
    order = "".join(machine.calls)
    expect(
        order.count("a") == order.count("b") == 20,
        f"20 rounds, but a ran {order.count('a')} and b {order.count('b')} times.",
    )
    turns = sum(one != other for one, other in itertools.pairwise(order))
    expect(
        turns >= 20,
        "All of one, then all of the other: what the machine does meanwhile counts for one alone. Take turns.",
    )
    expect(np.isscalar(got), f"Return one number, not {type(got).__name__}.")
    expect(not 0.4 < got < 0.6, "That is time a / time b. How many times as long b takes is time b / time a.")
    noisy = _Drifting(spike=True)
    with_spike = attempt(noisy.a, noisy.b, 20)
    expect(
        1.9 < with_spike < 2.3,
        f"One hiccup of the machine moved the ratio from 2 to {with_spike:.1f}: take the median of the rounds' ratios.",
    )
    expect(1.9 < got < 2.2, f"The ratio is {got:.2f}; b takes twice as long as a in every round.")


@exercise("FLOPs over bytes: what a convolution asks of the arithmetic and of the memory.")
def arithmetic_intensity(attempt: Callable) -> None:
    """``arithmetic_intensity(channels_in, channels_out, kernel, height, width, groups)``: FLOP per byte, float32."""
    for sizes in ((24, 96, 1, 32, 32, 1), (16, 32, 3, 16, 20, 1), (64, 64, 3, 16, 16, 64)):
        got, parts = attempt(*sizes), _conv_parts(*sizes)
        flops, moved = 2 * parts["macs"], parts["input"] + parts["output"] + parts["weights"]
        want = flops / (4 * moved)
        where = "A convolution with (in, out, kernel, height, width, groups) = " + str(sizes)
        wrong = {
            "a multiply and an add are two operations; you counted one": parts["macs"] / (4 * moved),
            "a float32 has 4 bytes; you counted numbers, not bytes": flops / moved,
            "you left out that the weights are read as well": flops / (4 * (parts["input"] + parts["output"])),
            "you left out that the output is written as well": flops / (4 * (parts["input"] + parts["weights"])),
            "that is bytes per FLOP, upside down": 1 / want,
            "with groups, each output channel sees only channels_in / groups inputs": _ungrouped(*sizes),
            "the kernel has kernel x kernel weights per channel pair, not kernel": _flat_kernel(*sizes),
        }
        for mistake, value in wrong.items():
            expect(not _close(got, value) or _close(want, value), f"{where}: {mistake}.")
        expect(_close(got, want), f"{where}: you have {got:.3f} FLOP per byte, it is {want:.3f}.")


def _conv_parts(
    channels_in: int, channels_out: int, kernel: int, height: int, width: int, groups: int
) -> dict[str, int]:
    weights = channels_out * (channels_in // groups) * kernel * kernel
    pixels = height * width
    return {
        "macs": weights * pixels,
        "weights": weights,
        "input": channels_in * pixels,
        "output": channels_out * pixels,
    }


def _ungrouped(*sizes: int) -> float:
    parts = _conv_parts(*sizes[:-1], 1)
    return 2 * parts["macs"] / (4 * (parts["input"] + parts["output"] + parts["weights"]))


def _flat_kernel(*sizes: int) -> float:
    channels_in, channels_out, kernel, height, width, groups = sizes
    weights = channels_out * (channels_in // groups) * kernel
    return 2 * weights * height * width / (4 * ((channels_in + channels_out) * height * width + weights))


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-3)
