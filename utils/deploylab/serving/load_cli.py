"""The command ``deploylab load``: one run of load a concurrency or rate, a table, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from deploylab import files
from deploylab.bench.latency import samples_needed
from deploylab.errors import InputError
from deploylab.serving.load import Interrupted, LoadResult, closed_loop, histogram_text, multipart, open_loop

INTERRUPTED = 130


def main(
    url: Annotated[str, typer.Argument(help="Such as http://127.0.0.1:8000/v1/predict.")],
    image: Annotated[
        list[Path] | None, typer.Option(help="A file to POST. Repeatable; they take turns. Without any: GET.")
    ] = None,
    concurrency: Annotated[str, typer.Option(help="Closed loop: requests under way, one run each: 1,4,16.")] = "",
    rate: Annotated[str, typer.Option(help="Open loop: Poisson arrivals a second, one run each: 50,100.")] = "",
    seconds: Annotated[float, typer.Option(help="Length of a run.")] = 5.0,
    requests: Annotated[int | None, typer.Option(help="Closed loop: end a run after so many requests.")] = None,
    warm_up: Annotated[float, typer.Option(help="Seconds before a run that do not count.")] = 0.5,
    timeout: Annotated[float, typer.Option(help="Seconds after which a request counts as an error.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Open loop: seed of the arrival times.")] = 0,
    multipart_field: Annotated[
        str, typer.Option("--multipart", help="Send the files as this field of a form, not as the bare body.")
    ] = "",
    content_type: Annotated[str, typer.Option(help="Content type of a bare body.")] = "image/jpeg",
    header: Annotated[list[str] | None, typer.Option(help='One more header, "Name: value". Repeatable.')] = None,
    expect: Annotated[
        list[str] | None, typer.Option(help="Label that the answer to an --image must have first. As many as those.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything as JSON; - is stdout.")] = None,
    show_histogram: Annotated[bool, typer.Option("--histogram", help="Print each run's latency histogram.")] = False,
    allow_remote: Annotated[bool, typer.Option(help="Permit a URL that is not this machine.")] = False,
) -> None:
    """Make load on a server: requests/s, latency percentiles, errors.

    --concurrency (closed loop) tells how much the server can do, --rate (open loop) how long users wait at that rate.
    Exit code 1 if a run got no good answer or a wrong label.
    """
    runs = _runs(concurrency, rate)
    bodies = [_read(path) for path in image or ()]
    if multipart_field:
        bodies, content_type = multipart(bodies, multipart_field)
    options: dict[str, Any] = {
        "seconds": seconds,
        "warm_up_s": warm_up,
        "timeout_s": timeout,
        "content_type": content_type,
        "headers": dict(map(_header, header or ())),
        "expect": expect or None,
        "allow_remote": allow_remote,
    }
    results: list[LoadResult] = []
    try:
        for i, run in enumerate(runs, 1):
            typer.echo(f"[{i}/{len(runs)}] {_described(run)}, {seconds + warm_up:g} s", err=True)
            if "rate" in run:
                results.append(open_loop(url, bodies, **run, seed=seed, **options))
            else:
                results.append(closed_loop(url, bodies, **run, requests=requests, **options))
    except Interrupted as stopped:
        results.append(stopped.result)
    _tell(results, json_file, show_histogram)
    if results[-1].interrupted:
        typer.echo("interrupted; above is what was measured until then", err=True)
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(1 if any(not result.ok or result.wrong for result in results) else 0)


def _runs(concurrency: str, rate: str) -> list[dict[str, Any]]:
    if concurrency and rate:
        raise InputError("--concurrency is a closed loop and --rate an open one; give one of them")
    try:
        if rate:
            return [{"rate": float(word)} for word in rate.split(",")]
        return [{"concurrency": int(word)} for word in (concurrency or "1").split(",")]
    except ValueError:
        option, text = ("--rate", rate) if rate else ("--concurrency", concurrency)
        raise InputError(f"{option} takes numbers with commas between, such as 1,4,16; got {text!r}") from None


def _described(run: dict[str, Any]) -> str:
    return f"open loop, {run['rate']:g} requests/s" if "rate" in run else f"closed loop, {run['concurrency']} at a time"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"--image {path}: {error.strerror or error}") from error


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise InputError(f'--header takes "Name: value", got {text!r}')
    return name.strip(), value.strip()


def _tell(results: Sequence[LoadResult], json_file: Path | None, show_histogram: bool) -> None:
    if str(json_file) == "-":
        typer.echo(_as_json(results))
        return
    _print_table(results)
    for result in results if show_histogram else ():
        typer.echo(f"\n{_load(result)}\n{histogram_text(result)}")
    for result in results:
        for status, text in result.examples.items():
            typer.echo(f"an answer with status {status}: {' '.join(text.split())}", err=True)
    if json_file is not None:
        files.write(json_file, _as_json(results) + "\n")
        typer.echo(f"wrote {json_file}", err=True)


def _as_json(results: Sequence[LoadResult]) -> str:
    return json.dumps([result.to_dict() for result in results], indent=2)


def _print_table(results: Sequence[LoadResult]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(caption=_withheld(results), caption_justify="left")
    for name in ("load", "requests/s", "p50 ms", "p90 ms", "p99 ms", "requests", "generator"):
        table.add_column(name, justify="left" if name == "load" else "right", no_wrap=True)
    table.add_column("complaints", overflow="fold")
    for result in results:
        tails = [_number(getattr(result.latency, name, None)) for name in ("p50", "p90", "p99")]
        share = f"{result.generator_cores:.0%} of a core"
        complaints = ", ".join(result.complaints()) or "none"
        table.add_row(_load(result), f"{result.rps:.1f}", *tails, str(result.requests), share, complaints)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _load(result: LoadResult) -> str:
    return f"{result.concurrency} at a time" if result.rate is None else f"{result.rate:g}/s"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _withheld(results: Sequence[LoadResult]) -> str | None:
    few = any(result.latency and result.latency.p99 is None for result in results)
    return f"- : too few requests; a p90 needs {samples_needed(90)}, a p99 {samples_needed(99)}" if few else None
