"""The compatibility matrix: which engine runs on which emulated board, in which precision, how right, at what cost.

One model (SignNet) is converted here and run on the boards, one worker process a cell, so that a crash or a hang is a
result like any other. Memory is part of it, and the instructions of one inference, counted in a process of their own.
Time is not: an emulated board has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Event, Lock

import numpy as np

from deploylab import engines as registry
from deploylab import machine, models, parity
from deploylab.bench.client import Worker
from deploylab.bench.compare import reduced_tolerance
from deploylab.bench.progress import Progress, Steps
from deploylab.bench.subject import Subject
from deploylab.boards import emulator, instructions, wheels
from deploylab.boards.emulator import Board
from deploylab.boards.places import Emulated
from deploylab.engines import Artifact
from deploylab.errors import BoardError, DeployLabError, InputError, WorkerDied

MODEL = "signnet"
PICTURES = 3
OUTCOMES = ("runs", "refused", "wrong", "illegal instruction", "crashes", "hangs")
"""From best to worst. What is refused, the engine or its adapter says so, rather than to run something else."""
MUCH_WORSE = 10.0
LONGEST_REASON = 200
IMPORTS = "imports"


@dataclass(frozen=True)
class Cell:
    """What became of one engine and precision on one board.

    ``ran`` is the precision that the engine says it computed in, ``version`` its version there. ``error`` is relative
    to the largest output, None where none is known. ``memory`` is the peak of resident memory above bare Python and
    NumPy, in bytes; ``instructions`` those of one inference in the engine's own code, by kind, None where they were not
    counted.
    """

    engine: str
    precision: str
    board: str
    outcome: str
    ran: str = ""
    version: str = ""
    error: float | None = None
    reason: str = ""
    memory: int | None = None
    instructions: Mapping[str, int] | None = None

    @property
    def text(self) -> str:
        """``runs, error 4e-07``, ``runs as fp32, error 5e-04``, ``refused``, ``illegal instruction``, ..."""
        ran = f" as {self.ran}" if self.ran not in ("", self.precision) else ""
        error = f", error {self.error:.0e}" if self.error is not None else ""
        return self.outcome + ran + error

    def worse_than(self, other: Cell) -> bool:
        """Whether the outcome is worse, or another precision than asked for ran, or the error is ten times as large."""
        if self.outcome != other.outcome:
            return OUTCOMES.index(self.outcome) > OUTCOMES.index(other.outcome)
        if self.ran != other.ran and self.ran != self.precision:
            return True
        return bool(self.error and other.error and self.error > MUCH_WORSE * other.error)


@dataclass(frozen=True)
class WheelCell:
    """What importing a wheel that is known to crash did on one board: ``imports`` or how it ended."""

    wheel: str
    board: str
    outcome: str
    fault: wheels.Fault | None = None


@dataclass
class Matrix:
    """Cells in the order of engines, precisions and boards, and what was left out."""

    cells: list[Cell] = field(default_factory=list)
    wheels: list[WheelCell] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def versions(self) -> dict[str, str]:
        """Of the engines that ran."""
        return {cell.engine: cell.version for cell in self.cells if cell.version}

    def cell(self, engine: str, precision: str, board: str) -> Cell:
        """Raises :class:`InputError` if there is none."""
        for cell in self.cells:
            if (cell.engine, cell.precision, cell.board) == (engine, precision, board):
                return cell
        raise InputError(f"the matrix has no cell for {engine} in {precision} on {board}")


class Trials:
    """Converts for the engines that boards have, and tries them there. ``out_dir`` keeps the artifacts."""

    def __init__(self, out_dir: Path, timeout_s: float = 300.0) -> None:
        self.out_dir, self.timeout_s = out_dir.resolve(), timeout_s
        self._one_at_a_time = Lock()

    @cached_property
    def subject(self) -> Subject:
        """The model with a few pictures and its outputs in float64."""
        from deploylab.signs import dataset

        info, module = models.info(MODEL), models.load(MODEL)
        samples = tuple((info.preprocessor(picture.path),) for picture in dataset.samples()[:PICTURES])
        reference = parity.module_reference(module, samples)
        return Subject(MODEL, module, "torch", samples, f"{PICTURES} sample photos", reference, origin={"model": MODEL})

    def artifact(self, name: str, precision: str) -> Artifact:
        """The converted model. Raises :class:`DeployLabError`."""
        with self._one_at_a_time:  # a conversion keeps all cores busy
            engine, subject = registry.get(name), self.subject
            options = {"calibration": list(subject.calibration())} if precision in engine.calibrated else {}
            return engine.convert(subject.source, subject.samples[0], self.out_dir, precision, **options)

    def __call__(self, engine: str, precision: str, board: Board, *, first: Path | None = None) -> Cell:
        """Try one cell. ``first`` is a folder to import from before the board's own packages."""
        blank = Cell(engine, precision, board.name, "runs")
        try:
            return self._tried(blank, self.artifact(engine, precision), board, first)
        except WorkerDied as error:
            outcome = "hangs" if error.hung else "illegal instruction" if "SIGILL" in str(error) else "crashes"
            return replace(blank, outcome=outcome, reason=_short(error, engine))
        except DeployLabError as error:
            return replace(blank, outcome="refused", reason=_short(error, engine))

    def count(self, cell: Cell, board: Board) -> Cell:
        """The cell with its instructions, if it runs. Raises :class:`BoardError` if they cannot be counted."""
        if cell.outcome != "runs":
            return cell
        artifact = self.artifact(cell.engine, cell.precision)
        found = instructions.count(board, artifact, *self.subject.samples[0], timeout_s=self.timeout_s)
        return replace(cell, instructions={kind: found.of_engine(kind) for kind in instructions.KINDS})

    def _tried(self, blank: Cell, artifact: Artifact, board: Board, first: Path | None) -> Cell:
        command = board.python("-m", "deploylab.bench.worker", first=first)
        with Worker(blank.engine, command=command, start_timeout_s=self.timeout_s) as worker:
            before = worker.greeting["memory"]["rss"]
            worker.request("import", self.timeout_s, modules=list(registry.get(blank.engine).modules))
            path = str(artifact.path)
            loaded = worker.request("load", self.timeout_s, engine=blank.engine, artifact=path, threads=1)
            samples = self.subject.samples
            outputs, _ = worker.run([np.stack(column) for column in zip(*samples, strict=True)], self.timeout_s)
            peak = worker.request("memory", self.timeout_s)["peak"]
        verdict = self._judged(blank.precision, outputs)
        return replace(
            blank,
            outcome="runs" if verdict.ok else "wrong",
            ran=str(loaded["facts"].get("precision", "")),
            version=str(loaded["facts"].get("version", "")),
            error=float(verdict.error) if np.isfinite(verdict.error) else None,
            reason="" if verdict.ok else _short(verdict.text),
            memory=peak - before if peak and before else None,
        )

    def _judged(self, precision: str, outputs: Sequence[np.ndarray]) -> parity.Verdict:
        reference = self.subject.reference
        joined = tuple(np.concatenate(list(output)) for output in outputs)
        tolerance = reference.tolerance if precision == "fp32" else reduced_tolerance(reference, precision)
        return parity.compare_outputs(reference.outputs, joined, tolerance)


