"""The application in an event loop (:mod:`.http1`), in worker processes that gunicorn keeps alive.

A loop answers one quick request at a time, so clients must be divided fairly among the processes: one that has more
connections than another lets the other accept the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import signal
from typing import Any

from gunicorn.workers.base import Worker

from deploylab.serving import quick, with_gunicorn
from deploylab.serving.http1 import Connection, Http, Way
from deploylab.serving.limits import Gate
from deploylab.serving.listener import BACKLOG, KEEP_ALIVE_S, Listener
from deploylab.serving.worker import Work

LINGER_S = 1.0
"""How long a stopping server keeps idle connections open, for a request that is on its way."""

_YIELD_S = 0.01
_LOOK_S = 1.0
_POLL_S = 0.02
_REST_S = 0.05
_NOBODY = 0xFFFFFFFF


def run(work: Work, listener: Listener) -> None:
    """Serve until SIGTERM or SIGINT. Raises :class:`ServerError`."""
    with_gunicorn.run_application(_Application(work, listener), listener, work)


class Crowd:
    """How many connections each process has, in memory that they share. A process has a place while it lives."""

    def __init__(self, places: int) -> None:
        self._counts = memoryview(mmap.mmap(-1, 4 * places)).cast("I")
        self._free = set(range(places))
        for place in self._free:
            self._counts[place] = _NOBODY

    def enter(self) -> int | None:
        """A place for a process that is about to be forked; None if there are more than was said."""
        return self._free.pop() if self._free else None

    def leave(self, place: int | None) -> None:
        """The process is gone."""
        self.tell(place, _NOBODY)
        if place is not None:
            self._free.add(place)

    def tell(self, place: int | None, count: int) -> None:
        """So many connections does the process have. Until it says so it counts as one that takes none."""
        if place is not None:
            self._counts[place] = count

    def has_shorter_than(self, count: int) -> bool:
        """Whether a process has fewer connections than that."""
        return min(self._counts) < count


class _Application(with_gunicorn.Application):
    def __init__(self, work: Work, listener: Listener) -> None:
        self.listener, self.work = listener, work
        self.crowd = Crowd(work.workers)
        # A loop that has not come round for so long hangs: gunicorn then starts another.
        super().__init__(
            work, listener, worker_class=_LoopWorker, timeout=30 + 2 * round(work.limits.timeout_s), close=True
        )

    def ended(self, worker: Any) -> None:
        self.crowd.leave(worker.place)
        super().ended(worker)


class _LoopWorker(Worker):
    """Made in the parent, before the process is."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.place = self.app.crowd.enter()

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        work, self._loop = self.app.work, asyncio.get_running_loop()
        self._socket = self.app.listener.socket
        self._socket.setblocking(False)
        self._stop = stop = asyncio.Event()
        self._resting = False
        self._http = self._make_http(work)
        self._starting: set[asyncio.Task] = set()
        self._loop.add_signal_handler(signal.SIGTERM, stop.set)
        self._loop.add_reader(self._socket, self._accept)
        self.app.crowd.tell(self.place, 0)
        while not stop.is_set():
            self.notify()
            self._http.sweep(KEEP_ALIVE_S)
            self.wsgi.app.metrics.rest()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), _LOOK_S)
        self._loop.remove_reader(self._socket)
        self.app.crowd.tell(self.place, _NOBODY)
        await self._let_clients_go(work.limits.timeout_s)

    def _make_http(self, work: Work) -> Http:
        app, room = self.wsgi.app, Gate(work.limits.max_queue)
        alone = app.service.predictor.alone and not app.access_log

        def way(environ: dict[str, Any], body: bytes) -> Way:
            found = quick.way(environ, body)
            if found is not Way.RECOGNISE or (alone and not self.wsgi.begun):
                return found
            return Way.HERE if app.service.predictor.alone else Way.THREAD

        def changed() -> None:
            if not self._stop.is_set():
                self.app.crowd.tell(self.place, len(http.connections))
            app.metrics.load()

        http = Http(
            self.wsgi,
            max_bytes=work.limits.max_bytes,
            timeout_s=work.limits.timeout_s,
            room=room,
            threads=work.request_threads,
            way=way,
            recognise=app.recognise,
            idle=self._rest_soon,
            changed=changed,
            server=(self.app.listener.host, self.app.listener.port),
            several=work.workers > 1,
        )
        app.metrics.watch(room, lambda: http.waiting)
        return http

    def _rest_soon(self) -> None:
        """Under load there is a moment's idleness every few requests, and to write numbers down takes a while."""
        if not self._resting:
            self._resting = True
            self._loop.call_later(_REST_S, self._rest)

    def _rest(self) -> None:
        self._resting = False
        self.wsgi.app.metrics.rest()

    def _accept(self) -> None:
        """Somebody wants to connect. If another process has fewer clients, it gets a moment to be faster."""
        here = len(self._http.connections)
        if here >= BACKLOG or self.app.crowd.has_shorter_than(here):
            self._loop.remove_reader(self._socket)
            self._loop.call_later(_YIELD_S, self._insist)
        else:
            self._take()

    def _insist(self) -> None:
        if len(self._http.connections) < BACKLOG:
            self._take()
        if not self._stop.is_set():
            self._loop.add_reader(self._socket, self._accept)

    def _take(self) -> None:
        try:
            client, _ = self._socket.accept()
        except OSError:  # another process was faster, the client went away, or no descriptor is left
            return
        client.setblocking(False)
        connection = Connection(self._http)
        task = self._loop.create_task(self._loop.connect_accepted_socket(lambda: connection, client))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _let_clients_go(self, timeout_s: float) -> None:
        """Answer what has begun, and what begins soon."""
        http, now = self._http, self._loop.time()
        while http.connections and self._loop.time() < now + timeout_s:
            self.notify()
            if self._loop.time() >= now + LINGER_S:
                http.sweep(0)
            await asyncio.sleep(_POLL_S)
