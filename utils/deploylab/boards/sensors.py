"""What a board says of itself: Jetson's ``tegrastats`` and ``nvpmodel``, Raspberry Pi's ``vcgencmd``, Linux's files.

Every parser takes what is there and leaves out what it does not know: a new field or another release must never end a
measurement. Formats: NVIDIA's developer guides ("tegrastats Utility", "Reported Statistics"), Raspberry Pi's
documentation of ``vcgencmd``, Linux's ``Documentation/driver-api/thermal/sysfs-api.rst``. What boards really printed is
in :mod:`.recorded`.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_TIMEOUT_S = 10.0
NO_SENSOR_C = -256.0
"""What tegrastats gives for a sensor whose part of the chip has no power."""


@dataclass(frozen=True)
class Core:
    """A CPU core: busy share of the current clock in percent, and that clock in MHz where it is told."""

    load: float
    mhz: int | None = None


@dataclass(frozen=True)
class Unit:
    """An engine or bus of the chip: how busy in percent, and its clock or clocks in MHz, as far as told."""

    load: float | None = None
    mhz: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rail:
    """Power of a supply rail in milliwatts: now, and on average since tegrastats started."""

    now_mw: int
    average_mw: int | None = None


@dataclass(frozen=True)
class TegraStats:
    """One line of tegrastats. What a line does not tell is None or missing. A core that is off is None."""

    time: str | None = None
    ram_mb: tuple[int, int] | None = None
    swap_mb: tuple[int, int] | None = None
    cores: tuple[Core | None, ...] = ()
    units: Mapping[str, Unit] = field(default_factory=dict)
    celsius: Mapping[str, float] = field(default_factory=dict)
    rails: Mapping[str, Rail] = field(default_factory=dict)

    @property
    def board_mw(self) -> int | None:
        """Power of the whole module now, in milliwatts: the input rail, or the sum of rails where there is none."""
        names = whole_power(self.rails)
        return sum(self.rails[name].now_mw for name in names) if names else None


def whole_power(rails: Iterable[str]) -> list[str]:
    """The rails of a Jetson that together make its power: the input rail, or several where there is none."""
    there = list(rails)
    inputs = [name for name in _INPUT_RAILS if name in there]
    return inputs[:1] or [name for name in there if name in _SUMMED_RAILS]


_INPUT_RAILS = ("VDD_IN", "POM_5V_IN", "VIN")
# The developer guides' "Power rails" of modules without an input rail: AGX Orin (JetPack 5 and later), AGX Xavier.
_SUMMED_RAILS = frozenset({"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"})

_TIME = re.compile(r"\A\s*(\d\d-\d\d-\d{4} \d\d:\d\d:\d\d) ")
_MEMORY = re.compile(r"\b(RAM|SWAP) (\d{1,9})/(\d{1,9})MB")
_CORES = re.compile(r"\bCPU \[([^\]]*)\](?:@(\d{1,6}))?")
_CORE = re.compile(r"(\d{1,3}(?:\.\d+)?)%(?:@(\d{1,6}))?\Z")
_UNIT = re.compile(r"\b([A-Z][A-Z0-9]*)_FREQ (?:(\d{1,3})%)?(?:@?\[?((?<=[@\[])[\d,]+)\]?)?")
_TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z]\w*)@(-?\d{1,4}(?:\.\d+)?)C(?:/\S+)?(?!\S)")
_RAIL = re.compile(r"(?<!\S)([A-Z][A-Z0-9_]*) (\d{1,7})(?:mW)?/(\d{1,7})(?:mW)?(?:/\d{1,7}(?:mW)?)?(?!\S)")


def tegrastats(line: str) -> TegraStats:
    """One line of tegrastats, of any L4T release from 28 on. A line that is none gives an empty result."""
    time = _TIME.match(line)
    memory = {name: (int(used), int(total)) for name, used, total in _MEMORY.findall(line)}
    without = _MEMORY.sub(" ", _CORES.sub(" ", line))
    return TegraStats(
        time=time[1] if time else None,
        ram_mb=memory.get("RAM"),
        swap_mb=memory.get("SWAP"),
        cores=_cores(line),
        units={name: _unit(load, clocks) for name, load, clocks in _UNIT.findall(without)},
        celsius={name: float(value) for name, value in _TEMPERATURE.findall(without) if float(value) != NO_SENSOR_C},
        rails={name: Rail(int(now), int(mean)) for name, now, mean in _RAIL.findall(without) if name != "NC"},
    )


def _cores(line: str) -> tuple[Core | None, ...]:
    found = _CORES.search(line)
    if not found:
        return ()
    cores: list[Core | None] = []
    for text in found[1].split(","):
        match = _CORE.match(text.strip())
        mhz = (match and match[2]) or found[2]
        cores.append(Core(float(match[1]), int(mhz) if mhz else None) if match else None)
    return tuple(cores)


def _unit(load: str, clocks: str) -> Unit:
    return Unit(float(load) if load else None, tuple(int(clock) for clock in clocks.split(",") if clock))


@dataclass(frozen=True)
class PowerMode:
    """What ``nvpmodel -q`` answers: the mode's name, and its number where told."""

    name: str
    number: int | None = None


