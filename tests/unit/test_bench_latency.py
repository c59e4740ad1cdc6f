"""Latency statistics: what n samples support, and that warm-up and timing are bounded."""

from __future__ import annotations

import gc
import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploylab.bench import latency


@pytest.mark.parametrize(("percentile", "n"), [(90, 64), (95, 130), (99, 662), (99.9, 6636)])
def test_samples_needed_is_the_table_of_mlperf(percentile, n):
    assert latency.samples_needed(percentile) == n
    assert latency.supports(n, percentile)
    assert not latency.supports(n - 1, percentile)


def test_more_confidence_needs_more_samples():
    assert latency.samples_needed(99, 0.9) < latency.samples_needed(99, 0.99) < latency.samples_needed(99, 0.999)


@pytest.mark.parametrize("percentile", [0, 100, -1, 250])
def test_a_percentile_lies_between_0_and_100(percentile):
    with pytest.raises(ValueError, match="between 0 and 100"):
        latency.samples_needed(percentile)


@pytest.mark.parametrize(("n", "index"), [(64, 63), (100, 97), (1000, 922)])
def test_the_upper_bound_is_mlperfs_conservative_percentile(n, index):
    assert latency.upper_bound(np.arange(n)[::-1], 90) == index


def test_the_upper_bound_holds_as_often_as_promised():
    rng = np.random.default_rng(0)
    true_p90 = -np.log(0.1)  # of the exponential distribution
    misses = sum(latency.upper_bound(rng.exponential(size=100), 90) < true_p90 for _ in range(2000))
    assert misses <= 0.01 * 2000 * 1.5


def test_a_summary_withholds_what_too_few_samples_cannot_support():
    few = latency.Summary.of(np.linspace(1, 2, 63))
    assert (few.p90, few.p99, few.p90_bound, few.p99_bound) == (None, None, None, None)
    assert "p90 withheld (needs 64 samples)" in str(few)
    more = latency.Summary.of(np.linspace(1, 2, 64))
    assert more.p90 == pytest.approx(1.9)
    assert more.p99 is None
    many = latency.Summary.of(np.linspace(1, 2, 662))
    assert many.p99 == pytest.approx(1.99)
    assert "withheld" not in str(many)


@given(st.lists(st.floats(min_value=1e-3, max_value=1e4), min_size=1, max_size=800))
@settings(max_examples=60, deadline=None)
def test_a_summary_is_ordered(samples):
    summary = latency.Summary.of(samples)
    known = [v for v in (summary.min, summary.p50, summary.p90, summary.p99) if v is not None]
    assert summary.n == len(samples)
    assert known == sorted(known)
    if summary.p90_bound is not None:
        assert summary.p90 * (1 - 1e-12) <= summary.p90_bound <= max(samples)


@pytest.mark.parametrize("empty", [[], np.zeros((0,)), np.zeros((2, 2))])
def test_nothing_cannot_be_summarised(empty):
    with pytest.raises(ValueError, match="non-empty"):
        latency.Summary.of(empty)


def test_measure_counts_calls_and_is_bounded():
    calls = itertools.count()
    assert len(latency.measure(lambda: next(calls), samples=20)) == 20
    assert next(calls) == 20
    assert len(latency.measure(lambda: time.sleep(0.02), samples=1000, max_seconds=0.05)) < 10
    assert len(latency.measure(lambda: time.sleep(0.001), samples=1, min_seconds=0.02)) > 1
    assert len(latency.measure(lambda: None, samples=5, max_seconds=0)) == 1
    with pytest.raises(ValueError, match="at least 1"):
        latency.measure(lambda: None, samples=0)


def test_measure_gives_milliseconds():
    assert latency.measure(lambda: time.sleep(0.01), samples=2).min() >= 10


def test_the_garbage_collector_rests_and_comes_back_after_an_error():
    states = []

    def call():
        states.append(gc.isenabled())
        raise KeyError

    with pytest.raises(KeyError):
        latency.measure(call, samples=1)
    assert states == [False]
    assert gc.isenabled()


def test_warm_up_ends_when_three_windows_agree():
    result = latency.warm_up(lambda: time.sleep(0.002), window_seconds=0.005, agreement=1.0)
    assert result.stable
    assert result.calls >= 9


def test_warm_up_that_never_settles_is_bounded_and_says_so():
    wait = itertools.count(1)
    result = latency.warm_up(lambda: time.sleep(0.001 * 1.5 ** next(wait)), window_seconds=0, max_seconds=0.3)
    assert not result.stable
    assert result.calls >= 1


def test_a_warm_up_collects_garbage_once_and_leaves_the_collector_on(monkeypatch):
    collections = []
    monkeypatch.setattr(latency.gc, "collect", lambda: collections.append(latency.gc.isenabled()))
    warmed = latency.warm_up(lambda: None, window_seconds=0.0, max_calls=30, agreement=-1.0)
    assert warmed.calls == 30
    assert collections == [True]
    assert latency.gc.isenabled()
