"""Run one model through many engines: every output checked before it is timed, all engines measured in turns.

::

    from deploylab.bench.compare import compare
    result = compare("signnet", engines=["eager", "onnxruntime"], threads=(1,), samples=100)
    result.row("onnxruntime").latency.p50        # milliseconds

The order of the work: convert, each engine in a process of its own, then one worker process for each engine, thread
count and precision: start, import, load, check against float64, accuracy, warm up. Workers that passed are measured in
rounds, A B C A B C ..., so that a busy spell hits all of them alike and ratios within a round hold. Memory has its own
processes afterwards. Whatever an engine does, only its own row suffers: a crash or a hang ends its process, and a slow
engine gets fewer calls, not more time.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploylab import engines as registry
from deploylab import files, models, parity, paths
from deploylab.bench import client, ledger, subject
from deploylab.bench.client import Worker
from deploylab.bench.energy import Meter, idle_watts
from deploylab.bench.latency import Summary
from deploylab.bench.place import HERE, Place
from deploylab.bench.progress import Progress, Steps
from deploylab.bench.results import INTERRUPTED, LOST, PARTIAL, ColdStart, Comparison, Memory, Ratio, Row
from deploylab.bench.subject import Subject
from deploylab.engines import Artifact, Engine, hash_source
from deploylab.engines.footprint import Footprint
from deploylab.errors import (
    BoardInterrupted,
    BoardLost,
    DeployLabError,
    InputError,
    WorkerDied,
    WorkerError,
    without_frames,
)
from deploylab.parity import Verdict

if TYPE_CHECKING:
    import torch

STEPS = {"fp16": 2.0**-10, "bf16": 2.0**-7, "int8": 2.0**-7, "fp32": 2.0**-23}
"""Relative rounding step of a precision (for int8: one of 127 levels)."""
LARGEST_TOLERANCE = 0.5
LEAST_ACCURACY = 0.99
"""MLPerf Inference asks reduced precision for 99 % of the float32 accuracy (``inference_rules.adoc``)."""
CHUNK = 200
FIRST_CHUNK = 10  # tells how long the others will take
LONGEST_ACCURACY_S = 60.0
"""Accuracy is left out, with a note, for an engine that would take longer over the test split."""
_BASELINES = {"eager": 0, "onnxruntime": 1}
MEMORY_CALLS, MEMORY_CALLS_EMULATED = 20, 3
"""Calls before the peak of memory is read. Emulated, one takes far longer, and the first shows the peak already."""
IDLE_S, ENERGY_S = 2.0, 3.0
"""How long the power is read before anything runs, and while a row does: much longer than between two readings."""


@dataclass(frozen=True)
class Effort:
    """How much is measured a row: ``samples`` calls in ``rounds`` rounds, but no longer than ``max_seconds``."""

    samples: int = 700
    rounds: int = 10
    max_seconds: float = 20.0
    min_round_seconds: float = 0.05
    timeout_s: float = 300.0


def compare(
    model: str | Path | torch.nn.Module | Subject | Prepared = "signnet",
    engines: Sequence[str] | None = None,
    threads: Sequence[int] = (1,),
    precision: Sequence[str] = ("fp32",),
    image: Path | str | None = None,
    *,
    example: np.ndarray | Sequence[np.ndarray] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    samples: int = 700,
    rounds: int = 10,
    max_seconds: float = 20.0,
    timeout_s: float = 300.0,
    memory: bool = True,
    accuracy: bool = True,
    energy: bool = True,
    out_dir: Path | str | None = None,
    ledger_path: Path | str | None = None,
    record: bool = True,
    progress: Progress | None = None,
    place: Place = HERE,
) -> Comparison:
    """Compare engines on one model.

    ``model`` is a name from :func:`deploylab.models.names`, the path of an ONNX file (``shapes`` fixes symbolic axes),
    a torch module with an ``example`` input, a :class:`Subject`, or what :func:`prepare` made of any of these for more
    than one comparison, which may be in threads of their own then. ``engines=None`` takes all that are
    installed; ``"litert:kernels=reference"`` is an engine with an option of its conversion, and several options have
    colons between. ``image`` is a picture that becomes the first and the timed input. ``samples`` calls a row are timed
    in ``rounds`` rounds, for at most ``max_seconds`` a row; 662 are needed for a p99. No single request to a worker may
    last longer than ``timeout_s``.
    ``progress(done, total, what)`` hears of every step. ``memory`` and ``accuracy`` (on the frozen test split, where
    the model has one) can be left out to save time, and so can ``energy``: power and heat, measured after the latencies
    where ``place`` has sensors for them. With ``record`` the rows go to the ledger. Models are converted
    here and run at ``place``; where times mean nothing, instructions are counted instead.

    An engine that fails, crashes or hangs keeps its row with the reason. A torch module whose class exists in this
    process only (written in a notebook) is also converted in this process.

    Raises :class:`DeployLabError` only where nothing can be compared: unknown model or engine, unreadable image, no
    reference.
    """
    effort = Effort(samples, rounds, max_seconds, timeout_s=timeout_s)
    rows, notes = _plan(model, engines, threads, precision, place)
    meter = place.meter() if energy and place.timed else None
    steps = Steps(
        progress,
        total=1
        + len({row.variant for row in rows})
        + len(rows) * (1 + memory + (meter is not None))
        + (rounds if place.timed else len(rows)),
    )
    begin = time.perf_counter()
    with steps("preparing the model, its inputs and the float64 reference"):
        notes += _busy_before(place)
        prepared = prepare(model, image, example=example, shapes=shapes, out_dir=out_dir, timeout_s=timeout_s)
        what = prepared.what if accuracy else replace(prepared.what, test=None)
    artifacts = _convert_all(rows, prepared, place, steps)
    bench = _Bench(what, effort, place, steps, meter)
    bench.run(rows, artifacts, memory)
    baselines = _set_ratios(rows)
    comparison = Comparison(
        model=what.name,
        source_hash=hash_source(what.source),
        rows=rows,
        baselines=baselines,
        reference=what.reference.source,
        tolerance=what.reference.tolerance,
        inputs=what.about_samples,
        input_shapes=[f"{array.dtype} {array.shape}" for array in what.samples[0]],
        reference_accuracy=what.test.accuracy if what.test else None,
        machine=place.describe(),
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        seconds=time.perf_counter() - begin,
        notes=[*notes, *bench.notes, *place.notes(), *_busy_during(rows)],
        place=place.name,
        timed=place.timed,
    )
    if record:
        try:
            ledger.append(comparison.ledger_rows(), ledger_path)
        except DeployLabError as error:  # the results are worth more than their record
            comparison.ledger_error = str(error)
    return comparison


def prepare(
    model: str | Path | torch.nn.Module | Subject | Prepared,
    image: Path | str | None = None,
    *,
    example: np.ndarray | Sequence[np.ndarray] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    out_dir: Path | str | None = None,
    timeout_s: float = 300.0,
) -> Prepared:
    """A model with its reference, for comparisons at several places: what is converted for one serves the others.

    Arguments and errors as of :func:`compare`.
    """
    if isinstance(model, Prepared):
        return model
    what = _subject(model, Path(image) if image is not None else None, example, shapes)
    return Prepared(what, Path(out_dir) if out_dir else paths.build() / "artifacts", timeout_s)


def convert(
    prepared: Prepared,
    place: Place,
    engines: Sequence[str] | None = None,
    threads: Sequence[int] = (1,),
    precision: Sequence[str] = ("fp32",),
    progress: Progress | None = None,
) -> None:
    """Convert what a comparison at ``place`` will need, so that it finds it then. An engine that fails, fails there."""
    rows, _ = _plan(prepared, engines, threads, precision, place)
    _convert_all(rows, prepared, place, Steps(progress, len({row.variant for row in rows})))


def _plan(
    model: Any, engines: Sequence[str] | None, threads: Sequence[int], precision: Sequence[str], place: Place
) -> tuple[list[Row], list[str]]:
    """One row for each combination, the reference engine first, and notes on what is left out."""
    if isinstance(precision, str):
        precision = (precision,)
    if not threads or min(threads) < 1:
        raise InputError(f"threads must be numbers of at least 1, got {', '.join(map(str, threads)) or 'none'}")
    if not precision:
        raise InputError("give at least one precision, such as fp32")
    chosen, notes = [_variant(text) for text in dict.fromkeys(engines or ())], []
    if not chosen:
        model = model.what if isinstance(model, Prepared) else model
        kind = model.kind if isinstance(model, Subject) else "onnx" if _is_onnx(model) else "torch"
        taken = [name for name in registry.names() if kind in registry.get(name).accepts]
        chosen = [(name, {}) for name in taken]
        left_out = [name for name in registry.names() if name not in taken]
        if left_out:
            notes.append(f"{', '.join(left_out)} left out: no conversion from {kind}")
        elsewhere = [name for name in taken if name not in place.engines()]
        if elsewhere:
            notes.append(f"{', '.join(elsewhere)} left out: not on {place.name}")
            chosen = [(name, {}) for name in taken if name not in elsewhere]
    cores = place.cores()
    if max(threads) > cores:
        notes.append(f"{max(threads)} threads on {cores} usable core(s): the engines' threads get in each other's way")
    order = [(t, p) for t in dict.fromkeys(threads) for p in dict.fromkeys(precision)]
    return [Row(engine, t, p, options=options) for t, p in order for engine, options in chosen], notes


def _variant(text: str) -> tuple[str, dict[str, Any]]:
    """``litert:kernels=reference`` as the engine's name and its options; a value may be any JSON."""
    name, *settings = text.split(":")
    options = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not key or not equals:
            raise InputError(f"{text!r}: after an engine's name come options like :key=value, got {setting!r}")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return registry.get(name).name, options


