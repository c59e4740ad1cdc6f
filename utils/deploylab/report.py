"""Show a comparison: table in a terminal, page for a browser, figures for labs and README."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from deploylab.bench.latency import samples_needed
from deploylab.bench.results import MIB, Comparison, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table

    from deploylab.bench.energy import Energy

NOTHING = "-"
GAP = 2
STYLE = "deploylab.figures"


@dataclass(frozen=True)
class Column:
    """A column of the comparison table and how it is filled."""

    title: str
    text: Callable[[Row], str]
    right: bool = True


def columns(comparison: Comparison) -> list[Column]:
    """What the table shows beside the engine's name."""
    timed = [
        Column("p50 ms", lambda row: number(row.latency and row.latency.p50)),
        Column("p90 ms", lambda row: number(row.latency and row.latency.p90)),
        Column("p99 ms", lambda row: number(row.latency and row.latency.p99)),
        Column("n", lambda row: str(row.latency.n) if row.latency else NOTHING),
        Column(f"vs {comparison.baseline_text}", partial(_ratio_text, comparison)),
    ]
    counted = [
        Column("instructions", lambda row: millions(row.instructions and row.instructions.engine["all"])),
        Column("from Python", lambda row: millions(row.instructions and row.instructions.call["all"])),
        Column("loads, stores", lambda row: millions(row.instructions and row.instructions.engine["memory"])),
        Column("multiply-adds", lambda row: millions(row.instructions and row.instructions.multiply_adds)),
    ]
    shown = [
        *(timed if comparison.timed else counted if _counted(comparison) else []),
        *(_energy_columns() if _metered(comparison) else []),
        Column("error", lambda row: f"{row.verdict.error:.0e}" if row.verdict else NOTHING),
        Column("accuracy", lambda row: NOTHING if row.accuracy is None else f"{row.accuracy:.2%}"),
        Column("cold start", lambda row: f"{row.cold_start.total:.2f} s" if row.cold_start else NOTHING),
        Column("model", lambda row: size(row.bytes)),
        Column("runtime", lambda row: size(row.footprint and row.footprint.bytes)),
        Column("memory", lambda row: size(row.memory.peak or row.memory.loaded) if row.memory else NOTHING),
        Column("what ran", really_ran, right=False),
    ]
    without = {"accuracy"} if comparison.reference_accuracy is None else set()
    if not any(energy.power_w is not None for energy in _metered(comparison)):
        without |= {"power", "energy", "above idle"}
    without |= set() if comparison.timed else {"cold start"}
    return [column for column in shown if column.title not in without]


def _energy_columns() -> list[Column]:
    return [
        Column("power", lambda row: f"{number(row.energy.power_w)} W" if _has(row, "power_w") else NOTHING),
        Column("energy", lambda row: f"{number(row.energy.mj)} mJ" if _has(row, "mj") else NOTHING),
        Column("above idle", lambda row: _signed_mj(row) if _has(row, "mj_above_idle") else NOTHING),
        Column("heat", lambda row: f"{row.energy.celsius:.0f} °C" if _has(row, "celsius") else NOTHING),
    ]


def _has(row: Row, what: str) -> bool:
    return row.energy is not None and getattr(row.energy, what) is not None


def _signed_mj(row: Row) -> str:
    """Noise can make it negative where the engine takes next to nothing."""
    value = row.energy.mj_above_idle
    return f"{'-' if value < 0 else ''}{number(abs(value))} mJ"


def _metered(comparison: Comparison) -> list[Energy]:
    """What the rows whose energy or heat is known tell of it."""
    return [row.energy for row in comparison.rows if row.energy]


def _counted(comparison: Comparison) -> bool:
    """Whether instructions were counted; on an emulated board over SSH they are not."""
    return any(row.instructions for row in comparison.rows)


_WHOSE_CODE = ("provider", "backend", "kernels", "delegate", "schedule", "cpu_capability")


