"""The command ``deploylab bundle``: make a bundle for machines without a network, or verify one."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deploylab import paths
from deploylab.bench.progress import Progress
from deploylab.bundle import build, manifest, targets
from deploylab.errors import BundleError

INTERRUPTED = 130
_SHOWN = 10


def main(
    target: Annotated[str, typer.Option(help=f"What it is for: {', '.join(targets.TARGETS)}.")] = "",
    to: Annotated[Path | None, typer.Option(help="The folder to make. Default: build/bundles/TARGET.")] = None,
    python: Annotated[
        str, typer.Option(help="Versions, such as 3.11,3.13. Default: those of the target's systems.")
    ] = "",
    engines: Annotated[str, typer.Option(help="Only these, with commas between. Default: all that run there.")] = "",
    extras: Annotated[str, typer.Option(help="x86_64: extras of the course besides the core.")] = ",".join(
        build.EXTRAS
    ),
    light: Annotated[
        bool, typer.Option("--light", help="x86_64: only what runs converted models, no PyTorch, no notebooks.")
    ] = False,
    verify: Annotated[Path | None, typer.Option(help="Make nothing: check every file of this bundle.")] = None,
) -> None:
    """All that a machine without a network needs, in one folder: packages, course, converted models, install.sh.

    Interrupted, it goes on where it was when you run it again. Exit code 1 if a bundle cannot be made or is not whole.
    """
    if (verify is None) == (not target):
        raise BundleError(f"give --target ({', '.join(targets.TARGETS)}), or --verify FOLDER")
    with _progress() as progress:
        if verify is not None:
            problems = manifest.verify(verify, progress)
            found = manifest.read(verify)
        else:
            problems, found = [], _build(target, to, python, engines, extras, light, progress)
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        lines = "".join(f"\n  {line}" for line in problems[:_SHOWN])
        raise BundleError(f"{verify} is not whole; copy or make it again:{lines}{more}")
    _show(verify or _folder(target, to), found, "whole" if verify else "made")


def _build(
    name: str, to: Path | None, python: str, engines: str, extras: str, light: bool, progress: Progress
) -> dict[str, Any]:
    target = targets.find(name, _words(python), light)
    plan = build.Plan(target, _folder(name, to), tuple(_words(engines)), tuple(_words(extras)))
    try:
        return build.build(plan, progress)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted: run the same command again, it goes on where it was", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _folder(target: str, to: Path | None) -> Path:
    return (to or paths.build() / "bundles" / target).absolute()


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


@contextmanager
def _progress() -> Iterator[Progress]:
    """A line that changes on a terminal; elsewhere a line for each step that takes long."""

    def line(done: int, total: int, text: str) -> str:
        return f"[{done}/{total}] {text}" if total > 1 else text

    if sys.stderr.isatty():
        with Console(stderr=True).status("") as status:
            yield lambda *said: status.update(line(*said).replace("[", "\\["))
        return
    quick = ("hashing", "checking")
    yield lambda *said: None if said[2].startswith(quick) else typer.echo(line(*said), err=True)


def _show(folder: Path, found: dict[str, Any], verdict: str) -> None:
    sizes: defaultdict[str, list[int]] = defaultdict(list)
    for each in found["files"]:
        sizes[each["path"].partition("/")[0] if "/" in each["path"] else "the rest"].append(each["bytes"])
    table = Table(box=None, pad_edge=False)
    for heading in ("what", "files", "MB"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    everything = [size for each in sizes.values() for size in each]
    for name, each in [*sorted(sizes.items()), ("all", everything)]:
        table.add_row(name, str(len(each)), f"{sum(each) / 1e6:.1f}")
    Console().print(table)
    typer.echo(
        f"for: {found['title']}; Python {', '.join(found['pythons'])}; {found['machine']}, glibc {found['glibc']}"
    )
    typer.echo(
        f"models: {', '.join(found['artifacts']) or 'none'}; installed it takes {found['installed_bytes'] / 1e6:.0f} MB"
    )
    for line in found["left_out"]:
        typer.echo(f"left out: {line}")
    if found["modified"]:
        typer.echo("note: the course has changes that are not committed; they are in the bundle")
    typer.echo(f"SHA-256 of {manifest.SUMS}: {manifest.sha256(folder / manifest.SUMS)}")
    typer.echo(f"{verdict}: {folder}; there run: sh install.sh")
