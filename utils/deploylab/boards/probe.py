"""What a board is, measured on it: ``python -m deploylab.boards.probe`` prints it as a line of JSON."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from deploylab import engines, machine
from deploylab.boards import sensors

_POLICIES = Path("/sys/devices/system/cpu/cpufreq")
_TIMEOUT_S = 5.0


def report() -> dict[str, Any]:
    """The machine, its sensors, the load, and for every engine its version or why it is not there."""
    states = {name: engines.get(name).available() for name in engines.names()}
    return {
        "machine": machine.describe(),
        "sensors": readings(),
        "load": machine.load(),
        "engines": {name: state.version for name, state in states.items() if state.ok},
        "missing": {name: state.reason for name, state in states.items() if not state.ok},
    }


def readings() -> dict[str, Any]:
    """What the sensors say now: temperatures, clocks, governor, throttling, power mode, as far as there are any."""
    found: dict[str, Any] = {"celsius": sensors.thermal_zones(), "governor": machine.governor(), "mhz": _clocks()}
    held_back = sensors.throttling(_said("vcgencmd", "get_throttled"))
    if held_back:
        found["throttling"] = {"now": sorted(held_back.now), "since_start": sorted(held_back.since_start)}
    mode = sensors.power_mode(_said("nvpmodel", "-q"))
    if mode:
        found["power_mode"] = mode.name
    return {name: value for name, value in found.items() if value}


def _clocks() -> list[int]:
    """The clock of each group of cores in MHz."""
    found = []
    for policy in sorted(_POLICIES.glob("policy*")):
        try:
            found.append(int((policy / "scaling_cur_freq").read_text(encoding="ascii")) // 1000)
        except (OSError, ValueError):
            continue
    return found


def _said(*command: str) -> str:
    if not shutil.which(command[0]):
        return ""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


if __name__ == "__main__":
    print(json.dumps(report()))
