"""Reads a board's sensors again and again: ``python -m deploylab.boards.sampler '{"interval_s": 0.5}'``.

It runs on the board beside the work, as a process of its own, and needs nothing but Python. Its first line says what it
found, every further line is a reading, and the last says how much processor time it took. The end of its input is its
end. All lines are JSON.

Where power comes from, the first that is there:

==============  =====================================================================================================
INA3221         the power monitors of Jetson modules, read through Linux's ``hwmon`` (JetPack 5 and later) or ``iio``
tegrastats      NVIDIA's program, where those files are out of reach, as in a container
PMIC            ``vcgencmd pmic_read_adc`` of a Raspberry Pi 5: the rails that the power chip makes
RAPL            Intel's and AMD's energy counters, where they may be read: Linux lets only root
==============  =====================================================================================================
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from deploylab.boards import sensors

INTERVAL_S = 0.25
SLOW_S = 1.0
"""The shortest time between two runs of a program that tells what a file does not."""
_FIRST_LINE_S = 20.0


class Power(Protocol):
    """A way to read power. ``scope`` says what it is the power of."""

    scope: str

    def read(self) -> dict[str, Any]:
        """``watts`` and ``rails``, and ``at`` where the power is that of another moment than now."""

    def close(self) -> None:
        """Let go of what it holds."""


class Ina3221:
    """The current and voltage monitors of a Jetson."""

    def __init__(self, root: Path) -> None:
        self._rails = {**_iio_rails(root), **_hwmon_rails(root)}
        self._whole = sensors.whole_power(self._rails)
        if not self._whole:
            raise LookupError("no rails that make up the board's power")
        self.scope = " + ".join(self._whole)
        self.read()

    def read(self) -> dict[str, Any]:
        rails = {name: watts() for name, watts in self._rails.items()}
        return {"watts": sum(rails[name] for name in self._whole), "rails": rails}

    def close(self) -> None:
        pass


def _hwmon_rails(root: Path) -> dict[str, Callable[[], float]]:
    found = {}
    for folder in sorted(root.glob("sys/class/hwmon/hwmon*")):
        if _text(folder / "name") != "ina3221":
            continue
        for label in sorted(folder.glob("in*_label")):
            number, name = label.name[2:].partition("_")[0], _text(label)
            current = folder / f"curr{number}_input"
            if name not in ("", "NC") and current.exists():
                millivolts = folder / f"in{number}_input"
                found[name] = lambda v=millivolts, a=current: _number(v) * _number(a) / 1e6
    return found


def _iio_rails(root: Path) -> dict[str, Callable[[], float]]:
    """Before JetPack 5 the driver was NVIDIA's own."""
    found = {}
    for label in sorted(root.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*")):
        power = label.with_name(f"in_power{label.name.rpartition('_')[2]}_input")
        if _text(label) not in ("", "NC") and power.exists():
            found[_text(label)] = lambda milliwatts=power: _number(milliwatts) / 1e3
    return found


class Rapl:
    """The energy counters of an x86 processor, package by package."""

    def __init__(self, root: Path) -> None:
        folders = [
            folder
            for folder in sorted(root.glob("sys/class/powercap/intel-rapl:*"))
            if _text(folder / "name").startswith("package")
        ]
        if not folders:
            raise LookupError("no package counters")
        self.scope = "the processor alone (RAPL)"
        self._counters = {_text(folder / "name"): folder for folder in folders}
        self._ranges = {name: _number(folder / "max_energy_range_uj") for name, folder in self._counters.items()}
        self._last = self._count()

    def read(self) -> dict[str, Any]:
        """The mean power since the last reading, as that of the moment between."""
        (then, before), (now, after) = self._last, self._count()
        if now <= then:
            return {}
        self._last = now, after
        spent = {name: (count - before[name]) % (self._ranges[name] + 1) for name, count in after.items()}
        rails = {name: microjoules / 1e6 / (now - then) for name, microjoules in spent.items()}
        return {"at": (then + now) / 2, "watts": sum(rails.values()), "rails": rails}

    def close(self) -> None:
        pass

    def _count(self) -> tuple[float, dict[str, float]]:
        return time.monotonic(), {name: _number(folder / "energy_uj") for name, folder in self._counters.items()}


class Pmic:
    """The power chip of a Raspberry Pi 5."""

    scope = "the rails of the Pi's power chip; USB and the 5 V pins are not in it"

    def __init__(self, root: Path) -> None:
        if not self.read():
            raise LookupError("no power chip that tells")

    def read(self) -> dict[str, Any]:
        rails = sensors.pmic(sensors.said("vcgencmd", "pmic_read_adc"))
        return {"watts": sum(rails.values()), "rails": rails} if rails else {}

    def close(self) -> None:
        pass


class TegraStats:
    """NVIDIA's program, which prints a line every interval."""

    def __init__(self, interval_s: float) -> None:
        command = ["tegrastats", "--interval", str(max(1, round(interval_s * 1000)))]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise LookupError("no tegrastats") from error
        self._wait_s = _FIRST_LINE_S + interval_s
        self._lines: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._follow, daemon=True).start()
        first = self.read()
        if "watts" not in first:
            self.close()
            raise LookupError("tegrastats tells no power")
        self.scope = " + ".join(sensors.whole_power(first["rails"]))

    def read(self) -> dict[str, Any]:
        """The newest line; waits for one if there is none since the last time."""
        with contextlib.suppress(queue.Empty):
            found = self._lines.get(timeout=self._wait_s)
            while found and not self._lines.empty():
                found = self._lines.get_nowait()
            if not found:  # its end: let the next reading find it too
                self._lines.put(found)
            return found
        return {}

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _follow(self) -> None:
        for line in self._process.stdout or ():
            stats = sensors.tegrastats(line.decode("utf-8", "replace"))
            if stats.ram_mb:
                self._lines.put({"at": time.monotonic(), **reading(stats)})
        self._lines.put({})


