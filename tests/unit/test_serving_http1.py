"""HTTP/1.1 in the event loop: what goes over the wire, on real sockets, with the real application behind it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import serving_support as support
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("httptools")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the production server there is another")

from deploylab.serving import create_app, http1, quick  # noqa: E402
from deploylab.serving.http1 import Connection, Http, Way  # noqa: E402
from deploylab.serving.limits import Gate, Limits  # noqa: E402
from deploylab.serving.predictor import Predictor, finished  # noqa: E402
from deploylab.serving.with_asyncio import Crowd  # noqa: E402

LABEL = "stop"
PHOTO = support.sample(LABEL)
LIMITS = Limits(max_bytes=2_000_000, max_queue=4, timeout_s=5)
WAIT_S = 60
LONG = [b"x" * 65_536] * 400


class Running:
    """A loop in a thread of this process, over the application and three addresses more."""

    def __init__(self, predictor: Predictor) -> None:
        self.app = create_app(predictor, limits=LIMITS)
        self.room = Gate(LIMITS.max_queue)
        self.hold, self.held, self.closed = threading.Event(), threading.Event(), threading.Event()
        self.ways: list[Way] = []
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.http: Http
        self.port = asyncio.run_coroutine_threadsafe(self._start(), self.loop).result(WAIT_S)

    async def _start(self) -> int:
        self.loop.set_exception_handler(lambda *_: None)
        self.http = Http(
            self.wsgi,
            max_bytes=LIMITS.max_bytes,
            timeout_s=LIMITS.timeout_s,
            room=self.room,
            threads=8,
            way=self.way,
            recognise=self.app.recognise,
            idle=self.app.metrics.rest,
            changed=lambda: None,
            server=("127.0.0.1", 0),
            several=False,
        )
        self.server = await self.loop.create_server(lambda: Connection(self.http), "127.0.0.1", 0)
        return self.server.sockets[0].getsockname()[1]

    def way(self, environ: dict, body: bytes) -> Way:
        self.ways.append(Way.HERE if environ["PATH_INFO"] == "/broken" else quick.way(environ, body))
        return self.ways[-1]

    def wsgi(self, environ, start_response):
        if environ["PATH_INFO"] == "/broken":
            raise RuntimeError("a mistake of the application")
        if environ["PATH_INFO"] == "/held":
            self.held.set()
            self.hold.wait(WAIT_S)
        if environ["PATH_INFO"] in ("/held", "/long", "/environ"):
            body = LONG if environ["PATH_INFO"] == "/long" else [json.dumps(environ, default=str).encode()]
            headers = [("Content-Length", str(sum(map(len, body))))] if body is LONG else []
            start_response("200 OK", headers)
            return _Closing(body, self.closed)
        return self.app(environ, start_response)

    def stop(self) -> None:
        self.hold.set()
        self.loop.call_soon_threadsafe(self.server.close)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), self.loop).result(WAIT_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(WAIT_S)
        self.http.pool.shutdown()
        self.loop.close()


class _Past:
    """A clock that says of everything that it arrived a minute ago."""

    time = time.time

    @staticmethod
    def perf_counter() -> float:
        return time.perf_counter() - 60


class _Closing(list):
    """An answer that tells when it is closed, as PEP 3333 has it."""

    def __init__(self, parts: list[bytes], closed: threading.Event) -> None:
        super().__init__(parts)
        self._closed = closed

    def close(self) -> None:
        self._closed.set()


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.load("signnet", limits=LIMITS)


@pytest.fixture
def running(predictor) -> Iterator[Running]:
    one = Running(predictor)
    try:
        yield one
    finally:
        one.stop()


@contextlib.contextmanager
def connected(running: Running) -> Iterator[tuple[socket.socket, io.BufferedReader]]:
    with socket.create_connection(("127.0.0.1", running.port), WAIT_S) as client, client.makefile("rb") as stream:
        yield client, stream


def head(path: str = "/v1/predict", *fields: str, method: str = "POST", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: x", *fields, "", ""]).encode("latin-1")


def post(body: bytes = PHOTO, path: str = "/v1/predict", *fields: str) -> bytes:
    return head(path, "Content-Type: image/jpeg", f"Content-Length: {len(body)}", *fields) + body


def get(path: str = "/healthz") -> bytes:
    return head(path, method="GET")


def answer(stream: io.BufferedReader, *, bodiless: bool = False) -> tuple[int, dict[str, str], bytes]:
    status = int(stream.readline().split()[1])
    fields: dict[str, str] = {}
    while line := stream.readline().strip().decode("latin-1"):
        name, _, value = line.partition(": ")
        assert name.lower() not in fields
        fields[name.lower()] = value
    return status, fields, b"" if bodiless or status == 100 else stream.read(int(fields["content-length"]))


def top(body: bytes) -> str:
    return json.loads(body)["predictions"][0]["top"][0]["label"]


def ask(running: Running, wire: bytes) -> tuple[int, dict[str, str], bytes]:
    with connected(running) as (client, stream):
        client.sendall(wire)
        return answer(stream)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_picture_is_recognised_in_the_loop_and_the_connection_stays_open(running, predictor):
    expected = predictor.predict([PHOTO]).results[0]
    with connected(running) as (client, stream):
        for _ in range(3):
            client.sendall(post())
            status, fields, body = answer(stream)
            assert status == 200
            assert [(one["label"], one["probability"]) for one in json.loads(body)["predictions"][0]["top"]] == expected
            assert fields["content-type"] == "application/json"
            assert fields["server-timing"].startswith("read;dur=")
            assert fields["date"].endswith("GMT")
            assert "connection" not in fields
    assert running.ways == [Way.RECOGNISE] * 3
    page = ask(running, get("/metrics"))[2].decode()
    assert 'deploylab_requests_total{route="/v1/predict",status="200"} 3.0' in page
    assert 'deploylab_pictures_total{result="answered"} 3.0' in page


def test_what_could_take_long_goes_to_a_thread_and_is_answered_alike(running):
    with Image.open(io.BytesIO(PHOTO)) as picture:
        others = [
            support.encoded(picture, "PNG"),
            support.encoded(picture, "WEBP", lossless=True),
            support.encoded(picture.resize((1200, 1000)), quality=95),
            support.encoded(picture, progressive=True, quality=95),
        ]
    for data in others:
        status, _, body = ask(running, post(data))
        assert (status, top(body)) == (200, LABEL)
    assert set(running.ways) == {Way.THREAD}


def test_a_bad_picture_is_answered_with_a_problem_and_its_neighbours_are_not_touched(running):
    cut = PHOTO[: len(PHOTO) // 2]
    with connected(running) as (client, stream):
        client.sendall(post() + post(cut) + get() + post(b"junk") + post())
        answers = [answer(stream) for _ in range(5)]
    assert [status for status, _, _ in answers] == [200, 400, 200, 415, 200]
    assert json.loads(answers[1][2])["type"] == "/problems/picture-damaged"
    assert top(answers[0][2]) == top(answers[4][2]) == LABEL
    wait_for(lambda: running.room.inside == 0)


def test_clients_at_once_get_each_their_own_answer(running):
    samples = [(label, support.sample(label)) for label in ("stop", "yield", "keep_left", "priority_road")]
    seen: list[bool] = []

    def client(number: int) -> None:
        with connected(running) as (one, stream):
            for turn in range(10):
                label, data = samples[(number + turn) % len(samples)]
                one.sendall(post(data))
                status, _, body = answer(stream)
                seen.append(status == 503 or top(body) == label)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for each in clients:
        each.start()
    for each in clients:
        each.join(WAIT_S)
    assert seen == [True] * 60


def test_more_requests_than_may_wait_in_a_connection_end_it(running):
    count = http1.MAX_PIPELINED + 40
    with connected(running) as (client, stream):
        client.sendall(get() * count)
        for _ in range(http1.MAX_PIPELINED - 1):
            assert answer(stream)[1].get("connection") is None
        assert answer(stream)[1]["connection"] == "close"
        assert stream.read() == b""


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(50), 400),
        (b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n", 400),
        (head("/healthz", "no colon here"), 400),
        (head("/healthz", "Content-Length: 5", "Content-Length: 6"), 400),
        (head("/healthz", "Content-Length: -1"), 400),
        (head("/v1/predict", "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
        (head("/healthz", "X: a\0b"), 400),
        (head("/healthz", *["a: b"] * 101), 431),
        (head("/healthz", "X: " + "y" * 70_000), 431),
        (head("/" + "a" * 70_000), 431),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 300_000, 431),
    ],
)
def test_what_is_no_request_gets_a_problem_and_nothing_after_it_counts(running, wire, status):
    with connected(running) as (client, stream):
        with contextlib.suppress(OSError):
            client.sendall(wire + get("/readyz"))
        got, fields, body = answer(stream)
        assert (got, fields["connection"], fields["content-type"]) == (status, "close", "application/problem+json")
        assert json.loads(body)["status"] == status
        client.shutdown(socket.SHUT_WR)
        assert stream.read() == b""


def test_a_body_that_is_too_large_is_refused_and_its_sender_lives_to_read_so(running):
    for wire in (
        head("/v1/predict", "Content-Type: image/jpeg", "Content-Length: 12000000") + bytes(12_000_000),
        head("/v1/predict", "Content-Type: image/jpeg", "Transfer-Encoding: chunked")
        + (b"10000\r\n" + bytes(65_536) + b"\r\n") * 120
        + b"0\r\n\r\n",
    ):
        status, fields, body = ask(running, wire)
        assert (status, fields["connection"]) == (413, "close")
        assert "At most 2,000,000 bytes" in json.loads(body)["detail"]
    wait_for(lambda: running.room.inside == 0)


def test_a_chunked_body_and_one_byte_at_a_time(running):
    chunks = b"".join(b"%x;note=1\r\n%s\r\n" % (len(part), part) for part in (PHOTO[:100], PHOTO[100:]))
    wire = head("/v1/predict", "Content-Type: image/jpeg", "Transfer-Encoding: chunked") + chunks
    wire += b"0\r\nContent-Type: text/plain\r\n\r\n"  # a field after the body changes nothing
    assert top(ask(running, wire)[2]) == LABEL
    with connected(running) as (client, stream):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request = post()
        for byte in range(200):
            client.sendall(request[byte : byte + 1])
        client.sendall(request[200:])
        assert top(answer(stream)[2]) == LABEL


def test_expect_100_continue_older_versions_and_head(running):
    with connected(running) as (client, stream):
        client.sendall(
            head("/v1/predict", "Content-Type: image/jpeg", "Expect: 100-continue", f"Content-Length: {len(PHOTO)}")
        )
        assert answer(stream)[0] == 100
        client.sendall(PHOTO)
        assert top(answer(stream)[2]) == LABEL
        client.sendall(head("/", method="HEAD"))
        status, fields, _ = answer(stream, bodiless=True)
        assert status == 200
        assert int(fields["content-length"]) > 0
        client.sendall(head("/healthz", "Connection: keep-alive", method="GET", version="1.0"))
        assert answer(stream)[1]["connection"] == "keep-alive"
        client.sendall(head("/healthz", method="GET", version="1.0"))
        assert answer(stream)[1]["connection"] == "close"
        assert stream.read() == b""


def test_a_request_that_has_waited_too_long_is_told_so(running, monkeypatch):
    monkeypatch.setattr(http1, "time", _Past)
    with connected(running) as (client, stream):
        client.sendall(post())
        status, _, body = answer(stream)
    assert status == 504
    assert json.loads(body)["type"] == "/problems/timeout"


def test_a_client_that_sends_no_more_still_gets_its_answer(running):
    with connected(running) as (client, stream):
        client.sendall(post())
        client.shutdown(socket.SHUT_WR)
        assert top(answer(stream)[2]) == LABEL
        assert stream.read() == b""
    with connected(running) as (client, stream):
        client.sendall(post()[:-10])
        client.shutdown(socket.SHUT_WR)
        assert stream.read() == b""
    wait_for(lambda: running.room.inside == 0)


def test_the_environment_is_what_wsgi_says(running):
    fields = ("X-Name: a", "X-Name: b", "X_Name: forged", "Cookie: a=1", "Cookie: b=2")
    wire = head("/environ?a=%41&b", *fields, method="GET")
    environ = json.loads(ask(running, wire)[2])
    assert (environ["PATH_INFO"], environ["QUERY_STRING"]) == ("/environ", "a=%41&b")
    assert (environ["HTTP_X_NAME"], environ["HTTP_COOKIE"]) == ("a,b", "a=1; b=2")
    assert (environ["REQUEST_METHOD"], environ["SERVER_PROTOCOL"]) == ("GET", "HTTP/1.1")
    assert environ["REMOTE_ADDR"] == "127.0.0.1"
    assert running.closed.wait(WAIT_S)
    for target in ("http://elsewhere/environ?c", "/%65nviron?c"):
        environ = json.loads(ask(running, head(target, method="GET"))[2])
        assert (environ["PATH_INFO"], environ["QUERY_STRING"]) == ("/environ", "c")


def test_when_there_is_no_more_room_bodies_are_refused_and_questions_are_answered(running):
    with contextlib.ExitStack() as stack:
        for _ in range(LIMITS.max_queue):
            slow, _ = stack.enter_context(connected(running))
            slow.sendall(post()[:-1])
        wait_for(lambda: running.room.inside == LIMITS.max_queue)
        for wire in (post(), post()[:-1]):
            status, fields, body = ask(running, wire)
            assert (status, fields["retry-after"]) == (503, "1")
            assert ("connection" in fields) == (wire != post())  # what is left of a body would be in the way
            assert json.loads(body)["type"] == "/problems/overloaded"
        assert ask(running, get())[0] == 200
    wait_for(lambda: running.room.inside == 0)  # they went away
    assert ask(running, post())[0] == 200


def test_a_request_that_a_thread_works_on_keeps_no_other_waiting(running):
    with connected(running) as (client, stream):
        client.sendall(get("/held"))
        assert running.held.wait(WAIT_S)
        assert top(ask(running, post())[2]) == LABEL
        running.hold.set()
        assert answer(stream)[0] == 200


def test_a_long_answer_waits_for_a_slow_client_and_for_nobody_for_ever(running):
    with connected(running) as (client, stream):
        client.sendall(get("/long"))
        assert ask(running, get())[0] == 200
        assert len(answer(stream)[2]) == sum(map(len, LONG))
    running.closed.clear()
    with connected(running) as (client, _):
        client.sendall(get("/long"))
        assert running.closed.wait(WAIT_S)  # after timeout_s in which the client took nothing
    wait_for(lambda: not running.http.connections)


def test_a_mistake_of_the_application_costs_its_own_connection_only(running):
    with connected(running) as (client, stream), connected(running) as (other, others):
        client.sendall(get("/broken"))
        with contextlib.suppress(ConnectionResetError):
            assert stream.read() == b""
        other.sendall(post())
        assert top(answer(others)[2]) == LABEL


def test_idle_connections_are_swept_up_and_busy_ones_are_not(running):
    with connected(running) as (idle, idle_stream), connected(running) as (begun, stream):
        idle.sendall(get())
        answer(idle_stream)
        begun.sendall(post()[:-1])
        wait_for(lambda: running.room.inside == 1)
        running.loop.call_soon_threadsafe(running.http.sweep, 3600.0)
        running.loop.call_soon_threadsafe(running.http.sweep, 0.0)
        assert idle_stream.read() == b""
        begun.sendall(post()[-1:])
        assert top(answer(stream)[2]) == LABEL


def test_connections_that_came_and_went_leave_nothing(running):
    for wire in (post(), post()[:-1], b"junk\r\n\r\n", post() * 3, get("/metrics")):
        with connected(running) as (client, _):
            client.sendall(wire)
    wait_for(lambda: not running.http.connections)
    wait_for(lambda: running.room.inside == 0)
    assert running.http.waiting == 0


# ---------------------------------------------------------------------------------------------------------------------
# Which pictures are quick


def picture(width: int, height: int, form: str = "JPEG", **options: object) -> bytes:
    return support.encoded(Image.new("RGB", (width, height), "red"), form, **options)


def test_small_jpegs_are_quick_and_all_else_is_not():
    assert quick.is_small_jpeg(picture(1000, 1000))
    assert quick.is_small_jpeg(picture(8, 8, exif=Image.Exif().tobytes(), comment=b"x" * 60_000))
    assert quick.is_small_jpeg(support.encoded(Image.new("L", (64, 64))))
    assert not quick.is_small_jpeg(picture(1001, 1000))
    assert not quick.is_small_jpeg(picture(64, 64, progressive=True))
    assert not quick.is_small_jpeg(picture(64, 64, "PNG"))
    assert not quick.is_small_jpeg(picture(64, 64, "WEBP"))
    assert not quick.is_small_jpeg(picture(64, 64) + bytes(quick.QUICK_BYTES))
    assert not quick.is_small_jpeg(b"")
    assert not quick.is_small_jpeg(picture(64, 64)[:100])


_SMALL = picture(16, 16)


@given(st.lists(st.tuples(st.integers(0, len(_SMALL) - 1), st.integers(0, 255)), max_size=8), st.integers(0, 700))
def test_a_damaged_head_is_never_a_mistake_and_never_hides_a_large_picture(changes, length):
    data = bytearray(_SMALL)
    for position, value in changes:
        data[position] = value
    data = bytes(data[:length])
    if quick.is_small_jpeg(data):
        with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as opened:
            assert opened.width * opened.height <= quick.QUICK_PIXELS


def test_a_process_with_more_connections_than_another_lets_that_one_be_faster():
    crowd = Crowd(2)
    first, second = crowd.enter(), crowd.enter()
    assert {first, second} == {0, 1}
    assert crowd.enter() is None
    crowd.tell(None, 5)  # what a process without a place says is not heard
    crowd.tell(first, 3)
    assert not crowd.has_shorter_than(3)  # the other does not accept yet
    crowd.tell(second, 2)
    assert crowd.has_shorter_than(3)
    assert not crowd.has_shorter_than(2)
    crowd.leave(second)
    assert not crowd.has_shorter_than(3)
    assert crowd.enter() == second


def test_steps_come_to_what_a_prediction_comes_to(predictor):
    steps = [predictor.steps([support.sample(label)]) for label in ("stop", "yield", "keep_left")]
    for each in steps:
        next(each)
    assert [finished(each).results[0][0][0] for each in steps] == ["stop", "yield", "keep_left"]
