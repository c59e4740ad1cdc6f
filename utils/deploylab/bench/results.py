"""What a comparison found: one :class:`Row` for each engine, thread count and precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from deploylab.bench.energy import Energy
from deploylab.bench.latency import Summary
from deploylab.engines.footprint import Footprint
from deploylab.errors import InputError
from deploylab.parity import Tolerance, Verdict

MIB = 1 << 20
LOST, INTERRUPTED = "lost", "interrupted"
"""The status of a row whose board was lost, or on which the user ended the work."""
PARTIAL = (LOST, INTERRUPTED)
"""Rows of this status keep what was measured before."""


@dataclass(frozen=True)
class ColdStart:
    """Seconds from nothing to the first answer, each part the median of ``n`` fresh processes.

    With two processes that is the middle between them. An engine that compiles at its first load and caches the code
    is slower in the first one, so its figure lies between a first start and a restart.
    """

    process: float
    imports: float
    load: float
    first: float
    n: int

    @property
    def total(self) -> float:
        return self.process + self.imports + self.load + self.first


@dataclass(frozen=True)
class Memory:
    """Resident memory of a fresh process in bytes: bare Python, engine imported, model loaded, peak of inference."""

    python: int
    imported: int
    loaded: int
    peak: int | None


@dataclass(frozen=True)
class Instructions:
    """Machine instructions of one inference in one thread, by kind; ``all`` is every one.

    ``engine`` are those in the engine's own libraries: arithmetic the same in every run, the total to a few in a
    million. ``call`` are those of the whole call from Python. ``multiply_adds`` is how many multiply-accumulates the
    lanes of the engine's instructions do.
    """

    engine: Mapping[str, int]
    call: Mapping[str, int]
    multiply_adds: int


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the baseline: the median over the rounds, the slowest and the fastest round."""

    median: float
    low: float
    high: float


@dataclass
class Row:
    """One engine with one thread count and precision. What could not be measured is None; ``reason`` says why.

    ``status`` is ``ok``, ``parity`` (the output is wrong, so nothing was timed), ``failed`` (it said why),
    ``crashed`` (its process ended or hung), ``lost`` (the connection to the board broke) or ``interrupted`` (the user
    ended it; with both, what was measured before is kept), or ``unavailable``. ``bytes`` is the size of the artifact;
    ``footprint`` what a board must carry besides. ``cores_used`` is processor time divided by wall time during the
    timed calls. ``round_p50`` holds the median latency of every round in milliseconds. ``options`` are those of the
    conversion.
    """

    engine: str
    threads: int
    precision: str
    status: str = "ok"
    reason: str = ""
    verdict: Verdict | None = None
    accuracy: float | None = None
    artifact: str = ""
    engine_version: str = ""
    bytes: int | None = None
    convert_seconds: float | None = None
    cold_start: ColdStart | None = None
    latency: Summary | None = None
    ratio: Ratio | None = None
    memory: Memory | None = None
    footprint: Footprint | None = None
    instructions: Instructions | None = None
    energy: Energy | None = None
    cores_used: float | None = None
    round_p50: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def label(self) -> str:
        """``onnxruntime``, and what else distinguishes it: ``onnxruntime, 2 threads, fp16``."""
        threads = f", {self.threads} threads" if self.threads > 1 else ""
        return self.engine + threads + self.variant.removeprefix(self.engine)

    @property
    def variant(self) -> str:
        """What was converted: the engine, and precision and options where they are not the usual: ``ncnn, fp16``."""
        precision = [] if self.precision == "fp32" else [self.precision]
        return ", ".join([self.engine, *precision, *(f"{key}={value}" for key, value in self.options.items())])

    def fail(self, status: str, reason: str) -> None:
        """Note a failure. A row that failed shows no latency, unless it was not the engine that failed."""
        self.status, self.reason = status, reason
        if status not in PARTIAL:
            self.latency = self.ratio = None


@dataclass
class Comparison:
    """All rows, and what one must know to believe them. Times in milliseconds unless a name says seconds.

    ``place`` names where the engines ran if that was not this machine. Where times mean nothing (an emulated board),
    ``timed`` is False and no row has any.
    """

    model: str
    source_hash: str
    rows: list[Row]
    baselines: dict[int, str]  # threads -> label of the row that ratios refer to
    reference: str
    tolerance: Tolerance
    inputs: str
    input_shapes: list[str]
    reference_accuracy: float | None
    machine: dict[str, Any]
    date: str
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    ledger_error: str = ""
    place: str = ""
    timed: bool = True

    def row(self, engine: str, threads: int | None = None, precision: str | None = None) -> Row:
        """The first row of this engine. Raises :class:`InputError` naming the rows there are."""
        for row in self.rows:
            if row.engine == engine and threads in (None, row.threads) and precision in (None, row.precision):
                return row
        raise InputError(f"no row for {engine!r}; there are: {', '.join(row.label for row in self.rows)}")

    @property
    def measured(self) -> list[Row]:
        """The rows that passed parity and have a latency."""
        return [row for row in self.rows if row.latency is not None]

    @property
    def passed(self) -> list[Row]:
        """The rows that ran, with the right output."""
        return [row for row in self.rows if row.ok]

    @property
    def baseline_text(self) -> str:
        """The engine, or engines, that ratios refer to."""
        names = dict.fromkeys(label.split(",")[0] for label in self.baselines.values())
        return " / ".join(names) if names else "none"

    def failures(self, *statuses: str) -> list[Row]:
        """Rows that ended with one of these statuses, by default with any failure."""
        return [row for row in self.rows if not row.ok and (not statuses or row.status in statuses)]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return asdict(self)

    def ledger_rows(self) -> Iterable[dict[str, Any]]:
        """One self-contained dictionary a row, for the ledger."""
        shared = {
            "date": self.date,
            "model": self.model,
            "source_hash": self.source_hash,
            "baselines": self.baselines,
            "reference": self.reference,
            "tolerance": asdict(self.tolerance),
            "inputs": self.inputs,
            "machine": self.machine,
            "place": self.place,
        }
        for row in self.rows:
            yield {**shared, **asdict(row)}
