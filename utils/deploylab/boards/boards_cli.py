"""The command ``deploylab boards``: emulated boards."""

from __future__ import annotations

import subprocess
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from deploylab.boards import emulator
from deploylab.boards.profiles import PROFILES

app = typer.Typer(help="Emulated boards.", no_args_is_help=True, add_completion=False)

_Names = Annotated[list[str], typer.Argument(help=f"{', '.join(PROFILES)}, or all.")]


@app.command("list")
def list_boards() -> None:
    """The boards that can be emulated, and which are there."""
    made = {board.name: board for board in emulator.boards()}
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "board", "core", "runs on", "made"):
        table.add_column(heading)
    for name, profile in PROFILES.items():
        table.add_row(name, profile.title, profile.core, f"QEMU {profile.cpu}", "yes" if name in made else "no")
    console = Console()
    console.print(table)
    for profile in PROFILES.values():
        if profile.note:
            console.print(f"{profile.name}: {profile.note}.", highlight=False, soft_wrap=True)
    if made:
        typer.echo(f"They are in {next(iter(made.values())).folder.parent}")


@app.command()
def create(names: _Names) -> None:
    """Make boards: an arm64 Debian userland with the engines, in your cache folder. Needs no root."""
    for name in _chosen(names):
        board = emulator.create(name, progress=lambda step, name=name: typer.echo(f"{name}: {step}", err=True))
        typer.echo(f"{board.name}: ready in {board.folder}")


@app.command(context_settings={"ignore_unknown_options": True})
def run(
    name: Annotated[str, typer.Argument(help="A board.")],
    command: Annotated[list[str] | None, typer.Argument(help="A program of the board; without one, its shell.")] = None,
) -> None:
    """Run a program on a board, such as: deploylab boards run pi4 python3 -c "import onnxruntime"."""
    board = emulator.find(name)
    code = subprocess.call(board.shell(*(command or ())))
    raise typer.Exit(code if code >= 0 else 128 - code)  # a signal, as a shell tells it


@app.command()
def remove(names: _Names) -> None:
    """Remove boards; with the last one go the downloads."""
    for name in _chosen(names, [board.name for board in emulator.boards()]):
        emulator.remove(name)
        typer.echo(f"{name}: removed")


def _chosen(names: list[str], everything: list[str] | None = None) -> list[str]:
    return (everything if everything is not None else list(PROFILES)) if names == ["all"] else names
