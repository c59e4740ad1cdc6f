"""Which operator patterns each engine converts, runs and gets right: the conversion-coverage table.

Every pattern of :mod:`deploylab.models.patterns` is converted, loaded, run and compared with float64 in a worker
process of its engine. A crash or a hang is a result like any other: the next pattern gets a new worker.
"""

from __future__ import annotations

import platform
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from deploylab import engines as registry
from deploylab import machine, parity
from deploylab.bench import client
from deploylab.bench.client import Worker
from deploylab.bench.progress import Progress, Steps
from deploylab.errors import DeployLabError, InputError, WorkerDied

OUTCOMES = ("works", "differs", "unsupported", "crashes", "hangs")
"""From best to worst."""
SAMPLES = 2
MUCH_WORSE = 10.0
LONGEST_REASON = 200


@dataclass(frozen=True)
class Cell:
    """What became of one pattern in one engine. ``error`` is relative to the largest output, None where none is known.

    ``reason`` says what the engine or the parity check said, for all that does not work.
    """

    engine: str
    pattern: str
    outcome: str
    error: float | None = None
    reason: str = ""

    @property
    def text(self) -> str:
        """``works``, ``differs by 3e-03``, ``unsupported``, ``crashes`` or ``hangs``."""
        return f"differs by {self.error:.0e}" if self.outcome == "differs" and self.error is not None else self.outcome

    def worse_than(self, other: Cell) -> bool:
        """Whether this is a worse outcome, or a difference that is more than ten times as large."""
        if self.outcome != other.outcome:
            return OUTCOMES.index(self.outcome) > OUTCOMES.index(other.outcome)
        return bool(self.error and other.error and self.outcome == "differs" and self.error > MUCH_WORSE * other.error)


@dataclass
class Coverage:
    """The cells, the versions of the engines that were tried, and why the others were not."""

    cells: list[Cell] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def totals(self) -> dict[str, dict[str, int]]:
        """How many cells of every outcome, by engine."""
        counts = {name: Counter(cell.outcome for cell in self.cells if cell.engine == name) for name in self.versions}
        return {name: {outcome: count[outcome] for outcome in OUTCOMES} for name, count in counts.items()}


def measure(
    engines: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    *,
    out_dir: Path,
    jobs: int | None = None,
    timeout_s: float = 300.0,
    progress: Progress | None = None,
) -> Coverage:
    """Try the patterns called ``names`` (all by default) in ``engines`` (all that are installed by default).

    ``jobs`` engines are tried at a time, by default one a usable core. A cell whose worker does not answer a request
    within ``timeout_s`` seconds hangs. ``progress(done, total, what)`` hears of every cell. Raises
    :class:`DeployLabError` for an unknown engine or pattern.
    """
    from deploylab.models import patterns

    chosen = [patterns.get(name) for name in names or patterns.names()]
    found = Coverage()
    for engine in map(registry.get, engines or registry.names()):
        state = engine.available()
        if state.ok:
            found.versions[engine.name] = state.version
        else:
            found.left_out[engine.name] = state.reason
    steps = Steps(progress, len(found.versions) * len(chosen))

    def chain(members: Sequence[str]) -> list[Cell]:
        return [cell for name in members for cell in _try_engine(name, chosen, out_dir, timeout_s, steps)]

    with ThreadPoolExecutor(jobs or max(1, machine.usable_cores())) as pool:
        for cells in pool.map(chain, _chains(found.versions)):
            found.cells += cells
    return found


def _chains(names: Iterable[str]) -> list[list[str]]:
    """Engines that may be tried at the same time. Those that read ONNX share its export, so one follows the other."""
    alone, sharing = [], []
    for name in names:
        if "onnx" in registry.get(name).accepts:
            sharing.append(name)
        else:
            alone.append([name])
    return [*([sharing] if sharing else []), *alone]


def _try_engine(name: str, chosen: Sequence[Any], out_dir: Path, timeout_s: float, steps: Steps) -> list[Cell]:
    cells = []
    trial = _Trial(name, out_dir.resolve(), timeout_s)
    try:
        for pattern in chosen:
            with steps(f"{name}: {pattern.title}"):
                cells.append(trial(pattern))
    finally:
        trial.close()
    return cells


class _Trial:
    """Tries patterns in one engine, in one worker for as long as that lives."""

    def __init__(self, engine: str, out_dir: Path, timeout_s: float) -> None:
        self.engine, self.out_dir, self.timeout_s = engine, out_dir, timeout_s
        self.worker: Worker | None = None

    def __call__(self, pattern: Any) -> Cell:
        try:
            return self._tried(pattern)
        except WorkerDied as error:
            self.close()
            return self._cell(pattern, "hangs" if error.hung else "crashes", reason=str(error))
        except DeployLabError as error:
            return self._cell(pattern, "unsupported", reason=str(error))

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def _tried(self, pattern: Any) -> Cell:
        if self.worker is None:
            self.worker = Worker(self.engine, command=client.COMMAND, start_timeout_s=self.timeout_s)
        worker, source = self.worker, {"pattern": pattern.name}
        folder = worker.convert(self.engine, source, pattern.sample(), self.out_dir, "fp32", {}, self.timeout_s)
        loaded = worker.request("load", self.timeout_s, engine=self.engine, artifact=str(folder), threads=1)
        fixed = [spec for spec in loaded["inputs"] if spec["shape"][:1] != [None]]
        if pattern.batches and fixed:
            return self._cell(pattern, "unsupported", reason=f"takes a batch of {fixed[0]['shape'][0]} only")
        worst = None
        for group in _groups(pattern):
            outputs, _ = worker.run([np.stack(column) for column in zip(*group, strict=True)], self.timeout_s)
            joined = tuple(np.concatenate(list(output)) for output in outputs)
            exact = _reference(pattern.name, len(group[0][0]))
            verdict = parity.compare_outputs(exact.outputs, joined, exact.tolerance)
            if worst is None or (not verdict.ok, verdict.error) > (not worst.ok, worst.error):
                worst = verdict
        if worst.ok:
            return self._cell(pattern, "works", worst.error)
        return self._cell(pattern, "differs", worst.error if np.isfinite(worst.error) else None, worst.text)

    def _cell(self, pattern: Any, outcome: str, error: float | None = None, reason: str = "") -> Cell:
        return Cell(self.engine, pattern.name, outcome, error, short(reason, self.engine))


