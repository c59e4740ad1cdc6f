"""The service on Ray: its config file, its parts by themselves, and a cluster of this machine that loses a replica."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from deploylab.errors import EngineError, InputError
from deploylab.serving import background, cluster, create_app, load, proxy
from deploylab.serving.asgi import AsgiApp
from deploylab.serving.limits import Limits
from deploylab.signs import dataset

pytest.importorskip("ray.serve", reason="needs the extra 'serving'")


# --- the config file ------------------------------------------------------------------------------------------------


def test_the_shipped_config_file_is_one_that_ray_accepts():
    schema = cluster.checked(cluster.read_config())
    [application] = schema.applications
    assert application.import_path == "deploylab.serving.cluster:application"
    assert cluster.Settings.read(application.args) == cluster.Settings()
    [deployment] = application.deployments
    assert deployment.name == cluster.DEPLOYMENT
    assert deployment.ray_actor_options.num_cpus == application.args["threads"]
    assert deployment.autoscaling_config["min_replicas"] == 2


def test_what_the_command_line_gives_replaces_what_the_file_says():
    shipped = cluster.read_config()
    config = cluster.configured(shipped, port=0, replicas=3, threads=2, model=None)
    assert shipped == cluster.read_config(), "the original is left alone"
    assert config["http_options"]["host"] == "127.0.0.1"
    assert 0 < config["http_options"]["port"] < 65536
    [application] = cluster.checked(config).applications
    assert application.args["threads"] == 2
    assert application.args["model"] == "signnet"
    [deployment] = application.deployments
    assert (deployment.num_replicas, deployment.ray_actor_options.num_cpus) == (3, 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("applications: [", "cannot read"),
        ("applications: 3", "not a config file"),
        ("applications: [{import_path: deploylab.serving.cluster:application, args: {thread: 1}}]", "no 'thread'"),
        ("applications: [{import_path: deploylab.serving.cluster:application, args: {batch: 0}}]", "positive number"),
        ("applications: [{import_path: deploylab.serving.cluster:application, args: {model: 7}}]", "must be a text"),
    ],
)
def test_a_wrong_config_file_is_named_with_what_is_wrong(tmp_path, text, words):
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=words):
        cluster.read_config(file)


def test_a_missing_config_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.yaml"):
        cluster.read_config(tmp_path / "gone.yaml")


# --- the Flask application behind ASGI --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def predictor():
    from deploylab.serving import Predictor

    return Predictor.load("signnet", limits=Limits(max_bytes=200_000))


def ask(app, method: str, path: str, body: bytes = b"", query: bytes = b"", pieces: int = 3, **headers: str):
    """Status, headers and body that an ASGI application answers; the request's body comes in ``pieces``."""
    size = max(1, -(-len(body) // pieces))
    parts = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
    messages = [{"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts]
    sent = []

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "query_string": query,
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 5000),
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(app(scope, receive, send))
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), content


def test_the_application_answers_the_same_through_asgi_as_to_flasks_own_client(predictor):
    limits = Limits(max_bytes=200_000)
    flask = create_app(predictor, limits=limits)
    app = AsgiApp(flask, max_bytes=limits.max_bytes)
    photo = dataset.samples()[0]
    body = photo.path.read_bytes()
    with flask.test_client() as client:
        want = client.post("/v1/predict?top_k=2", data=body, content_type="image/jpeg").get_json()["predictions"]
    status, headers, content = ask(app, "POST", "/v1/predict", body, b"top_k=2", content_type="image/jpeg")
    assert status == 200
    assert headers[b"content-type"] == b"application/json"
    assert json.loads(content)["predictions"] == want
    assert json.loads(ask(app, "GET", "/readyz")[2]) == {"status": "ready"}
    for refused in (
        ask(app, "POST", "/v1/predict", b"no picture", content_type="image/jpeg"),
        ask(app, "POST", "/v1/predict", bytes(300_000), content_type="image/jpeg", content_length="300000"),
        ask(app, "POST", "/v1/predict", bytes(300_000), content_type="image/jpeg"),
        ask(app, "GET", "/nowhere"),
    ):
        assert refused[1][b"content-type"] == b"application/problem+json"
        assert json.loads(refused[2])["status"] == refused[0]
    assert ask(app, "POST", "/v1/predict", bytes(300_000), content_type="image/jpeg")[0] == 413


def test_a_row_that_fails_in_a_joined_run_fails_alone():
    def run(x):
        if np.isnan(x).any():
            raise EngineError("not a number")
        return x.sum(axis=1, keepdims=True)

    good, bad = np.ones((2, 3)), np.full((1, 3), np.nan)
    first, second, third = cluster._run_joined(run, [good, bad, 2 * good])
    assert first.tolist() == [[3], [3]]
    assert isinstance(second, EngineError)
    assert third.tolist() == [[6], [6]]


# --- the proxy's two guards -------------------------------------------------------------------------------------------


class Replicas:
    """Stands for Ray's proxy: does what the plan says, one word a request, and keeps the bodies it was given."""

    def __init__(self, *plan: str) -> None:
        self.plan, self.bodies = list(plan), []

    async def __call__(self, scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        word = self.plan.pop(0)
        if word == "raises":
            raise RuntimeError("the replica died")
        if word == "half":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            raise RuntimeError("the replica died")
        kind = b"application/json" if word.startswith("app") else b"text/plain; charset=utf-8"
        status = int(word.split()[-1])
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": word.encode()})


@pytest.mark.parametrize(
    ("plan", "asked", "status", "kind"),
    [
        (["app 200"], 1, 200, None),
        (["ray 500", "app 200"], 2, 200, None),
        (["raises", "raises", "app 200"], 3, 200, None),
        (["app 500"], 1, 500, None),
        (["app 503"], 1, 503, None),
        (["ray 200"], 1, 200, None),
        (["ray 500", "raises", "ray 500"], 3, 503, "overloaded"),
        (["ray 503"], 1, 503, "overloaded"),
        (["ray 408"], 1, 504, "timeout"),
        (["ray 404"], 1, 404, "not-found"),
    ],
)
def test_a_request_whose_replica_died_is_asked_again_and_the_rest_becomes_a_problem(plan, asked, status, kind):
    replicas = Replicas(*plan)
    got, headers, content = ask(proxy.RetryOnDeath(replicas, max_bytes=100), "POST", "/v1/predict", b"abcdefg")
    assert (got, replicas.bodies) == (status, [b"abcdefg"] * asked)
    if kind:
        assert headers[b"content-type"] == b"application/problem+json"
        assert json.loads(content)["type"] == f"/problems/{kind}"
        assert (b"retry-after" in headers) == (status == 503)
    else:
        assert content == plan[-1].encode()


def test_a_body_too_long_to_keep_is_asked_once():
    replicas = Replicas("ray 500", "app 200")
    status, *_ = ask(proxy.RetryOnDeath(replicas, max_bytes=3), "POST", "/v1/predict", b"abcdefg")
    assert (status, replicas.bodies) == (503, [b"abcdefg"])


def test_an_answer_cut_in_the_middle_is_not_hidden():
    with pytest.raises(RuntimeError):
        ask(proxy.RetryOnDeath(Replicas("half", "app 200"), max_bytes=100), "POST", "/v1/predict", b"a")


def test_the_gate_refuses_when_it_closes_and_says_when_the_last_request_has_left(tmp_path):
    closing, drained = proxy.closing_files(tmp_path)
    seen = []

    async def app(scope, receive, send):
        closing.touch()  # while this request is inside
        assert ask_inside(gate)[0] == 503
        seen.append(drained.exists())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    def ask_inside(gate):
        answer = []
        thread = threading.Thread(target=lambda: answer.append(ask(gate, "GET", "/readyz")))
        thread.start()
        thread.join()
        return answer[0]

    gate = proxy.Gate(app, folder=tmp_path)
    assert ask(gate, "POST", "/v1/predict", b"x")[2] == b"done"
    assert seen == [False]
    assert drained.exists()
    status, headers, _ = ask(gate, "GET", "/readyz")
    assert (status, headers[b"connection"], headers[b"retry-after"]) == (503, b"close", b"1")


# --- a real cluster ---------------------------------------------------------------------------------------------------


def replicas(server: background.Server) -> list[int]:
    """Process ids of the replicas that run now."""
    found = []
    for pid in server.processes():
        try:
            name = " ".join(psutil.Process(pid).cmdline()[:1])
        except psutil.NoSuchProcess:
            continue
        if name.startswith("ray::ServeReplica:"):
            found.append(pid)
    return found


def wait_until(condition, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes and sockets as Linux shows them")
def test_a_replica_killed_under_load_costs_no_answer_and_nothing_survives_the_cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    photos = dataset.samples()[:4]
    bodies, labels = [photo.path.read_bytes() for photo in photos], [photo.label for photo in photos]
    port = background.free_port()
    command = [sys.executable, "-m", "deploylab.cli", "serve", "--cluster", "--workers", "2", "--threads", "1"]
    results: list[load.LoadResult] = []

    def make_load() -> None:
        results.append(load.closed_loop(url, bodies, concurrency=6, requests=400, expect=labels, timeout_s=60))

    with background.start(
        [*command, "--port", str(port)], "/readyz", port=port, log=tmp_path / "log", timeout_s=240
    ) as server:
        url = f"{server.url}/v1/predict"
        before = replicas(server)
        assert len(before) == 2
        every = server.processes()
        sockets = [socket for pid in every for socket in psutil.Process(pid).net_connections("tcp")]
        listening = {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
        assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        folder = next(
            part.removeprefix("--log_dir=").partition("/session_")[0]
            for pid in every
            for part in psutil.Process(pid).cmdline()
            if part.startswith("--log_dir=")
        )
        assert Path(folder).is_dir()

        thread = threading.Thread(target=make_load)
        thread.start()
        time.sleep(0.5)
        os.kill(before[0], signal.SIGKILL)
        thread.join()
        [result] = results
        print(result, result.statuses)
        assert result.requests == 400
        assert result.errors == {}
        assert result.wrong == 0
        assert set(result.statuses) <= {200, 503}
        assert result.statuses[200] >= 390

        wait_until(lambda: len(replicas(server)) == 2 and before[0] not in replicas(server))
        wait_until(lambda: load.closed_loop(url, bodies, concurrency=2, requests=20, expect=labels).ok == 20)
        assert server.stop(60) == 0
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in every), 20)
    assert not Path(folder).exists()
    assert not (tmp_path / ".ray").exists()
