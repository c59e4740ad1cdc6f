"""The load generator against a server that does what the path says: delay, stall, fail, hang up, answer wrongly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploylab.bench.latency import samples_needed
from deploylab.errors import InputError, ServerError
from deploylab.serving import _load_worker, background, load

WITHIN_S = 120  # against hanging only
STALL_S = 0.6


class Server:
    """An asyncio server in a thread; ``seen`` counts requests by path, ``stall`` holds every answer back once."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}
        self.stall_from = float("inf")
        self.loop = asyncio.new_event_loop()
        self.port = background.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        started = threading.Event()
        self.thread = threading.Thread(target=self._serve, args=(started,), daemon=True)
        self.thread.start()
        assert started.wait(WITHIN_S)

    def _serve(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)
        self.server = self.loop.run_until_complete(asyncio.start_server(self._connection, "127.0.0.1", self.port))
        started.set()
        self.loop.run_forever()

    def close(self) -> None:
        async def end() -> None:
            self.server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(WITHIN_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(WITHIN_S)
        self.loop.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                _, target, _ = head.split(" ", 2)
                self.head = head
                at = head.lower().find("content-length:")
                size = int(head[at + 15 :].split("\r\n")[0]) if at >= 0 else 0
                url = urlsplit(target)
                self.seen[url.path] = self.seen.get(url.path, 0) + 1
                if url.path == "/too-large":
                    writer.write(b"HTTP/1.1 413 no\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig")
                    await writer.drain()
                    writer.close()
                    return
                body = await reader.readexactly(size)
                options = {key: values[0] for key, values in parse_qs(url.query).items()}
                if not await getattr(self, "do_" + url.path.strip("/").replace("-", "_"))(writer, body, **options):
                    return
        writer.close()

    async def do_delay(self, writer, body, ms="0"):
        if time.monotonic() >= self.stall_from:  # the whole server sleeps, as in a garbage collection
            self.stall_from = float("inf")
            time.sleep(STALL_S)
        await asyncio.sleep(float(ms) / 1e3)
        writer.write(answer(b"{}"))
        return True

    async def do_status(self, writer, body, code):
        writer.write(answer(b"sorry, no", code))
        return True

    async def do_label(self, writer, body):
        """The best label is what was sent, except for those that are sent in capitals."""
        text = json.dumps({"predictions": [{"label": body.decode().lower()}, {"label": "second"}]})
        writer.write(answer(text.encode()))
        return True

    async def do_cut(self, writer, body):
        writer.write(answer(b"0123456789")[:-5])
        writer.close()

    async def do_closed(self, writer, body):
        writer.close()

    async def do_garbage(self, writer, body):
        writer.write(b"220 mail server ready\r\n")

    async def do_hang(self, writer, body):
        await asyncio.sleep(600)

    async def do_http10(self, writer, body):
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end")
        writer.close()

    async def do_chunked(self, writer, body):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n")
        await writer.drain()
        writer.write(b"5;x=y\r\npedia\r\n0\r\n\r\n")
        return True

    async def do_continue(self, writer, body):
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        writer.write(answer(b"later"))
        return True


def answer(body: bytes, code: str = "200") -> bytes:
    return f"HTTP/1.1 {code} -\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def server(shared: Server) -> Server:
    shared.seen.clear()
    shared.stall_from = float("inf")
    return shared


def test_a_closed_loop_counts_what_the_server_saw(server):
    result = load.closed_loop(server.url + "/delay?ms=5", [b"a", b"bb"], concurrency=3, requests=60)
    assert server.seen == {"/delay": 60}
    assert (result.mode, result.requests, result.ok, result.statuses) == ("closed", 60, 60, {200: 60})
    assert (result.errors, result.wrong, result.complaints()) == ({}, 0, [])
    assert result.connections == 3  # kept alive
    assert len(result.latencies_ms) == 60
    assert result.latencies_ms.min() >= 5
    assert result.rps <= 3 / 0.005
    assert result.generator_cpu_s > 0
    assert result.latency.p90 is None  # 60 samples do not support it
    assert samples_needed(90) == 64


def test_the_end_comes_by_seconds_too_and_the_warm_up_does_not_count(server):
    result = load.closed_loop(server.url + "/delay?ms=10", concurrency=2, seconds=0.3, warm_up_s=0.2)
    assert 0 < result.requests < server.seen["/delay"]
    assert result.due_s.min() >= 0.2
    assert result.due_s.max() <= 0.5
    assert result.seconds == pytest.approx(0.3)


def test_bodies_are_posted_in_turn_with_their_headers_and_checked(server):
    options = {"headers": {"X-Asked": "yes"}, "content_type": "text/plain"}
    bodies = [b"stop", b"yield", b"Roundabout"]
    result = load.closed_loop(
        server.url + "/label", bodies, requests=9, expect=["stop", "yield", "Roundabout"], **options
    )
    assert "X-Asked: yes\r\n" in server.head
    assert "Content-Type: text/plain\r\n" in server.head
    assert (result.requests, result.ok, result.wrong) == (9, 6, 3)
    assert len(result.latencies_ms) == 6
    assert "3 wrong answer(s)" in result.complaints()
    assert result.examples == {200: "label roundabout, expected Roundabout"}


def test_a_bare_url_is_fetched(server):
    load.closed_loop(server.url + "/delay", requests=1)
    assert server.head.startswith("GET /delay HTTP/1.1\r\nHost: 127.0.0.1:")
    assert "Content-Type" not in server.head


def test_a_body_larger_than_the_socket_takes_arrives_whole(server):
    text = "x" * 3_000_000
    result = load.closed_loop(server.url + "/label", [text.encode()], requests=2, expect=[text])
    assert result.ok == 2


@pytest.mark.parametrize("path", ["/http10", "/chunked", "/continue"])
def test_every_way_to_end_an_answer_is_understood(server, path):
    result = load.closed_loop(server.url + path, requests=5)
    assert (result.ok, result.complaints()) == (5, [])
    assert result.connections == (5 if path == "/http10" else 1)


@pytest.mark.parametrize(("path", "kind"), [("/cut", "cut"), ("/closed", "closed"), ("/garbage", "not_http")])
def test_dropped_connections_are_errors_of_their_kind(server, path, kind):
    result = load.closed_loop(server.url + path, [b"x"], concurrency=2, requests=6)
    assert (result.requests, result.ok, result.latency, result.errors) == (6, 0, None, {kind: 6})
    assert result.rps == 0
    assert load.ERRORS[kind] in str(result)
    assert result.histogram() == []


def test_error_statuses_are_counted_with_an_example_and_have_no_latency(server):
    result = load.closed_loop(server.url + "/status?code=503", requests=5)
    assert (result.ok, result.statuses, result.errors) == (0, {503: 5}, {})
    assert result.examples == {503: "sorry, no"}
    assert result.complaints() == ["5 x status 503"]


def test_an_answer_before_the_end_of_the_upload_is_heard(server):
    result = load.closed_loop(server.url + "/too-large", [b"x" * 200_000], requests=3)
    heard = result.statuses.get(413, 0)
    assert heard + result.errors.get("closed", 0) == 3  # a reset by the kernel may overtake the answer
    assert heard


def test_nobody_listening_is_counted_without_a_storm():
    result = load.closed_loop(f"http://127.0.0.1:{background.free_port()}/", concurrency=2, seconds=0.3)
    assert result.ok == 0
    assert set(result.errors) == {"refused"}
    assert result.requests <= 2 * (0.3 / _load_worker.REST_AFTER_REFUSAL_S + 1)


@pytest.mark.parametrize("rate", [None, 40])
def test_a_hanging_server_is_given_up(server, rate):
    options = {"timeout_s": 0.2, "seconds": 0.5}
    if rate:  # two connections: most of the requests cannot even be sent, and count all the same
        result = load.open_loop(server.url + "/hang", rate=rate, max_connections=2, **options)
        assert result.requests > server.seen["/hang"]
    else:
        result = load.closed_loop(server.url + "/hang", concurrency=2, **options)
    assert result.requests >= 4
    assert result.errors == {"timeout": result.requests}


def test_the_open_loop_sends_at_poisson_times_drawn_from_the_seed(server):
    def due(seed: int, seconds: float = 0.5) -> np.ndarray:
        result = load.open_loop(server.url + "/delay", rate=400, seconds=seconds, seed=seed)
        assert result.ok == result.requests == server.seen.pop("/delay")
        return np.sort(result.due_s)

    first, again, other = due(3, seconds=1.5), due(3), due(4)
    np.testing.assert_array_equal(first[: len(again)], again)
    assert not np.array_equal(first[:100], other[:100])
    gaps = np.diff(first)
    assert gaps.mean() == pytest.approx(1 / 400, rel=0.15)
    assert gaps.std() / gaps.mean() == pytest.approx(1, rel=0.15)  # exponential: deviation equals mean


def test_a_stall_shows_in_the_open_loop_and_hides_in_the_closed_one(server):
    """Coordinated omission: the closed loop's only client waits, and counts one slow request."""

    def slow_share(result: load.LoadResult) -> float:
        assert result.complaints() == []
        return float((result.latencies_ms > 1e3 * STALL_S / 4).mean())

    server.stall_from = time.monotonic() + 0.5
    closed = load.closed_loop(server.url + "/delay?ms=2", concurrency=1, seconds=1.5)
    assert server.stall_from == float("inf")
    server.stall_from = time.monotonic() + 0.5
    opened = load.open_loop(server.url + "/delay?ms=2", rate=200, seconds=1.5, seed=1)
    assert closed.latencies_ms.max() >= 1e3 * STALL_S  # it is there, one in hundreds
    assert slow_share(opened) > 0.15
    assert slow_share(closed) < slow_share(opened) / 5


def test_latencies_count_from_the_due_time_while_all_connections_are_busy(server):
    result = load.open_loop(server.url + "/delay?ms=50", rate=100, seconds=0.5, seed=0, max_connections=1)
    assert result.ok == result.requests
    waited = np.sort(result.latencies_ms)
    assert waited[-1] >= 50 * result.ok - 500  # served one after the other, 50 ms each, all due within 500 ms


@given(st.lists(st.floats(0, 1e6), max_size=200))
def test_the_histogram_loses_nothing(latencies):
    values = np.array(latencies)
    steps = load.histogram(values)
    assert sum(count for *_, count in steps) == len(values)
    assert all(low < high for low, high, _ in steps)
    assert [low for low, *_ in steps[1:]] == [high for _, high, _ in steps[:-1]]
    if len(values):
        assert steps[0][0] * 0.999 <= max(values.min(), 1e-3)
        assert values.max() <= steps[-1][1] * 1.001


def feed(text: bytes, cuts: list[int]) -> list:
    """What parse says after each part of ``text``; the connection ends with the last one."""
    connection, said, at = _load_worker.Connection(), [], 0
    for cut in [*sorted({cut % len(text) for cut in cuts} - {0}), len(text)]:
        connection.buffer += text[at:cut]
        at = cut
        said.append(_load_worker.parse(connection, closed=False))
    return said


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWERS = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", (200, b"hello", True)),
    (b"HTTP/1.1 404 -\r\ncontent-length:0\r\nConnection: Close\r\n\r\n", (404, b"", False)),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", (200, b"ok", False)),
    (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", (200, b"ok", True)),
    (b"HTTP/1.1 204 none\r\n\r\n", (204, b"", True)),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", (200, b"x", True)),
    (CHUNKED + b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n", (200, b"abc0123456789", True)),
    (CHUNKED + b"1\r\nx\r\n0\r\nTrailer: y\r\n\r\n", (200, b"x", True)),
]


@pytest.mark.parametrize(("text", "meaning"), ANSWERS)
@given(cuts=st.lists(st.integers(0, 200), max_size=6))
def test_an_answer_means_the_same_however_it_is_cut(text, meaning, cuts):
    *before, last = feed(text, cuts)
    assert before == [None] * len(before)
    assert last == meaning


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(data):
    connection = _load_worker.Connection()
    for text in (data, b"HTTP/1.1 " + data, b"HTTP/1.1 200 OK\r\n" + data):
        connection.buffer = text
        with contextlib.suppress(ValueError):
            said = _load_worker.parse(connection, closed=True)
            assert said is None or isinstance(said[0], int)


def test_the_dictionary_is_json_and_complete(server):
    result = load.open_loop(server.url + "/delay", rate=200, seconds=0.5, seed=7)
    told = json.loads(json.dumps(result.to_dict()))
    assert told["mode"] == "open"
    assert (told["rate"], told["seed"]) == (200, 7)
    assert told["latency_ms"]["n"] == told["ok"] == sum(count for *_, count in told["histogram_ms"])
    assert str(result.ok) in load.histogram_text(result) or len(result.histogram()) > 1
    assert "200/s asked for" in str(result)


def test_forms_for_upload():
    bodies, content_type = load.multipart([b"\xff\xd8one", b"two"], "file")
    import flask

    for body, data in zip(bodies, (b"\xff\xd8one", b"two"), strict=True):
        with flask.Flask("form").test_request_context(method="POST", data=body, content_type=content_type):
            assert flask.request.files["file"].read() == data


WRONG = [
    ({"concurrency": 0, "requests": 1}, "concurrency must lie between 1 and 500, got 0"),
    ({"concurrency": 501, "requests": 1}, "got 501"),
    ({}, "say when to end"),
    ({"requests": 0}, "requests must be at least 1"),
    ({"seconds": 0}, "seconds must be above 0"),
    ({"seconds": 1, "warm_up_s": -1}, "warm_up_s cannot be negative"),
    ({"requests": 1, "expect": ["a", "b"]}, "2 expected labels for 1 bodies"),
    ({"requests": 1, "timeout_s": 0}, "timeout_s must be above 0"),
    ({"requests": 1, "headers": {"X": "a\r\nHost: b"}}, "one line"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        load.closed_loop("http://127.0.0.1:1/", [b"x"], **options)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_a_wrong_rate_is_named(rate):
    with pytest.raises(InputError, match="rate must be above 0"):
        load.open_loop("http://127.0.0.1:1/", rate=rate, seconds=1)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:80", "https://127.0.0.1/", "ftp://x/", "http://", "http://127.0.0.1:99999/"]
)
def test_a_wrong_url_is_named(url):
    with pytest.raises(InputError, match=r"give a URL such as|cannot be used"):
        load.closed_loop(url, requests=1)


def test_another_machine_is_refused_unless_permitted():
    far = "http://192.0.2.1/"  # an address for documentation (RFC 5737)
    with pytest.raises(InputError, match=r"192\.0\.2\.1 is not this machine(.*)--allow-remote"):
        load.closed_loop(far, requests=1)
    assert load._Target.of(far, (), "", None, allow_remote=True).address == ("192.0.2.1", 80)
    assert load._Target.of("http://localhost:8000/", (), "", None, allow_remote=False).address[1] == 8000


def test_a_broken_generator_is_reported(monkeypatch):
    monkeypatch.setattr(load, "_load_worker", SimpleNamespace(**vars(_load_worker) | {"__file__": "no-such-file.py"}))
    with pytest.raises(ServerError, match=r"broke down(.*)no-such-file"):
        load.closed_loop("http://127.0.0.1:1/", requests=1)


@contextlib.contextmanager
def cli(*arguments: str) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "deploylab.cli", "load", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()  # else leaving would wait for one that hangs


def wait_for(condition) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_command_prints_a_table_and_writes_json(server, tmp_path):
    picture, file = tmp_path / "stop.jpg", tmp_path / "load.json"
    picture.write_bytes(b"stop")
    options = ["--image", str(picture), "--expect", "stop", "--concurrency", "1,2", "--requests", "20", "--histogram"]
    with cli(server.url + "/label", *options, "--warm-up", "0", "--json", str(file)) as process:
        out, err = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 0, err
    assert "1 at a time" in out
    assert "2 at a time" in out
    assert "a p90 needs 64" in out
    assert "###" in out
    runs = json.loads(file.read_text())
    assert [(run["concurrency"], run["ok"], run["wrong"]) for run in runs] == [(1, 20, 0), (2, 20, 0)]
    assert set(tmp_path.iterdir()) == {picture, file}


def test_wrong_labels_fail_the_command_and_are_shown(server, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"STOP")
    options = ["--image", str(tmp_path / "a.jpg"), "--expect", "STOP", "--requests", "3", "--warm-up", "0"]
    with cli(server.url + "/label", *options, "--json", "-") as process:
        out, err = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 1, err
    assert json.loads(out)[0]["wrong"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["http://192.0.2.1/"], "is not this machine"),
        (["http://127.0.0.1:1/", "--concurrency", "1", "--rate", "5"], "give one of them"),
        (["http://127.0.0.1:1/", "--rate", "fast"], "--rate takes numbers"),
        (["http://127.0.0.1:1/", "--image", "no-such.jpg"], "no-such.jpg: No such file"),
        (["http://127.0.0.1:1/", "--header", "nonsense"], "--header takes"),
    ],
)
def test_the_command_names_what_is_wrong(arguments, message, capsys):
    from typer.testing import CliRunner

    from deploylab.cli import app

    done = CliRunner().invoke(app, ["load", *arguments])
    assert done.exit_code == 1
    assert f"error: {message}" in done.output or message in done.output
    assert "Traceback" not in done.output


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C as a signal")
def test_ctrl_c_prints_what_was_measured(server, tmp_path):
    file = tmp_path / "load.json"
    with cli(server.url + "/delay?ms=1", "--seconds", "600", "--warm-up", "0", "--json", str(file)) as process:
        wait_for(lambda: server.seen.get("/delay", 0) > 50)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 130, err
    assert "1 at a time" in out
    assert "interrupted" in err
    assert "Traceback" not in err
    (run,) = json.loads(file.read_text())
    assert run["interrupted"] is True
    assert run["ok"] >= 50


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_the_generator_ends_with_its_program(server):
    with cli(server.url + "/delay?ms=1", "--seconds", "600") as process:
        wait_for(lambda: server.seen.get("/delay", 0) > 5)
        (worker,) = psutil.Process(process.pid).children()
        os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not worker.is_running())
