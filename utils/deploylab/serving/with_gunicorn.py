"""The application on gunicorn (https://gunicorn.org): worker processes with threads, all in Python."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from deploylab.errors import ServerError
from deploylab.serving import worker
from deploylab.serving.listener import BACKLOG, KEEP_ALIVE_S, Listener
from deploylab.serving.worker import Work

ACCEPT_S = 1.0


def run(work: Work, listener: Listener) -> None:
    """Serve until SIGTERM or SIGINT. Raises :class:`ServerError`."""
    run_application(Application(work, listener, worker_class="gthread"), listener, work)


def run_application(application: Application, listener: Listener, work: Work) -> None:
    """As :func:`run`, with another kind of worker."""
    try:
        _Arbiter(application, listener, work).run()
    except SystemExit as error:
        if os.getpid() != work.parent:  # a worker ends: the way up from here is the parent's
            os._exit(error.code or 0)
        if error.code:
            raise ServerError(
                work.failure() or "the workers ended again and again; their last words are above"
            ) from None


class Application(BaseApplication):
    """gunicorn's settings, and our application. ``close`` is that of :func:`worker.start`."""

    def __init__(self, work: Work, listener: Listener, *, close: bool = False, **settings: Any) -> None:
        self._work, self._close = work, close
        self._settings = {
            "bind": f"fd://{os.dup(listener.fileno())}",  # gunicorn closes what it is given
            "backlog": BACKLOG,
            "workers": work.workers,
            "threads": work.request_threads,
            "worker_connections": BACKLOG,
            "keepalive": KEEP_ALIVE_S,
            "graceful_timeout": math.ceil(work.limits.timeout_s) + 1,
            "loglevel": "error",
            "control_socket_disable": True,  # it would leave a file in the home folder
            "child_exit": lambda _, ended: self.ended(ended),
            **settings,
        }
        super().__init__()

    def load_config(self) -> None:
        for key, value in self._settings.items():
            if key in self.cfg.settings:  # the control socket came with gunicorn 25
                self.cfg.set(key, value)

    def load(self) -> Callable[..., Any]:
        return worker.start(self._work, close=self._close)

    def ended(self, ended: Any) -> None:
        """A worker process is no more."""
        self._work.forget(ended.pid)


class _Arbiter(Arbiter):
    def __init__(self, application: Application, listener: Listener, work: Work) -> None:
        super().__init__(application)
        self._listener, self._work = listener, work

    def handle_int(self) -> None:
        self.handle_term()  # Ctrl-C loses no request either

    def stop(self, graceful: bool = True) -> None:
        self._listener.stop_admitting()
        self._listener.wait_until_accepted(ACCEPT_S)
        self._listener.close()
        self._work.leave()
        while True:
            try:
                return super().stop(graceful)
            except HaltServer:  # one more worker that could not start
                continue
