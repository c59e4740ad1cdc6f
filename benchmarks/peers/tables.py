"""The comparison as Markdown: requests a second and ratios, what each server costs, and the sweep over settings."""

from __future__ import annotations

import math
import os
import re
import statistics
import sys
from collections.abc import Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import DOCUMENTED, SAME_CODE
from contenders import DEPLOYLAB, Contender
from packaging.requirements import Requirement

import side_env
from deploylab import machine

if TYPE_CHECKING:
    import wrk
    from serving_peers import Cell, Result

BEGIN, END = "<!-- serving peers -->", "<!-- end of serving peers -->"
OVER = "over"
_CAPTIONS = {
    SAME_CODE: "Our decoding and preprocessing inside each peer: what is left is the server's own share",
    DOCUMENTED: "Each peer decodes as its documentation shows (Pillow, the whole picture)",
}
# What has no environment of its own: the packages that are needed to serve, besides what they need themselves.
_SERVING = {
    "deploylab": (
        "flask",
        "gunicorn",
        "httptools",
        "prometheus-client",
        "psutil",
        "typer",
        "rich",
        "onnxruntime",
        "pillow",
    ),
    "ray": ("ray[serve]", "onnxruntime", "pillow"),
    "torchserve": ("torchserve", "torch-model-archiver", "torch", "onnxruntime", "pillow"),
}


def conditions(arguments: Sequence[str]) -> list[str]:
    """The command and the machine, as it is before the run."""
    facts = machine.describe()
    return [
        f"Command: `{' '.join(['python benchmarks/serving_peers.py', *arguments])}`, {date.today()}",
        "",
        f"Machine: {facts.get('board') or facts['cpu']}, {facts['usable_cores']} usable core(s); {facts['system']}; "
        f"Python {facts['python']}; load before the run {os.getloadavg()[0]:.1f}",
    ]


def markdown(
    results: Sequence[Result], servers: Sequence[Contender], sweeps: dict[str, list[dict[str, Any]]], bound: float
) -> list[str]:
    titles = {server.name: server.title for server in servers}
    lines: list[str] = []
    for variant, caption in _CAPTIONS.items():
        found = [result for result in results if result.variant == variant and result.name != DEPLOYLAB.name]
        if found:
            lines += ["", f"### {caption}", "", *_throughput(found, titles, bound)]
    lines += ["", "### What each costs", "", *_costs(results, servers)]
    if any(sweeps.values()):
        lines += ["", "### The settings that were tried", "", *_sweep(sweeps, bound)]
    return lines


def in_a_line(result: Result) -> str:
    return "; ".join(f"{cell.size} ours / theirs {_ratio(cell, math.inf)}" for cell in result.cells)


def _throughput(results: Sequence[Result], titles: dict[str, str], bound: float) -> list[str]:
    sizes = list(dict.fromkeys(cell.size for result in results for cell in result.cells))
    head = " | ".join(f"{size}: requests/s | ours / theirs" for size in sizes)
    lines = [f"| server | {head} |", "|---|" + "---:|---:|" * len(sizes)]
    ours = " | ".join(
        f"{_rate([load for cell in _of(results, size) for load in cell.ours], bound)} |" for size in sizes
    )
    lines.append(f"| **{DEPLOYLAB.title}** | {ours} |")
    for result in results:
        cells = {cell.size: cell for cell in result.cells}
        row = [
            f"{_rate(cells[size].theirs, bound)} | {_ratio(cells[size], bound)}" if size in cells else " | "
            for size in sizes
        ]
        reason = f" ({_escaped(result.failure)})" if result.failure else ""
        lines.append(f"| {titles[result.name]}{reason} | {' | '.join(row)} |")
    worst = [f"{size} {_against_best(_of(results, size), bound)}" for size in sizes]
    return [*lines, "", f"Ours to the best of them: {', '.join(worst)}."]


def _of(results: Sequence[Result], size: str) -> list[Cell]:
    return [cell for result in results for cell in result.cells if cell.size == size]


def _rate(loads: Sequence[wrk.Load], bound: float) -> str:
    """Median requests a second, connections, median p99; what is over the bound says so."""
    if not loads:
        return ""
    p99 = statistics.median(load.p99 for load in loads)
    errors = sum(load.errors for load in loads)
    connections = "/".join(map(str, sorted({load.concurrency for load in loads})))
    words = [f"c{connections}", f"p99 {p99:.0f} ms{'' if p99 <= bound else f', {OVER}'}"]
    words += [f"{errors} errors"] if errors else []
    return f"{statistics.median(load.rps for load in loads):.0f} ({', '.join(words)})"


