"""The command ``deploylab serve``: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploylab.errors import InputError
from deploylab.serving import server
from deploylab.serving.worker import ready_line

_ONE_MACHINE = ("precision", "oversubscribe", "server", "site", "access_log", "max_queue")


def main(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="signnet, mobilenet_v2, resnet18, or a FILE.onnx.")] = "signnet",
    engine: Annotated[str, typer.Option(help="What runs the model; see `deploylab doctor`.")] = "onnxruntime",
    precision: Annotated[str, typer.Option(help="fp32, or what else the engine offers.")] = "fp32",
    workers: Annotated[int | None, typer.Option(help="Processes. Default: one a usable core.", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help="Intra-op threads of each process's engine.", min=1)] = None,
    oversubscribe: Annotated[bool, typer.Option("--oversubscribe", help="Permit more threads than cores.")] = False,
    batch: Annotated[int | None, typer.Option(help="Join up to so many waiting pictures into a run.", min=1)] = None,
    max_wait_ms: Annotated[float, typer.Option(help="How long a picture waits for company.", min=0)] = 2.0,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all of them.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
    server_name: Annotated[
        str, typer.Option("--server", help=f"auto, {', '.join(server.SERVERS)}. dev is for debugging only.")
    ] = "auto",
    site: Annotated[Path | None, typer.Option(help="Folder of a web page to serve at / .")] = None,
    max_queue: Annotated[int, typer.Option(help="Requests a process takes at once; more get a 503.", min=1)] = 64,
    timeout: Annotated[float, typer.Option(help="Seconds a request may take.", min=0.1)] = 10.0,
    access_log: Annotated[
        str | None, typer.Option(help="A line of JSON a request, to a file or to stderr (-).")
    ] = None,
    cluster: Annotated[bool, typer.Option("--cluster", help="Replicas under Ray Serve instead of processes.")] = False,
    config: Annotated[Path | None, typer.Option(help="With --cluster: a config file of Ray Serve.")] = None,
) -> None:
    """Serve a model over HTTP: POST /v1/predict a JPEG, PNG or WebP; /metrics, /readyz, /v2 and a page to try it at / .

    Prints one line of JSON when ready. SIGTERM and Ctrl-C answer what is under way, refuse new clients, and end it.
    """
    if cluster:
        given = [name for name in _ONE_MACHINE if _was_given(context, name)]
        if given:
            raise InputError(f"--{given[0].replace('_', '-')} is of no use with --cluster; see --config")
        _serve_cluster(context, config)
        return
    if config is not None:
        raise InputError("--config needs --cluster")
    server.serve(
        server.Options(
            model=model,
            engine=engine,
            precision=precision,
            workers=workers,
            threads=threads,
            oversubscribe=oversubscribe,
            batch=batch,
            max_wait_s=max_wait_ms / 1000,
            host=host,
            port=port,
            server=server_name,
            site=site,
            access_log=access_log,
            limits={"max_queue": max_queue, "timeout_s": timeout},
        )
    )


def _serve_cluster(context: typer.Context, config: Path | None) -> None:
    """What was given on the command line replaces what the config file says."""
    from deploylab.serving import cluster

    def given(name: str) -> object:
        return context.params[name] if _was_given(context, name) else None

    settings = cluster.configured(
        cluster.read_config(config) if config else cluster.read_config(),
        host=context.params["host"],
        port=context.params["port"],
        replicas=given("workers"),
        model=given("model"),
        engine=given("engine"),
        threads=given("threads"),
        batch=given("batch"),
        max_wait_ms=given("max_wait_ms"),
        timeout_s=given("timeout"),
    )
    cluster.serve(settings, ready=lambda url: typer.echo(ready_line(url=url, server="ray")))


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source("server_name" if name == "server" else name)
    return source is not None and source.name == "COMMANDLINE"
