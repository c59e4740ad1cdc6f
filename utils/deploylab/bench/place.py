"""Where workers run: this machine, unless a subclass says otherwise (an emulated board, a board over SSH)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deploylab import engines, machine
from deploylab.bench import client
from deploylab.bench.energy import Meter
from deploylab.bench.results import Instructions
from deploylab.engines import Artifact
from deploylab.errors import DeployLabError


class Place:
    """This machine. ``timed`` says whether times that are measured there mean anything.

    Use as a context manager where a place holds something open, as a connection.
    """

    name = ""
    timed = True

    def engines(self) -> Sequence[str]:
        """Names of the engines that are compared there if none is named: a row for each."""
        return engines.names()

    def lacking(self) -> Mapping[str, str]:
        """Engines that cannot run there, with the reason and what to do."""
        return {}

    def cores(self) -> int:
        """How many cores a worker there can keep busy."""
        return machine.usable_cores()

    def load(self) -> float | None:
        """Processes that wanted to run there before the comparison, averaged over a minute; None if not known."""
        return machine.load()

    def command(self, engine: str, threads: int) -> Sequence[str]:
        """The command that starts a worker there."""
        return client.COMMAND

    def locate(self, artifact: Artifact) -> str:
        """The artifact's folder as a worker there sees it."""
        return str(artifact.path)

    def describe(self) -> dict[str, Any]:
        """The machine, as :func:`deploylab.machine.describe` does. Raises a :class:`DeployLabError`."""
        return machine.describe()

    def count(self, artifact: Artifact, inputs: Sequence[np.ndarray]) -> Instructions | None:
        """Instructions of one inference in one thread; None where they cannot be counted."""
        return None

    def meter(self, interval_s: float | None = None) -> Meter | None:
        """What reads power and heat there, every ``interval_s``; None where nothing of that can be read."""
        return None

    def explain(self, error: DeployLabError) -> DeployLabError:
        """The error, or a better one where the place knows what is behind it."""
        return error

    def notes(self) -> Sequence[str]:
        """What one must know of the place to believe the figures."""
        return ()

    def close(self) -> None:
        """Let go of what the place holds open."""

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


HERE = Place()
