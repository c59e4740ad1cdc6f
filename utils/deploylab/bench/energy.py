"""Power and heat over time: readings of sensors, and the energy between two moments.

Power is read now and then; between two readings it is taken as a straight line (the trapezoidal rule). So the readings
must be much closer together than the power changes: a run of seconds, not a single inference.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TextIO

import numpy as np

LEAST_READINGS = 3
"""Fewer readings of the power than this in an interval say nothing about it."""
_NO_TEMPERATURE = "PMIC"
"""A Jetson's power chip tells a limit in place of a temperature: always 50 or 100 degrees (see the recorded lines)."""


@dataclass(frozen=True)
class Sample:
    """One reading of the sensors; what they do not tell is None or missing.

    ``at`` is in seconds, on a clock that all processes of the machine share. ``watts`` is the power of the board or of
    the part that can be measured, ``rails`` that of its supply rails, also in watts. ``busy`` is in percent.
    """

    at: float
    watts: float | None = None
    rails: Mapping[str, float] = field(default_factory=dict)
    celsius: Mapping[str, float] = field(default_factory=dict)
    mhz: Sequence[int] = ()
    busy: Mapping[str, float] = field(default_factory=dict)
    held_back: Sequence[str] = ()


@dataclass(frozen=True)
class Energy:
    """Power and heat of one row, which ran alone and without a pause: ``inferences`` times in ``seconds``.

    ``power_w`` is the mean power meanwhile and ``idle_w`` that before, while the worker waited, both of what ``scope``
    names. ``mj`` is the energy of one inference in millijoules, ``mj_above_idle`` what is left without the idle power.
    ``celsius`` is the highest temperature, that of ``sensor``. The sensors were read ``readings`` times, which took
    ``sampler_share`` of one core. None where the board does not tell.
    """

    seconds: float
    inferences: int
    power_w: float | None = None
    idle_w: float | None = None
    mj: float | None = None
    mj_above_idle: float | None = None
    celsius: float | None = None
    sensor: str = ""
    scope: str = ""
    held_back: tuple[str, ...] = ()
    readings: int = 0
    sampler_share: float | None = None


