"""``deploylab boards matrix`` and ``deploylab boards instructions``."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table as Shown

from deploylab import files, paths
from deploylab.bench.progress import tell
from deploylab.boards.profiles import PROFILES
from deploylab.errors import BoardError, InputError

if TYPE_CHECKING:
    from deploylab.boards.matrix import Matrix
    from deploylab.boards.page import Table

_Names = Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(PROFILES)}. Default: all.")]
_Engines = Annotated[str, typer.Option(help="Names with commas between. Default: all that boards have.")]
_Jobs = Annotated[int, typer.Option(help="Processes at a time. Default: one a usable core.", min=0)]
_LINK = re.compile(r"\[[^]]*\]\(([^)]*)\)")
_GOOD = ("runs", "refused")


def matrix(
    names: _Names = None,
    engines: _Engines = "",
    write: Annotated[Path | None, typer.Option(help="Write the tables as a page.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything as JSON.")] = None,
    count: Annotated[bool, typer.Option(help="Also count instructions.")] = True,
    jobs: _Jobs = 0,
    timeout: Annotated[float, typer.Option(help="Seconds after which a cell counts as hung.", min=1)] = 300.0,
) -> None:
    """Which engine runs on which emulated board, in which precision, how right; memory and instructions.

    Exit code 1 if one gives a wrong answer, crashes or hangs. The wheel that is known to crash does not count.
    """
    from deploylab.boards import page
    from deploylab.boards.matrix import measure

    if write and (names or engines or not count):
        raise InputError("--write makes the whole page; leave out the names of boards, --engines and --no-count")
    found = measure(
        names or (),
        _words(engines),
        out_dir=paths.build() / "artifacts",
        count=count,
        jobs=jobs or None,
        timeout_s=timeout,
        progress=tell,
    )
    for table in page.tables(found):
        _show(table)
    _notes(found)
    if write:
        _write(write, page.to_markdown(found))
    if json_file:
        _write(json_file, json.dumps(asdict(found), indent=1) + "\n")
    raise typer.Exit(1 if any(cell.outcome not in _GOOD for cell in found.cells) else 0)


def instructions(names: _Names = None, engines: _Engines = "", jobs: _Jobs = 0) -> None:
    """Instructions of one inference, for every engine and emulated board: counted twice, which must agree.

    Exit code 1 if the vector instructions or multiply-adds of a cell differ, or its total by more than a thousandth.
    """
    from deploylab.boards import page
    from deploylab.boards.instructions import agree
    from deploylab.boards.matrix import count_again, measure

    wanted = {"out_dir": paths.build() / "artifacts", "jobs": jobs or None, "progress": tell}
    found = measure(names or (), _words(engines), known=False, **wanted)
    counted = [cell for cell in found.cells if cell.instructions]
    if not counted:
        _notes(found)
        raise BoardError("nothing was counted: no engine ran")
    again = count_again(found, **wanted)
    for table in page.tables(found):
        if table.title == page.INSTRUCTIONS:
            _show(table)
    _notes(found)
    pairs = list(zip(counted, again, strict=True))
    differing = [pair for pair in pairs if not agree(*(cell.instructions for cell in pair))]
    for one, other in differing:
        what = f"{one.engine} in {one.precision} on {one.board}"
        typer.echo(f"{what}: {one.instructions['all']:,}, then {other.instructions['all']:,}")
    moved = max(abs(other.instructions["all"] / one.instructions["all"] - 1) for one, other in pairs)
    typer.echo(
        f"{len(pairs)} cells, counted twice in processes of their own: {len(pairs) - len(differing)} agree in every "
        f"vector instruction and multiply-add, {sum(one == other for one, other in pairs)} in every instruction; "
        f"totals differ by at most {moved * 1e6:.0f} in a million"
    )
    raise typer.Exit(1 if differing else 0)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _show(table: Table) -> None:
    shown = Shown(box=box.SIMPLE_HEAD, pad_edge=False, title=table.title, title_justify="left")
    for heading in table.header:
        shown.add_column(heading)
    for row in table.rows:
        shown.add_row(*(_LINK.sub(r"\1", cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 240).print(shown, markup=False, highlight=False)


def _notes(found: Matrix) -> None:
    from deploylab.boards import page

    for reason, number in page.reasons(found).items():
        typer.echo(f"({number}) {reason}")
    for note in found.notes:
        typer.echo(note)


def _write(path: Path, text: str) -> None:
    files.write(path, text)
    typer.echo(f"wrote {path}", err=True)