def really_ran(row: Row) -> str:
    """Threads, precision and provider as the engine reports them, and how many cores it kept busy."""
    if not row.facts:
        return NOTHING
    threads, facts = row.facts.get("threads", row.threads), row.facts
    parts = [f"{threads} thread{'s' if threads != 1 else ''}", str(facts.get("precision", row.precision))]
    parts += [str(facts[key]).partition(":")[0] for key in _WHOSE_CODE if key in facts][:1]
    if row.cores_used is not None:
        parts.append(f"{row.cores_used:.1f} cores")
    return ", ".join(parts)


def number(value: float | None) -> str:
    """Three significant digits, ``-`` for None."""
    if value is None:
        return NOTHING
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value < 0.1 else f"{value:.{2 - (value >= 10)}f}"


def millions(count: int | None) -> str:
    """A count in millions, to the last thousand."""
    return NOTHING if count is None else f"{count / 1e6:.3f} M"


def size(count: int | None) -> str:
    """Bytes as MiB."""
    return NOTHING if count is None else f"{count / MIB:.{1 if count < 100 * MIB else 0}f} MiB"


CARRIED = ("model", "runtime", "in use", "the engine's own packages", "third-party packages that these require")


def weighed(comparison: Comparison) -> list[tuple[str, ...]]:
    """For every variant that ran: its name and the fields of :data:`CARRIED`."""
    rows = {row.variant: row for row in reversed(comparison.rows) if row.footprint}
    return [(name, *_carried(row)) for name, row in reversed(rows.items())]


def _carried(row: Row) -> tuple[str, ...]:
    found = row.footprint
    own = ", ".join(f"{name} {size(count)}" for name, count in found.own.items())
    return size(row.bytes), size(found.bytes), size(found.in_use), own, _listed(found.dependencies)


def _listed(sizes: Mapping[str, int], most: int = 4) -> str:
    """The number of packages, and the largest of them by name."""
    if not sizes:
        return "none"
    largest = sorted(sizes, key=lambda name: -sizes[name])[:most]
    more = len(sizes) - len(largest)
    return f"{len(sizes)}: {', '.join(largest)}" + (f" and {more} more" if more else "")


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print the table, what the figures mean, and why engines failed. A narrow terminal gets several tables."""
    from rich.console import Console

    console = console or Console()
    title = heading(comparison)
    for shown in _packed(comparison, console.width):
        console.print(_table(comparison, title, shown))
        title = ""
    if carried := weighed(comparison):
        console.print(_table_of(("engine", *CARRIED), carried, f"{comparison.model}: what a board must carry"))
    for line in explanations(comparison):
        console.print(line, markup=False, highlight=False, style="dim")
    for row in comparison.failures():
        console.print(f"{row.label}: {failure_text(row)}", markup=False, highlight=False, style="red")
    for note in all_notes(comparison):
        console.print(f"note: {note}", markup=False, highlight=False, style="yellow")


def print_side_by_side(comparisons: Sequence[Comparison], console: Console | None = None) -> None:
    """Print one table of several boards: the median latency of every row, instructions where there is no time."""
    from rich.console import Console

    console = console or Console()
    labels = dict.fromkeys(row.label for comparison in comparisons for row in comparison.rows)
    cells = [(label, *(_cell(comparison, label) for comparison in comparisons)) for label in labels]
    names = ("engine", *(comparison.place or "this machine" for comparison in comparisons))
    console.print(_table_of(names, cells, f"{comparisons[0].model}: p50 in ms, or instructions of an emulated board"))


def _cell(comparison: Comparison, label: str) -> str:
    row = next((row for row in comparison.rows if row.label == label), None)
    if row is None:
        return NOTHING
    shown = number(row.latency.p50) if row.latency else millions(row.instructions and row.instructions.engine["all"])
    return shown if row.ok else f"{shown} ({_short_failure(row)})"


def heading(comparison: Comparison) -> str:
    """What the table is about."""
    counted = "parity, memory and instructions" if _counted(comparison) else "parity and memory"
    about = "latency after parity" if comparison.timed else f"{counted}; no board time"
    return f"{comparison.model}{f' on {comparison.place}' if comparison.place else ''}: {about}"


def _packed(comparison: Comparison, width: int) -> list[list[Column]]:
    """The columns in groups that fit into ``width`` characters beside the engine's name."""
    name = max((len(row.label) for row in comparison.rows), default=0)
    groups: list[list[Column]] = [[]]
    used = name
    for column in columns(comparison):
        needed = GAP + max([len(column.title), *(len(column.text(row)) for row in comparison.rows)])
        if groups[-1] and used + needed > width:
            groups.append([])
            used = name
        groups[-1].append(column)
        used += needed
    return groups


