"""A worker process of a server: loads the model, makes the application, and ends when its parent does."""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from deploylab.errors import DeployLabError
from deploylab.serving.memory import unmap_large_blocks
from deploylab.serving.overdue import Overdue

if TYPE_CHECKING:
    from deploylab.serving.app import Application
    from deploylab.serving.limits import Limits

BOOT_FAILED = 3
THREADS_TO_REFUSE = 8
"""Request threads beyond ``Limits.max_queue``, so that there is one to say 503 when the queue is full."""

_LOOK_AFTER_PARENT_S = 0.5


@dataclass(frozen=True)
class Work:
    """What every worker of a server does. ``folder`` is private to the server and goes when it ends.

    ``ready`` is printed as one line of JSON as soon as all ``workers`` are ready.
    """

    folder: Path
    workers: int
    limits: Limits
    model: str = "signnet"
    engine: str = "onnxruntime"
    precision: str = "fp32"
    threads: int = 1
    batch: int | None = None
    max_wait_s: float = 0.002
    site: Path | None = None
    access_log: Path | str | None = None
    ready: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    parent: int = field(default_factory=os.getpid)

    @property
    def request_threads(self) -> int:
        """Threads for requests in a process: started when needed, and most of them wait most of the time."""
        return self.limits.max_queue + THREADS_TO_REFUSE

    def leave(self) -> None:
        """Tell all workers that the server is about to end."""
        Switch(self.folder / "leaving").throw()

    def failure(self) -> str | None:
        """Why a worker could not start, in the words of its error."""
        with contextlib.suppress(OSError):
            return (self.folder / "failed").read_text(encoding="utf-8")
        return None

    def was_ready(self, pid: int) -> bool:
        """Whether a worker came as far as to answer requests."""
        return (self.folder / f"ready-{pid}").exists()

    def forget(self, pid: int) -> None:
        """A worker has ended: what it was doing at that moment no longer counts."""
        for gauge in self.folder.glob(f"gauge_live*_{pid}.db"):
            gauge.unlink(missing_ok=True)


class Switch:
    """A byte in a file that processes share in memory: one throws it, the others see it at the cost of one read."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(descriptor, 1)
        self._byte = mmap.mmap(descriptor, 1)
        os.close(descriptor)

    @property
    def thrown(self) -> bool:
        return self._byte[0] != 0

    def throw(self) -> None:
        self._byte[0] = 1


class LastRequests:
    """The application, until the server is about to end; then each answer asks the client to close its connection.

    So no client sends a request into a connection that is being closed. ``close`` is False for servers that close
    connections themselves, which PEP 3333 entitles them to.
    """

    def __init__(self, app: Application, leaving: Switch, close: bool) -> None:
        self.app = app
        self._leaving = leaving
        self._header = [("Connection", "close")] if close else []
        app.closing = self._header  # also where it answers without having read a long body

    @property
    def begun(self) -> bool:
        """Whether the server is about to end."""
        return self._leaving.thrown

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not self.begun:
            return self.app(environ, start_response)
        self.app.service.leaving = True
        return self.app(
            environ, lambda status, headers, *rest: start_response(status, [*headers, *self._header], *rest)
        )


def start(work: Work, *, close: bool = False) -> LastRequests:
    """The application, ready to answer, in a process of its own. Ends the process if the model cannot be loaded."""
    if os.getpid() != work.parent:
        if hasattr(signal, "pthread_sigmask"):  # Ctrl-C reaches all processes of a terminal; the parent tells us
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        threading.Thread(target=_end_with_parent, args=(work,), name="parent", daemon=True).start()
    try:
        app = _application(work)
    except DeployLabError as error:
        (work.folder / "failed").write_text(str(error), encoding="utf-8")
        raise SystemExit(BOOT_FAILED) from error
    gc.collect()
    gc.freeze()  # what lives as long as the process need not be looked through again
    _bound_clients(work)
    _announce(work)
    return LastRequests(app, Switch(work.folder / "leaving"), close)


def _application(work: Work) -> Application:
    from deploylab.serving.app import create_app
    from deploylab.serving.predictor import Predictor

    predictor = Predictor.load(
        work.model,
        work.engine,
        work.threads,
        precision=work.precision,
        batch=work.batch,
        max_wait_s=work.max_wait_s,
        limits=work.limits,
    )
    return create_app(predictor, limits=work.limits, site=work.site, access_log=work.access_log or False)


def _bound_clients(work: Work) -> None:
    """Bound what clients can make this process keep: connections, memory, and texts of warnings."""
    # Pillow warns of damaged pictures, and Python remembers every text it has warned with: clients choose how many.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if "url" in work.ready:  # a client has timeout_s to send its request, and we have it again to answer
        Overdue(urlsplit(work.ready["url"]).port, 2 * work.limits.timeout_s).watch()
    unmap_large_blocks()


def _announce(work: Work) -> None:
    """Say so when the last of the workers has become ready."""
    (work.folder / f"ready-{os.getpid()}").touch()
    if len([*work.folder.glob("ready-*")]) < work.workers:
        return
    with contextlib.suppress(FileExistsError):
        (work.folder / "announced").touch(exist_ok=False)
        seconds = round(time.monotonic() - work.started, 3)
        print(ready_line(**work.ready, pid=work.parent, ready_s=seconds), flush=True)
        if sys.stderr.isatty():
            print("Ctrl-C stops the server.", file=sys.stderr)


def ready_line(**facts: Any) -> str:
    """What a server prints when it is ready, for a program that started it to read."""
    return json.dumps({"ready": True, **facts})


def _end_with_parent(work: Work) -> None:
    """A parent that was killed cannot stop its workers."""
    while os.getppid() == work.parent:
        time.sleep(_LOOK_AFTER_PARENT_S)
    shutil.rmtree(work.folder, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(work.limits.timeout_s)
    os._exit(1)
