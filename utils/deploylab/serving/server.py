"""``deploylab serve``: the application in as many processes as the machine has cores for, from start to clean end.

The default server is the result of measurements that ``benchmarks/serving_overhead.py`` repeats.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploylab import machine
from deploylab.errors import InputError, ServerError
from deploylab.serving import leftovers
from deploylab.serving.listener import Listener
from deploylab.serving.worker import Work

SERVERS = {
    "asyncio": "with_asyncio",
    "granian": "with_granian",
    "gunicorn": "with_gunicorn",
    "waitress": "with_waitress",
    "dev": "with_dev",
}
_QUICKEST = "asyncio"
ONE_PROCESS = ("waitress", "dev")
_FOLDER = "deploylab-serve-"
_METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # what prometheus-client reads when it is imported


@dataclass(frozen=True)
class Plan:
    """``workers`` processes whose engines use ``threads`` intra-op threads each."""

    workers: int
    threads: int


def plan(cores: int, workers: int | None = None, threads: int | None = None, *, oversubscribe: bool = False) -> Plan:
    """Divide ``cores`` among processes; what is not given is chosen so that the product does not exceed them.

    By default a process a core with one thread each: requests are independent, so nothing need be shared, and an
    engine's threads cost more than they bring as soon as several requests are under way. Raises :class:`InputError`
    for more threads than cores: they would keep taking the cores away from each other. ``oversubscribe`` permits
    it, to see what happens.
    """
    for name, value in (("cores", cores), ("workers", workers), ("threads", threads)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if workers is None:
        workers = max(1, cores // (threads or 1))
    if threads is None:
        threads = max(1, cores // workers)
    if workers * threads > cores and not oversubscribe:
        raise InputError(
            f"{workers} worker(s) with {threads} thread(s) each need {workers * threads} cores, "
            f"but only {cores} can be used here; lower one of them"
        )
    return Plan(workers, threads)


@dataclass(frozen=True)
class Options:
    """What to serve and how; the options of ``deploylab serve``. ``None`` leaves the choice to us."""

    model: str = "signnet"
    engine: str = "onnxruntime"
    precision: str = "fp32"
    workers: int | None = None
    threads: int | None = None
    oversubscribe: bool = False
    batch: int | None = None
    max_wait_s: float = 0.002
    host: str = "127.0.0.1"
    port: int = 8000
    server: str = "auto"
    site: Path | None = None
    access_log: Path | str | None = None
    limits: dict[str, Any] = field(default_factory=dict)


def serve(options: Options) -> None:
    """Serve until SIGTERM or SIGINT; requests under way are answered then, and new clients refused.

    Prints one line of JSON when ready: ``url``, ``server``, ``workers``, ``threads``, ``model``, ``engine``, ``pid``,
    ``ready_s``. Converts the model before that, if it was not done before. Raises :class:`DeployLabError` for wrong
    options, a port that is taken, a model that cannot be served, and workers that cannot be kept alive.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's own threads are not in the plan
    from deploylab.serving import artifacts
    from deploylab.serving.access_log import AccessLog
    from deploylab.serving.limits import Limits

    name = _server(options.server)
    divided = _divided(options, name)
    limits = Limits(**options.limits)
    if options.site and not (options.site / "index.html").is_file():
        raise InputError(f"the site {options.site} has no index.html; build it first, or leave --site out")
    if options.access_log:
        AccessLog(options.access_log)  # complains now and not in each worker
    listener = Listener(options.host, options.port)
    with contextlib.closing(listener), _end_cleanly():
        artifacts.prepare(options.model, options.engine, options.precision)
        with _private_folder(divided.workers) as folder:
            work = Work(
                folder,
                divided.workers,
                limits,
                options.model,
                options.engine,
                options.precision,
                divided.threads,
                options.batch,
                options.max_wait_s,
                options.site,
                options.access_log,
                ready={
                    "url": listener.url,
                    "server": name,
                    "workers": divided.workers,
                    "threads": divided.threads,
                    "batch": options.batch or 1,
                    "model": options.model,
                    "engine": options.engine,
                },
            )
            listener.listen()
            importlib.import_module(f"deploylab.serving.{SERVERS[name]}").run(work, listener)


def _server(name: str) -> str:
    """The quickest on Linux (``benchmarks/serving_overhead.py``); elsewhere the one that is at home there."""
    if name == "auto":
        return {"linux": _QUICKEST, "win32": "waitress"}.get(sys.platform, "gunicorn")
    if name not in SERVERS:
        raise InputError(f"unknown server {name!r}; there are: auto, {', '.join(SERVERS)}")
    if name in ("asyncio", "granian", "gunicorn") and not hasattr(os, "fork"):
        raise ServerError(f"{name} needs fork(), which this system lacks; use waitress")
    return name


def _divided(options: Options, server: str) -> Plan:
    workers = options.workers
    if server in ONE_PROCESS:
        if workers not in (None, 1):
            raise InputError(f"{server} is one process, got {workers} workers; granian and gunicorn have several")
        workers = 1
    return plan(machine.usable_cores(), workers, options.threads, oversubscribe=options.oversubscribe)


@contextlib.contextmanager
def _end_cleanly() -> Iterator[None]:
    """Until a server handles signals itself, SIGTERM unwinds the stack as Ctrl-C does."""

    def end(*_: Any) -> None:
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _private_folder(workers: int) -> Iterator[Path]:
    """For what the processes of a server share. Sweeps up after servers that were killed."""
    leftovers.sweep(Path(tempfile.gettempdir()), _FOLDER)
    with tempfile.TemporaryDirectory(prefix=f"{_FOLDER}{os.getpid()}-", ignore_cleanup_errors=True) as folder:
        os.environ.pop(_METRICS_FOLDER, None)
        if workers > 1:
            os.environ[_METRICS_FOLDER] = folder
        yield Path(folder)
