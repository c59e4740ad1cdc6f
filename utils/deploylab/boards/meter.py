"""A sampler beside the work: start it, let the work run, and ask what power, heat and energy there were.

::

    with meter.here() as beside:
        begin = time.monotonic()
        work()
        end = time.monotonic()
        track = beside.track_until(end)
    track.joules(begin, end)
"""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from deploylab.bench.energy import Sample, Track
from deploylab.boards import sampler, sensors
from deploylab.boards.recorded import Recording
from deploylab.errors import BoardError

_START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 10.0
_TIME = "%m-%d-%Y %H:%M:%S"
_FIELDS = {field.name for field in fields(Sample)}


class Meter:
    """A running sampler. Use as a context manager; leaving it ends the sampler.

    ``scope`` says what its power is the power of (None: it cannot be read), ``reads_something`` whether there is any
    sensor at all.
    ``command`` starts :mod:`.sampler`, here or on a board. Raises :class:`BoardError` if it does not start.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._samples: list[Sample] = []
        self._news = threading.Condition()
        self._ended: dict[str, float] = {}

    def __enter__(self) -> Meter:
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal is for us; we end it
            )
        except OSError as error:
            raise BoardError(f"cannot start {self._command[0]}: {error.strerror or error}") from error
        self._head: dict[str, Any] | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        with self._news:
            self._news.wait_for(lambda: self._head is not None or not self._reader.is_alive(), _START_TIMEOUT_S)
        if not self._head:
            self.__exit__()
            raise BoardError("the sensors could not be read: the sampler ended before its first line")
        self.scope: str | None = self._head["scope"]
        self.reads_something = any(self._head.values())
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(_END_TIMEOUT_S)
        if not self._reader.is_alive():
            self._process.stdout.close()

    @property
    def running(self) -> bool:
        """Whether readings still come; a lost connection ends them."""
        return self._reader.is_alive()

    @property
    def own_share(self) -> float | None:
        """How much of one core the sampler took itself; None before its end."""
        return self._ended["cpu_s"] / self._ended["wall_s"] if self._ended.get("wall_s") else None

    def track(self) -> Track:
        """The readings so far."""
        with self._news:
            return Track(self._samples, self.scope or "")

    def next(self, timeout_s: float = 30.0) -> Sample | None:
        """The next reading; None if none comes in time."""
        with self._news:
            seen = len(self._samples)
            self._news.wait_for(lambda: len(self._samples) > seen or not self.running, timeout_s)
            return self._samples[-1] if len(self._samples) > seen else None

    def readings(self, patience_s: float) -> Iterator[Sample]:
        """Every reading from the first on, as it comes; ends when none comes for so long, or when the sampler ends."""
        for number in itertools.count():
            with self._news:
                self._news.wait_for(lambda n=number: len(self._samples) > n or not self.running, patience_s)
                if len(self._samples) <= number:
                    return
                sample = self._samples[number]
            yield sample

    def track_until(self, at: float, timeout_s: float = 30.0) -> Track:
        """The readings so far, as soon as there is one later than ``at`` on the clock of the machine that is read."""

        def there() -> bool:
            with_power = (sample.at for sample in reversed(self._samples) if sample.watts is not None or not self.scope)
            return next(with_power, at) > at or not self.running

        with self._news:
            self._news.wait_for(there, timeout_s)
        return self.track()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for text in self._process.stdout:
                line = json.loads(text)
                with self._news:
                    if self._head is None:
                        self._head = line
                    elif "end" in line:
                        self._ended = line["end"]
                    else:
                        self._samples.append(Sample(**{key: line[key] for key in line.keys() & _FIELDS}))
                    self._news.notify_all()
        with self._news:
            self._head = self._head or {}
            self._news.notify_all()


def command(interval_s: float = sampler.INTERVAL_S, root: Path | None = None) -> list[str]:
    """What starts the sampler on this machine. ``root`` is where to find ``sys``, other than ``/``."""
    return [sys.executable, "-m", sampler.__name__, order(interval_s, root)]


def order(interval_s: float, root: Path | None = None) -> str:
    """The sampler's argument."""
    return json.dumps({"interval_s": interval_s, **({"root": str(root)} if root else {})})


def here(interval_s: float = sampler.INTERVAL_S) -> Meter:
    """A sampler of this machine."""
    return Meter(command(interval_s))


def replay(recording: Recording) -> Track:
    """The readings in recorded lines of tegrastats. Lines that tell no time have the recording's interval between."""
    found = [sensors.tegrastats(line) for line in recording.lines]
    times = [datetime.strptime(stats.time, _TIME) if stats.time else None for stats in found]
    if times and all(times):
        seconds = [(time - times[0]).total_seconds() for time in times]
    else:
        seconds = [number * (recording.interval_s or 1.0) for number in range(len(found))]
    scope = " + ".join(sensors.whole_power(found[0].rails)) if found else ""
    return Track((Sample(at=at, **sampler.reading(stats)) for at, stats in zip(seconds, found, strict=True)), scope)
