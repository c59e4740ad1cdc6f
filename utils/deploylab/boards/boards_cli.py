"""The command ``deploylab boards``: emulated boards, and what a board is."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deploylab.boards import emulator, matrix_cli, wheels
from deploylab.boards.profiles import PROFILES
from deploylab.errors import BoardError, InputError

app = typer.Typer(help="Emulated boards, and what any board is.", no_args_is_help=True, add_completion=False)
app.command()(matrix_cli.matrix)
app.command()(matrix_cli.instructions)

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
    try:
        wheels.fetch(progress=lambda step: typer.echo(step, err=True))
    except BoardError as error:  # the boards do without
        typer.echo(f"left out: {error}", err=True)


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


@app.command()
def probe(
    where: Annotated[list[str], typer.Argument(help="ssh:USER@HOST or emulated:NAME.")],
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON a board.")] = False,
) -> None:
    """What a board is: CPU and its features, system, clock, temperature, throttling, power mode, engines."""
    from deploylab.boards import places

    failed = False
    for text in where:
        try:
            found = places.probe(text, progress=lambda step, text=text: typer.echo(f"{text}: {step}", err=True))
        except BoardError as error:  # the next one may answer
            typer.echo(f"error: {text}: {error}", err=True)
            failed = True
            continue
        if as_json:
            typer.echo(json.dumps({"where": text, **found}))
            continue
        table = Table("", "", title=text, title_justify="left", box=None, show_header=False, pad_edge=False)
        for name, value in _told(found).items():
            table.add_row(name, value)
        Console(width=None if sys.stdout.isatty() else 160).print(table)
    raise typer.Exit(1 if failed else 0)


@app.command()
def watch(
    where: Annotated[str, typer.Argument(help="here, or ssh:USER@HOST.")] = "here",
    seconds: Annotated[float, typer.Option(help="How long; by default until Ctrl-C.", min=0.1)] = math.inf,
    interval: Annotated[float, typer.Option(help="Seconds between two readings.", min=0.05)] = 1.0,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the readings as a table.")] = None,
    png_file: Annotated[Path | None, typer.Option("--png", help="Draw them over time.")] = None,
) -> None:
    """Power, temperature, clocks and throttling of a board, while something else runs there."""
    from deploylab import figures
    from deploylab.boards import watch as watching

    for file in (csv_file, png_file):
        if file and not file.parent.is_dir():
            raise InputError(f"there is no folder {file.parent}")
    found = watching.watch(
        where,
        seconds,
        interval,
        show=lambda at, sample: typer.echo(watching.line(at, sample)),
        progress=lambda step: typer.echo(f"{where}: {step}", err=True),
    )
    typer.echo(watching.summary(found))
    if csv_file:
        with csv_file.open("w", encoding="utf-8", newline="") as file:
            found.track.write_csv(file)
    if png_file:
        figures.power_and_heat(found.track, found.name).savefig(png_file, dpi=150)
    raise typer.Exit(1 if found.lost else 0)


def _told(found: dict[str, Any]) -> dict[str, str]:
    """The lines that tell a person what a board is; what the board does not know is left out."""
    facts, sensors = found["machine"], found["sensors"]
    throttling = sensors.get("throttling", {})
    memory = facts["memory_bytes"]
    lines = {
        "board": facts["board"],
        "CPU": f"{facts['cpu']}, {facts['architecture']}, {facts['usable_cores']} usable core(s)",
        "features": ", ".join(facts["features"]),
        "memory": memory and f"{memory / 2**30:.1f} GiB",
        "system": f"{facts['system']}, Python {facts['python']}",
        "governor": sensors.get("governor"),
        "clock": ", ".join(f"{mhz} MHz" for mhz in sensors.get("mhz", ())),
        "temperature": ", ".join(f"{name} {value:.1f} °C" for name, value in sensors.get("celsius", {}).items()),
        "power mode": sensors.get("power_mode"),
        "power read of": found["power"],
        "held back": "; ".join(f"{when.replace('_', ' ')}: {', '.join(by) or 'no'}" for when, by in throttling.items()),
        "engines": ", ".join(f"{name} {version}" for name, version in found["engines"].items()),
        "not there": ", ".join(found["missing"]),
    }
    return {name: value for name, value in lines.items() if value}


def _chosen(names: list[str], everything: list[str] | None = None) -> list[str]:
    return (everything if everything is not None else list(PROFILES)) if names == ["all"] else names
