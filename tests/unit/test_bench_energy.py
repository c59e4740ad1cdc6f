"""Energy from readings of power: the trapezoidal rule, and what too few readings say."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploylab.bench.energy import Sample, Track


def track(watts, step=0.5):
    return Track([Sample(at=10 + step * number, watts=value) for number, value in enumerate(watts)], "VDD_IN")


def test_constant_power_times_time():
    assert track([4.0] * 21).joules(11.3, 17.8) == pytest.approx(4 * 6.5)


def test_a_ramp_has_the_area_of_a_triangle():
    assert track([0, 1, 2, 3, 4, 5, 6, 7, 8]).joules(10, 14) == pytest.approx(0.5 * 4 * 8)


POWERS = st.lists(st.floats(0, 100), min_size=12, max_size=40)


@given(POWERS, st.floats(0, 1))
def test_energies_of_neighbouring_intervals_add_up(watts, share):
    found = track(watts)
    first, last = found.begin + 2.1, found.end - 2.1
    middle = first + share * (last - first)
    parts = found.joules(found.begin, middle), found.joules(middle, found.end)
    assert sum(parts) == pytest.approx(found.joules(found.begin, found.end), abs=1e-6)


@given(POWERS)
def test_the_mean_lies_between_the_least_and_the_most(watts):
    found = track(watts)
    assert min(watts) - 1e-9 <= found.mean_watts(found.begin, found.end) <= max(watts) + 1e-9


@pytest.mark.parametrize(("begin", "end"), [(9, 12), (13, 16), (12, 12), (13, 11), (10.6, 11.4)])
def test_outside_the_readings_or_between_too_few_there_is_no_energy(begin, end):
    assert track([5.0] * 11).joules(begin, end) is None


def test_without_power_there_is_heat_still():
    found = Track([Sample(at=n, celsius={"cpu": 40.0 + n}, held_back=["throttled"] * (n == 2)) for n in range(4)])
    energy = found.energy(0, 3, inferences=30, idle_w=None)
    assert (energy.power_w, energy.mj, energy.celsius, energy.sensor) == (None, None, 43.0, "cpu")
    assert energy.held_back == ("throttled",)
    assert Track([]).hottest() is None


def test_energy_of_an_inference_in_all_and_above_idle():
    energy = track([2.0] * 5 + [6.0] * 16).energy(13, 19, inferences=100, idle_w=2.0)
    assert energy.power_w == pytest.approx(6.0)
    assert energy.mj == pytest.approx(1e3 * 6 * 6 / 100)
    assert energy.mj_above_idle == pytest.approx(1e3 * 4 * 6 / 100)
    assert energy.scope == "VDD_IN"


def test_a_jetsons_power_chip_has_no_temperature():
    """It tells its limit, 50 or 100 degrees, whatever happens."""
    found = Track([Sample(at=0, celsius={"PMIC": 100.0, "PMIC-Die": 100.0, "CPU": 41.0})])
    assert found.hottest() == ("CPU", 41.0)


def test_csv_has_a_line_a_reading_and_gaps_where_a_sensor_was_silent():
    found = Track(
        [
            Sample(at=5.0, watts=4.5, rails={"VDD_IN": 4.5}, celsius={"cpu": 41.5}, mhz=[1500, 729]),
            Sample(at=5.5, celsius={"gpu": 39.0}, held_back=["under-voltage", "throttled"]),
        ]
    )
    file = io.StringIO()
    found.write_csv(file)
    assert file.getvalue().splitlines() == [
        "seconds,watts,VDD_IN watts,cpu celsius,gpu celsius,clock 0 MHz,clock 1 MHz,held back by",
        "0.000,4.5,4.5,41.5,,1500,729,",
        "0.500,,,,39,,,under-voltage; throttled",
    ]
