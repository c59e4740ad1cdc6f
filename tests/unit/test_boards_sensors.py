"""What boards say of themselves, with lines as their owners published them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploylab.boards import sensors
from deploylab.boards.sensors import Core, PowerMode, Rail, Throttling, Unit

# Lines of tegrastats. Where each was published stands before it.
NANO = (  # Jetson Nano, L4T 32: test data of the Datadog agent, pkg/collector/corechecks/nvidia (github.com/DataDog)
    "RAM 613/3964MB (lfb 634x4MB) SWAP 0/1982MB (cached 0MB) CPU [2%@102,1%@102,0%@102,0%@102] EMC_FREQ 0% "
    "GR3D_FREQ 0% PLL@39C CPU@40.5C PMIC@100C GPU@41C AO@46C thermal@41C POM_5V_IN 943/943 POM_5V_GPU 0/0 "
    "POM_5V_CPU 123/123"
)
TX1 = (  # Jetson TX1, L4T 28: the same place
    "RAM 1179/3983MB (lfb 120x4MB) IRAM 0/252kB(lfb 252kB) CPU [1%@102,4%@102,0%@102,0%@102] EMC_FREQ 7%@408 "
    "GR3D_FREQ 0%@76 APE 25 AO@42.5C CPU@37.5C GPU@39C PLL@37C Tdiode@42.75C PMIC@100C Tboard@42C thermal@38.5C "
    "VDD_IN 2532/2698 VDD_CPU 76/178 VDD_GPU 19/19"
)
TX2 = (  # Jetson TX2, JetPack 4: github.com/henrygd/beszel, pull request 1631
    "RAM 3276/7859MB (lfb 5x4MB) SWAP 1626/12122MB (cached 181MB) "
    "CPU [44%@1421,49%@2031,67%@2034,17%@1420,25%@1419,8%@1420] EMC_FREQ 1%@1866 GR3D_FREQ 0%@114 APE 150 "
    "MTS fg 1% bg 1% PLL@42.5C MCPU@42.5C PMIC@50C Tboard@38C GPU@39.5C BCPU@42.5C thermal@41.3C Tdiode@39.25C "
    "VDD_SYS_GPU 182/182 VDD_SYS_SOC 730/730 VDD_4V0_WIFI 0/0 VDD_IN 5297/5297 VDD_SYS_CPU 1917/1917 "
    "VDD_SYS_DDR 1241/1241"
)
AGX_XAVIER = (  # Jetson AGX Xavier, JetPack 4.2: github.com/martinkersner/gtop, pull request 7
    "RAM 14700/15692MB (lfb 3x2MB) SWAP 898/8192MB (cached 23MB) CPU [0%@1190,0%@1190,0%@1190,0%@1190,0%@1190,"
    "0%@1190,0%@1190,0%@1190] EMC_FREQ 0% GR3D_FREQ 0% AO@30C GPU@30.5C Tboard@31C Tdiode@32C AUX@30.5C CPU@31.5C "
    "thermal@30.8C PMIC@100C GPU 463/463 CPU 618/618 SOC 2936/2936 CV 0/0 VDDRQ 309/309 SYS5V 3306/3306"
)
LINES = (NANO, TX1, TX2, AGX_XAVIER)

# The forms of later releases, made up after NVIDIA's table "Reported Statistics": date first, mW, several clocks of a
# GPU, sensors without power, unused rails (JetPack 5 and 6); two values of a temperature, three of a rail (JetPack 7).
LATER = (
    "05-04-2025 12:59:49 RAM 3492/62840MB (lfb 35x4MB) SWAP 0/31420MB (cached 0MB) CPU [30%@729,off] "
    "EMC_FREQ 3%@3199 GR3D_FREQ 12%@[1300,1200] VIC_FREQ 729 CV0@-256C cpu@49.968C tj@49.812C "
    "VDD_GPU_SOC 3124mW/3120mW VDD_CPU_CV 720mW/710mW VIN_SYS_5V0 5140mW/5100mW NC 0mW/0mW"
)
LATEST = (
    "07-17-2026 15:15:24 RAM 8182/62817MB (lfb 6x4MB) CPU [18%@729,12%@729] GR3D_FREQ @[1000,1000,1000] NVDLA0 off "
    "cpu@51.343C/51.4C tj@51.343C/51.4C VDD_GPU_SOC 3588mW/3580mW/3600mW VIN_SYS_5V0 5148mW/5140mW/5200mW"
)


def test_a_line_of_a_nano():
    stats = sensors.tegrastats(NANO)
    assert (stats.time, stats.ram_mb, stats.swap_mb) == (None, (613, 3964), (0, 1982))
    assert stats.cores == (Core(2, 102), Core(1, 102), Core(0, 102), Core(0, 102))
    assert stats.units == {"EMC": Unit(0), "GR3D": Unit(0)}
    assert stats.celsius == {"PLL": 39, "CPU": 40.5, "PMIC": 100, "GPU": 41, "AO": 46, "thermal": 41}
    assert stats.rails == {"POM_5V_IN": Rail(943, 943), "POM_5V_GPU": Rail(0, 0), "POM_5V_CPU": Rail(123, 123)}
    assert stats.board_mw == 943


def test_an_older_line_tells_clocks_and_has_no_swap():
    stats = sensors.tegrastats(TX1)
    assert stats.swap_mb is None
    assert stats.units == {"EMC": Unit(7, (408,)), "GR3D": Unit(0, (76,))}
    assert stats.rails["VDD_IN"] == Rail(2532, 2698)


def test_the_input_rail_is_the_boards_power():
    assert sensors.tegrastats(TX2).board_mw == 5297


def test_without_an_input_rail_the_rails_are_summed():
    assert sensors.tegrastats(AGX_XAVIER).board_mw == 463 + 618 + 2936 + 0 + 309 + 3306
    assert sensors.tegrastats(LATER).board_mw == 3124 + 720 + 5140


def test_a_line_of_a_later_release():
    stats = sensors.tegrastats(LATER)
    assert stats.time == "05-04-2025 12:59:49"
    assert stats.cores == (Core(30, 729), None)
    assert stats.units["GR3D"] == Unit(12, (1300, 1200))
    assert stats.celsius == {"cpu": 49.968, "tj": 49.812}
    assert set(stats.rails) == {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"}


def test_a_line_of_the_latest_release():
    stats = sensors.tegrastats(LATEST)
    assert stats.units["GR3D"] == Unit(None, (1000, 1000, 1000))
    assert stats.celsius == {"cpu": 51.343, "tj": 51.343}
    assert stats.rails["VIN_SYS_5V0"] == Rail(5148, 5140)


def test_one_clock_for_all_cores():
    assert sensors.tegrastats("CPU [5%,off,7%]@1224").cores == (Core(5, 1224), None, Core(7, 1224))


@given(st.text())
def test_any_text_gives_a_result(text):
    sensors.tegrastats(text)
    sensors.power_mode(text)
    sensors.throttling(text)
    sensors.device_tree_model(text.encode("utf-8", "surrogatepass"))


@given(st.sampled_from([*LINES, LATER, LATEST]), st.data())
def test_a_damaged_line_gives_a_result(line, data):
    start = data.draw(st.integers(0, len(line)))
    end = data.draw(st.integers(start, len(line)))
    sensors.tegrastats(line[:start] + data.draw(st.text(max_size=8)) + line[end:])


@given(st.sampled_from([*LINES, LATER, LATEST]), st.from_regex(r"\A[A-Z]{2,8}[0-9]? [a-z]{1,6}\Z"))
def test_an_unknown_field_changes_nothing_else(line, unknown):
    words = line.split(" EMC_FREQ")
    assert sensors.tegrastats(f" {unknown} EMC_FREQ".join(words)) == sensors.tegrastats(line)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN\n0\n", PowerMode("MAXN", 0)),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n", PowerMode("MODE_15W_6CORE", 2)),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: 5W\n1\n", PowerMode("5W", 1)),
        ("NVPM VERB: Current mode: NV Power Mode: 15W\n", PowerMode("15W", None)),
        ("NVPM ERROR: Error opening /sys/kernel: Permission denied\n", None),
        ("", None),
    ],
)
def test_power_modes(text, mode):
    assert sensors.power_mode(text) == mode


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("throttled=0x0\n", Throttling()),
        ("throttled=0x50000\n", Throttling(frozenset(), frozenset({"under-voltage", "throttled"}))),
        (
            "throttled=0x50005",
            Throttling(frozenset({"under-voltage", "throttled"}), frozenset({"under-voltage", "throttled"})),
        ),
        ("throttled=0x80008", Throttling(*2 * [frozenset({"soft temperature limit"})])),
        ("VCHI initialization failed", None),
    ],
)
def test_throttling(text, state):
    assert sensors.throttling(text) == state


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
