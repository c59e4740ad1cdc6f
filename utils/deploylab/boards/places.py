"""Boards as places to compare engines at: ``deploylab compare --on emulated:pi4``, or ``--on ssh:pi@host``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from deploylab import engines as registry
from deploylab import machine
from deploylab.bench.place import Place
from deploylab.bench.results import Instructions
from deploylab.boards import emulator, index, instructions, meter, sampler, sensors
from deploylab.boards.halt import Halt
from deploylab.boards.meter import Meter
from deploylab.boards.probe import report
from deploylab.boards.remote import Remote
from deploylab.boards.ssh import Address
from deploylab.engines import Artifact
from deploylab.errors import InputError

Progress = Callable[[str], None]


class Here(Place):
    """This machine, with its sensors."""

    def meter(self, interval_s: float | None = None) -> Meter | None:
        worth_it = sampler.scope() or (machine.board() and sensors.thermal_zones())
        return meter.here(interval_s or sampler.INTERVAL_S) if worth_it else None


class Emulated(Place):
    """An emulated board. Its times mean nothing; its memory includes the emulator's."""

    timed = False

    def __init__(self, name: str) -> None:
        self.board = emulator.find(name)
        self.name = f"emulated {self.board.profile.title}"

    def engines(self) -> Sequence[str]:
        return list(index.runtimes())

    def lacking(self) -> Mapping[str, str]:
        there = self.engines()
        return {
            name: f"not on {self.name}, which has {', '.join(there)}" for name in registry.names() if name not in there
        }

    def command(self, engine: str, threads: int) -> Sequence[str]:
        return self.board.python("-m", "deploylab.bench.worker")

    def describe(self) -> dict[str, Any]:
        program = "import json; from deploylab import machine; print(json.dumps(machine.describe()))"
        return json.loads(emulator.run(self.board, "-c", program))

    def count(self, artifact: Artifact, inputs: Sequence[np.ndarray]) -> Instructions:
        found = instructions.count(self.board, artifact, *inputs)
        kinds = instructions.KINDS
        return Instructions(
            engine={kind: found.of_engine(kind) for kind in kinds},
            call={kind: found.total(kind) for kind in kinds},
            multiply_adds=found.multiply_adds,
        )


def place(text: str, progress: Progress = lambda step: None, halt: Halt | None = None) -> Place:
    """The place that ``here``, ``emulated:pi4`` or ``ssh:pi@host`` names; a board over SSH is connected and prepared.

    ``progress`` hears of every step, ``halt`` ends the connection. Raises :class:`InputError` or :class:`BoardError`.
    """
    require(text)
    kind, _, name = text.partition(":")
    if kind == "emulated":
        return Emulated(name)
    if kind == "ssh":
        return Remote(name, progress, halt)
    return Here()


def require(text: str) -> None:
    """Raise :class:`InputError` if ``text`` can name no place."""
    kind, _, name = text.partition(":")
    if kind == "ssh" and name:
        Address.parse(name)
    elif text != "here" and not (kind == "emulated" and name):
        raise InputError(
            f"{text!r} is no place to run engines at; give ssh:USER@HOST, emulated:NAME (see `deploylab boards list`) "
            "or here"
        )


def is_remote(text: str) -> bool:
    """Whether it names a machine other than this one."""
    return text.startswith("ssh:")


def probe(text: str, progress: Progress = lambda step: None) -> dict[str, Any]:
    """What :func:`deploylab.boards.probe.report` says on a board. Raises :class:`InputError` or :class:`BoardError`."""
    with place(text, progress) as board:
        if isinstance(board, Remote):
            return board.before
        if isinstance(board, Here):
            return report()
        return json.loads(emulator.run(board.board, "-m", "deploylab.boards.probe").splitlines()[-1])
