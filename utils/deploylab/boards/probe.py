"""What a board is, measured on it: ``python -m deploylab.boards.probe`` prints it as a line of JSON.

With ``sensors`` after that it prints only what the sensors say, in less time: no engine is looked for.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from deploylab import machine
from deploylab.boards import sampler, sensors


def report() -> dict[str, Any]:
    """The machine, its sensors, the power that can be read, the load, and every engine with its version or why not."""
    from deploylab import engines

    states = {name: engines.get(name).available() for name in engines.names()}
    return {
        "machine": machine.describe(),
        "sensors": readings(),
        "power": sampler.scope(),
        "load": machine.load(),
        "engines": {name: state.version for name, state in states.items() if state.ok},
        "missing": {name: state.reason for name, state in states.items() if not state.ok},
    }


def readings() -> dict[str, Any]:
    """What the sensors say now: temperatures, clocks, governor, throttling, power mode, as far as there are any."""
    found: dict[str, Any] = {
        "celsius": sensors.thermal_zones(),
        "governor": machine.governor(),
        "mhz": sensors.clocks(),
    }
    held_back = sensors.throttling(sensors.said("vcgencmd", "get_throttled"))
    if held_back:
        found["throttling"] = {"now": sorted(held_back.now), "since_start": sorted(held_back.since_start)}
    mode = sensors.power_mode(sensors.said("nvpmodel", "-q"))
    if mode:
        found["power_mode"] = mode.name
    return {name: value for name, value in found.items() if value}


if __name__ == "__main__":
    print(json.dumps(readings() if sys.argv[1:] == ["sensors"] else report()))
