"""``deploylab coverage``: the conversion-coverage table, on the terminal and as Markdown."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from deploylab import files, machine
from deploylab.bench import coverage
from deploylab.bench.progress import tell


def main(
    engines: Annotated[str, typer.Option(help="Names with commas between. Default: all that are installed.")] = "",
    patterns: Annotated[str, typer.Option(help="Names of patterns with commas between. Default: all.")] = "",
    markdown: Annotated[Path | None, typer.Option(help="Write the table as a Markdown page.")] = None,
    jobs: Annotated[int, typer.Option(help="Engines tried at a time. Default: one a usable core.", min=0)] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds after which a cell counts as hung.", min=1)] = 300.0,
) -> None:
    """Which operator patterns each engine converts, runs and gets right. Exit code 1 if one crashes or hangs."""
    with tempfile.TemporaryDirectory(prefix="deploylab-coverage-") as folder:
        found = coverage.measure(
            _words(engines) or None,
            _words(patterns) or None,
            out_dir=Path(folder),
            jobs=jobs or machine.usable_cores(),
            timeout_s=timeout,
            progress=tell,
        )
    _show(found)
    if markdown is not None:
        files.write(markdown, coverage.to_markdown(found))
        typer.echo(f"wrote {markdown}", err=True)
    raise typer.Exit(1 if any(cell.outcome in ("crashes", "hangs") for cell in found.cells) else 0)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _show(found: coverage.Coverage) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("pattern", *found.versions):
        table.add_column(title)
    for name in dict.fromkeys(cell.pattern for cell in found.cells):
        texts = {cell.engine: cell.text for cell in found.cells if cell.pattern == name}
        table.add_row(name, *(texts[engine] for engine in found.versions))
    for outcome in coverage.OUTCOMES:
        counts = [str(count[outcome]) for count in found.totals().values()]
        table.add_row(outcome, *counts, style="bold", end_section=outcome == coverage.OUTCOMES[-1])
    console.print(table)
    for cell in found.cells:
        if cell.reason:
            console.print(f"{cell.engine}, {cell.pattern}: {cell.text}: {cell.reason}", markup=False, highlight=False)
    for engine, reason in found.left_out.items():
        console.print(f"{engine} was not tried: {reason}", markup=False, highlight=False)
