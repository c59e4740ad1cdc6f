"""What real boards said: output of their tools as others published it, each with its source.

Nothing here was measured by this course. It shows what a reading looks like where there is no board, and the parsers of
:mod:`.sensors` are tested with it. The lines are unchanged; how many of them were taken is said under ``what``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from deploylab.errors import InputError

_FOLDER = Path(__file__).with_name("recordings")


@dataclass(frozen=True)
class Recording:
    """Lines that a tool printed on a board.

    ``interval_s`` is the time between two lines where it is known and the lines do not tell it themselves.
    """

    tool: str
    name: str
    board: str
    system: str
    what: str
    source: str
    lines: tuple[str, ...]
    interval_s: float | None = None

    @property
    def text(self) -> str:
        """The lines as the tool printed them."""
        return "\n".join(self.lines) + "\n"

    @property
    def label(self) -> str:
        """What a figure of it must say: ``Jetson Nano, JetPack 4, recorded by others: https://...``."""
        return f"{self.board.partition(' (')[0]}, {self.system.partition(' (')[0]}, recorded by others: {self.source}"


def tools() -> list[str]:
    """The tools there is output of: nvpmodel, tegrastats, vcgencmd."""
    return sorted(path.stem for path in _FOLDER.glob("*.txt"))


def names(tool: str) -> list[str]:
    """The recordings of a tool. Raises :class:`InputError` for an unknown one."""
    return list(_all(tool))


def recording(tool: str, name: str) -> Recording:
    """One recording, such as ``recording("tegrastats", "nano")``. Raises :class:`InputError` naming those there are."""
    found = _all(tool).get(name)
    if found is None:
        raise InputError(f"no recording {name!r} of {tool}; there are: {', '.join(_all(tool))}")
    return found


@cache
def _all(tool: str) -> dict[str, Recording]:
    if tool not in tools():
        raise InputError(f"no recordings of {tool!r}; there are some of: {', '.join(tools())}")
    blocks = (_FOLDER / f"{tool}.txt").read_text(encoding="utf-8").split("\n\n")
    return {found.name: found for found in (_read(tool, block) for block in blocks)}


def _read(tool: str, block: str) -> Recording:
    """A recording from its text: a head of ``# key: value``, then the lines."""
    lines = block.strip("\n").splitlines()
    head = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    interval = head.pop("interval", "").partition(" ")[0]
    return Recording(
        tool=tool,
        lines=tuple(line for line in lines if not line.startswith("# ")),
        interval_s=float(interval) if interval else None,
        **head,
    )