def _ratio(cell: Cell, bound: float) -> str:
    """Median of the rounds' ratios, with the lowest and the highest."""
    if not _within(cell.theirs, bound):
        return "ours alone" if _within(cell.ours, bound) else "neither"
    if not _within(cell.ours, bound):
        return "theirs alone"
    ratios = _ratios(cell)
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""


def _ratios(cell: Cell) -> list[float]:
    return [mine.rps / its.rps for mine, its in zip(cell.ours, cell.theirs, strict=True) if its.rps]


def _within(loads: Sequence[wrk.Load], bound: float) -> bool:
    return bool(loads) and statistics.median(load.p99 for load in loads) <= bound


def _against_best(cells: Sequence[Cell], bound: float) -> str:
    ratios = [statistics.median(_ratios(cell)) for cell in cells if _within(cell.theirs, bound) and _ratios(cell)]
    return f"{min(ratios):.2f}" if ratios else f"alone within {bound:g} ms"


def _costs(results: Sequence[Result], servers: Sequence[Contender]) -> list[str]:
    lines = [
        "| server | version | setting | start to first right answer, s | memory, MiB | packages, MB |",
        "|---|---|---|---:|---:|---:|",
    ]
    for server in servers:
        found = next((result for result in results if result.name == server.name and result.start_s), None)
        start = f"{found.start_s:.1f}" if found else ""
        memory = f"{found.memory_mib:.0f}" if found and found.memory_mib else ""
        setting = found.setting if found else ""
        note = " and Java" if server.needs == "java" else ""
        lines.append(
            f"| {server.title} | {_version(server)} | {setting} | {start} | {memory} | {_packages_mb(server)}{note} |"
        )
    return lines


def _sweep(sweeps: dict[str, list[dict[str, Any]]], bound: float) -> list[str]:
    sizes = list(dict.fromkeys(size for rows in sweeps.values() for row in rows for size in row["loads"]))
    lines = [f"| server | setting | {' | '.join(sizes)} |", "|---|---|" + "---:|" * len(sizes)]
    for title, rows in sweeps.items():
        for row in rows:
            loads = [row["loads"].get(size) for size in sizes]
            shown = [_swept(load, bound) if load else _escaped(row["failure"])[:80] for load in loads]
            lines.append(f"| {title} | {row['setting']} | {' | '.join(shown)} |")
    return lines


def _swept(load: dict[str, Any], bound: float) -> str:
    return f"{load['rps']:.0f}" + ("" if load["p99"] <= bound else f" ({OVER})")


def _version(server: Contender) -> str:
    try:
        return next(
            (each.version for each in _distributions(server) if _plain(each.name) == _plain(server.package)), ""
        )
    except OSError:
        return ""


def _packages_mb(server: Contender) -> str:
    """Size of the packages it needs, in MB (10^6 bytes): its environment, or the closure of its requirements."""
    sizes = [_size(each) for each in _distributions(server)]
    return f"{sum(sizes) / 1e6:.0f}" if sizes else ""


def _distributions(server: Contender) -> list[metadata.Distribution]:
    if server.environment:
        folders = (side_env.SideEnvironment(server.environment).folder / "lib").glob("python*/site-packages")
        return list(metadata.distributions(path=[str(folder) for folder in folders]))
    found: dict[str, metadata.Distribution] = {}
    wanted = [Requirement(text) for text in _SERVING[server.name]]
    seen: set[str] = set()
    while wanted:
        requirement = wanted.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        try:
            distribution = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            continue
        found[_plain(requirement.name)] = distribution
        for text in distribution.requires or ():
            needed = Requirement(text)
            extras = requirement.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                wanted.append(needed)
    if server is DEPLOYLAB:
        found["deploylab"] = metadata.distribution("deploylab")
    return list(found.values())


def _size(distribution: metadata.Distribution) -> int:
    paths = [Path(str(distribution.locate_file(file))) for file in distribution.files or ()]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _escaped(text: str) -> str:
    """One line for a table, without paths of this machine."""
    return text.replace("|", "/").replace(str(Path.cwd()), ".").replace(sys.prefix, ".venv")


def insert(path: Path, lines: Sequence[str]) -> None:
    """Replace what stands between the two markers."""
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        sys.exit(f"{path} has no {BEGIN} ... {END}")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text("\n".join([before + BEGIN, "", *lines, "", END + after]), encoding="utf-8")
    print(f"wrote {path}", file=sys.stderr)
