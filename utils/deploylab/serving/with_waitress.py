"""The application on waitress (https://github.com/Pylons/waitress): one process, threads, at home on Windows too.

It reads a request completely before a thread has to do with it, so slow clients cost no thread.
"""

from __future__ import annotations

import logging
import signal
import time
from typing import Any

import waitress
from waitress.channel import HTTPChannel

from deploylab.serving import worker
from deploylab.serving.listener import BACKLOG, KEEP_ALIVE_S, Listener
from deploylab.serving.worker import Work

LINGER_S = 1.0
"""How long a stopping server keeps idle connections open, for a request that is on its way."""

_POLL_S = 0.1


def run(work: Work, listener: Listener) -> None:
    """Serve until SIGTERM or SIGINT. Raises :class:`ServerError`."""
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it would tell of every request that waits
    server = waitress.create_server(
        worker.start(work),
        sockets=[listener.socket],
        threads=work.request_threads,
        backlog=BACKLOG,
        connection_limit=BACKLOG,
        inbuf_overflow=work.limits.max_bytes,  # beyond it, an upload would go to a temporary file
        max_request_body_size=2 * work.limits.max_bytes,  # the application says better what is wrong with a large one
        channel_timeout=KEEP_ALIVE_S,
        clear_untrusted_proxy_headers=True,
        ident=None,
    )
    server.channel_class = _Channel
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopping.append(number))
    while not stopping:
        _turn(server)
    listener.stop_admitting()
    work.leave()
    _Channel.last = True
    now = time.monotonic()
    idle_until, busy_until = now + LINGER_S, now + work.limits.timeout_s
    while len(stopping) < 2 and time.monotonic() < (busy_until if _busy(server) else idle_until):
        if not (server.active_channels or listener.waiting()):
            break
        _turn(server)
    server.close()
    server.task_dispatcher.shutdown(timeout=1)


class _Channel(HTTPChannel):
    """A connection; while the server stops, it is closed after the next answer, which says so."""

    last = False

    def service(self) -> None:
        if self.last:
            self.requests[0].headers["CONNECTION"] = "close"
        super().service()


def _turn(server: Any) -> None:
    server.asyncore.loop(timeout=_POLL_S, use_poll=True, map=server._map, count=1)


def _busy(server: Any) -> bool:
    """Whether a request is being received, worked on, or answered."""
    return any(
        channel.request or channel.requests or channel.total_outbufs_len for channel in server.active_channels.values()
    )
