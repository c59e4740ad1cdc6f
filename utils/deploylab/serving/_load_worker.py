"""The load generator's own process: one thread, non-blocking sockets, requests made up in advance.

``python -I -S _load_worker.py`` reads one line of JSON (the fields of :class:`Plan`) and then the requests' bytes from
standard input, makes the load, and writes one line of JSON and four packed arrays, one entry a request, to standard
output: when it was due (s from the start), how long its answer took (s, from when it was due), its status (or -1 - n
for the error ``ERRORS[n]``), and whether the answer was the expected one. It stops early when standard input closes.

Needs the standard library only: no import of NumPy or Flask delays it, and it shares no lock with the program that
measures.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import selectors
import socket
import sys
import threading
import time
from array import array
from collections import deque
from dataclasses import dataclass

ERRORS = ("refused", "closed", "cut", "timeout", "not_http")
REFUSED, CLOSED, CUT, TIMEOUT, NOT_HTTP = range(-1, -1 - len(ERRORS), -1)
REST_AFTER_REFUSAL_S = 0.01
LONGEST_WAIT_S = 0.05
UNDER_WAY = {0, errno.EINPROGRESS, errno.EWOULDBLOCK, getattr(errno, "WSAEWOULDBLOCK", 0)}
EXAMPLE_BYTES = 300
LONGEST_HEAD = 1 << 16


@dataclass
class Plan:
    """What to do. ``rate`` (per second) makes it an open loop, else ``connections`` requests are always under way."""

    family: int
    address: list
    connections: int
    timeout_s: float
    sizes: list[int]
    expect: list[str] | None
    pattern: str
    seconds: float | None = None
    requests: int | None = None
    rate: float | None = None
    seed: int = 0


class Connection:
    """One place for a request: closed, or connected and free, or with the request ``index`` under way."""

    __slots__ = ("buffer", "due", "end", "index", "outgoing", "sock", "watched")

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.outgoing: memoryview | None = None
        self.watched = 0  # the events that the selector looks for
        self.buffer = b""
        self.index = -1  # of the request's body; -1 is free
        self.due = 0.0
        self.end = 0  # where the answer ends in the buffer, once its head tells; 0 is unknown


class Generator:
    """Makes the load that a :class:`Plan` asks for; afterwards the arrays hold the records."""

    def __init__(self, plan: Plan, payloads: list[bytes]) -> None:
        self.plan, self.payloads = plan, payloads
        self.label = re.compile(plan.pattern.encode())
        self.expected = None if plan.expect is None else [text.encode() for text in plan.expect]
        self.due, self.took = array("d"), array("d")
        self.status, self.right = array("h"), array("b")
        self.examples: dict[int, str] = {}
        self.opened = self.sent = 0
        self.lag_s = 0.0
        self.stopped = threading.Event()
        # epoll waits in whole milliseconds, which is too coarse for arrival times; select does not
        self.selector = selectors.SelectSelector() if plan.rate else selectors.DefaultSelector()
        self.free = [Connection() for _ in range(plan.connections)]
        self.resting: deque[tuple[float, Connection]] = deque()
        self.busy: set[Connection] = set()
        self.arrivals: deque[float] = deque()  # due and not yet sent
        self.next_arrival = 0.0
        self.random = random.Random(plan.seed)
        self.begin = self.now = 0.0

    def run(self) -> None:
        """Make the load; returns when every answer is there or given up, or :attr:`stopped` is set."""
        clock = time.perf_counter
        self.begin = clock()
        self.next_arrival = self._gap()
        last_check = 0.0
        while not self.stopped.is_set():
            self.now = clock() - self.begin
            self._send_due()
            if not self.busy and not self._more_to_come():
                break
            for key, events in self.selector.select(self._wait()):
                self.now = clock() - self.begin
                self._handle(key.data, events)
            if self.now - last_check > LONGEST_WAIT_S:
                last_check = self.now
                self._give_up_late()
        self.seconds = clock() - self.begin

    # --- when to send ---------------------------------------------------------------------------------------------

    def _gap(self) -> float:
        """Seconds to the next arrival of a Poisson process: exponentially distributed."""
        return self.random.expovariate(self.plan.rate) if self.plan.rate else 0.0

    def _more_to_come(self) -> bool:
        if self.plan.rate:
            return bool(self.arrivals) or self.next_arrival < self.plan.seconds
        return self._may_send()

    def _may_send(self) -> bool:
        """Closed loop: whether another request may begin."""
        if self.plan.requests is not None and self.sent >= self.plan.requests:
            return False
        return self.plan.seconds is None or self.now < self.plan.seconds

    def _send_due(self) -> None:
        while self.resting and self.resting[0][0] <= self.now:
            self.free.append(self.resting.popleft()[1])
        if not self.plan.rate:
            while self.free and self._may_send():
                self._send(self.free.pop(), self.now)
            return
        while self.next_arrival <= self.now and self.next_arrival < self.plan.seconds:
            self.arrivals.append(self.next_arrival)
            if self.free:
                self.lag_s = max(self.lag_s, self.now - self.next_arrival)
            self.next_arrival += self._gap()
        while self.free and self.arrivals:
            self._send(self.free.pop(), self.arrivals.popleft())

    def _wait(self) -> float:
        wait = LONGEST_WAIT_S
        if self.plan.rate and self.next_arrival < self.plan.seconds:
            wait = min(wait, self.next_arrival - self.now)
        if self.resting:
            wait = min(wait, self.resting[0][0] - self.now)
        return max(0.0, wait)

    def _send(self, connection: Connection, due: float) -> None:
        connection.index = self.sent % len(self.payloads)
        connection.due = due
        connection.buffer, connection.end = b"", 0
        connection.outgoing = memoryview(self.payloads[connection.index])
        self.sent += 1
        self.busy.add(connection)
        if connection.sock is None:
            self._connect(connection)
        else:
            self._write(connection)

    # --- one connection -------------------------------------------------------------------------------------------

    def _connect(self, connection: Connection) -> None:
        sock = socket.socket(self.plan.family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sock = sock
        self.opened += 1
        if sock.connect_ex(tuple(self.plan.address)) not in UNDER_WAY:
            sock.close()
            connection.sock = None
            self._finish(connection, REFUSED)
            return
        connection.watched = selectors.EVENT_READ | selectors.EVENT_WRITE
        self.selector.register(sock, connection.watched, connection)

    def _close(self, connection: Connection) -> None:
        if connection.sock is not None:
            self.selector.unregister(connection.sock)
            connection.sock.close()
            connection.sock = None

    def _handle(self, connection: Connection, events: int) -> None:
        if connection.sock is None:  # closed while an earlier event of the same batch was handled
            return
        if events & selectors.EVENT_READ:
            self._read(connection)
        if events & selectors.EVENT_WRITE and connection.sock is not None and connection.outgoing is not None:
            self._write(connection)

    def _write(self, connection: Connection) -> None:
        """Send what the socket takes; be woken for the rest."""
        try:
            sent = connection.sock.send(connection.outgoing)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                self._close(connection)
                self._finish(connection, REFUSED)
                return
            sent = len(connection.outgoing)  # what the server may have said before it hung up is read next
        rest = connection.outgoing[sent:]
        connection.outgoing = rest if len(rest) else None
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.outgoing is not None else 0)
        if wanted != connection.watched:
            connection.watched = wanted
            self.selector.modify(connection.sock, wanted, connection)

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError as error:
            data = b""
            if error.errno == errno.ECONNREFUSED:
                self._close(connection)
                self._finish(connection, REFUSED)
                return
        if connection.index < 0:  # a free connection: the server closed it, or says what nobody asked
            self._close(connection)
            return
        connection.buffer = connection.buffer + data if connection.buffer else data
        if data and len(connection.buffer) < connection.end:
            return
        try:
            answer = parse(connection, closed=not data)
        except ValueError:
            self._close(connection)
            self._finish(connection, NOT_HTTP)
            return
        if answer is None and not data:
            self._close(connection)
            self._finish(connection, CUT if connection.buffer else CLOSED)
        elif answer is not None:
            status, body, keep = answer
            if not keep or not data or connection.outgoing is not None:
                self._close(connection)
            self._finish(connection, status, body)

    def _finish(self, connection: Connection, status: int, body: bytes = b"") -> None:
        self._record(connection.due, connection.index, status, body)
        connection.index, connection.outgoing = -1, None
        self.busy.discard(connection)
        if status == REFUSED:
            self.resting.append((self.now + REST_AFTER_REFUSAL_S, connection))
        else:
            self.free.append(connection)

    def _record(self, due: float, index: int, status: int, body: bytes = b"") -> None:
        right = 1
        if 200 <= status < 300 and self.expected is not None:
            found = self.label.search(body)
            label = found.group(1) if found else b"none"
            right = int(found is not None and label == self.expected[index])
            if not right:
                self._keep_example(status, b"label %s, expected %s" % (label, self.expected[index]))
        elif status >= 300:
            self._keep_example(status, body)
        self.due.append(due)
        self.took.append(self.now - due)
        self.status.append(status)
        self.right.append(right)

    def _keep_example(self, status: int, text: bytes) -> None:
        self.examples.setdefault(status, text[:EXAMPLE_BYTES].decode("utf-8", "replace"))

    def _give_up_late(self) -> None:
        """Requests whose time is over count as errors, also those that no connection was free for."""
        before = self.now - self.plan.timeout_s
        for connection in [one for one in self.busy if one.due < before]:
            self._close(connection)
            self._finish(connection, TIMEOUT)
        while self.arrivals and self.arrivals[0] < before:
            self._record(self.arrivals.popleft(), 0, TIMEOUT)


def parse(connection: Connection, closed: bool) -> tuple[int, bytes, bool] | None:
    """Status, body and whether the connection may be used again; None while the answer is incomplete (RFC 9112).

    ``closed``: the server has hung up, which ends an answer that tells no length. Raises ValueError for anything else.
    """
    data = connection.buffer
    head_end = data.find(b"\r\n\r\n")
    if head_end < 0:
        if not data[:5] == b"HTTP/"[: len(data)] or len(data) > LONGEST_HEAD:
            raise ValueError("not HTTP")
        return None
    head = data[:head_end].lower()
    version, status = head[:8], int(head[9:12])
    if not version.startswith(b"http/1."):
        raise ValueError("not HTTP/1")
    start = head_end + 4
    if 100 <= status < 200:  # an interim answer; the real one follows
        connection.buffer = data[start:]
        return parse(connection, closed) if connection.buffer else None
    keep = b"connection: close" not in head if version == b"http/1.1" else b"connection: keep-alive" in head
    if b"\r\ntransfer-encoding:" in head:
        body = _chunked(data, start)
        return None if body is None else (status, body, keep)
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        line_end = head.find(b"\r\n", at + 2)
        connection.end = start + int(head[at + 17 : line_end if line_end > 0 else None])
        if len(data) < connection.end:
            return None
        return status, data[start : connection.end], keep
    if status in (204, 304):
        return status, b"", keep
    return (status, data[start:], False) if closed else None


def _chunked(data: bytes, at: int) -> bytes | None:
    """The body of a chunked answer that begins at ``at``, None while it is incomplete (RFC 9112, section 7.1)."""
    parts = []
    while (line_end := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:line_end].partition(b";")[0], 16)
        if size == 0:
            return b"".join(parts) if data.find(b"\r\n\r\n", line_end) >= 0 else None
        at = line_end + 2
        if len(data) < at + size + 2:
            return None
        parts.append(data[at : at + size])
        at += size + 2
    return None


def main() -> None:
    incoming, outgoing = sys.stdin.buffer, sys.stdout.buffer
    plan = Plan(**json.loads(incoming.readline()))
    generator = Generator(plan, [incoming.read(size) for size in plan.sizes])

    def stop_when_input_closes() -> None:
        while os.read(0, 1):  # not through the buffer, whose lock would hinder the exit
            pass
        generator.stopped.set()

    threading.Thread(target=stop_when_input_closes, daemon=True).start()
    cpu = time.process_time()
    generator.run()
    facts = {
        "n": len(generator.due),
        "seconds": generator.seconds,
        "cpu_s": time.process_time() - cpu,
        "connections": generator.opened,
        "lag_s": generator.lag_s,
        "examples": generator.examples,
        "interrupted": generator.stopped.is_set(),
    }
    with contextlib.suppress(OSError):  # nobody is left to read it
        outgoing.write(json.dumps(facts).encode() + b"\n")
        for column in (generator.due, generator.took, generator.status, generator.right):
            outgoing.write(column.tobytes())
        outgoing.flush()


if __name__ == "__main__":
    main()
