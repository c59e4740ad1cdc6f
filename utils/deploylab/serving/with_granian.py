"""The application on granian (https://github.com/emmett-framework/granian): HTTP in Rust, worker processes in Python.

granian gives each worker a listening socket of its own, among which the kernel divides the clients; what waits at one
is reset when its worker stops. Here all workers accept from one socket instead, as granian itself does on macOS.
"""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

import psutil
from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.mp import MPServer

from deploylab.errors import ServerError
from deploylab.serving import worker
from deploylab.serving.listener import BACKLOG, KEEP_ALIVE_S, Listener
from deploylab.serving.worker import Work

LINGER_S = 1.0
"""How long a stopping server keeps idle connections open, for a request that is on its way."""

_POLL_S = 0.02
_STDERR = {"formatter": "generic", "class": "logging.StreamHandler", "stream": "ext://sys.stderr"}


def run(work: Work, listener: Listener) -> None:
    """Serve until SIGTERM or SIGINT; a second one does not wait for anybody. Raises :class:`ServerError`."""
    try:
        _Server(work, listener).serve(target_loader=partial(worker.start, work, close=True), wrap_loader=False)
    except SystemExit as error:
        if error.code:
            raise ServerError(
                work.failure() or "the workers ended again and again; their last words are above"
            ) from None


class _Server(MPServer):
    def __init__(self, work: Work, listener: Listener) -> None:
        super().__init__(
            "deploylab",
            address=listener.host,
            port=listener.port,
            interface=Interfaces.WSGI,
            workers=work.workers,
            blocking_threads=work.request_threads,
            loop=Loops.asyncio,  # unused by WSGI; the default would import another if it is there
            http=HTTPModes.http1,
            websockets=False,
            backlog=BACKLOG,
            backpressure=BACKLOG,
            http1_settings=HTTP1Settings(header_read_timeout=1000 * KEEP_ALIVE_S),
            log_level=LogLevels.error,
            log_dictconfig={"handlers": {"console": _STDERR, "access": _STDERR}},
            respawn_failed_workers=True,
            workers_kill_timeout=math.ceil(work.limits.timeout_s) + 1,
        )
        self._work, self._listener = work, listener

    def _init_shared_socket(self) -> None:
        self._sso = self._listener.socket
        self._sso.set_inheritable(True)
        self._shd = SocketHolder(self._listener.fileno(), False, BACKLOG)

    def _respawn_workers(self, workers: list[int], *arguments: Any, **options: Any) -> None:
        if self._work.failure():
            self.interrupt_children.extend(workers)
            self.interrupt_signal = True
            self.main_loop_interrupt.set()
            return
        ended = {index: self.wrks[index]._id() for index in workers}
        super()._respawn_workers(workers, *arguments, **options)
        for index, pid in ended.items():
            if self._work.was_ready(pid):  # granian gives up on a worker that ends twice within seconds
                self.respawned_wrks.pop(index, None)
            self._work.forget(pid)

    def signal_handler_interrupt(self, *_: Any) -> None:
        if self.interrupt_signal:  # the second time
            for each in self.wrks:
                each.kill()
        super().signal_handler_interrupt()

    def shutdown(self, exit_code: int = 0) -> None:
        self._let_clients_go()
        super().shutdown(exit_code)

    def _let_clients_go(self) -> None:
        self._listener.stop_admitting()
        self._listener.wait_until_accepted(LINGER_S)
        self._work.leave()
        deadline = time.monotonic() + LINGER_S
        while time.monotonic() < deadline and self._clients():
            time.sleep(_POLL_S)

    def _clients(self) -> int:
        """Open connections, over all workers."""
        found = 0
        for each in self.wrks:
            try:
                connections = psutil.Process(each._id()).net_connections("tcp")
            except psutil.Error:
                continue
            found += sum(
                one.status == psutil.CONN_ESTABLISHED and one.laddr.port == self._listener.port for one in connections
            )
        return found
