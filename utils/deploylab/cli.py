"""The command ``deploylab``. Heavy packages are imported inside the commands, so that ``--help`` is quick."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploylab.errors import DeployLabError, InputError

if TYPE_CHECKING:
    from deploylab.bench.results import Comparison

INTERRUPTED = 130

app = typer.Typer(
    name="deploylab",
    help="One model, every engine, checked before it is timed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
signs = typer.Typer(help="The task: RoadSigns.", no_args_is_help=True)
app.add_typer(signs, name="signs")

_FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command()
def doctor(json_output: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False) -> None:
    """What this machine can run: engines, CPU, compilers, browsers. Exit code 0 if the core works."""
    from deploylab import doctor as examination

    raise typer.Exit(examination.run(as_json=json_output))


@app.command()
def compare(
    model: Annotated[str, typer.Argument(help="signnet, mobilenet_v2, resnet18, or a FILE.onnx.")] = "signnet",
    engines: Annotated[
        str,
        typer.Option(
            help="Names with commas between. Default: all. Options of a conversion: litert:kernels=reference."
        ),
    ] = "",
    threads: Annotated[str, typer.Option(help="Thread counts, such as 1,2.")] = "1",
    precision: Annotated[str, typer.Option(help="Precisions, such as fp32,fp16.")] = "fp32",
    image: Annotated[Path | None, typer.Option(help="A picture to run and to time.")] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="Size of an input of an ONNX file: NAME=1,3,224,224. Repeatable.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything as JSON.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="Write a page with table and figure.")] = None,
    png_file: Annotated[Path | None, typer.Option("--png", help="Write the figure.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the tables as Markdown.")] = None,
    samples: Annotated[int, typer.Option(help="Timed calls a row; a p99 needs 662.", min=1)] = 700,
    rounds: Annotated[int, typer.Option(help="Rounds the calls are spread over.", min=1)] = 10,
    max_seconds: Annotated[float, typer.Option(help="Longest timed work a row.", min=0.1)] = 20.0,
    timeout: Annotated[
        float, typer.Option(help="Seconds after which an engine that does not answer is ended.")
    ] = 300.0,
    memory: Annotated[bool, typer.Option(help="Also measure memory, in processes of its own.")] = True,
    accuracy: Annotated[bool, typer.Option(help="Also measure accuracy, where the model has a test split.")] = True,
    energy: Annotated[bool, typer.Option(help="Also measure power and heat, where there are sensors.")] = True,
    on: Annotated[
        list[str] | None,
        typer.Option(
            help="Run on a board: ssh:pi@host, or emulated:pi4, which counts instructions; or here. Repeatable: boards "
            "over SSH are measured at the same time."
        ),
    ] = None,
) -> None:
    """Run a model through the engines: parity first, then latency, cold start, memory. Rows go to the ledger.

    Exit code 1 if an engine gave a wrong output, crashed or hung, if one that was named could not run, or if a board
    was not reached or lost; 130 after Ctrl-C, which keeps what boards have measured.
    """
    with _clear_errors():
        options: dict[str, Any] = {
            "engines": _words(engines) or None,
            "threads": _numbers("--threads", threads),
            "precision": _words(precision),
            "image": image,
            "shapes": dict(map(_shape, shape or [])),
            "samples": samples,
            "rounds": rounds,
            "max_seconds": max_seconds,
            "timeout_s": timeout,
            "memory": memory,
            "accuracy": accuracy,
            "energy": energy,
        }
        _require_files(model, image)
        files = (json_file, html_file, png_file, markdown_file)
        wheres = list(dict.fromkeys(on or ()))
        interrupted = False
        if wheres:
            results, wrong, interrupted = _compare_at(wheres, model, options, files)
        else:
            results = [_compare_here(model, options)]
            _show(results[0])
            wrong = _write_files(results[0], *files)
    statuses = ("parity", "crashed", "lost", *(("failed", "unavailable") if engines else ()))
    failed = any(result.failures(*statuses) or not result.passed for result in results)
    raise typer.Exit(INTERRUPTED if interrupted else 1 if wrong or failed else 0)


def _compare_here(model: str, options: dict[str, Any]) -> Comparison:
    from deploylab.bench.compare import compare as run
    from deploylab.boards import places

    with _progress() as told:
        show = partial(told, "")
        return run(model, progress=show, place=places.place("here"), **options)


def _compare_at(
    wheres: list[str], model: str, options: dict[str, Any], files: Sequence[Path | None]
) -> tuple[list[Comparison], bool, bool]:
    """Compare at places, and show all that there is: the comparisons, whether something failed, and Ctrl-C."""
    from deploylab.boards.side_by_side import compare_at

    with _progress() as told:
        found = compare_at(wheres, model, told, **options)
    wrong = False
    for each in found.places:
        if each.comparison:
            _show(each.comparison)
            own = each.where if len(wheres) > 1 else ""
            wrong |= _write_files(each.comparison, *(_name_for(file, own) for file in files))
        else:
            typer.echo(f"error: {each.where}: {each.error}", err=True)
            wrong = True
    if len(found.comparisons) > 1:
        _show_side_by_side(found.comparisons)
    if found.interrupted:
        typer.echo("\ninterrupted: workers ended, also those on boards; rows that were under way are marked", err=True)
    return found.comparisons, wrong, found.interrupted


def _name_for(path: Path | None, where: str) -> Path | None:
    """``report.json`` as ``report-ssh-pi@host.json`` where every board of several gets a file of its own."""
    if path is None or not where:
        return path
    return path.with_name(f"{path.stem}-{re.sub(r'[^A-Za-z0-9@.]+', '-', where)}{path.suffix}")


@app.command(context_settings=_FORWARD)
def coverage(context: typer.Context) -> None:
    """Which operator patterns each engine converts, runs and gets right."""
    _forward("deploylab.bench.coverage_cli", context)


@app.command(context_settings=_FORWARD)
def serve(context: typer.Context) -> None:
    """Serve a model over HTTP, in as many processes as there are cores."""
    _forward("deploylab.serving.serve_cli", context)


@app.command(context_settings=_FORWARD)
def load(context: typer.Context) -> None:
    """Make load on a server: requests/s, latency percentiles, errors."""
    _forward("deploylab.serving.load_cli", context)


@app.command(context_settings=_FORWARD)
def boards(context: typer.Context) -> None:
    """Raspberry Pi and Jetson: emulated ones to make and run programs on, and what any of them is."""
    with _clear_errors():
        importlib.import_module("deploylab.boards.boards_cli").app(args=context.args, prog_name=context.command_path)


@app.command(context_settings=_FORWARD)
def bundle(context: typer.Context) -> None:
    """All that a machine without a network needs, in one folder with an install.sh; or verify such a folder."""
    _forward("deploylab.bundle.bundle_cli", context)


@signs.command(context_settings=_FORWARD)
def evaluate(context: typer.Context) -> None:
    """Accuracy of SignNet by class, on the frozen test split or on your photographs."""
    _forward("deploylab.signs.evaluate", context)


@signs.command(context_settings=_FORWARD)
def train(context: typer.Context) -> None:
    """Train SignNet on rendered signs."""
    _forward("deploylab.signs.train", context)


def _forward(module: str, context: typer.Context) -> None:
    """Hand the remaining arguments to a module's own command line."""
    with _clear_errors():
        command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        command.command()(importlib.import_module(module).main)
        command(args=context.args, prog_name=context.command_path)


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Errors made for a person end the command with their message; an interrupt says what is left behind."""
    try:
        yield
    except DeployLabError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("\ninterrupted: workers ended, nothing recorded, the ledger is intact", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _require_files(model: str, image: Path | None) -> None:
    """Fail on a wrong path at once, before anything heavy is imported."""
    if model.lower().endswith(".onnx") and not Path(model).is_file():
        raise InputError(f"{model}: no such file")
    if image is not None and not image.is_file():
        raise InputError(f"--image {image}: no such file")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise InputError(f"{option} takes whole numbers with commas between, such as 1,2; got {text!r}") from None


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, equals, sizes = text.rpartition("=")
    try:
        if not equals:
            raise ValueError
        return name, tuple(int(word) for word in _words(sizes))
    except ValueError:
        raise InputError(f"--shape takes NAME=1,3,224,224; got {text!r}") from None


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int, str], None]]:
    """A bar for each place on a terminal, plain lines elsewhere; both on stderr. To be told as ``compare_at`` tells."""
    if not sys.stderr.isatty():
        yield _tell_in_a_line
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    shown = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*shown, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def told(where: str, done: int, total: int, text: str) -> None:
            if where not in tasks:
                tasks[where] = bar.add_task("", total=None)
            description = escape(f"{where}: {text}" if where else text)
            bar.update(tasks[where], completed=done, total=total or None, description=description)

        yield told


def _tell_in_a_line(where: str, done: int, total: int, text: str) -> None:
    steps = f"[{done}/{total}] " if total else ""
    typer.echo(f"{where}: {steps}{text}" if where else f"{steps}{text}", err=True)


def _show(result: Comparison) -> None:
    from rich.console import Console

    from deploylab import report

    # A pipe has no width; a table folded to 80 columns is harder to read there than a long line.
    report.print_comparison(result, Console(width=None if sys.stdout.isatty() else 160))
    if not result.ledger_error:
        typer.echo(f"{len(result.rows)} row(s) added to the ledger in {result.seconds:.0f} s", err=True)


def _show_side_by_side(results: list[Comparison]) -> None:
    from rich.console import Console

    from deploylab import report

    report.print_side_by_side(results, Console(width=None if sys.stdout.isatty() else 160))


def _write_files(
    result: Comparison,
    json_file: Path | None,
    html_file: Path | None,
    png_file: Path | None,
    markdown_file: Path | None,
) -> bool:
    """Write what was asked for. A file that cannot be written is reported and does not stop the others."""
    from deploylab import files, report

    contents: Sequence[tuple[Path | None, Callable[[], str | bytes]]] = (
        (json_file, lambda: report.to_json(result)),
        (html_file, lambda: report.to_html(result)),
        (markdown_file, lambda: report.to_markdown(result)),
        (png_file, lambda: report.figure_png(report.plot(result))),
    )
    problems = [result.ledger_error] if result.ledger_error else []
    for path, content in contents:
        if path is not None:
            try:
                files.write(path, content())
                typer.echo(f"wrote {path}", err=True)
            except DeployLabError as error:
                problems.append(str(error))
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    return bool(problems)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