def measure(
    boards: Sequence[str] = (),
    engines: Sequence[str] = (),
    *,
    out_dir: Path,
    count: bool = True,
    known: bool = True,
    jobs: int | None = None,
    timeout_s: float = 300.0,
    progress: Progress | None = None,
) -> Matrix:
    """Try ``engines`` (all that boards have by default), each in every precision, on ``boards`` (all by default).

    ``count`` counts instructions, ``known`` tries the wheel that is known to crash. ``jobs`` cells are tried at a time,
    by default one a usable core. Raises :class:`InputError` for an engine that boards do not have and
    :class:`BoardError` for a board that was not made.
    """
    places = [Emulated(name) for name in boards or emulator.PROFILES]
    chosen = _chosen(engines, places[0].engines())
    trials, found = Trials(out_dir, timeout_s), Matrix()
    counting = count and _can_count(found)
    pairs = [(name, precision) for name in chosen for precision in registry.get(name).precisions]
    work = [(name, precision, place.board) for name, precision in pairs for place in places]
    wheel = _wheel(found) if known else None
    steps = Steps(progress, len(work) + (len(places) if wheel else 0))

    stopped = Event()

    def try_one(job: tuple[str, str, Board]) -> Cell:
        name, precision, board = job
        with steps(f"{name} in {precision} on {board.name}"):
            cell = trials(name, precision, board)
            try:
                return trials.count(cell, board) if counting and not stopped.is_set() else cell
            except BoardError as error:
                found.notes.append(f"{name} in {precision} on {board.name} was not counted: {_short(error)}")
                return cell

    def try_wheel(board: Board) -> WheelCell:
        with steps(f"{wheels.CRASHING} on {board.name}"):
            return import_wheel(board, wheel)

    with ThreadPoolExecutor(jobs or max(1, machine.usable_cores())) as pool:
        try:
            found.wheels = list(pool.map(try_wheel, [place.board for place in places] if wheel else ()))
            found.cells = list(pool.map(try_one, work))
        except BaseException:  # such as Ctrl-C: what is under way ends soon, nothing is begun
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    return found


def count_again(
    matrix: Matrix, *, out_dir: Path, jobs: int | None = None, progress: Progress | None = None
) -> list[Cell]:
    """The cells that were counted, counted once more in new processes."""
    trials = Trials(out_dir)
    counted = [cell for cell in matrix.cells if cell.instructions is not None]
    steps = Steps(progress, len(counted))

    def again(cell: Cell) -> Cell:
        with steps(f"{cell.engine} in {cell.precision} on {cell.board}, again"):
            return trials.count(cell, emulator.find(cell.board))

    with ThreadPoolExecutor(jobs or max(1, machine.usable_cores())) as pool:
        return list(pool.map(again, counted))


def import_wheel(board: Board, folder: Path) -> WheelCell:
    """Import the wheel that is known to crash on a board, and name the instruction if it does."""
    trial = wheels.try_import(board, folder)
    if trial.ok:
        return WheelCell(str(wheels.CRASHING), board.name, IMPORTS)
    if trial.illegal_instruction:
        return WheelCell(str(wheels.CRASHING), board.name, "illegal instruction", wheels.fault(board, folder))
    return WheelCell(str(wheels.CRASHING), board.name, trial.ending)


def _chosen(engines: Sequence[str], there: Sequence[str]) -> list[str]:
    for name in engines:
        if registry.get(name).name not in there:
            raise InputError(f"the emulated boards have no {name}; they have: {', '.join(there)}")
    return [name for name in sorted(there) if name in engines or not engines]


def _can_count(found: Matrix) -> bool:
    try:
        instructions.plugin()
    except BoardError as error:
        found.notes.append(f"instructions were not counted: {error}")
        return False
    return True


def _wheel(found: Matrix) -> Path | None:
    try:
        return wheels.find()
    except BoardError as error:
        found.notes.append(str(error))
        return None


def _short(error: object, engine: str = "") -> str:
    text = " ".join(str(error).split()).removeprefix(f"{engine}: ").replace("|", "/")
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON].rsplit(" ", 1)[0] + " ..."