def _groups(pattern: Any) -> list[list[tuple[np.ndarray, ...]]]:
    """Samples of one batch size each."""
    usual = len(pattern.sample()[0])
    return [[pattern.sample(seed, size) for seed in range(1, 1 + SAMPLES)] for size in (usual, *pattern.batches)]


_ONE_AT_A_TIME = Lock()


def _reference(name: str, batch: int) -> parity.Reference:
    with _ONE_AT_A_TIME:  # several engines ask for the same, and torch's thread count is set meanwhile
        return _computed_reference(name, batch)


@cache
def _computed_reference(name: str, batch: int) -> parity.Reference:
    from deploylab.models import patterns

    pattern = patterns.get(name)
    group = next(group for group in _groups(pattern) if len(group[0][0]) == batch)
    return parity.module_reference(pattern.module(), group)


def short(reason: str, engine: str = "") -> str:
    """A reason in one line, without the folders of this machine."""
    text = re.sub(r"(?:[A-Za-z]:)?(?:[/\\][\w.+@-]+)+[/\\]", "", " ".join(reason.split()))
    text = text.removeprefix(f"{engine}: ").replace("|", "/")
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON].rsplit(" ", 1)[0] + " ..."


def to_markdown(coverage: Coverage) -> str:
    """The table as a page: patterns by engines, totals, and the reasons by number. :func:`from_markdown` reads it."""
    from deploylab.models import patterns

    by_place = {(cell.pattern, cell.engine): cell for cell in coverage.cells}
    tried = [name for name in patterns.names() if any(place[0] == name for place in by_place)]
    reasons: dict[str, int] = {}
    lines = [f"| pattern | {' | '.join(coverage.versions)} |", "|---" * (1 + len(coverage.versions)) + "|"]
    for name in tried:
        cells = [_numbered(by_place[name, engine], reasons) for engine in coverage.versions]
        lines.append(f"| `{name}` {patterns.get(name).title} | {' | '.join(cells)} |")
    for outcome in OUTCOMES:
        counts = [str(count[outcome]) for count in coverage.totals().values()]
        lines.append(f"| **{outcome}** | {' | '.join(counts)} |")
    versions = ", ".join(f"{name} {version}" for name, version in coverage.versions.items())
    left_out = [f"- {name} was not tried: {reason}" for name, reason in coverage.left_out.items()]
    notes = [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join([*_HEAD, *lines, "", *notes, "", *left_out, f"- {versions}", f"- {_where()}", ""])


_HEAD = (
    "# Conversion coverage",
    "",
    "Which operator patterns each engine converts, runs and gets right in float32, from the same torch modules",
    "(`utils/deploylab/models/patterns.py`). Made by `deploylab coverage --markdown docs/coverage.md`; a test fails if",
    "a cell gets worse.",
    "",
    "- **works**: converted, and the output is within the tolerance that torch's own float32 error allows.",
    "- **differs by**: it runs, and its largest error is this part of the largest output.",
    "- **unsupported**: it says no, at conversion, loading or running; the number leads to its words below the table.",
    "",
)


def _numbered(cell: Cell, reasons: dict[str, int]) -> str:
    if not cell.reason:
        return cell.text
    return f"{cell.text} ({reasons.setdefault(cell.reason, len(reasons) + 1)})"


def _where() -> str:
    return f"{platform.system()}, {machine.architecture()}, Python {platform.python_version()}"


def from_markdown(text: str) -> dict[tuple[str, str], Cell]:
    """The cells of a page made by :func:`to_markdown`, by engine and pattern. Raises :class:`InputError`."""
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    if not rows or rows[0][0] != "pattern":
        raise InputError("no coverage table: expected a row that begins with `| pattern |`")
    cells = {}
    for title, *parts in rows:
        name = re.match(r"`(\w+)`", title)
        if name is None:
            continue
        for engine, part in zip(rows[0][1:], parts, strict=True):
            cells[engine, name[1]] = _parsed(engine, name[1], part)
    return cells


def _parsed(engine: str, pattern: str, text: str) -> Cell:
    found = re.fullmatch(rf"({'|'.join(OUTCOMES)})(?: by (\S+))?(?: \(\d+\))?", text)
    if found is None:
        raise InputError(f"{engine}, {pattern}: no outcome of the coverage table: {text!r}")
    return Cell(engine, pattern, found[1], float(found[2]) if found[2] else None)
