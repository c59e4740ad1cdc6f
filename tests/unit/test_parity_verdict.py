"""Comparing outputs: the scale counts, and a failure says in words what is wrong."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploylab import parity

REFERENCE = np.array([[1.0, -4.0, 2.0], [0.5, 0.25, 0.0]])


def test_an_error_is_measured_on_the_scale_of_its_sample():
    output = REFERENCE + np.array([[0.0, 0.04, 0.0], [0.0, 0.0, 0.01]])
    verdict = parity.compare_outputs(REFERENCE, output, 0.03)
    assert verdict
    assert verdict.error == pytest.approx(0.02)  # 0.01 of 0.5, not 0.04 of 4 and not 0.01 of 0
    assert verdict.max_abs == pytest.approx(0.04)
    assert verdict.cosine == pytest.approx(1, abs=1e-3)
    assert verdict.top1 == 1
    assert not parity.compare_outputs(REFERENCE, output, 0.019)


def test_a_reference_near_zero_does_not_explode():
    reference = np.array([[1.0, 1e-12]])
    assert parity.compare_outputs(reference, reference + 1e-9, 1e-8)


def test_another_answer_is_named():
    verdict = parity.compare_outputs(REFERENCE, REFERENCE[:, ::-1], 1e-3)
    assert verdict.top1 == 0
    assert "beyond the tolerance of 1.0e-03" in verdict.text
    assert "another top-1 for 100% of the samples" in verdict.text


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (REFERENCE[:, :2], r"shape \(2, 2\) instead of \(2, 3\)"),
        (np.where(REFERENCE == 2, np.nan, REFERENCE), r"contains NaN \(1 of 6 values\)"),
        (np.where(REFERENCE > 0, np.inf, REFERENCE), r"contains infinity \(4 of 6 values\)"),
        ((REFERENCE, REFERENCE), r"2 output\(s\) instead of 1"),
    ],
)
def test_what_is_not_comparable_fails_in_words(output, words):
    verdict = parity.compare_outputs(REFERENCE, output, 1e9)
    assert not verdict.ok
    assert pytest.approx(verdict.error) == float("inf")
    assert re.search(words, verdict.text)


def test_an_infinity_of_the_reference_is_no_fault_but_must_be_there():
    masked = np.array([[1.0, -np.inf]])
    assert parity.compare_outputs(masked, masked.copy(), 1e-6)
    assert not parity.compare_outputs(masked, np.array([[1.0, -1e9]]), 1e-6)


def test_integers_must_be_equal():
    ids = np.array([[3, 5], [7, 9]])
    assert parity.compare_outputs(ids, ids.copy(), 0)
    verdict = parity.compare_outputs(ids, ids + np.eye(2, dtype=int)[1], 1.0)
    assert "2 of 4 int64 values differ" in verdict.text


def test_several_outputs_are_judged_one_by_one():
    other = REFERENCE.copy()
    other[0, 0] = 9
    verdict = parity.compare_outputs((REFERENCE, REFERENCE), (REFERENCE, other), 1e-3)
    assert not verdict
    assert verdict.text.startswith("output 2 of 2: error 2.0e+00")
    assert [part.ok for part in verdict.outputs] == [True, False]


def test_all_zero_and_empty_outputs():
    zeros = np.zeros((2, 3))
    assert parity.compare_outputs(zeros, zeros, 0)
    assert not parity.compare_outputs(zeros, zeros + 1, 0.5)
    assert parity.compare_outputs(np.zeros((0, 3)), np.zeros((0, 3)), 0)
    assert parity.compare_outputs(np.array(1.0), np.array(1.0), 0)


@given(
    hnp.arrays(np.float32, (4, 7), elements=st.floats(-100, 100, width=32)),
    st.floats(1e-3, 1e3),
)
def test_scaling_both_changes_nothing(reference, factor):
    output = reference + np.float32(0.01) * np.roll(reference, 1, axis=1)
    plain = parity.relative_error(reference, output)
    scaled = parity.relative_error(reference.astype(np.float64) * factor, output.astype(np.float64) * factor)
    assert scaled == pytest.approx(plain, rel=1e-6, abs=1e-12)


def test_the_tolerance_says_where_it_comes_from():
    tolerance = parity.tolerance_from_noise(3e-7)
    assert tolerance.value == pytest.approx(6e-6)
    assert "torch's own float32 result is 3.0e-07 away from float64" in tolerance.reason
    lucky = parity.tolerance_from_noise(0.0)
    assert lucky.value > 1e-6
    assert "less than one rounding" in lucky.reason
