"""One comparison at several places: real boards at the same time, for each is a machine of its own; then this machine
and the boards that it emulates, one after the other.

What happens to one board stays with it. Ctrl-C ends the work on all; what was measured until then is kept and marked.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from deploylab.bench.compare import Prepared, compare, convert, prepare
from deploylab.bench.place import Place
from deploylab.bench.progress import Progress
from deploylab.bench.results import Comparison
from deploylab.boards import places
from deploylab.boards.halt import Halt
from deploylab.boards.remote import Remote
from deploylab.errors import BoardError, BoardInterrupted, DeployLabError

Told = Callable[[str, int, int, str], None]
"""Hears of every step: the place, how many steps are done, of how many (0 while that is not known), and what begins."""

_ENDING_S = 30.0
_OF_THE_MODEL = ("image", "example", "shapes", "out_dir", "timeout_s")


@dataclass
class Outcome:
    """What became of one place: its comparison, or why there is none."""

    where: str
    comparison: Comparison | None = None
    error: DeployLabError | None = None


@dataclass
class Outcomes:
    """All of them, in the order asked for; ``interrupted`` if the user ended the work."""

    places: list[Outcome]
    interrupted: bool = False

    @property
    def comparisons(self) -> list[Comparison]:
        return [each.comparison for each in self.places if each.comparison]


def compare_at(wheres: Sequence[str], model: Any, told: Told = lambda *_: None, **options: Any) -> Outcomes:
    """Run :func:`deploylab.bench.compare.compare` at places that :func:`deploylab.boards.places.place` knows.

    The model is prepared and converted once, here. A place that fails has an error in its outcome, and the others go
    on. Raises :class:`InputError` for what is no place, and where the model cannot be compared at all.
    """
    for where in wheres:
        places.require(where)
    run = _Run({where: Outcome(where) for where in wheres}, told, model, options)
    try:
        with ExitStack() as opened:
            run.all(opened)
    except KeyboardInterrupt:
        return Outcomes(run.ended(), interrupted=True)
    return Outcomes(run.ended())


@dataclass
class _Run:
    outcomes: dict[str, Outcome]
    told: Told
    model: Any
    options: Mapping[str, Any]
    halt: Halt = field(default_factory=Halt)
    boards: dict[str, Remote] = field(default_factory=dict)
    here: dict[str, Place] = field(default_factory=dict)
    turns: defaultdict[str, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))

    def all(self, opened: ExitStack) -> None:
        remote = [where for where in self.outcomes if places.is_remote(where)]
        opened.callback(lambda: [board.close() for board in self.boards.values()])
        self._at_once(self._connect, remote)
        for where in self.outcomes:
            if where not in remote:
                self._guarded(where, self._open_here, where)
        if not self.boards and not self.here:
            return
        prepared = self._prepare()
        for board in self.boards.values():  # to have one machine at a time in `turns`
            self.turns[board.machine]
        self._at_once(lambda where: self._measure_board(where, prepared), self.boards)
        for where, place in self.here.items():
            self._guarded(where, self._measure, where, place, prepared)

    def ended(self) -> list[Outcome]:
        """The outcomes, each with a comparison or an error."""
        for each in self.outcomes.values():
            if each.comparison is None and each.error is None:
                each.error = BoardInterrupted("interrupted before it was measured")
        return list(self.outcomes.values())

    def _connect(self, where: str) -> None:
        board = places.place(where, lambda step: self.told(where, 0, 0, step), self.halt)
        self.boards[where] = board

    def _open_here(self, where: str) -> None:
        self.here[where] = places.place(where)

    def _prepare(self) -> Prepared:
        self.told("here", 0, 0, "preparing the model and converting it")
        chosen = {name: self.options[name] for name in _OF_THE_MODEL if name in self.options}
        prepared = prepare(self.model, **chosen)
        wanted = {name: self.options[name] for name in ("engines", "threads", "precision") if name in self.options}
        for place in (*self.boards.values(), *self.here.values()):
            convert(prepared, place, progress=self._progress("here"), **wanted)
        return prepared

    def _measure_board(self, where: str, prepared: Prepared) -> None:
        board = self.boards[where]
        turn = self.turns[board.machine]
        if not turn.acquire(blocking=False):
            self.told(where, 0, 0, "waits, it is the same machine as another of these boards")
            turn.acquire()
        try:
            with board:
                self._measure(where, board, prepared)
        finally:
            turn.release()

    def _measure(self, where: str, place: Place, prepared: Prepared) -> None:
        options = {name: value for name, value in self.options.items() if name not in ("image", "example", "shapes")}
        found = compare(prepared, progress=self._progress(where), place=place, **options)
        self.outcomes[where].comparison = found

    def _progress(self, where: str) -> Progress:
        return lambda done, total, text: self.told(where, done, total, text)

    def _at_once(self, work: Callable[[str], None], wheres: Iterable[str]) -> None:
        """Do the work for each of the places in a thread, and wait for all; Ctrl-C makes them end."""
        threads = [
            threading.Thread(target=self._guarded, args=(where, work, where), daemon=True) for where in list(wheres)
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(1.0)  # without a limit, Ctrl-C would have to wait on Windows
        except KeyboardInterrupt:
            self.halt.ask()
            until = time.monotonic() + _ENDING_S
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))
            raise

    def _guarded(self, where: str, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except DeployLabError as error:
            self._failed(where, error)
        except Exception as error:  # a mistake of ours must not cost the other boards their rows
            self._failed(where, BoardError("".join(traceback.format_exception(error)).strip()))

    def _failed(self, where: str, error: DeployLabError) -> None:
        if not isinstance(error, BoardInterrupted):
            self.outcomes[where].error = error
            self.told(where, 0, 0, f"failed: {str(error).splitlines()[0]}")