def failure_text(row: Row) -> str:
    """Why a row has no latency."""
    lead = {"parity": "wrong output, not timed", "unavailable": "not available here"}.get(row.status, row.status)
    return f"{lead}: {row.reason}"


def explanations(comparison: Comparison) -> list[str]:
    """How to read the figures: reference, tolerance and its reason, inputs, withheld percentiles, machine."""
    machine = comparison.machine
    done = "timed" if comparison.timed else "counted, in one thread" if _counted(comparison) else "tried"
    lines = [
        f"error: largest difference from {comparison.reference}, as a part of the largest output; "
        f"tolerance {comparison.tolerance.value:.1e} ({comparison.tolerance.reason})",
        f"inputs: {comparison.inputs}; {done}: batch {', '.join(comparison.input_shapes)}",
    ]
    if not comparison.timed:
        lines.append(f"{comparison.place}: emulated, so there is no time in this table; memory includes the emulator's")
    if _counted(comparison):
        lines.append(
            "instructions: in the engine's own libraries, the same in every run until the installation changes, then "
            "to a few in 100,000; from Python: of the whole call. They are not a time: caches, memory and instructions "
            "that run side by side are not in them"
        )
    if comparison.reference_accuracy is not None:
        lines.append(
            f"accuracy: top-1 on the frozen test split; torch in float32 has {comparison.reference_accuracy:.2%}"
        )
    if any(row.precision != "fp32" for row in comparison.rows):
        judged = (
            "and accuracy must be at least 99 % of float32's" if comparison.reference_accuracy else "not by accuracy"
        )
        lines.append(f"reduced precision: judged by the tolerance times how much coarser it rounds, {judged}")
    if comparison.measured:
        lines.append(
            f"vs {comparison.baseline_text}: how many times as fast at the same thread count, "
            "median of the rounds (lowest to highest)"
        )
        lines.append(
            "runtime: the engine's installed packages for Python and what they require; in use: of these, the modules "
            f"and libraries that the process had loaded. Both as packaged for {machine.get('architecture')}: a build "
            "from source for one board can be much smaller"
        )
        lines.append("cold start: process, import, load and first inference; memory: peak of a process of its own")
    lines += _about_energy(_metered(comparison))
    if any(row.latency.p99 is None for row in comparison.measured):
        lines.append(f"no p90 or p99: too few samples (p90 needs {samples_needed(90)}, p99 {samples_needed(99)})")
    features = ", ".join(machine.get("features", [])) or "unknown"
    cores = machine.get("usable_cores")
    lines.append(f"machine: {machine.get('board') or machine.get('cpu')}, {cores} usable core(s), {features}")
    if told := readings(machine.get("sensors", {})):
        lines.append(f"board, before and after: {told}")
    return lines


def _about_energy(rows: Sequence[Energy]) -> list[str]:
    powered = [row for row in rows if row.power_w is not None]
    lines = []
    if powered:
        idle = powered[0].idle_w
        lines.append(
            f"power: mean of {powered[0].scope}, while the engine ran alone for {powered[0].seconds:.0f} s after the "
            "latencies were measured; energy: of one inference, with all that the board takes; above idle: without the "
            f"{number(idle)} W that it took before"
        )
    if rows and rows[0].sampler_share is not None:
        lines.append(
            f"the sensors were read {rows[0].readings} times a row, which took {rows[0].sampler_share:.1%} of a core"
        )
    if any(row.celsius is not None for row in rows):
        lines.append("heat: the highest temperature meanwhile; engines further down found the board warmer")
    held_back = sorted({reason for row in rows for reason in row.held_back})
    if held_back:
        lines.append(f"the board was held back while power and heat were read: {', '.join(held_back)}")
    return lines


