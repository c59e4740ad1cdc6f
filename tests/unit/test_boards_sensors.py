"""What boards say of themselves, with lines that real boards printed (:mod:`deploylab.boards.recorded`)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploylab.boards import meter, recorded, sensors
from deploylab.boards.sensors import Core, PowerMode, Rail, Throttling, Unit
from deploylab.errors import InputError


def line_of(name):
    return recorded.recording("tegrastats", name).lines[0]


LINES = [line for name in recorded.names("tegrastats") for line in recorded.recording("tegrastats", name).lines]
ALL = [(tool, name) for tool in recorded.tools() for name in recorded.names(tool)]


@pytest.mark.parametrize(("tool", "name"), ALL)
def test_every_recording_says_whose_it_is_and_is_understood(tool, name):
    found = recorded.recording(tool, name)
    assert found.board
    assert found.system
    assert found.what
    assert found.lines
    assert found.source.startswith("https://")
    assert found.source in found.label
    assert found.text == "\n".join(found.lines) + "\n"
    if tool == "tegrastats":
        assert all(stats.board_mw and stats.cores and stats.celsius for stats in map(sensors.tegrastats, found.lines))


def test_recordings_that_are_not_there():
    with pytest.raises(InputError, match="nano-diffusion"):
        recorded.recording("tegrastats", "nowhere")
    with pytest.raises(InputError, match="vcgencmd"):
        recorded.names("nvidia-smi")


def test_a_line_of_a_nano():
    stats = sensors.tegrastats(line_of("nano"))
    assert (stats.time, stats.ram_mb, stats.swap_mb) == (None, (613, 3964), (0, 1982))
    assert stats.cores == (Core(2, 102), Core(1, 102), Core(0, 102), Core(0, 102))
    assert stats.units == {"EMC": Unit(0), "GR3D": Unit(0)}
    assert stats.celsius == {"PLL": 39, "CPU": 40.5, "PMIC": 100, "GPU": 41, "AO": 46, "thermal": 41}
    assert stats.rails == {"POM_5V_IN": Rail(943, 943), "POM_5V_GPU": Rail(0, 0), "POM_5V_CPU": Rail(123, 123)}
    assert stats.board_mw == 943


def test_an_older_line_tells_clocks_and_has_no_swap():
    stats = sensors.tegrastats(line_of("tx1"))
    assert stats.swap_mb is None
    assert stats.units == {"EMC": Unit(7, (408,)), "GR3D": Unit(0, (76,))}
    assert stats.rails["VDD_IN"] == Rail(2532, 2698)


@pytest.mark.parametrize(("name", "milliwatts"), [("tx2", 5297), ("orin-nano", 4824), ("agx-thor", 87426)])
def test_the_input_rail_is_the_boards_power(name, milliwatts):
    assert sensors.tegrastats(line_of(name)).board_mw == milliwatts


def test_without_an_input_rail_the_rails_are_summed():
    assert sensors.tegrastats(line_of("agx-xavier")).board_mw == 463 + 618 + 2936 + 0 + 309 + 3306
    assert sensors.tegrastats(line_of("agx-orin")).board_mw == 5139 + 3268 + 5500


def test_a_line_with_a_date_cores_that_are_off_and_two_clocks_of_a_gpu():
    stats = sensors.tegrastats(line_of("agx-orin-bert"))
    assert stats.time == "07-21-2025 16:33:42"
    assert stats.cores[:2] == (Core(7, 1728), Core(31, 1036))
    assert stats.cores[8:] == (None,) * 4
    assert stats.units["GR3D"] == Unit(39, (305, 0))
    assert stats.celsius["gpu"] == 40.093
    assert stats.rails["VIN_SYS_5V0"] == Rail(3315, 3315)


def test_a_line_of_jetpack_7_has_two_temperatures_a_zone_and_three_powers_a_rail():
    stats = sensors.tegrastats(line_of("agx-orin"))
    assert stats.celsius == {"cpu": 52.968, "soc2": 48.406, "soc0": 49.531, "gpu": 47.625}
    assert stats.rails["VDD_GPU_SOC"] == Rail(5139, 5139)
    assert sensors.tegrastats(line_of("agx-thor")).rails["VIN"] == Rail(87426, 43713)


def test_sensors_without_power_and_rails_without_a_load_are_left_out():
    """After NVIDIA's table "Reported Statistics"; no such line was found recorded."""
    stats = sensors.tegrastats("CV0@-256C cpu@49.968C VDD_IN 3124mW/3120mW NC 0mW/0mW GR3D_FREQ @[1000,1000]")
    assert (stats.celsius, set(stats.rails)) == ({"cpu": 49.968}, {"VDD_IN"})
    assert stats.units["GR3D"] == Unit(None, (1000, 1000))


def test_one_clock_for_all_cores():
    assert sensors.tegrastats("CPU [5%,off,7%]@1224").cores == (Core(5, 1224), None, Core(7, 1224))