def reading(stats: sensors.TegraStats) -> dict[str, Any]:
    """A line of tegrastats as a reading: watts, temperatures, clocks, and how busy CPU and GPU were."""
    cores = [core for core in stats.cores if core]
    found: dict[str, Any] = {
        "rails": {name: rail.now_mw / 1e3 for name, rail in stats.rails.items()},
        "celsius": dict(stats.celsius),
        "mhz": [core.mhz for core in cores if core.mhz],
        "busy": {},
    }
    if stats.board_mw is not None:
        found["watts"] = stats.board_mw / 1e3
    if cores:
        found["busy"]["CPU"] = sum(core.load for core in cores) / len(cores)
    gpu = stats.units.get("GR3D")
    if gpu and gpu.load is not None:
        found["busy"]["GPU"] = gpu.load
    return found


def power(root: Path, interval_s: float) -> Power | None:
    """The best way to read power here; None if there is none."""
    ways: tuple[Callable[[], Power], ...] = (
        lambda: Ina3221(root),
        lambda: TegraStats(interval_s),
        lambda: Pmic(root),
        lambda: Rapl(root),
    )
    for way in ways:
        with contextlib.suppress(LookupError, OSError, ValueError):
            return way()
    return None


def scope(root: Path = Path("/")) -> str | None:
    """What the power that can be read here is the power of; None where none can be read."""
    source = power(root, INTERVAL_S)
    if source is None:
        return None
    source.close()
    return source.scope


class Throttled:
    """What holds a Raspberry Pi back: from a file of its firmware driver, else from ``vcgencmd``, which costs more."""

    def __init__(self, root: Path) -> None:
        self._file = next(root.glob("sys/devices/platform/soc*/*firmware/get_throttled"), None)
        self._program = self._file is None and bool(shutil.which("vcgencmd"))
        self._next, self._latest = 0.0, []

    def read(self) -> list[str]:
        text = ""
        if self._file is not None:
            text = f"throttled=0x{_text(self._file)}"
        elif self._program and time.monotonic() >= self._next:
            self._next = time.monotonic() + SLOW_S
            text = sensors.said("vcgencmd", "get_throttled")
        state = sensors.throttling(text)
        if state is not None:
            self._latest = sorted(state.now)
        return self._latest


def run(order: Mapping[str, Any], tell: Callable[[dict[str, Any]], None], stop: threading.Event) -> None:
    """Tell a reading every interval until ``stop``. ``order`` is what the module says; ``root`` is where ``sys`` is."""
    root, interval_s = Path(order.get("root", "/")), float(order.get("interval_s", INTERVAL_S))
    source, throttled = power(root, interval_s), Throttled(root)
    zones, policies = root / "sys/class/thermal", root / "sys/devices/system/cpu/cpufreq"
    told = {"celsius": sensors.thermal_zones(zones), "mhz": sensors.clocks(policies)}
    tell({"scope": source.scope if source else None, **told})
    begin = due = time.monotonic()
    cpu = _cpu_s()
    try:
        while not stop.is_set():
            found: dict[str, Any] = {"at": time.monotonic(), "celsius": sensors.thermal_zones(zones)}
            found.update(mhz=sensors.clocks(policies), busy=sensors.gpu_load(root), held_back=throttled.read())
            if source:
                with contextlib.suppress(OSError, ValueError):  # a sensor that has gone to sleep
                    found.update({name: value for name, value in source.read().items() if value not in ([], {})})
            tell(found)
            due = max(due + interval_s, time.monotonic())
            stop.wait(max(0.0, due - time.monotonic()))
    finally:
        if source:
            source.close()
    tell({"end": {"cpu_s": _cpu_s() - cpu, "wall_s": time.monotonic() - begin}})


def _cpu_s() -> float:
    """Processor time of this process and of the programs it has run."""
    return time.process_time() + sum(os.times()[2:4])


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    return ""


def _number(path: Path) -> float:
    return float(path.read_text(encoding="ascii"))


def main() -> None:
    """Read the order from the command line, and readings until the input ends."""
    stop = threading.Event()

    def wait_for_the_end() -> None:
        with contextlib.suppress(OSError, ValueError):
            while sys.stdin.buffer.read1(4096):
                pass
        stop.set()

    def tell(line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        run(json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}, tell, stop)


if __name__ == "__main__":
    main()
