"""The sampler with pretended files and programs of boards: the real sampler and parsers read what is written here."""

from __future__ import annotations

import sys
import threading
import time
from types import SimpleNamespace

import pytest

from deploylab.boards import meter, recorded, sampler
from deploylab.boards.meter import Meter
from deploylab.errors import BoardError

PROGRAM = """#!{python}
import itertools, sys, time
assert sys.argv[1:] == {arguments}, sys.argv
for line in itertools.cycle({lines}) if {endless} else {lines}:
    print(line, flush=True)
    time.sleep(0.01 * {endless})
"""


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine without programs of boards: (where its ``sys`` is, where programs go)."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    return tmp_path, programs


def write(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("ZONE", "thermal_zone")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def program(folder, name, arguments, lines, endless=False):
    path = folder / name
    path.write_text(PROGRAM.format(python=sys.executable, arguments=arguments, lines=list(lines), endless=endless))
    path.chmod(0o755)


def tegrastats(folder, lines=None, endless=True):
    lines = recorded.recording("tegrastats", "xavier-nx-burn").lines if lines is None else lines
    program(folder, "tegrastats", ["--interval", "100"], lines, endless)


def ina3221(root, hwmon="hwmon4", **rails):
    """An INA3221 with rails of (millivolts, milliamperes), as Linux's driver shows one; its sum is no rail."""
    folder = root / "sys/class/hwmon" / hwmon
    folder.mkdir(parents=True)
    (folder / "name").write_text("ina3221\n")
    for number, (name, (millivolts, milliamperes)) in enumerate(rails.items(), 1):
        (folder / f"in{number}_label").write_text(f"{name}\n")
        (folder / f"in{number}_input").write_text(f"{millivolts}\n")
        (folder / f"curr{number}_input").write_text(f"{milliamperes}\n")
    (folder / "in7_label").write_text("sum of shunt voltages\n")
    (folder / "in7_input").write_text("12\n")
    return folder


def test_a_machine_without_sensors(bare):
    assert sampler.power(bare[0], 0.1) is None
    assert sampler.scope(bare[0]) is None


def test_the_monitors_of_a_jetson(bare):
    ina3221(bare[0], VDD_IN=(19000, 500), VDD_CPU_GPU_CV=(19000, 120), NC=(0, 0))
    source = sampler.power(bare[0], 0.1)
    assert source.scope == "VDD_IN"
    assert source.read() == {"watts": 9.5, "rails": {"VDD_IN": 9.5, "VDD_CPU_GPU_CV": pytest.approx(2.28)}}


def test_a_jetson_with_two_monitors_and_no_input_rail(bare):
    ina3221(bare[0], "hwmon1", VDD_GPU_SOC=(19000, 100), VDD_CPU_CV=(19000, 50), VIN_SYS_5V0=(5000, 600))
    ina3221(bare[0], "hwmon2", VDDQ_VDD2_1V8AO=(19000, 30))
    write(bare[0], **{"sys__class__hwmon__hwmon3__name": "tmp451"})
    source = sampler.power(bare[0], 0.1)
    assert source.scope == "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert source.read()["watts"] == pytest.approx(1.9 + 0.95 + 3.0)


def test_the_monitors_before_jetpack_5(bare):
    folder = "sys__bus__i2c__drivers__ina3221x__6-0040__iio:device0__"
    names = {"rail_name_0": "POM_5V_IN", "in_power0_input": 2793, "rail_name_1": "POM_5V_GPU", "in_power1_input": 114}
    write(bare[0], **{folder + name: value for name, value in names.items()})
    source = sampler.power(bare[0], 0.1)
    assert source.read() == {"watts": 2.793, "rails": {"POM_5V_IN": 2.793, "POM_5V_GPU": 0.114}}


def test_the_counters_of_a_processor_even_when_they_start_again(bare, monkeypatch):
    folder = "sys__class__powercap__intel-rapl:0__"
    write(bare[0], **{f"{folder}name": "package-0", f"{folder}max_energy_range_uj": 999_999, f"{folder}energy_uj": 0})
    write(bare[0], **{f"{folder[:-2]}:0__name": "core", f"{folder[:-2]}:0__energy_uj": 7})
    times = iter((100.0, 101.0, 103.0, 103.0))
    monkeypatch.setattr(sampler, "time", SimpleNamespace(monotonic=lambda: next(times)))
    source = sampler.power(bare[0], 0.1)
    assert source.scope == "the processor alone (RAPL)"
    write(bare[0], **{f"{folder}energy_uj": 900_000})
    assert source.read() == {"at": 100.5, "watts": 0.9, "rails": {"package-0": 0.9}}
    write(bare[0], **{f"{folder}energy_uj": 100_000})
    assert source.read() == {"at": 102.0, "watts": 0.1, "rails": {"package-0": 0.1}}
    assert source.read() == {}  # no time has passed


def test_counters_that_only_root_may_read_are_no_source(bare):
    folder = "sys__class__powercap__intel-rapl:0__"
    write(bare[0], **{f"{folder}name": "package-0", f"{folder}max_energy_range_uj": 999_999})
    (bare[0] / "sys/class/powercap/intel-rapl:0/energy_uj").mkdir()  # reading it is an OSError, for root too
    assert sampler.power(bare[0], 0.1) is None


def test_the_power_chip_of_a_pi_5(bare):
    program(bare[1], "vcgencmd", ["pmic_read_adc"], recorded.recording("vcgencmd", "pi5-pmic").lines)
    source = sampler.power(bare[0], 0.1)
    assert "power chip" in source.scope
    assert source.read()["watts"] == pytest.approx(5.92, abs=0.01)  # volts times amperes of the twelve rails


def test_tegrastats_where_the_monitors_are_out_of_reach(bare):
    tegrastats(bare[1])
    source = sampler.power(bare[0], 0.1)
    try:
        assert source.scope == "VDD_IN"
        assert 5 < source.read()["rails"]["VDD_IN"] < 14
    finally:
        source.close()
    assert source._process.returncode is not None
    while source.read():  # what it had printed before
        pass
    assert source.read() == {}


@pytest.mark.parametrize("lines", [[], ["tegrastats: cannot open the device"], ["RAM 613/3964MB CPU [2%@102,off]"]])
def test_a_tegrastats_that_tells_no_power_is_no_source(bare, lines):
    tegrastats(bare[1], lines, endless=False)
    assert sampler.power(bare[0], 0.1) is None


def readings(root, count=3, interval_s=0.02):
    told, stop = [], threading.Event()

    def tell(line):
        told.append(line)
        if len(told) > count:
            stop.set()

    sampler.run({"root": str(root), "interval_s": interval_s}, tell, stop)
    return told


def test_readings_of_a_pi_4(bare):
    """No power there, but heat, clocks and what the firmware's file says of throttling."""
    write(
        bare[0],
        **{
            "sys__class__thermal__ZONE0__type": "cpu-thermal",
            "sys__class__thermal__ZONE0__temp": 81500,
            "sys__class__thermal__ZONE1__temp": "",
            "sys__devices__system__cpu__cpufreq__policy0__scaling_cur_freq": 1500000,
            "sys__devices__platform__soc__soc:firmware__get_throttled": "80008",
        },
    )
    head, *middle, end = readings(bare[0])
    assert head == {"scope": None, "celsius": {"cpu-thermal": 81.5}, "mhz": [1500]}
    assert len(middle) == 3
    assert middle[0] == {
        "at": middle[0]["at"],
        "celsius": {"cpu-thermal": 81.5},
        "mhz": [1500],
        "busy": {},
        "held_back": ["soft temperature limit"],
    }
    assert [line["at"] for line in middle] == sorted(line["at"] for line in middle)
    assert end["end"]["cpu_s"] >= 0


def test_readings_of_a_jetson_through_its_files(bare):
    ina3221(bare[0], VDD_IN=(5000, 1000))
    write(bare[0], **{"sys__devices__platform__gpu.0__load": 455})
    head, first, *_ = readings(bare[0])
    assert head["scope"] == "VDD_IN"
    assert (first["watts"], first["rails"], first["busy"]) == (5.0, {"VDD_IN": 5.0}, {"GPU": 45.5})


def test_a_sensor_that_falls_asleep_leaves_gaps(bare):
    folder = ina3221(bare[0], VDD_IN=(5000, 1000))
    told, stop = [], threading.Event()

    def tell(line):
        told.append(line)
        if len(told) == 3:
            (folder / "curr1_input").unlink()
        if len(told) == 5:
            stop.set()

    sampler.run({"root": str(bare[0]), "interval_s": 0.01}, tell, stop)
    assert [line.get("watts") for line in told[1:5]] == [5.0, 5.0, None, None]


def test_what_holds_a_pi_back_from_its_program_at_most_once_a_second(bare):
    program(bare[1], "vcgencmd", ["get_throttled"], ["throttled=0x50005"])
    throttled = sampler.Throttled(bare[0])
    assert throttled.read() == ["throttled", "under-voltage"]
    (bare[1] / "vcgencmd").unlink()
    assert throttled.read() == ["throttled", "under-voltage"]


def test_a_sampler_beside_the_work(bare):
    """The whole way in processes of their own: tegrastats, the sampler that reads it, and the energy of some work."""
    tegrastats(bare[1])
    with Meter(meter.command(0.1, root=bare[0])) as beside:
        assert beside.scope == "VDD_IN"
        while sum(sample.watts is not None for sample in beside.track().samples) < 6:
            assert beside.next(60)
        seen = [sample.at for sample in beside.track().samples if sample.watts is not None]
        track = beside.track_until(seen[-1])
        energy = track.energy(seen[0], seen[-1], inferences=10, idle_w=5.0)
    assert track.samples[-1].at > seen[-1]
    assert 5.5 < energy.power_w < 13.9
    assert energy.mj == pytest.approx(1e3 * energy.power_w * energy.seconds / 10)
    assert energy.mj_above_idle == pytest.approx(1e3 * (energy.power_w - 5) * energy.seconds / 10)
    assert 37 < energy.celsius < 49
    assert not beside.running
    assert beside._process.returncode == 0
    assert beside.own_share >= 0


def test_a_sampler_ends_when_its_input_does(bare):
    beside = Meter(meter.command(0.05, root=bare[0]))
    with beside:
        assert (beside.scope, beside.reads_something) == (None, False)
        beside._process.stdin.close()
        assert beside._process.wait(20) == 0
        assert beside.next(1.0) is None
        assert len(beside.track_until(time.monotonic() + 100)) >= 0


@pytest.mark.parametrize("command", [["/nowhere/at/all"], [sys.executable, "-c", "print('no line of JSON')"]])
def test_a_sampler_that_does_not_start(command):
    with pytest.raises(BoardError), Meter(command):
        pass