def _subject(model: Any, picture: Path | None, example: Any, shapes: Mapping[str, Sequence[int]] | None) -> Subject:
    if isinstance(model, Subject):
        return model
    if _is_onnx(model):
        return subject.from_onnx(Path(model), picture, shapes)
    if shapes:
        raise InputError("shapes are for the symbolic axes of an ONNX file; this model has none")
    if isinstance(model, str):
        if model not in models.names():
            raise InputError(
                f"unknown model {model!r}; give one of {', '.join(models.names())} or a file that ends in .onnx"
            )
        return subject.named(model, picture)
    if isinstance(model, Path):
        raise InputError(f"{model} is not an ONNX file (its name must end in .onnx)")
    if example is None:
        raise InputError("a torch module needs an example input: compare(module, example=x)")
    return subject.from_module(model, example)


def _is_onnx(model: Any) -> bool:
    return isinstance(model, (str, os.PathLike)) and str(model).lower().endswith(".onnx")


class Prepared:
    """A model and what engines made of it; :func:`prepare` makes one.

    Conversions run one after the other, each in a process of its own that can crash or hang alone, and each once.
    """

    def __init__(self, what: Subject, out_dir: Path, timeout_s: float) -> None:
        self.what, self.out_dir, self.timeout_s = what, out_dir, timeout_s
        self._made: dict[str, Artifact | DeployLabError] = {}
        self._converting = threading.Lock()

    def artifact(self, row: Row) -> Artifact:
        """What a row runs. Raises the :class:`DeployLabError` that its conversion ended with, now or before."""
        with self._converting:
            if row.variant not in self._made:
                try:
                    engine = registry.get(row.engine)
                    self._made[row.variant] = self._convert(engine, row.precision, row.options)
                except DeployLabError as error:
                    self._made[row.variant] = without_frames(error)
        made = self._made[row.variant]
        if isinstance(made, DeployLabError):
            raise made
        return made

    def _convert(self, engine: Engine, precision: str, options: Mapping[str, Any]) -> Artifact:
        example = self.what.samples[0]
        wanted = self.what.source, example, self.out_dir, precision
        if precision in engine.calibrated:
            options = {"calibration": str(self._calibration()), **options}
        found = engine.find(*wanted, **options)
        if found is not None:
            return found
        origin = self._origin()
        if origin is None:
            return engine.convert(*wanted, **options)
        with Worker(engine.name, command=client.COMMAND, start_timeout_s=self.timeout_s) as worker:
            place = self.out_dir.resolve()
            return Artifact.read(
                worker.convert(engine.name, origin, example, place, precision, options, self.timeout_s)
            )

    def _calibration(self) -> Path:
        """A file with data that int8 learns from, which another process can read."""
        path = self.out_dir.resolve() / f"calibration-{self.what.name}.npz"
        with files.draft(path) as unfinished:
            np.savez(unfinished, *(np.stack(arrays) for arrays in zip(*self.what.calibration(), strict=True)))
        return path

    def _origin(self) -> Mapping[str, str] | None:
        """Where another process finds the model. A torch module of the caller's is saved for that, if it can be."""
        if self.what.origin is None and self.what.kind == "torch":
            saved = registry.get("eager").convert(self.what.source, self.what.samples[0], self.out_dir)
            if "model.pt" in saved.files:  # else its class exists here only
                return {"module": str(saved.path.resolve())}
        return self.what.origin