def power_mode(text: str) -> PowerMode | None:
    """The power mode in the output of ``nvpmodel -q``; None if it names none."""
    found = re.search(r"NV Power Mode:[ \t]*(\S+)", text)
    if not found:
        return None
    number = re.search(r"^\s*(\d{1,3})\s*$", text[found.end() :], re.MULTILINE)
    return PowerMode(found[1], int(number[1]) if number else None)


_THROTTLING = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")


@dataclass(frozen=True)
class Throttling:
    """What holds a Raspberry Pi back, now and at some time since it started."""

    now: frozenset[str] = frozenset()
    since_start: frozenset[str] = frozenset()


def throttling(text: str) -> Throttling | None:
    """The answer of ``vcgencmd get_throttled`` (``throttled=0x50005``); None if it is something else.

    Bits 0 to 3 say what is so now, 16 to 19 what was so since the start. Others are not documented.
    """
    found = re.search(r"throttled=(0x[0-9a-fA-F]{1,16})\b", text)
    if not found:
        return None
    bits = int(found[1], 16)
    return Throttling(*(frozenset(n for i, n in enumerate(_THROTTLING) if bits >> i + up & 1) for up in (0, 16)))


_PMIC = re.compile(r"^\s*(\w{1,32})_([AV]) (?:current|volt)\(\d{1,3}\)=(\d{1,3}(?:\.\d{1,12})?)[AV]\s*$", re.MULTILINE)


def pmic(text: str) -> dict[str, float]:
    """Watts by rail from ``vcgencmd pmic_read_adc`` of a Raspberry Pi 5: those with a voltage and a current.

    The 5 V input and what hangs on it directly, such as USB, have no current there and are not included.
    """
    found: dict[str, dict[str, float]] = {}
    for rail, unit, value in _PMIC.findall(text):
        found.setdefault(rail, {})[unit] = float(value)
    return {rail: both["A"] * both["V"] for rail, both in found.items() if len(both) == 2}


def device_tree_model(data: bytes) -> str | None:
    """The board's name in ``/proc/device-tree/model``, which ends with a zero byte; None if it is empty."""
    return data.split(b"\0", 1)[0].decode("utf-8", "replace").strip() or None


def thermal_zones(folder: Path = Path("/sys/class/thermal")) -> dict[str, float]:
    """Temperatures in degrees Celsius by zone. A zone that cannot be read now, as of a sleeping GPU, is left out."""
    found = {}
    for zone in sorted(folder.glob("thermal_zone*")):
        with contextlib.suppress(OSError, ValueError):
            millidegrees = int((zone / "temp").read_text(encoding="ascii"))
            found[_name(zone, found)] = millidegrees / 1000
    return found


def _name(zone: Path, taken: Mapping[str, float]) -> str:
    name = (zone / "type").read_text(encoding="utf-8", errors="replace").strip() or zone.name
    return name if name not in taken else f"{name} ({zone.name})"


def clocks(folder: Path = Path("/sys/devices/system/cpu/cpufreq")) -> list[int]:
    """The clock of each group of cores in MHz."""
    found = []
    for policy in sorted(folder.glob("policy*")):
        with contextlib.suppress(OSError, ValueError):
            found.append(int((policy / "scaling_cur_freq").read_text(encoding="ascii")) // 1000)
    return found


def gpu_load(root: Path = Path("/")) -> dict[str, float]:
    """How busy a Jetson's GPU is, in percent, as ``{"GPU": 45.5}``; empty elsewhere.

    The file counts in tenths of a percent; where it lies is listed in github.com/rbonghi/jetson_stats/issues/360.
    """
    for folder in ("sys/devices", "sys/devices/platform"):
        with contextlib.suppress(OSError, ValueError):
            return {"GPU": int((root / folder / "gpu.0/load").read_text(encoding="ascii")) / 10}
    return {}


def said(*command: str) -> str:
    """What a program of the board printed; nothing if it is not there or does not answer."""
    if not shutil.which(command[0]):
        return ""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr
