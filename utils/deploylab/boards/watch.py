"""Watch a board's power, heat and clocks while something else runs: ``deploylab boards watch ssh:pi@host``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from deploylab import machine
from deploylab.bench.energy import Sample, Track
from deploylab.boards import meter, places
from deploylab.errors import BoardError

_PATIENCE_S = 30.0
_WHY = {"emulated": ": it is emulated, and the power of this machine is not its own"}


@dataclass(frozen=True)
class Watched:
    """What was read, how much of one core the reading took itself (None: not known), if it ended unasked, and where."""

    track: Track
    own_share: float | None
    lost: bool = False
    name: str = ""


def watch(
    where: str,
    seconds: float,
    interval_s: float,
    show: Callable[[float, Sample], None],
    progress: Callable[[str], None] = lambda step: None,
) -> Watched:
    """Read the sensors of ``here`` or ``ssh:USER@HOST`` every ``interval_s`` until ``seconds`` have passed or Ctrl-C.

    ``show`` hears of every reading, with the seconds since the first. Raises :class:`BoardError` where there is nothing
    to read.
    """
    with places.place(where, progress) as board:
        beside = meter.here(interval_s) if isinstance(board, places.Here) else board.meter(interval_s)
        if beside is None:
            raise BoardError(f"{where} has no sensors that can be read" + _WHY.get(where.partition(":")[0], ""))
        with beside:
            if not beside.reads_something:
                raise BoardError(f"{where}: neither power nor temperature nor clocks can be read; nothing to watch")
            progress(f"power: {beside.scope or 'cannot be read'}")
            shown: list[Sample] = []
            with contextlib.suppress(KeyboardInterrupt):
                for sample in beside.readings(interval_s + _PATIENCE_S):
                    shown.append(sample)
                    show(sample.at - shown[0].at, sample)
                    if sample.at - shown[0].at >= seconds:
                        break
            lost = not beside.running
        name = board.name or machine.board() or machine.cpu_model()
        return Watched(Track(shown, beside.scope or ""), beside.own_share, lost, name)


def line(seconds: float, sample: Sample) -> str:
    """A reading in a line: ``12.0 s  4.76 W  CPU 48.5 °C  1479 MHz``, the hottest of the temperatures."""
    hottest = Track([sample]).hottest()
    clocks = "/".join(str(mhz) for mhz in dict.fromkeys(sample.mhz))
    parts = [
        f"{seconds:7.1f} s",
        f"{sample.watts:6.2f} W" if sample.watts is not None else "",
        f"{hottest[0]} {hottest[1]:.1f} °C" if hottest else "",
        f"{clocks} MHz" if clocks else "",
        ", ".join(f"{name} {busy:.0f} %" for name, busy in sample.busy.items()),
        f"held back: {', '.join(sample.held_back)}" if sample.held_back else "",
    ]
    return "  ".join(part for part in parts if part)


def summary(watched: Watched) -> str:
    """The whole of it: power, energy, the highest temperature, what held the board back, what the reading cost."""
    track = watched.track
    watts, hottest = track.mean_watts(), track.hottest()
    parts = [f"{track.end - track.begin:.1f} s, {len(track)} readings"]
    if watts is not None:
        parts.append(f"mean {watts:.2f} W, {watts * (track.end - track.begin):.1f} J ({track.scope})")
    if hottest:
        parts.append(f"hottest {hottest[0]} {hottest[1]:.1f} °C")
    parts.append(f"held back: {', '.join(track.held_back()) or 'never'}")
    if watched.own_share is not None:
        parts.append(f"reading took {watched.own_share:.1%} of a core")
    if watched.lost:
        parts.append("the readings ended by themselves, so the connection or the sampler was lost")
    return "; ".join(parts)