def _convert_all(rows: Sequence[Row], prepared: Prepared, place: Place, steps: Steps) -> dict[str, Artifact]:
    """The artifact of every variant that could be converted; the rows of the others say why not."""
    artifacts: dict[str, Artifact] = {}
    lacking = place.lacking()
    for variant in dict.fromkeys(row.variant for row in rows):
        concerned = [row for row in rows if row.variant == variant]
        with steps(f"converting for {variant}"):
            if concerned[0].engine in lacking:
                _fail_all(concerned, "unavailable", lacking[concerned[0].engine])
                continue
            state = registry.get(concerned[0].engine).available()
            if not state.ok:
                reason = state.reason + (f"; try: {state.fix}" if state.fix else "")
                _fail_all(concerned, "unavailable", reason)
                continue
            try:
                artifact = prepared.artifact(concerned[0])
            except DeployLabError as error:
                _fail_all(concerned, _status(error), str(error))
                continue
            artifacts[variant] = artifact
            for row in concerned:
                row.artifact, row.engine_version = artifact.path.name, artifact.engine_version
                row.bytes, row.convert_seconds = artifact.bytes, artifact.seconds
    return artifacts


def _status(error: DeployLabError) -> str:
    if isinstance(error, BoardInterrupted):
        return INTERRUPTED
    if isinstance(error, BoardLost):
        return LOST
    return "crashed" if isinstance(error, WorkerDied) else "failed"