def readings(sensors: Mapping[str, Mapping[str, Any]]) -> str:
    """What a board's sensors said before and after, in a line: ``governor ondemand; cpu 41.2 -> 63.0 °C``."""
    before, after = sensors.get("before", {}), sensors.get("after", {})
    parts = [
        f"{what} {before[key]}"
        for key, what in (("governor", "governor"), ("power_mode", "power mode"))
        if key in before
    ]
    for name, celsius in before.get("celsius", {}).items():
        later = after.get("celsius", {}).get(name)
        parts.append(f"{name} {celsius:.1f}" + (f" -> {later:.1f} °C" if later is not None else " °C"))
    for when, state in (("before", before), ("after", after)):
        if held_back := state.get("throttling", {}).get("now"):
            parts.append(f"{when}: {', '.join(held_back)}")
    return "; ".join(parts)


def all_notes(comparison: Comparison) -> list[str]:
    """Notes on the whole comparison, then on single rows."""
    return [*comparison.notes, *(f"{row.label}: {note}" for row in comparison.rows for note in row.notes)]


def _ratio_text(comparison: Comparison, row: Row) -> str:
    if row.ratio is None:
        return NOTHING
    if row.label in comparison.baselines.values():
        return "baseline"
    return f"{row.ratio.median:.2f}x ({row.ratio.low:.2f}-{row.ratio.high:.2f})"