def test_a_recorded_run_becomes_readings_over_time():
    """A Nano: idle, then the CPU at work, then the GPU."""
    track = meter.replay(recorded.recording("tegrastats", "nano-diffusion"))
    assert (len(track), track.scope, track.end) == (44, "POM_5V_IN", 43 * 0.25)
    assert track.watts()[0] == 0.92
    assert max(track.watts()) == 5.206
    assert track.mean_watts(1, 6) < 3 < 5 < track.mean_watts(8, 10)
    assert track.samples[-1].busy["GPU"] == 99


def test_a_recorded_run_with_times_has_them():
    track = meter.replay(recorded.recording("tegrastats", "xavier-nx-burn"))
    assert (track.scope, track.end) == ("VDD_IN", 35.0)
    assert track.hottest() == ("GPU", 48.0)


@given(st.text())
def test_any_text_gives_a_result(text):
    sensors.tegrastats(text)
    sensors.power_mode(text)
    sensors.throttling(text)
    sensors.pmic(text)
    sensors.device_tree_model(text.encode("utf-8", "surrogatepass"))


@given(st.sampled_from(LINES), st.data())
def test_a_damaged_line_gives_a_result(line, data):
    start = data.draw(st.integers(0, len(line)))
    end = data.draw(st.integers(start, len(line)))
    sensors.tegrastats(line[:start] + data.draw(st.text(max_size=8)) + line[end:])


@given(st.sampled_from(LINES), st.from_regex(r"\A[A-Z]{2,8}[0-9]? [a-z]{1,6}\Z"))
def test_an_unknown_field_changes_nothing_else(line, unknown):
    head, cores, tail = line.partition(" CPU [")
    assert sensors.tegrastats(f"{head} {unknown}{cores}{tail} {unknown}") == sensors.tegrastats(line)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("nano-verbose", PowerMode("MAXN", 0)),
        ("agx-xavier", PowerMode("MAXN", None)),
        ("agx-thor", PowerMode("MAXN", 0)),
        ("orin-nano-refused", None),
    ],
)
def test_power_modes(name, mode):
    assert sensors.power_mode(recorded.recording("nvpmodel", name).text) == mode


def test_power_modes_other_than_the_largest():
    """Names of NVIDIA's tables of modes; the recorded boards all ran at MAXN."""
    assert sensors.power_mode("NV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n") == PowerMode("MODE_15W_6CORE", 2)
    assert sensors.power_mode("") is None


UNDER, CAPPED, SLOWED, SOFT = "under-voltage", "frequency capped", "throttled", "soft temperature limit"


@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("pi3b-plus-healthy", [Throttling()]),
        ("pi3-undervoltage", [Throttling(frozenset(), {UNDER, SLOWED}), Throttling({UNDER, SLOWED}, {UNDER, SLOWED})]),
        ("pi4-hot", [Throttling({SOFT}, {SOFT})]),
        ("pi2-capped", [*2 * [Throttling(frozenset(), {CAPPED})], *5 * [Throttling({CAPPED}, {CAPPED})]]),
        (
            "pi5-undervoltage",
            [
                Throttling(),
                Throttling(frozenset(), {UNDER, SLOWED}),
                Throttling({UNDER, SLOWED}, {UNDER, SLOWED}),
                Throttling(frozenset(), {UNDER, SLOWED}),
            ],
        ),
    ],
)
def test_throttling(name, states):
    lines = recorded.recording("vcgencmd", name).lines
    assert [state for line in lines if (state := sensors.throttling(line))] == states


def test_the_power_chip_of_a_pi_5():
    """Rails with a voltage and a current; the 5 V input has no current, the battery neither."""
    rails = sensors.pmic(recorded.recording("vcgencmd", "pi5-pmic").text)
    assert len(rails) == 12
    assert not {"EXT5V", "BATT"} & set(rails)
    assert rails["VDD_CORE"] == pytest.approx(5.03652 * 0.8936988)
    assert sensors.pmic("VCHI initialization failed") == {}


def test_the_device_trees_model_ends_with_a_zero_byte():
    assert sensors.device_tree_model(b"Raspberry Pi 5 Model B Rev 1.0\0") == "Raspberry Pi 5 Model B Rev 1.0"
    assert sensors.device_tree_model(b"\0") is None


def test_thermal_zones_that_cannot_be_read_are_left_out(tmp_path):
    for number, (kind, temperature) in enumerate([("CPU-therm", "41500"), ("GPU-therm", ""), ("CPU-therm", "-5000")]):
        zone = tmp_path / f"thermal_zone{number}"
        zone.mkdir()
        (zone / "type").write_text(f"{kind}\n")
        (zone / "temp").write_text(f"{temperature}\n")
    (tmp_path / "thermal_zone9").mkdir()
    assert sensors.thermal_zones(tmp_path) == {"CPU-therm": 41.5, "CPU-therm (thermal_zone2)": -5.0}
    assert sensors.thermal_zones(tmp_path / "nowhere") == {}