def _fail_all(rows: Sequence[Row], status: str, reason: str) -> None:
    for row in rows:
        row.fail(status, reason)


class _Bench:
    """Takes workers through check, accuracy, warm-up, rounds and memory. One that fails ends its own row only."""

    def __init__(self, what: Subject, effort: Effort, place: Place, steps: Steps, meter: Meter | None) -> None:
        self.what, self.effort, self.place, self.steps, self.meter = what, effort, place, steps, meter
        self.notes: list[str] = []
        self.starts: dict[str, list[ColdStart]] = {}
        self.accuracies: dict[str, float] = {}
        self.footprints: dict[str, Footprint] = {}

    def run(self, rows: Sequence[Row], artifacts: Mapping[str, Artifact], memory: bool) -> None:
        self.artifacts = artifacts
        with ExitStack() as processes:
            workers = {}
            for row in rows:
                with self.steps(f"checking {row.label} against the reference"):
                    if row.ok and (worker := self._guarded(row, self._prepare, row, processes)):
                        workers[row.label] = worker
            if self.place.timed:
                self._measure({row.label: row for row in rows if row.label in workers}, workers)
            if self.meter:
                self._watch_energy(rows, workers, self.meter)
        for row in rows if not self.place.timed else ():
            with self.steps(f"counting the instructions of {row.label}"):
                if row.ok:
                    self._guarded(row, self._count, row)
        for row in rows if memory else ():
            with self.steps(f"memory of {row.label}"):
                if row.ok:
                    self._guarded(row, self._watch_memory, row)
        for row in rows:
            row.footprint = self.footprints.get(row.engine)
            if self.place.timed:
                row.cold_start = _median_start(self.starts.get(row.label, ()))

    def _guarded(self, row: Row, work: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return work(*arguments)
        except DeployLabError as error:
            error = self.place.explain(error)
            row.fail(_status(error), str(error))
            return None

    def _prepare(self, row: Row, processes: ExitStack) -> Worker | None:
        """A worker that passed parity, warm; None, and the row says why, if it did not."""
        worker = processes.enter_context(self._start(row))
        try:
            start = self._load(row, worker)
            outputs, first_s = worker.run(self._stacked(self.what.samples), self.effort.timeout_s)
            self.starts[row.label] = [replace(start, first=first_s)]
            self._weigh(row, worker)
            row.verdict = self._judge(row, worker, outputs)
            if not row.verdict.ok:
                row.fail("parity", row.verdict.text)
                worker.close()
                return None
            worker.run(self._stacked(self.what.samples[:1]), self.effort.timeout_s)  # the input that is timed
            if self.place.timed and not worker.request("warm_up", self.effort.timeout_s)["stable"]:
                row.notes.append("the warm-up ended before the latency had settled")
            return worker
        except DeployLabError:
            worker.kill()
            raise

    def _start(self, row: Row) -> Worker:
        command = self.place.command(row.engine, row.threads)
        return Worker(row.engine, threads=row.threads, command=command, start_timeout_s=self.effort.timeout_s)

    def _load(self, row: Row, worker: Worker, after_import: Callable[[], None] = lambda: None) -> ColdStart:
        modules = list(registry.get(row.engine).modules)
        imports = worker.request("import", self.effort.timeout_s, modules=modules)["seconds"]
        after_import()
        path = self.place.locate(self.artifacts[row.variant])
        loaded = worker.request("load", self.effort.timeout_s, engine=row.engine, artifact=path, threads=row.threads)
        row.facts = loaded["facts"]
        row.notes += [note for note in _surprises(row) if note not in row.notes]
        return ColdStart(worker.start_s, imports, loaded["seconds"], 0.0, 1)

    def _weigh(self, row: Row, worker: Worker) -> None:
        """What a board must carry for this engine, measured once, where the engine has just run."""
        if row.engine in self.footprints:
            return
        try:
            told = worker.request("footprint", self.effort.timeout_s, engine=row.engine)
        except WorkerDied:
            raise
        except WorkerError as error:
            row.notes.append(f"its size is not known: {error}")
        else:
            self.footprints[row.engine] = Footprint(told["own"], told["dependencies"], told["in_use"])

    def _judge(self, row: Row, worker: Worker, outputs: Sequence[np.ndarray]) -> Verdict:
        joined = tuple(np.concatenate([np.atleast_1d(sample) for sample in output]) for output in outputs)
        exact = self.what.reference.outputs
        if row.precision == "fp32":
            verdict = parity.compare_outputs(exact, joined, self.what.reference.tolerance)
        else:
            verdict = parity.compare_outputs(exact, joined, reduced_tolerance(self.what.reference, row.precision))
        if self.what.test is None:
            judged = "" if row.precision == "fp32" else "; accuracy not judged, there is no labelled data"
            return replace(verdict, text=verdict.text + judged)
        if not np.isfinite(verdict.error):
            return verdict
        row.accuracy = self._accuracy(row, worker)
        if row.accuracy is None:
            return replace(verdict, text=f"{verdict.text}; accuracy not judged, the engine is too slow for it")
        enough = LEAST_ACCURACY * self.what.test.accuracy
        if row.accuracy < enough:
            lost = f"accuracy {row.accuracy:.2%}, needed {enough:.2%} (99 % of float32's {self.what.test.accuracy:.2%})"
            return replace(verdict, ok=False, text=f"{verdict.text}; {lost}")
        return verdict

    def _accuracy(self, row: Row, worker: Worker) -> float | None:
        """Top-1 accuracy on the frozen test split, one picture at a time. The thread count does not change it.

        None, with a note, where that would take too long.
        """
        if row.variant in self.accuracies:
            return self.accuracies[row.variant]
        test, guesses = self.what.test, []
        for chunk in np.split(test.inputs, range(FIRST_CHUNK, len(test.inputs), CHUNK)):
            begin = time.perf_counter()
            logits = worker.run([chunk], self.effort.timeout_s)[0][0]
            guesses.append(logits.reshape(len(chunk), -1).argmax(1))
            call_s = (time.perf_counter() - begin) / len(chunk)
            left = len(test.labels) - sum(map(len, guesses))
            if call_s * left > LONGEST_ACCURACY_S:
                row.notes.append(f"accuracy left out: {left} more pictures at {call_s:.2g} s each would take too long")
                return None
        self.accuracies[row.variant] = float((np.concatenate(guesses) == test.labels).mean())
        return self.accuracies[row.variant]

    def _measure(self, rows: Mapping[str, Row], workers: Mapping[str, Worker]) -> None:
        samples: dict[str, list[float]] = {label: [] for label in rows}
        clocks: dict[str, list[tuple[float, float]]] = {label: [] for label in rows}
        for round_number in range(self.effort.rounds):
            with self.steps(f"measuring, round {round_number + 1} of {self.effort.rounds}"):
                for label, row in rows.items():
                    if sum(wall for _, wall in clocks[label]) >= self.effort.max_seconds:
                        continue  # so slow that it has had its time
                    if row.ok and (answer := self._guarded(row, self._round, workers[label])):
                        samples[label] += answer["samples"]
                        clocks[label].append((answer["cpu_seconds"], answer["wall_seconds"]))
                        row.round_p50.append(statistics.median(answer["samples"]))
        for label, row in rows.items():
            if row.ok or (row.status in PARTIAL and samples[label]):
                row.latency = Summary.of(samples[label])
                cpu, wall = map(sum, zip(*clocks[label], strict=True))
                row.cores_used = cpu / wall
                self._remark_on_rounds(row, len(clocks[label]))

    def _remark_on_rounds(self, row: Row, rounds: int) -> None:
        share = f"{rounds} of {self.effort.rounds} rounds"
        if row.status in PARTIAL:
            what = "the connection was lost" if row.status == LOST else "it was interrupted"
            row.notes.append(f"a part of the measurement: {what} after {share}")
        elif rounds < self.effort.rounds:
            row.notes.append(f"slow: {share} took all its time")

    def _watch_energy(self, rows: Sequence[Row], workers: Mapping[str, Worker], meter: Meter) -> None:
        """Power and heat of one row after the other. The latencies are done: reading sensors takes time itself."""
        with ExitStack() as running:
            try:
                running.enter_context(meter)
                idle_w, metered = idle_watts(meter, IDLE_S), True
            except DeployLabError as error:
                idle_w, metered = None, False
                self.notes.append(f"power and heat were not read: {self.place.explain(error)}")
            for row in rows:
                with self.steps(f"power and heat of {row.label}"):
                    if row.ok and metered:
                        self._meter_row(row, workers[row.label], meter, idle_w)
        for row in rows:
            if row.energy:
                row.energy = replace(row.energy, sampler_share=meter.own_share)

    def _meter_row(self, row: Row, worker: Worker, meter: Meter, idle_w: float | None) -> None:
        try:
            timeout_s = self.effort.timeout_s + ENERGY_S
            answer = worker.request("measure", timeout_s, samples=1, min_seconds=ENERGY_S)
        except DeployLabError as error:
            row.notes.append(f"its energy could not be measured: {self.place.explain(error)}")
            return
        begin, end = answer["begin"], answer["end"]
        row.energy = meter.track_until(end).energy(begin, end, len(answer["samples"]), idle_w)
        if meter.scope and row.energy.power_w is None:
            row.notes.append("its energy is not known: the power was not read often enough meanwhile")

    def _count(self, row: Row) -> None:
        row.instructions = self.place.count(self.artifacts[row.variant], self.what.samples[0])

    def _round(self, worker: Worker) -> dict[str, Any]:
        effort = self.effort
        return worker.request(
            "measure",
            effort.timeout_s + effort.max_seconds / effort.rounds,
            samples=-(-effort.samples // effort.rounds),
            min_seconds=effort.min_round_seconds,
            max_seconds=effort.max_seconds / effort.rounds,
        )

    def _watch_memory(self, row: Row) -> None:
        """Memory, and a second cold start, in a process in which nothing else has happened."""
        sizes: list[int] = []

        def look(**options: Any) -> dict[str, Any]:
            found = worker.request("memory", self.effort.timeout_s, **options)
            sizes.append(found["rss"] or 0)
            return found

        with self._start(row) as worker:
            look()
            start = self._load(row, worker, after_import=look)
            look(reset=True)
            _, first_s = worker.run(self._stacked(self.what.samples[:1]), self.effort.timeout_s)
            calls = MEMORY_CALLS if self.place.timed else MEMORY_CALLS_EMULATED
            worker.request("measure", self.effort.timeout_s, samples=calls, max_seconds=self.effort.max_seconds)
            peak = look()["peak"]
        self.starts[row.label].append(replace(start, first=first_s))
        row.memory = Memory(*sizes[:3], peak=peak)

    @staticmethod
    def _stacked(samples: Sequence[subject.Sample]) -> list[np.ndarray]:
        return [np.stack(column) for column in zip(*samples, strict=True)]


def reduced_tolerance(reference: parity.Reference, precision: str) -> parity.Tolerance:
    """What a reduced precision may be off: the float32 tolerance, scaled by how much coarser its rounding is."""
    scale = STEPS.get(precision, STEPS["bf16"]) / STEPS["fp32"]
    value = min(LARGEST_TOLERANCE, reference.tolerance.value * scale)
    return parity.Tolerance(value, f"the float32 tolerance times {scale:g}, the ratio of {precision}'s rounding step")


def _surprises(row: Row) -> list[str]:
    """What the engine's own facts say it does otherwise than asked."""
    threads, affinity = row.facts.get("threads"), row.facts.get("affinity", "unchanged")
    found = []
    if isinstance(threads, int) and threads != row.threads:
        found.append(f"asked for {row.threads} thread(s), it runs {threads}")
    if affinity != "unchanged":
        found.append(f"loading it changed the cores this process may use: {affinity}")
    if row.facts.get("note"):
        found.append(row.facts["note"])
    return found


def _median_start(starts: Sequence[ColdStart]) -> ColdStart | None:
    if not starts:
        return None
    parts = {
        name: statistics.median(getattr(start, name) for start in starts)
        for name in ("process", "imports", "load", "first")
    }
    return ColdStart(**parts, n=len(starts))


def _set_ratios(rows: Sequence[Row]) -> dict[int, str]:
    """Set every measured row's ratio to the baseline of its thread count: eager, else onnxruntime, else the first."""
    baselines: dict[int, str] = {}
    for threads in dict.fromkeys(row.threads for row in rows):
        measured = [row for row in rows if row.threads == threads and row.latency]
        if not measured:
            continue
        base = min(measured, key=lambda row: (row.precision != "fp32", _BASELINES.get(row.engine, len(_BASELINES))))
        baselines[threads] = base.label
        for row in measured:
            # A slow engine takes part in the first rounds only.
            quotients = [b / own for b, own in zip(base.round_p50, row.round_p50, strict=False)]
            row.ratio = Ratio(statistics.median(quotients), min(quotients), max(quotients))
    return baselines


def _busy_before(place: Place) -> list[str]:
    cores, load = place.cores(), place.load()
    if load is None or load <= 0.5 * cores:
        return []
    return [f"the machine was busy before this began (load {load:.1f} on {cores} cores): trust ratios more than times"]


def _busy_during(rows: Sequence[Row]) -> list[str]:
    measured = [row for row in rows if row.latency]
    if not measured:
        return []
    moved = statistics.median(max(row.round_p50) / min(row.round_p50) for row in measured) - 1
    share = min((row.cores_used for row in measured if row.threads == 1), default=1.0)
    notes = []
    if share < 0.9:
        notes.append(f"a single-threaded engine got only {share:.0%} of a core: other work disturbed the measurement")
    if moved > 0.25:
        notes.append(f"the median latency moved by {moved:.0%} between rounds; trust ratios more than times")
    return notes
