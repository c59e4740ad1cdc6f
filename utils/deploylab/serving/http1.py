"""HTTP/1.1 for a WSGI application in one event loop, which answers quick requests itself.

To hand a request to another thread and its answer back costs as much as decoding a small JPEG: two threads are woken,
and both find the processor's caches filled by the other. So the loop runs what is known to take a millisecond or two,
one request in each of its turns, and leaves everything else to threads. Between two turns it looks after all
connections, reads what has arrived, and refuses what is too much.

llhttp (https://github.com/nodejs/llhttp) reads what clients send, by way of httptools.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import io
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url

from deploylab.serving import problems
from deploylab.serving.limits import Gate
from deploylab.serving.predictor import Steps
from deploylab.serving.problems import Problem
from deploylab.serving.service import ARRIVED, Reply

MAX_HEAD_BYTES = 1 << 16
MAX_FIELDS = 100
MAX_PIPELINED = 64
"""Requests of one connection that are read before the first of them is answered. Those after them are not answered:
the connection is closed, and the client asks again (RFC 9112, 9.3.2)."""
DISCARDED_BYTES = 1 << 26
LINGER_S = 2.0
"""So much of a body that was refused, and for so long, is read and thrown away: a client that still sends when its
connection is closed loses the answer (RFC 9112, 9.6)."""
TOGETHER = 8
"""Requests that are answered in one turn, step by step (:meth:`Predictor.steps`)."""
AHEAD = 8
"""Pieces of a long answer that wait for a slow client."""

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
_NO_BODY = (204, 304)


class Way(enum.Enum):
    """How a request is answered."""

    RECOGNISE = enum.auto()
    """In the loop, without WSGI: it is a plain request for the classes of a picture."""
    HERE = enum.auto()
    """In the loop."""
    THREAD = enum.auto()


class Request(NamedTuple):
    """A request that is complete, or as much of it as is needed to refuse it."""

    environ: dict[str, Any]
    body: bytes
    way: Way
    needs_place: bool
    has_place: bool


class Http:
    """What the connections of a process share: the application, its limits, and the requests that wait for the loop.

    ``room`` has a place for every request with a body that is arriving or being answered. ``way`` says how a request
    is answered, ``recognise`` answers those that go the way of that name. ``idle`` is called when no request waits any
    more, ``changed`` when the number of connections has changed.
    """

    def __init__(
        self,
        app: Wsgi,
        *,
        max_bytes: int,
        timeout_s: float,
        room: Gate,
        threads: int,
        way: Callable[[dict[str, Any], bytes], Way],
        recognise: Callable[[bytes, float], Steps[Reply]],
        idle: Callable[[], None],
        changed: Callable[[], None],
        server: tuple[str, int],
        several: bool,
    ) -> None:
        self.app, self.max_bytes, self.timeout_s, self.room = app, max_bytes, timeout_s, room
        self.way, self.recognise = way, recognise
        self.connections: set[Connection] = set()
        self.loop = asyncio.get_running_loop()
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="request")
        self.environ: dict[str, Any] = {
            "SCRIPT_NAME": "",
            "SERVER_NAME": server[0],
            "SERVER_PORT": str(server[1]),
            "SERVER_SOFTWARE": "deploylab",
            "wsgi.errors": sys.stderr,
            "wsgi.input_terminated": True,
            "wsgi.multiprocess": several,
            "wsgi.multithread": True,
            "wsgi.run_once": False,
            "wsgi.url_scheme": "http",
            "wsgi.version": (1, 0),
        }
        self.changed = changed
        self._idle = idle
        self._waiting: deque[tuple[Connection, Request]] = deque()
        self._turning = False
        self._date, self._second = "", 0

    def line_up(self, connection: Connection, request: Request) -> None:
        """Have the loop answer a request in one of its next turns."""
        self._waiting.append((connection, request))
        if not self._turning:
            self._turning = True
            self.loop.call_soon(self._turn)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def date(self) -> str:
        """The time as HTTP writes it."""
        second = int(time.time())
        if second != self._second:
            self._second, self._date = second, formatdate(second, usegmt=True)
        return self._date

    def sweep(self, patience_s: float) -> None:
        """Close connections on which no request was begun for so long."""
        before = self.loop.time() - patience_s
        for connection in [one for one in self.connections if one.idle and one.since <= before]:
            connection.close()

    def _turn(self) -> None:
        waiting = self._waiting
        steps = [connection.answer(request) for connection, request in islice(waiting, TOGETHER)]
        for _ in steps:
            waiting.popleft()
        self.loop.call_soon(self._turn if waiting else self._look_once_more)
        while steps:
            steps = [one for one in steps if self._goes_on(one)]

    def _goes_on(self, steps: Iterator[None]) -> bool:
        """Take an answer a step further. Whether there is another step."""
        try:
            next(steps)
        except StopIteration:
            return False
        except Exception as error:
            self.loop.call_exception_handler({"message": "a request could not be answered", "exception": error})
            return False
        return True

    def _look_once_more(self) -> None:
        """What has arrived meanwhile is read after this call and before the next."""
        self.loop.call_soon(self._turn if self._waiting else self._rest)

    def _rest(self) -> None:
        if self._waiting:
            self._turn()
        else:
            self._turning = False
            self._idle()


class Connection(asyncio.Protocol):
    """A client's connection: its requests are answered in their order, one at a time."""

    def __init__(self, http: Http) -> None:
        self.since = http.loop.time()
        self._http = http
        self._parser: Any = HttpRequestParser(self)
        self._transport: Any = None
        self._client = ""
        # What arrives
        self._environ: dict[str, Any] = {}
        self._url = b""
        self._body: list[bytes] = []
        self._size = self._fields = self._head_bytes = self._head_arrived = 0
        self._begun = self._in_head = self._has_body = self._has_place = False  # of the request that is being read
        self._unread: bytes | None = None
        self._deaf = False  # nothing more is wanted, or could be understood
        self._ended = False  # the client has said that it sends no more
        self._ignored = 0
        # What is answered
        self._requests: deque[Request] = deque()
        self._busy = False
        self._paused = False  # the client does not take what it was sent
        self._last = False  # the answer that ends the connection is under way
        self._lingers = False  # when it ends, as the client may be still sending
        self._lost = False
        self._ahead = threading.Semaphore(AHEAD)
        self._owed = 0
        http.connections.add(self)
        http.changed()

    @property
    def idle(self) -> bool:
        """Whether all requests are answered, and no other has begun."""
        return not (self._busy or self._begun or self._requests)

    def close(self) -> None:
        if self._transport:
            self._transport.close()

    # What the event loop says

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._client = (transport.get_extra_info("peername") or ("",))[0]

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = self._deaf = True
        self._parser = None  # it knows this object too
        self._drop_unanswered()
        self._drop_begun()
        self._ahead.release(AHEAD)
        self._http.connections.discard(self)
        self._http.changed()

    def eof_received(self) -> bool:
        """The client sends no more. Whether it is to be answered what it has sent completely."""
        self._deaf = self._ended = True
        self._drop_begun()
        return bool(self._busy or self._requests)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._ahead.release(self._owed)
        self._owed = 0
        self._go_on()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._ignored += len(data)
            if self._ignored > DISCARDED_BYTES:
                self._transport.abort()
        elif self._busy or self._requests:  # a request that does not wait for the answer to the one before
            self._unread = data
            self._transport.pause_reading()
        else:
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        if self._in_head:
            self._head_arrived += len(data)
        try:
            self._parser.feed_data(data)
            if self._in_head and self._head_arrived > MAX_HEAD_BYTES:
                raise _head_too_large()
            if self._begun and self._has_body and not (self._has_place or self._deaf):
                self._wait_for_body()
        except HttpParserUpgrade:  # HTTP goes on, but what the client sends next is something else
            self._deaf = True
        except (HttpParserError, Problem) as error:
            if not self._deaf:
                self._refuse(error)
        self._go_on()

    def _refuse(self, error: Exception) -> None:
        """Answer what cannot be understood, and nothing after it."""
        cause = error if isinstance(error, Problem) else error.__context__
        problem = cause if isinstance(cause, Problem) else Problem("bad-request", f"This is not HTTP/1.1: {error}.")
        self._drop_begun()
        self._environ = {
            "PATH_INFO": "",
            "QUERY_STRING": "",
            "REQUEST_METHOD": "",
            "SERVER_PROTOCOL": "HTTP/1.1",
            problems.FOUND: problem,
        }
        self._cut_short()

    def _wait_for_body(self) -> None:
        """Keep what has arrived of a body, if there is room for it."""
        try:
            self._http.room.__enter__()
        except Problem as full:
            self._environ[problems.FOUND] = full
            self._cut_short()
            return
        self._has_place = True
        if not self._body and self._environ.get("HTTP_EXPECT", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # What the parser says

    def on_message_begin(self) -> None:
        self._begun = self._in_head = True
        self._has_body = False
        self._environ = {}
        self._url, self._body = b"", []
        self._size = self._fields = self._head_bytes = self._head_arrived = 0

    def on_url(self, part: bytes) -> None:
        self._url += part
        self._grow_head(len(part))

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a field after the body means nothing to us
        self._fields += 1
        self._grow_head(len(name) + len(value))
        key, text = _KEYS.get(name) or _key(name), value.decode("latin-1")
        if key in self._environ:
            text = f"{self._environ[key]}{'; ' if key == 'HTTP_COOKIE' else ','}{text}"
        self._environ[key] = text

    def _grow_head(self, count: int) -> None:
        self._head_bytes += count
        if self._fields > MAX_FIELDS or self._head_bytes > MAX_HEAD_BYTES:
            raise _head_too_large()

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._deaf:
            return
        environ, parser = self._environ, self._parser
        environ["REQUEST_METHOD"] = parser.get_method().decode("latin-1")
        environ["SERVER_PROTOCOL"] = f"HTTP/{parser.get_http_version()}"
        environ["PATH_INFO"], environ["QUERY_STRING"] = _target(self._url)
        environ[ARRIVED] = time.perf_counter()
        length = int(environ.get("CONTENT_LENGTH") or 0)
        self._has_body = bool(length) or "HTTP_TRANSFER_ENCODING" in environ
        if length > self._http.max_bytes:
            self._cut_short()  # the application says so, and needs no body for that

    def on_body(self, part: bytes) -> None:
        if not self._deaf:
            self._body.append(part)
            self._size += len(part)
            if self._size > self._http.max_bytes:
                self._cut_short()

    def on_message_complete(self) -> None:
        if not self._deaf:
            self._complete(last=not self._parser.should_keep_alive())
            self._deaf = self._deaf or len(self._requests) >= MAX_PIPELINED

    def _complete(self, *, last: bool) -> None:
        """Have the request answered that was being read. After the ``last`` one nothing more is read."""
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        way = self._http.way(self._environ, body)
        self._requests.append(Request(self._environ, body, way, self._has_body, self._has_place))
        self._begun = self._in_head = self._has_body = self._has_place = False
        self._body = []
        self._deaf = last

    def _cut_short(self) -> None:
        """Have the request answered without the rest of it."""
        self._complete(last=True)
        self._lingers = True

    def _drop_begun(self) -> None:
        self._begun = self._in_head = self._has_body = False
        self._body = []
        if self._has_place:
            self._has_place = False
            self._http.room.__exit__()

    def _drop_unanswered(self) -> None:
        while self._requests:
            self._give_back(self._requests.popleft())

    def _persistence(self, request: Request) -> str:
        """What the client is to know of the connection's future."""
        if self._last:
            return "Connection: close\r\n"
        return "Connection: keep-alive\r\n" if request.environ["SERVER_PROTOCOL"] == "HTTP/1.0" else ""

    def _give_back(self, request: Request) -> None:
        if request.has_place:
            self._http.room.__exit__()

    # What the client is told

    def _go_on(self) -> None:
        """Turn to the next request, if the one before is answered and the client takes its answers."""
        if self._busy or self._paused or self._lost:
            return
        if self._requests:
            request = self._with_place(self._requests.popleft())
            self._busy = True
            self._last = self._deaf and not self._requests
            if request.way is Way.THREAD:
                self._http.pool.submit(self._answer_in_thread, request)
            else:
                self._http.line_up(self, request)
        elif self._unread is not None:
            data, self._unread = self._unread, None
            self._transport.resume_reading()
            self._parse(data)
        elif self._deaf:
            self._transport.close()

    def _with_place(self, request: Request) -> Request:
        if request.has_place or not request.needs_place or problems.FOUND in request.environ:
            return request
        try:
            self._http.room.__enter__()
        except Problem as full:
            return request._replace(environ=request.environ | {problems.FOUND: full}, way=Way.HERE)
        return request._replace(has_place=True)

    def answer(self, request: Request) -> Iterator[None]:
        """Answer in the event loop, pausing between steps."""
        try:
            if request.way is Way.RECOGNISE and not self._lost:
                try:
                    reply = yield from self._http.recognise(request.body, request.environ[ARRIVED])
                    head = (
                        f"HTTP/1.1 200 OK\r\nDate: {self._http.date()}\r\nContent-Type: application/json\r\n"
                        f"Content-Length: {len(reply.body)}\r\nServer-Timing: {reply.timing}\r\n"
                        f"{self._persistence(request)}\r\n"
                    )
                    self._transport.write(head.encode() + reply.body)
                    return
                except Exception as error:  # the application knows how to tell the client
                    request.environ[problems.FOUND] = error
            if not self._lost:
                with contextlib.closing(self._ask(request)) as answer:
                    self._transport.write(b"".join(answer))
        except BaseException:
            self._transport.abort()
            raise
        finally:
            self._done(request)

    def _answer_in_thread(self, request: Request) -> None:
        call = self._http.loop.call_soon_threadsafe
        try:
            if not self._lost:
                with contextlib.closing(self._ask(request)) as answer:
                    for part in answer:
                        self._send(part)
        except ConnectionAbortedError:
            call(self._transport.abort)
        except BaseException:
            call(self._transport.abort)
            raise
        finally:
            call(self._done, request)

    def _send(self, part: bytes) -> None:
        """From a thread. Waits while the client is slow, and gives up if it takes nothing at all."""
        if not self._ahead.acquire(timeout=self._http.timeout_s) or self._lost:
            raise ConnectionAbortedError
        self._http.loop.call_soon_threadsafe(self._write, part)

    def _write(self, part: bytes) -> None:
        if not self._lost:
            self._transport.write(part)
        if self._paused:
            self._owed += 1
        else:
            self._ahead.release()

    def _done(self, request: Request) -> None:
        self._give_back(request)
        self._busy = False
        self.since = self._http.loop.time()
        if self._lost:
            return
        if not self._last:
            self._go_on()
            return
        self._deaf = True
        self._unread = None
        self._drop_unanswered()
        self._drop_begun()
        self._part()

    def _part(self) -> None:
        """Close the connection, so that the client does not lose its answer if it is still sending."""
        if self._lingers and not self._ended and not self._transport.is_closing():
            self._transport.resume_reading()
            self._transport.write_eof()
            self._http.loop.call_later(LINGER_S, self._transport.close)
        else:
            self._transport.close()

    def _ask(self, request: Request) -> Iterator[bytes]:
        """The application's answer as it goes over the wire."""
        said: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], _: Any = None) -> None:
            said[:] = status, headers

        environ = self._http.environ | request.environ
        environ["REMOTE_ADDR"], environ["wsgi.input"] = self._client, io.BytesIO(request.body)
        body = self._http.app(environ, start_response)
        try:
            status, headers = said
            names = {name for name, _ in headers}
            fields = [f"HTTP/1.1 {status}\r\n"]
            for name, value in headers if "Date" in names else (("Date", self._http.date()), *headers):
                if name == "Connection":
                    self._last = self._last or value == "close"
                else:
                    fields.append(f"{name}: {value}\r\n")
            fields.append(self._persistence(request))
            if int(status[:3]) in _NO_BODY or environ["REQUEST_METHOD"] == "HEAD":
                pieces: Iterable[bytes] = ()
            elif "Content-Length" in names:
                pieces = body
            else:
                pieces = [b"".join(body)]
                fields.append(f"Content-Length: {len(pieces[0])}\r\n")
            yield ("".join(fields) + "\r\n").encode("latin-1")
            yield from pieces
        finally:
            if hasattr(body, "close"):
                body.close()


def _head_too_large() -> Problem:
    return Problem("head-too-large", f"At most {MAX_FIELDS} fields and {MAX_HEAD_BYTES:,} bytes are accepted.")


_KEYS = {b"Content-Type": "CONTENT_TYPE", b"Content-Length": "CONTENT_LENGTH", b"Host": "HTTP_HOST"}


def _key(name: bytes) -> str:
    """What WSGI calls a field (PEP 3333). One with an underscore could pass for another: it gets a name of no use."""
    text = name.decode("latin-1").upper()
    if "_" in text:
        return "deploylab.ignored"
    text = text.replace("-", "_")
    return text if text in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{text}"


def _target(url: bytes) -> tuple[str, str]:
    """Path, with its escapes undone, and query of a request's target, as latin-1 (PEP 3333). Raises a problem 400."""
    if not url.startswith(b"/") and url != b"*":
        try:
            parsed = parse_url(url)
        except HttpParserError:
            raise Problem("bad-request", f"The address {url[:80]!r} is none.") from None
        path, query = parsed.path or b"/", parsed.query or b""
    else:
        path, _, query = url.partition(b"?")
    if b"%" in path:
        path = unquote_to_bytes(path)
    return path.decode("latin-1"), query.decode("latin-1")