def _table(comparison: Comparison, title: str, shown: Sequence[Column]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.pad_edge, table.padding = False, (0, 1, 0, 0)
    table.add_column("engine", no_wrap=True)
    for column in shown:
        table.add_column(column.title, justify="right" if column.right else "left", no_wrap=column.right)
    for row in comparison.rows:
        table.add_row(row.label, *(column.text(row) for column in shown), style=None if row.ok else "red")
    return table


def _table_of(titles: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> Table:
    """A table of text, wide columns folded."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    table.padding = (0, 1, 0, 0)
    for position, name in enumerate(titles):
        table.add_column(name, justify="right" if 0 < position < 4 else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def to_json(comparison: Comparison) -> str:
    """The whole comparison as JSON. What is not a number there (an infinite error) becomes null."""
    return json.dumps(_finite(comparison.to_dict()), indent=1, default=str, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value


def to_markdown(comparison: Comparison) -> str:
    """The tables, how to read them and the notes as a Markdown page."""
    shown = columns(comparison)
    rows = [(row.label, *(column.text(row) for column in shown)) for row in comparison.rows]
    listed = [f"{row.label}: {failure_text(row)}" for row in comparison.failures()]
    lines = [
        f"# {comparison.model}: every engine, checked before it is timed",
        "",
        f"{comparison.date}, measured by DeployLab in {comparison.seconds:.0f} s.",
        "",
        *_markdown_table(("engine", *(column.title for column in shown)), [False, *(c.right for c in shown)], rows),
        "",
    ]
    if carried := weighed(comparison):
        lines += ["## What a board must carry", ""]
        lines += [*_markdown_table(("engine", *CARRIED), [False, True, True, True, False, False], carried), ""]
    lines += ["## How to read it", ""]
    lines += [f"- {' '.join(line.split())}" for line in (*explanations(comparison), *listed, *all_notes(comparison))]
    return "\n".join([*lines, ""])


def _markdown_table(titles: Sequence[str], right: Sequence[bool], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [titles, ["---:" if number else "---" for number in right], *rows]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines]


def to_html(comparison: Comparison) -> str:
    """A page of its own: table, figure, how to read it, machine, versions. It loads nothing from anywhere."""
    failures = "".join(
        f"<li><b>{_text(row.label)}</b>: <pre>{_text(failure_text(row))}</pre></li>" for row in comparison.failures()
    )
    return _PAGE.format(
        title=_text(f"{comparison.model}, {len(comparison.passed)} engines"),
        model=_text(comparison.model),
        date=_text(comparison.date),
        table=_html_table(comparison, columns(comparison)),
        carried=_html_rows(("engine", *CARRIED), weighed(comparison)),
        figure=figure_svg(plot(comparison)) if comparison.passed else "",
        failures=f"<h2>Without a latency</h2><ul>{failures}</ul>" if failures else "",
        reading="".join(f"<li>{_text(line)}</li>" for line in explanations(comparison)),
        notes="".join(f"<li class=note>{_text(note)}</li>" for note in all_notes(comparison)),
        facts="".join(_facts_row(row) for row in comparison.rows if row.facts),
        machine=_text(json.dumps(comparison.machine, indent=1)),
    )


def _html_table(comparison: Comparison, shown: Sequence[Column]) -> str:
    head = "".join(f"<th{_align(column)}>{_text(column.title)}</th>" for column in shown)
    body = ""
    for row in comparison.rows:
        cells = "".join(f"<td{_align(column)}>{_text(column.text(row))}</td>" for column in shown)
        body += f"<tr{'' if row.ok else ' class=failed'}><th>{_text(row.label)}</th>{cells}</tr>\n"
    return f"<table><thead><tr><th>engine</th>{head}</tr></thead><tbody>{body}</tbody></table>"


def _html_rows(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{_text(title)}</th>" for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<h2>What a board must carry</h2><div class=scroll>{table}</div>"


def _facts_row(row: Row) -> str:
    facts = ", ".join(f"{key}: {value}" for key, value in row.facts.items() if key != "engine")
    return f"<tr><th>{_text(row.label)}</th><td>{_text(facts)}</td><td>{_text(row.artifact)}</td></tr>"


def _align(column: Column) -> str:
    return " class=number" if column.right else ""


def _text(value: object) -> str:
    return html.escape(str(value))


def plot(comparison: Comparison) -> Figure:
    """The figure of a comparison: latencies, or instructions where there is no time."""
    return plot_latency(comparison) if comparison.timed else plot_instructions(comparison)


def plot_instructions(comparison: Comparison, ax: Axes | None = None) -> Figure:
    """Bars of the instructions of an inference: in the engine's own libraries, and the rest of the call."""
    rows = [row for row in comparison.rows if row.instructions]
    figure, ax = _axes(ax, len(rows))
    names = [row.label for row in rows]
    own = [row.instructions.engine["all"] / 1e6 for row in rows]
    rest = [row.instructions.call["all"] / 1e6 - part for row, part in zip(rows, own, strict=True)]
    ax.barh(names, own, label="the engine's own libraries")
    ax.barh(names, rest, left=own, color="0.7", label="Python, NumPy, the system")
    ax.invert_yaxis()
    ax.set_xlabel("instructions of one inference, in millions (not a time)")
    ax.set_title(f"{comparison.model} on {comparison.place}")
    ax.legend()
    return figure


def plot_latency(comparison: Comparison, ax: Axes | None = None) -> Figure:
    """Bars of the median with marks at p90 and p99, and the ratio to the baseline; a wrong output has no bar."""
    import matplotlib.style

    with matplotlib.style.context(STYLE):
        figure, ax = _axes(ax, len(comparison.rows))
        base = set(comparison.baselines.values())
        for place, row in enumerate(comparison.rows):
            if row.latency is None:
                ax.text(0, place, f" {_short_failure(row)}", va="center", color="#a03000", fontsize=9)
                continue
            ax.barh(place, row.latency.p50, height=0.62, color="#777777" if row.label in base else "#0072B2")
            tails = [t for t in (row.latency.p90, row.latency.p99) if t is not None]
            if tails:
                ax.plot([row.latency.p50, *tails], [place] * (1 + len(tails)), color="#333333", linewidth=1)
                ax.plot(tails, [place] * len(tails), "|", color="#333333", markersize=9)
            ratio = f"  ({row.ratio.median:.1f}x)" if row.ratio and row.label not in base else ""
            farthest = max([row.latency.p50, *tails])
            ax.text(farthest, place, f"  {number(row.latency.p50)} ms{ratio}", va="center", fontsize=9)
        ax.set_yticks(range(len(comparison.rows)), [_drawn_label(row) for row in comparison.rows])
        ax.set_ylim(len(comparison.rows) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)
        ax.margins(x=0.25)
        ax.set_xlim(left=0)
        ax.set_xlabel("latency of one inference in ms (bar: median; marks: p90, p99)")
        ax.set_title(f"{comparison.model}: latency of engines that passed parity")
    return figure


def _drawn_label(row: Row) -> str:
    """The label, and for a compiler whether it has searched for fast schedules: that decides its speed."""
    schedule = str(row.facts.get("schedule", "")).partition(":")[0].partition(" ")[0]
    return f"{row.label}, {schedule}" if schedule else row.label


def plot_cold_start(comparison: Comparison, ax: Axes | None = None) -> Figure:
    """Stacked bars of process start, import, load and first inference, in seconds."""
    import matplotlib.style

    rows = [row for row in comparison.rows if row.cold_start]
    with matplotlib.style.context(STYLE):
        figure, ax = _axes(ax, len(rows))
        left = [0.0] * len(rows)
        for part in ("process", "imports", "load", "first"):
            values = [getattr(row.cold_start, part) for row in rows]
            ax.barh(range(len(rows)), values, left=left, height=0.62, label=part)
            left = [a + b for a, b in zip(left, values, strict=True)]
        ax.set_yticks(range(len(rows)), [row.label for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("seconds from nothing to the first answer")
        ax.set_title(f"{comparison.model}: cold start")
        ax.legend(ncols=4)
    return figure


def plot_rounds(comparison: Comparison, ax: Axes | None = None) -> Figure:
    """The median latency of every round, engine by engine: a disturbance shows in the same round of all of them."""
    import matplotlib.style

    with matplotlib.style.context(STYLE):
        figure, ax = _axes(ax, 7)
        for row in comparison.measured:
            ax.plot(range(1, len(row.round_p50) + 1), row.round_p50, marker="o", label=row.label)
        ax.set_xlabel("round")
        ax.set_ylabel("median latency in ms")
        ax.set_ylim(bottom=0)
        ax.set_title(f"{comparison.model}: rounds A B C A B C ...")
        ax.legend()
    return figure


def _axes(ax: Axes | None, rows: int) -> tuple[Figure, Axes]:
    if ax is not None:
        return ax.get_figure(), ax
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.4 + 0.34 * max(rows, 1)))
    return figure, figure.subplots()


def _short_failure(row: Row) -> str:
    return {"parity": "wrong output: not timed", "unavailable": "not available here"}.get(row.status, row.status)


def figure_png(figure: Figure, dpi: int = 150) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def figure_svg(figure: Figure) -> str:
    """A figure as an ``<svg>`` element to stand in a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>DeployLab: {title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 88rem; margin: 2rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.5rem; margin-bottom: 0 }} h2 {{ font-size: 1.1rem; margin-top: 2rem }}
.date {{ color: #666; margin-top: 0 }}
.scroll {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ padding: .35rem .7rem; border-bottom: 1px solid #e3e3e3; text-align: left; vertical-align: top }}
thead th {{ border-bottom: 2px solid #999; white-space: nowrap }}
.number {{ text-align: right; white-space: nowrap }}
tbody th {{ font-weight: 600; white-space: nowrap }}
tr.failed {{ color: #a03000; background: #fff6f2 }}
svg {{ max-width: 100%; height: auto }}
pre {{ white-space: pre-wrap; margin: 0; font-size: .85rem }}
li.note {{ color: #8a5a00 }}
.facts td {{ font-size: .85rem; color: #444 }}
</style></head><body>
<h1>{model}</h1><p class="date">{date}, measured by DeployLab</p>
<div class="scroll">{table}</div>
{figure}
{failures}
{carried}
<h2>How to read it</h2><ul>{reading}{notes}</ul>
<h2>What really ran</h2><div class="scroll"><table class="facts">
<thead><tr><th>engine</th><th>facts</th><th>artifact</th></tr></thead><tbody>{facts}</tbody></table></div>
<h2>Machine</h2><pre>{machine}</pre>
</body></html>
"""
