"""``deploylab serve`` for real: processes, sockets, signals, and nothing left behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import onnx
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner
from werkzeug.test import Client

from deploylab import machine
from deploylab.cli import app as cli
from deploylab.errors import InputError, ServerError
from deploylab.serving import artifacts, create_app, worker
from deploylab.serving.listener import Listener
from deploylab.serving.predictor import Predictor
from deploylab.serving.server import SERVERS, plan
from deploylab.signs import dataset

SAMPLE = dataset.samples()[5]
PHOTO, LABEL = SAMPLE.path.read_bytes(), SAMPLE.label
PREDICT, JPEG = "/v1/predict", {"Content-Type": "image/jpeg"}
WAIT_S = 60  # against a test that hangs; a busy machine may need many seconds
PROCESSES = ("asyncio", "granian", "gunicorn")


@pytest.fixture(scope="module", autouse=True)
def _converted():
    artifacts.prepare("signnet")


class Serving:
    """A ``deploylab serve`` that is ready, as a child of the test."""

    def __init__(self, process: subprocess.Popen, temporary: Path) -> None:
        self.process, self.temporary = process, temporary
        line = process.stdout.readline()
        assert line, process.stderr.read()
        self.facts = json.loads(line)
        self.port = urlsplit(self.facts["url"]).port
        self.seen: set[psutil.Process] = set()
        self.workers()

    def workers(self) -> list[psutil.Process]:
        alive = psutil.Process(self.process.pid).children(recursive=True)
        self.seen.update(alive)
        return [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]

    def workers_without(self, gone: psutil.Process, count: int) -> bool:
        """Whether there are so many workers, and that one is none of them, at one moment."""
        now = self.workers()
        return len(now) == count and gone not in now

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)

    def ask(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Over a connection of its own."""
        with contextlib.closing(self.connection()) as connection:
            connection.request("POST" if body else "GET", path, body, JPEG if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def wait_for(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert self.process.poll() is None, "the server has ended"
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def ended(self) -> int:
        """Wait for the end; the exit code. Nothing may be left."""
        code = self.process.wait(WAIT_S)
        assert psutil.wait_procs(list(self.seen), timeout=60)[1] == []
        assert list(self.temporary.iterdir()) == []
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", self.port), 5)
        return code


@contextlib.contextmanager
def serving(temporary: Path, *arguments: object) -> Iterator[Serving]:
    command = [sys.executable, "-m", "deploylab.cli", "serve", "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        start_new_session=True,
    )
    try:
        yield Serving(process, temporary)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def temporary():
    """A short path of its own, so that what a server leaves there is seen."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


# ---------------------------------------------------------------------------------------------------------------------
# The plan

some = st.integers(1, 256)


@given(some, st.none() | some, st.none() | some)
def test_a_plan_never_has_more_threads_than_cores(cores, workers, threads):
    try:
        chosen = plan(cores, workers, threads)
    except InputError:
        assert (workers or 1) * (threads or 1) > cores
        return
    assert 1 <= chosen.workers * chosen.threads <= cores
    assert workers in (None, chosen.workers)
    assert threads in (None, chosen.threads)


@given(some, st.none() | some)
def test_a_plan_leaves_no_core_idle_that_it_could_use(cores, threads):
    if threads is not None and threads > cores:
        return
    chosen = plan(cores, threads=threads)
    assert (chosen.workers + 1) * chosen.threads > cores
    assert threads is not None or chosen.threads == 1


def test_a_plan_can_be_told_to_have_too_many_threads():
    with pytest.raises(InputError, match=r"2 worker\(s\) with 2 thread\(s\) each need 4 cores, but only 2 can"):
        plan(2, 2, 2)
    chosen = plan(2, 2, 2, oversubscribe=True)
    assert (chosen.workers, chosen.threads) == (2, 2)
    for wrong in ({"workers": 0}, {"threads": -1}):
        with pytest.raises(InputError, match="must be at least 1"):
            plan(2, **wrong)


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["vgg19"], "unknown model 'vgg19'; there are: signnet"),
        (["missing.onnx"], "missing.onnx: no such ONNX file"),
        (["--engine", "tensorrt9"], "unknown engine 'tensorrt9'; there are: eager"),
        (["--server", "apache"], "unknown server 'apache'; there are: auto, asyncio"),
        (["--workers", "500"], "500 worker(s) with 1 thread(s) each need 500 cores"),
        (["--server", "waitress", "--workers", "2"], "waitress is one process, got 2 workers"),
        (["--site", "missing"], "the site missing has no index.html"),
        (["--access-log", "missing/log"], "cannot write the access log missing/log: No such file"),
        (["--host", "no.such.host.invalid"], "the host 'no.such.host.invalid' is unknown"),
        (["--host", "192.0.2.1"], "this machine has no address 192.0.2.1"),
        (["--config", "cluster.yaml"], "--config needs --cluster"),
        (["--cluster", "--server", "granian"], "--server is of no use with --cluster"),
    ],
)
def test_a_mistake_is_answered_in_one_line(arguments, words):
    done = CliRunner().invoke(cli, ["serve", "--port", "0", *arguments])
    assert done.exit_code == 1
    assert f"error: {words}" in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.output


@pytest.mark.parametrize("arguments", [["--port", "70000"], ["--workers", "0"], ["--timeout", "0"], ["--frobnicate"]])
def test_an_option_out_of_range_is_a_usage_error(arguments):
    done = CliRunner().invoke(cli, ["serve", *arguments])
    assert done.exit_code == 2
    assert arguments[0] in done.stderr


def test_help_names_every_option():
    done = CliRunner().invoke(cli, ["serve", "--help"])
    assert done.exit_code == 0
    for word in (
        "Usage",
        "--engine",
        "--workers",
        "--threads",
        "--batch",
        "--max-wait-ms",
        "--host",
        "--port",
        "--server",
    ):
        assert word in done.stdout
    for word in ("--site", "--max-queue", "--timeout", "--access-log", "--cluster", "--config", *SERVERS):
        assert word in done.stdout


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = CliRunner().invoke(cli, ["serve", "--port", str(port)])
    assert done.exit_code == 1
    assert f"error: port {port} of 127.0.0.1 is taken by another program" in done.stderr


@pytest.mark.parametrize("server", PROCESSES)
def test_workers_that_cannot_load_the_model_end_the_server_with_the_reason(server, temporary, tmp_path):
    model = onnx.load(artifacts.prepare("signnet") / "model.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "one.onnx")
    options = ["--batch", "4", "--port", "0", "--server", server]
    done = subprocess.run(
        [sys.executable, "-m", "deploylab.cli", "serve", tmp_path / "one.onnx", *options],
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "error: onnxruntime's artifact runs 1 picture at a time" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(temporary.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# The address


def test_who_is_connected_when_the_door_closes_is_still_let_in():
    listener = Listener("127.0.0.1", 0)
    address = ("127.0.0.1", listener.port)
    with contextlib.closing(listener):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, 5)  # nobody listens yet
        listener.listen()
        with socket.create_connection(address, 5) as early:
            early.sendall(b"hello")
            listener.stop_admitting()
            if sys.platform == "linux":
                assert listener.waiting() == 1
                with pytest.raises(TimeoutError):
                    socket.create_connection(address, 0.3)
            accepted, _ = listener.socket.accept()
            with accepted:
                assert accepted.recv(5) == b"hello"
                accepted.sendall(b"welcome")
            assert early.recv(7) == b"welcome"
        assert listener.waiting() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 5)


def test_an_address_is_taken_only_once():
    with contextlib.closing(Listener("127.0.0.1", 0)) as first:
        first.listen()
        with pytest.raises(ServerError, match="is taken by another program"):
            Listener("127.0.0.1", first.port)
    with contextlib.closing(Listener("127.0.0.1", first.port)):  # at once, although connections may be closing
        pass


# ---------------------------------------------------------------------------------------------------------------------
# A server that runs


@pytest.mark.parametrize("server", SERVERS)
def test_a_kill_under_load_loses_nothing(server, temporary):
    """Every request gets its answer, or its connection is refused before anything was sent."""
    fates: Counter[str] = Counter()
    started = threading.Event()

    def request(connection: http.client.HTTPConnection) -> bool:
        """Whether the connection stays open."""
        try:
            connection.request("POST", PREDICT, PHOTO, JPEG)
            answer = connection.getresponse()
            top = json.load(answer)["predictions"][0]["top"][0]["label"]
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            fates[f"lost: {error!r}"] += 1
            return False
        fates["answered" if top == LABEL else f"answered {top}"] += 1
        started.set()
        return not answer.will_close

    def client(keep_alive: bool) -> None:
        while True:
            connection = running.connection()
            try:
                connection.connect()
            except ConnectionRefusedError:
                fates["refused"] += 1
                return
            with contextlib.closing(connection):
                while request(connection) and keep_alive:
                    pass

    with serving(temporary, "--server", server) as running:
        clients = [threading.Thread(target=client, args=(number % 2 == 0,)) for number in range(6)]
        for each in clients:
            each.start()
        assert started.wait(WAIT_S)
        time.sleep(0.5)
        before = fates["answered"]
        running.process.send_signal(signal.SIGTERM)
        assert running.ended() == 0
        for each in clients:
            each.join(WAIT_S)
    assert set(fates) == {"answered", "refused"}
    assert fates["refused"] == len(clients)
    assert fates["answered"] > before > 0


@pytest.mark.parametrize("server", ["asyncio", "granian", "gunicorn", "waitress"])
def test_a_stop_waits_for_requests_that_are_being_sent_but_not_for_ever(server, temporary):
    with (
        serving(temporary, "--server", server, "--timeout", "4") as running,
        contextlib.closing(running.connection()) as connection,
        socket.create_connection(("127.0.0.1", running.port), 5) as never_ending,
    ):
        never_ending.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nbegin")
        connection.putrequest("POST", PREDICT)
        connection.putheader("Content-Type", "image/jpeg")
        connection.putheader("Content-Length", str(len(PHOTO)))
        connection.endheaders(PHOTO[:1000])
        time.sleep(0.3)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(1.5)  # idle connections are closed by now
        connection.send(PHOTO[1000:])
        answer = connection.getresponse()
        assert answer.status == 200
        assert json.load(answer)["predictions"][0]["top"][0]["label"] == LABEL
        assert running.ended() == 0


@pytest.mark.parametrize("server", PROCESSES)
def test_a_worker_that_dies_is_replaced_and_ctrl_c_ends_all(server, temporary):
    with serving(temporary, "--server", server, "--workers", "2", "--oversubscribe") as running:
        survivor, *rest = running.workers()
        assert len(rest) == 1
        for _ in range(3):  # more often than a server that is about to give up would bear
            victim = next(each for each in running.workers() if each != survivor)
            victim.kill()
            running.wait_for(lambda gone=victim: running.workers_without(gone, 2))
            newest = next(each for each in running.workers() if each != survivor)
            running.wait_for(lambda new=newest: [*temporary.glob(f"*/ready-{new.pid}")])
            for _ in range(4):
                assert running.ask(PREDICT, PHOTO)[0] == 200
        assert survivor in running.workers()
        os.killpg(running.process.pid, signal.SIGINT)  # what a terminal does
        assert running.ended() == 0
        assert "Traceback" not in running.process.stderr.read()


@pytest.mark.parametrize("server", ["waitress", "dev"])
def test_ctrl_c_ends_a_server_of_one_process(server, temporary):
    with serving(temporary, "--server", server) as running:
        assert running.facts["workers"] == 1
        assert running.ask("/readyz")[0] == 200
        os.killpg(running.process.pid, signal.SIGINT)
        assert running.ended() == 0
        assert "Traceback" not in running.process.stderr.read()


@pytest.mark.parametrize("server", PROCESSES)
def test_workers_do_not_outlive_a_parent_that_was_killed(server, temporary):
    with serving(temporary, "--server", server, "--timeout", "2") as running:
        running.process.kill()
        running.ended()


def test_two_workers_count_together_and_log_to_one_file(temporary, tmp_path):
    log = tmp_path / "access.jsonl"
    with serving(temporary, "--workers", "2", "--oversubscribe", "--access-log", log) as running:
        for _ in range(20):  # each over a connection of its own, which either worker may accept
            assert running.ask(PREDICT, PHOTO)[0] == 200
        refused = running.ask(PREDICT, b"no picture")[0]
        assert 400 <= refused < 500
        asked = 0

        def counted() -> dict[str, float]:
            nonlocal asked
            asked += 1
            text = running.ask("/metrics")[1].decode()
            samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
            return {
                one.labels["status"]: one.value
                for one in samples
                if one.name == "deploylab_requests_total" and one.labels["route"] == PREDICT
            }

        running.wait_for(lambda: counted() == {"200": 20, str(refused): 1})  # the other worker takes a moment to tell
        for _ in range(4):
            assert counted() == {"200": 20, str(refused): 1}
        running.process.send_signal(signal.SIGTERM)
        assert running.ended() == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert Counter(line["status"] for line in lines if line["path"] == PREDICT) == {200: 20, refused: 1}
    assert len(lines) == 21 + asked


def test_it_says_what_it_is_and_loads_no_torch(temporary):
    with serving(temporary) as running:
        facts = running.facts
        assert facts["ready"] is True
        assert facts["url"] == f"http://127.0.0.1:{running.port}"
        assert (facts["model"], facts["engine"], facts["pid"]) == ("signnet", "onnxruntime", running.process.pid)
        assert facts["workers"] * facts["threads"] <= machine.usable_cores()
        assert facts["ready_s"] > 0
        if facts["server"] in PROCESSES:
            assert len(running.workers()) == facts["workers"]
        if sys.platform == "linux":
            for each in running.workers():
                loaded = {Path(mapped.path).name for mapped in each.memory_maps()}
                assert any(name.startswith("onnxruntime") for name in loaded)
                assert not any("torch" in name for name in loaded)


@pytest.mark.parametrize("close", [True, False])
def test_a_server_that_is_leaving_answers_but_wants_no_more(close, tmp_path):
    switch = worker.Switch(tmp_path / "leaving")
    client = Client(worker.LastRequests(create_app(Predictor.load()), switch, close))
    assert client.get("/readyz").status_code == 200
    worker.Switch(tmp_path / "leaving").throw()  # another process has another mapping of the same file
    ready, answer = client.get("/readyz"), client.post(PREDICT, data=PHOTO, content_type="image/jpeg")
    assert ready.status_code == 503
    assert ready.headers["Retry-After"]
    assert answer.json["predictions"][0]["top"][0]["label"] == LABEL
    assert ("Connection" in answer.headers) == close
