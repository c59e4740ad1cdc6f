"""Latency statistics: warm up, time single calls, and say only what the number of samples supports.

The whole interface, for labs and workers (times in milliseconds)::

    warm_up(call)                      -> WarmUp(calls, seconds, stable)
    measure(call, samples=700)         -> float64 array, one entry per call
    Summary.of(samples)                -> n, min, mean, p50, p90, p99, cv and upper bounds; None where n is too small
    samples_needed(99)                 -> 662
    supports(n=100, percentile=99)     -> False
    upper_bound(samples, 99)           -> the conservative percentile of MLPerf, or None

Needs NumPy only, so that it runs on a board.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np

CONFIDENCE = 0.99


@cache
def samples_needed(percentile: float, confidence: float = CONFIDENCE) -> int:
    """The fewest samples from which ``percentile`` (0 to 100, exclusive) may be quoted at all.

    The early-stopping rule of MLPerf Inference (``loadgen/early_stopping.cc`` and "Early Stopping Criterion" in
    ``inference_rules.adoc``) with one allowed overtime sample and no tolerance: the smallest n for which seeing at
    most one of n samples above the true percentile has a probability of at most 1 - confidence. At 99 % confidence
    that is 64 for P90, 130 for P95 and 662 for P99.
    """
    _check_percentile(percentile)
    above = 1 - percentile / 100
    n = 2
    while _at_most(1, n, above) > 1 - confidence:
        n += 1
    return n


def supports(n: int, percentile: float, confidence: float = CONFIDENCE) -> bool:
    """Whether ``n`` samples are enough to quote ``percentile``."""
    return n >= samples_needed(percentile, confidence)


def upper_bound(
    samples: Sequence[float] | np.ndarray, percentile: float, confidence: float = CONFIDENCE
) -> float | None:
    """A value that the true ``percentile`` exceeds with a probability of at most 1 - confidence.

    MLPerf's conservative percentile: find the largest t for which n samples may hold t overtime ones, drop the t - 1
    largest samples and report the next. ``None`` where n is below :func:`samples_needed`.
    """
    n = len(samples)
    if not supports(n, percentile, confidence):
        return None
    above = 1 - percentile / 100
    allowed, probability = 1, _at_most(1, n, above)
    while (probability := probability + _exactly(allowed + 1, n, above)) <= 1 - confidence:
        allowed += 1
    return float(np.sort(samples)[n - allowed])


@dataclass(frozen=True)
class Summary:
    """What one series of latencies supports. Times in milliseconds; ``None`` is "too few samples"."""

    n: int
    min: float
    mean: float
    p50: float
    p90: float | None
    p99: float | None
    p90_bound: float | None
    p99_bound: float | None
    cv: float

    @classmethod
    def of(cls, samples: Sequence[float] | np.ndarray) -> Summary:
        """Summarise latencies in milliseconds. ``cv`` is the standard deviation divided by the mean.

        Raises :class:`ValueError` for an empty series.
        """
        times = np.asarray(samples, dtype=np.float64)
        if times.ndim != 1 or not times.size:
            raise ValueError(f"expected a non-empty list of latencies, got an array of shape {times.shape}")
        mean = float(times.mean())
        return cls(
            n=times.size,
            min=float(times.min()),
            mean=mean,
            p50=float(np.percentile(times, 50)),
            p90=_percentile(times, 90),
            p99=_percentile(times, 99),
            p90_bound=upper_bound(times, 90),
            p99_bound=upper_bound(times, 99),
            cv=float(times.std() / mean) if mean else 0.0,
        )

    def to_dict(self) -> dict[str, float | int | None]:
        return asdict(self)

    def __str__(self) -> str:
        tails = [
            f"{name} {value:.3f}"
            if value is not None
            else f"{name} withheld (needs {samples_needed(percentile)} samples)"
            for name, percentile, value in (("p90", 90, self.p90), ("p99", 99, self.p99))
        ]
        return f"p50 {self.p50:.3f} ms, {', '.join(tails)}, cv {self.cv:.0%}, n {self.n}"


@dataclass(frozen=True)
class WarmUp:
    """How a warm-up went. ``stable`` is False where a bound ended it before three windows agreed."""

    calls: int
    seconds: float
    stable: bool


def warm_up(
    call: Callable[[], object],
    *,
    agreement: float = 0.10,
    window_seconds: float = 0.02,
    window_calls: int = 3,
    max_seconds: float = 5.0,
    max_calls: int = 5000,
) -> WarmUp:
    """Call until the medians of the last three windows agree within ``agreement`` (largest / smallest - 1).

    A window lasts at least ``window_seconds`` and ``window_calls`` calls; the whole ends after ``max_seconds`` or
    ``max_calls`` at the latest. The stopping rule is the one of Triton's perf_analyzer.
    """
    medians: list[float] = []
    calls = 0
    with _garbage_collector_off():
        start = time.perf_counter()
        while calls < max_calls and time.perf_counter() - start < max_seconds:
            window = measure(
                call, samples=window_calls, min_seconds=window_seconds, max_seconds=max_seconds, max_samples=max_calls
            )
            calls += len(window)
            medians.append(float(np.median(window)))
            if len(medians) >= 3 and max(medians[-3:]) <= (1 + agreement) * min(medians[-3:]):
                return WarmUp(calls, time.perf_counter() - start, True)
    return WarmUp(calls, time.perf_counter() - start, False)


def measure(
    call: Callable[[], object],
    samples: int = 700,
    *,
    min_seconds: float = 0.0,
    max_seconds: float = math.inf,
    max_samples: int = 1_000_000,
) -> np.ndarray:
    """Time single calls with ``time.perf_counter_ns``; returns a float64 array of milliseconds, one per call.

    Ends when there are ``samples`` of them and ``min_seconds`` have passed, but not after ``max_seconds`` or
    ``max_samples``. At least one call is made. The garbage collector rests meanwhile.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    clock = time.perf_counter_ns
    times: list[int] = []
    with _garbage_collector_off():
        begin = stop = clock()
        earliest, latest = begin + min_seconds * 1e9, begin + max_seconds * 1e9
        while (len(times) < samples or stop < earliest) and len(times) < max_samples:
            start = clock()
            call()
            stop = clock()
            times.append(stop - start)
            if stop >= latest:
                break
    return np.array(times, dtype=np.float64) / 1e6


@contextmanager
def _garbage_collector_off() -> Iterator[None]:
    if not gc.isenabled():  # within another; a collection takes tenths of a second where torch is loaded
        yield
        return
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _percentile(times: np.ndarray, percentile: float) -> float | None:
    return float(np.percentile(times, percentile)) if supports(times.size, percentile) else None


def _check_percentile(percentile: float) -> None:
    if not 0 < percentile < 100:
        raise ValueError(f"a percentile lies between 0 and 100, got {percentile}")


def _at_most(k: int, n: int, probability: float) -> float:
    """P(X <= k) for a binomial X of n trials."""
    return math.fsum(_exactly(i, n, probability) for i in range(k + 1))


def _exactly(k: int, n: int, probability: float) -> float:
    """P(X = k) for a binomial X of n trials, in logarithms because the terms underflow for large n."""
    if k > n:
        return 0.0
    return math.exp(
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(probability)
        + (n - k) * math.log1p(-probability)
    )