class Track:
    """Readings in the order of time. ``scope`` says what the power is the power of."""

    def __init__(self, samples: Iterable[Sample], scope: str = "") -> None:
        self.samples = sorted(samples, key=lambda sample: sample.at)
        self.scope = scope
        powered = [(sample.at, sample.watts) for sample in self.samples if sample.watts is not None]
        self._times = np.array([at for at, _ in powered])
        self._watts = np.array([watts for _, watts in powered])

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def begin(self) -> float:
        return self.samples[0].at if self.samples else 0.0

    @property
    def end(self) -> float:
        return self.samples[-1].at if self.samples else 0.0

    @property
    def seconds(self) -> list[float]:
        """When each reading was made, counted from the first."""
        return [sample.at - self.begin for sample in self.samples]

    def rail(self, name: str) -> list[float]:
        """The power of a supply rail at each reading, in watts; NaN where it was not read."""
        return [sample.rails.get(name, float("nan")) for sample in self.samples]

    def watts(self) -> list[float]:
        """The power at each reading; NaN where it was not read."""
        return [float("nan") if sample.watts is None else sample.watts for sample in self.samples]

    def temperature(self, name: str) -> list[float]:
        """Degrees Celsius of one sensor at each reading; NaN where it was not read."""
        return [sample.celsius.get(name, float("nan")) for sample in self.samples]

    def names(self, what: str) -> list[str]:
        """Names there are readings of: ``what`` is ``rails``, ``celsius`` or ``busy``."""
        return list(dict.fromkeys(name for sample in self.samples for name in getattr(sample, what)))

    def joules(self, begin: float, end: float) -> float | None:
        """The energy between two moments; None if the power was not read before, after and often enough between."""
        inside = (self._times > begin) & (self._times < end)
        if not begin < end or inside.sum() < LEAST_READINGS or begin < self._times[0] or end > self._times[-1]:
            return None
        times = np.concatenate([[begin], self._times[inside], [end]])
        watts = np.interp(times, self._times, self._watts)
        return float(np.sum(np.diff(times) * (watts[1:] + watts[:-1]) / 2))

    def mean_watts(self, begin: float | None = None, end: float | None = None) -> float | None:
        """The mean power between two moments, by default over all readings; None as for :meth:`joules`."""
        if not len(self._times):
            return None
        begin = self._times[0] if begin is None else begin
        end = self._times[-1] if end is None else end
        joules = self.joules(begin, end)
        return None if joules is None else joules / (end - begin)

    def between(self, begin: float, end: float) -> Track:
        """The readings between two moments."""
        return Track((sample for sample in self.samples if begin <= sample.at <= end), self.scope)

    def hottest(self) -> tuple[str, float] | None:
        """The highest temperature and whose it was; None without any."""
        found = [
            (celsius, name)
            for sample in self.samples
            for name, celsius in sample.celsius.items()
            if not name.startswith(_NO_TEMPERATURE)
        ]
        return max(found)[::-1] if found else None

    def held_back(self) -> list[str]:
        """What held the board back at any of the readings."""
        return sorted({reason for sample in self.samples for reason in sample.held_back})

    def energy(self, begin: float, end: float, inferences: int, idle_w: float | None) -> Energy:
        """What so many inferences between two moments took."""
        seconds, joules = end - begin, self.joules(begin, end)
        there = self.between(begin, end)
        sensor, celsius = there.hottest() or ("", None)
        heat = {"celsius": celsius, "sensor": sensor, "held_back": tuple(there.held_back()), "readings": len(there)}
        if joules is None:
            return Energy(seconds, inferences, idle_w=idle_w, scope=self.scope, **heat)
        above = None if idle_w is None else 1e3 * (joules - idle_w * seconds) / inferences
        return Energy(
            seconds, inferences, joules / seconds, idle_w, 1e3 * joules / inferences, above, scope=self.scope, **heat
        )

    def write_csv(self, file: TextIO) -> None:
        """A line for each reading, empty where a sensor said nothing."""
        rails, zones = self.names("rails"), self.names("celsius")
        clocks = max((len(sample.mhz) for sample in self.samples), default=0)
        head = ["seconds", "watts", *(f"{name} watts" for name in rails), *(f"{name} celsius" for name in zones)]
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*head, *(f"clock {number} MHz" for number in range(clocks)), "held back by"])
        for seconds, sample in zip(self.seconds, self.samples, strict=True):
            values = [sample.watts, *map(sample.rails.get, rails), *map(sample.celsius.get, zones)]
            cells = ["" if value is None else f"{value:.6g}" for value in values]
            mhz = [*map(str, sample.mhz), *[""] * (clocks - len(sample.mhz))]
            writer.writerow([f"{seconds:.3f}", *cells, *mhz, "; ".join(sample.held_back)])


class Meter(Protocol):
    """A sampler that runs from entering to leaving it. ``scope`` is what its power is the power of, if it reads any."""

    scope: str | None

    @property
    def own_share(self) -> float | None:
        """How much of one core it took itself; None before its end."""

    def __enter__(self) -> Meter: ...

    def __exit__(self, *_: object) -> None: ...

    def next(self, timeout_s: float = ...) -> Sample | None:
        """The next reading; None if none comes in time."""

    def track_until(self, at: float, timeout_s: float = ...) -> Track:
        """All readings, as soon as one is later than ``at``."""


def idle_watts(meter: Meter, seconds: float) -> float | None:
    """The mean power in the seconds from now; None where power is not read."""
    begin = meter.next()
    time.sleep(seconds)
    end = meter.next()
    if begin is None or end is None:
        return None
    return meter.track_until(begin.at).between(begin.at, end.at).mean_watts()
