"""Boards as places to compare engines at: ``deploylab compare --on emulated:pi4``, or ``--on ssh:pi@host``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from deploylab.bench.place import Place
from deploylab.bench.results import Instructions
from deploylab.boards import emulator, index, instructions
from deploylab.boards.remote import Remote
from deploylab.engines import Artifact
from deploylab.errors import InputError


class Emulated(Place):
    """An emulated board. Its times mean nothing; its memory includes the emulator's."""

    timed = False

    def __init__(self, name: str) -> None:
        self.board = emulator.find(name)
        self.name = f"emulated {self.board.profile.title}"

    def engines(self) -> Sequence[str]:
        return list(index.runtimes())

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


def place(text: str, progress: Callable[[str], None] = lambda step: None) -> Place:
    """The place that ``emulated:pi4`` or ``ssh:pi@host`` names; a board over SSH is connected and prepared by that.

    ``progress`` hears of every step. Raises :class:`InputError` or :class:`BoardError`.
    """
    kind, _, name = text.partition(":")
    if kind == "emulated" and name:
        return Emulated(name)
    if kind == "ssh" and name:
        return Remote(name, progress)
    raise InputError(
        f"{text!r} is no place to run engines at; give ssh:USER@HOST, or emulated:NAME, see `deploylab boards list`"
    )


def probe(text: str, progress: Callable[[str], None] = lambda step: None) -> dict[str, Any]:
    """What :func:`deploylab.boards.probe.report` says on a board. Raises :class:`InputError` or :class:`BoardError`."""
    with place(text, progress) as board:
        if isinstance(board, Remote):
            return board.before
        return json.loads(emulator.run(board.board, "-m", "deploylab.boards.probe").splitlines()[-1])
