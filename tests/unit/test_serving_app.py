"""The web application over a real engine: what a client gets for good requests, bad ones and too many of them."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import FrameType, SimpleNamespace

import numpy as np
import pytest
import requests
import serving_support as support
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import EnvironBuilder, run_wsgi_app

from deploylab import image
from deploylab.engines import Artifact
from deploylab.errors import DeployLabError, EngineError, InputError, ModelError
from deploylab.serving import Limits, MicroBatcher, Predictor, artifacts, create_app, problems
from deploylab.serving.predictor import softmax
from deploylab.signs import CLASSES, dataset

LIMITS = Limits(max_bytes=500_000, max_pixels=4_000_000, max_images=3, max_queue=4, timeout_s=30.0)
TYPE = "application/problem+json"


@pytest.fixture(scope="module")
def predictor():
    predictor = Predictor.load(limits=LIMITS)
    yield predictor
    predictor.close()


@pytest.fixture(scope="module")
def app(predictor):
    return create_app(predictor, limits=LIMITS)


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture(scope="module")
def address(app):
    with support.served(app) as address:
        yield address


def form(*pictures: bytes, field: str = "image") -> dict[str, object]:
    return {field: [(io.BytesIO(data), f"{index}.jpg") for index, data in enumerate(pictures)]}


def check_problem(reply, status: int, kind: str, told: str = "") -> dict:
    assert reply.status_code == status
    assert reply.headers["Content-Type"] == TYPE
    document = json.loads(reply.text)
    assert document["status"] == status
    assert document["type"] == f"/problems/{kind}"
    assert document["title"]
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", document["instance"])
    assert told in document["detail"]
    assert "Traceback" not in reply.text
    return document


# Answers


@pytest.mark.parametrize("label", ["stop", "yield", "keep_left", "none"])
@pytest.mark.parametrize("content_type", ["image/jpeg", "application/octet-stream", "IMAGE/JPEG; x=y", None])
def test_a_raw_picture_is_recognised(client, label, content_type):
    reply = client.post("/v1/predict", data=support.sample(label), content_type=content_type)
    assert reply.status_code == 200
    assert reply.json["model"] == "signnet"
    (prediction,) = reply.json["predictions"]
    assert prediction["name"] == "body"
    assert prediction["top"][0]["label"] == label
    assert len(prediction["top"]) == 5


def test_the_answer_names_the_engine_and_its_times(client):
    reply = client.post("/v1/predict", data=support.sample("stop"), content_type="image/jpeg")
    engine = reply.json["engine"]
    assert engine["engine"] == "onnxruntime"
    assert engine["threads"] == 1
    assert engine["precision"] == "fp32"
    assert engine["version"]
    stages = ["read", "decode", "preprocess", "queue", "inference", "total"]
    assert list(reply.json["timings_ms"]) == stages
    assert re.findall(r"(\w+);dur=[\d.]+", reply.headers["Server-Timing"]) == stages
    assert all(ms >= 0 for ms in reply.json["timings_ms"].values())


def test_probabilities_are_those_of_the_model(client, predictor):
    data = support.sample("roundabout")
    expected = softmax(predictor.logits(predictor.preprocess(data)))[0]
    reply = client.post(f"/v1/predict?top_k={len(CLASSES)}", data=data, content_type="image/jpeg")
    got = {one["label"]: one["probability"] for one in reply.json["predictions"][0]["top"]}
    assert list(got.values()) == sorted(got.values(), reverse=True)
    assert got == pytest.approx(dict(zip(CLASSES, expected, strict=True)))
    assert sum(got.values()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("data", [support.sample("stop"), b"junk", b"", b"\xff" * 500_001])
def test_the_short_cut_answers_as_flask_does(client, data):
    """A plain upload does not go through Flask; one with a parameter does."""
    short = client.post("/v1/predict", data=data, content_type="image/jpeg")
    long = client.post("/v1/predict?top_k=5", data=data, content_type="image/jpeg")
    assert short.status_code == long.status_code
    assert sorted(short.headers.keys()) == sorted(long.headers.keys())
    changing = ("timings_ms", "instance")
    for one, other in ((short.json, long.json), (long.json, short.json)):
        assert list(one) == list(other)
        assert {key: one[key] for key in one if key not in changing} == {
            key: other[key] for key in other if key not in changing
        }


@pytest.mark.parametrize("field", ["image", "images", "anything"])
def test_a_form_with_several_pictures_is_answered_in_order(client, field):
    labels = ["yield", "stop", "keep_right"]
    reply = client.post("/v1/predict?top_k=1", data=form(*map(support.sample, labels), field=field))
    assert [(one["name"], one["top"][0]["label"]) for one in reply.json["predictions"]] == [
        ("0.jpg", "yield"),
        ("1.jpg", "stop"),
        ("2.jpg", "keep_right"),
    ]


@pytest.mark.parametrize("name", ["\u00e4\u4e2d\U0001f600", "new\tline", "</script>"])
def test_any_file_name_comes_back(client, name):
    reply = client.post("/v1/predict", data={"image": (io.BytesIO(support.noise()), name)})
    assert reply.json["predictions"][0]["name"] == name


@pytest.mark.parametrize("top_k", [1, 16, 1000])
def test_top_k(client, top_k):
    reply = client.post(f"/v1/predict?top_k={top_k}", data=support.noise(), content_type="image/jpeg")
    assert len(reply.json["predictions"][0]["top"]) == min(top_k, len(CLASSES))


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_other_formats(client, form):
    picture = Image.open(io.BytesIO(support.sample("stop")))
    options = {"lossless": True} if form == "WEBP" else {}
    data = support.encoded(picture, form, **options)
    reply = client.post("/v1/predict", data=data, content_type=f"image/{form.lower()}")
    # They are not decoded smaller, as the JPEG is, so the probability may differ slightly; the answer may not.
    assert reply.json["predictions"][0]["top"][0]["label"] == "stop"


def test_a_bad_picture_does_not_fail_its_neighbours(client):
    reply = client.post("/v1/predict", data=form(support.sample("stop"), b"GIF89a junk", support.sample("yield")))
    assert reply.status_code == 200
    first, second, third = reply.json["predictions"]
    assert first["top"][0]["label"] == "stop"
    assert third["top"][0]["label"] == "yield"
    assert second["name"] == "1.jpg"
    assert second["problem"]["status"] == 415
    assert "not a picture" in second["problem"]["detail"].lower()


def test_concurrent_requests_get_their_own_answers(address):
    labels = [*CLASSES] * 2
    got: list[str | None] = [None] * len(labels)

    def ask(index: int) -> None:
        while got[index] is None:
            reply = requests.post(
                f"http://{address}/v1/predict?top_k=1",
                data=support.sample(labels[index]),
                headers={"Content-Type": "image/jpeg"},
                timeout=60,
            )
            if reply.status_code == 200:
                got[index] = reply.json()["predictions"][0]["top"][0]["label"]
            else:  # more threads than the limit of this application
                assert reply.status_code == 503
                assert int(reply.headers["Retry-After"]) >= 1

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(labels))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == labels


# Refusals


@pytest.mark.parametrize(
    ("data", "status", "kind", "told"),
    [
        (b"hello", 415, "picture-format", "not a picture in a supported format"),
        (support.encoded(Image.new("RGB", (9, 9)), "GIF"), 415, "picture-format", "GIF"),
        (support.noise()[:400], 400, "picture-damaged", "the picture is damaged"),
        (support.encoded(Image.new("L", (4001, 1000)), "PNG"), 413, "picture-too-large", "4001 x 1000 pixels"),
        (b"\xff" * 500_001, 413, "body-too-large", "500,001 bytes"),
        (b"", 400, "no-picture", "empty"),
    ],
)
def test_a_bad_picture(client, data, status, kind, told):
    document = check_problem(client.post("/v1/predict", data=data, content_type="image/jpeg"), status, kind)
    assert told.lower() in document["detail"].lower()
    if kind != "body-too-large" and data:
        check_problem(client.post("/v1/predict", data=form(data)), status, kind)


def test_only_bad_pictures(client):
    reply = client.post("/v1/predict", data=form(b"one", b"\xff\xd8\xff"))
    document = check_problem(reply, 400, "pictures", "None of the 2 pictures")
    assert [one["name"] for one in document["predictions"]] == ["0.jpg", "1.jpg"]
    assert all(one["problem"]["status"] in (400, 415) for one in document["predictions"])


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("text/plain", "send image/jpeg"),
        ("application/x-www-form-urlencoded", "With curl"),
        ("application/json", "/v2"),
        ("image/gif", "image/gif"),
        ("x" * 3000, "not supported"),
    ],
)
def test_another_content_type(client, kind, told):
    reply = client.post("/v1/predict", data=support.noise(), content_type=kind)
    assert told in check_problem(reply, 415, "media-type")["detail"]
    assert "image/png" in reply.headers["Accept-Post"]


def test_a_compressed_body(client):
    reply = client.post("/v1/predict", data=b"x", content_type="image/jpeg", headers={"Content-Encoding": "gzip"})
    check_problem(reply, 415, "media-type", "gzip")
    assert reply.headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"image": "photo.jpg"}, "write an @ before the file's name"),
        ({}, "holds no file"),
    ],
)
def test_a_form_without_a_file(client, data, told):
    reply = client.post("/v1/predict", data=data, content_type="multipart/form-data")
    check_problem(reply, 400, "no-picture", told)


def test_a_form_with_too_many_pictures(client):
    check_problem(client.post("/v1/predict", data=form(*[b"x"] * 4)), 413, "too-many-pictures", "4 pictures")
    check_problem(client.post("/v1/predict", data=form(*[b"x"] * 40)), 413, "body-too-large", "3 pictures")


def test_a_form_with_too_many_bytes(client):
    check_problem(client.post("/v1/predict", data=form(b"x" * 500_000)), 413, "body-too-large", "500,000 bytes")
    text = client.post("/v1/predict", data={"text": "x" * 500_001}, content_type="multipart/form-data")
    check_problem(text, 413, "body-too-large")


@pytest.mark.parametrize(
    "query", ["top_k=0", "top_k=-1", "top_k=x", "top_k=", "top_k=1.5", "top_k=9999999999", "top_k=%00", "k=3", "%ff"]
)
def test_a_bad_parameter(client, query):
    reply = client.post(f"/v1/predict?{query}", data=support.noise(), content_type="image/jpeg")
    check_problem(reply, 400, "bad-parameter")


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/predict", 405, "method"),
        ("PUT", "/v1/predict", 405, "method"),
        ("HEAD", "/v1/predict", 405, "method"),
        ("POST", "/healthz", 405, "method"),
        ("BREW", "/", 405, "method"),
        ("GET", "/nothing", 404, "not-found"),
        ("POST", "/nothing", 405, "method"),
        ("GET", "/v1/nothing", 404, "not-found"),
        ("GET", "/v1", 404, "not-found"),
        ("GET", "//etc/passwd", 404, "not-found"),
        ("GET", "/../app.py", 404, "not-found"),
        ("GET", "/..%2f..%2fapp.py", 404, "not-found"),
        ("GET", "/%2e%2e/app.py", 404, "not-found"),
        ("GET", "/%00", 404, "not-found"),
        ("GET", "/problems/unheard-of", 404, "not-found"),
    ],
)
def test_wrong_addresses_and_methods(client, method, path, status, kind):
    reply = client.open(path, method=method)
    if method == "HEAD":
        assert reply.status_code == status
    else:
        check_problem(reply, status, kind)
    if status == 405:
        assert reply.headers["Allow"]


def test_options_are_told(client):
    reply = client.options("/v1/predict")
    assert reply.status_code == 200
    assert set(reply.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}


def test_every_kind_of_problem_has_an_address(client):
    for kind, about in problems.KINDS.items():
        assert client.get(f"/problems/{kind}").json == {
            "type": f"/problems/{kind}",
            "status": about.status,
            "title": about.title,
        }


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=400), kind=st.sampled_from(["image/jpeg", "multipart/form-data; boundary=x", "\xe9"]))
def test_arbitrary_bodies_are_refused_not_failed(app, data, kind):
    reply = app.test_client().post("/v1/predict", data=data, content_type=kind)
    assert reply.status_code in (400, 413, 415)
    assert reply.headers["Content-Type"] == TYPE


# Bodies as they come over a socket


def raw(address: str, request: bytes, hang_up: bool = False) -> bytes:
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(request)
        if hang_up:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while part := connection.recv(65536):
            received += part
    return received


HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: image/jpeg\r\n"


def chunked(data: bytes, size: int) -> bytes:
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])


def test_a_chunked_body_is_read(address):
    reply = raw(address, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(support.sample("stop"), 1000))
    assert reply.startswith(b"HTTP/1.1 200")
    assert b'"label": "stop"' in reply


def test_a_chunked_body_is_bounded_while_it_is_read(address):
    endless = b"Transfer-Encoding: chunked\r\n\r\n" + chunked(b"x" * 600_000, 60_000)
    assert b"body-too-large" in raw(address, HEAD + endless, hang_up=True)


def test_a_declared_length_is_refused_before_the_body_is_sent(address):
    assert b"99,999,999,999 bytes" in raw(address, HEAD + b"Content-Length: 99999999999\r\n\r\n")


@pytest.mark.parametrize("kind", [b"image/jpeg", b"multipart/form-data; boundary=b"])
def test_a_body_that_ends_early(address, kind):
    head = HEAD.replace(b"image/jpeg", kind) + b"Content-Length: 1000\r\n\r\n"
    body = b'--b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\nabc'
    reply = raw(address, head + body, hang_up=True)
    assert reply.split(b"\r\n", 1)[0].split()[1] == b"400"


@pytest.mark.parametrize(
    ("headers", "closes"),
    [
        ({}, False),
        ({"CONTENT_LENGTH": "100"}, False),
        ({"CONTENT_LENGTH": str(2 << 20)}, True),
        ({"HTTP_TRANSFER_ENCODING": "chunked"}, True),
        ({"CONTENT_LENGTH": "1e3"}, True),
    ],
)
def test_a_connection_whose_body_is_left_unread_is_announced_to_end(predictor, headers, closes):
    app = create_app(predictor)
    app.closing = [("Connection", "close")]
    body = io.BytesIO(b"x" * 100)
    environ = EnvironBuilder(path="/nothing", method="POST").get_environ()
    got = run_wsgi_app(app, environ | headers | {"wsgi.input": body})[2]
    assert (got.get("Connection") == "close") == closes
    assert len(body.read()) == (0 if headers.get("CONTENT_LENGTH") == "100" else 100)


# Too much at once, too slow, going down


class Stuck:
    """A real session whose calls wait until they are let go."""

    def __init__(self, session) -> None:
        self.session, self.entered, self.go = session, threading.Semaphore(0), threading.Event()
        self.go.set()

    def __call__(self, x):
        self.entered.release()
        assert self.go.wait(60)
        return self.session(x)


@pytest.fixture
def stuck(predictor):
    """An application whose engine waits, with room for two requests and little patience."""
    stuck = Stuck(predictor.logits)
    limits = Limits(max_queue=2, timeout_s=0.2)
    stuck.app = create_app(
        Predictor(stuck, predictor.preprocess, predictor.labels, name="stuck", limits=limits), limits=limits
    )
    stuck.entered.acquire()  # the warm-up
    stuck.go.clear()
    yield stuck
    stuck.go.set()


def post(app, answers: list) -> threading.Thread:
    def ask() -> None:
        answers.append(app.test_client().post("/v1/predict", data=support.noise(), content_type="image/jpeg"))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def test_too_slow_and_too_many(stuck):
    answers: list = []
    running = post(stuck.app, answers)
    assert stuck.entered.acquire(timeout=60)
    waiting = post(stuck.app, answers)
    waiting.join(60)
    check_problem(answers[0], 504, "timeout")
    with stuck.app.service.gate:
        refused = stuck.app.test_client().post("/v1/predict", data=support.noise(), content_type="image/jpeg")
    check_problem(refused, 503, "overloaded", "2 requests")
    assert int(refused.headers["Retry-After"]) >= 1
    stuck.go.set()
    running.join(60)
    assert answers[1].status_code == 200, "a request that reached the engine is answered, even if late"


def test_draining_answers_what_is_in_flight_and_refuses_the_rest(stuck):
    answers: list = []
    running = post(stuck.app, answers)
    assert stuck.entered.acquire(timeout=60)
    assert not stuck.app.service.drain(timeout_s=0.01)
    client = stuck.app.test_client()
    check_problem(client.post("/v1/predict", data=support.noise(), content_type="image/jpeg"), 503, "draining")
    check_problem(client.get("/readyz"), 503, "draining")
    assert client.get("/healthz").status_code == 200
    stuck.go.set()
    assert stuck.app.service.drain(timeout_s=60)
    running.join(60)
    assert answers[0].status_code == 200


def test_not_ready_until_loaded(predictor):
    go = threading.Event()

    def load() -> Predictor:
        assert go.wait(60)
        return predictor

    app = create_app(load)
    client = app.test_client()
    check_problem(client.get("/readyz"), 503, "loading")
    check_problem(client.post("/v1/predict", data=b"x"), 503, "loading")
    go.set()
    app.service.loader.join(60)
    assert client.get("/readyz").status_code == 200
    assert client.post("/v1/predict", data=support.noise()).status_code == 200


def test_never_ready_if_loading_fails():
    app = create_app(lambda: Predictor.load("signet"))
    app.service.loader.join(60)
    check_problem(app.test_client().get("/readyz"), 503, "loading", "unknown model 'signet'")
    assert app.test_client().get("/healthz").status_code == 200


def test_a_failing_engine_is_logged_and_not_shown(predictor, caplog):
    def broken(x):
        if x.any():
            raise ZeroDivisionError("secret detail")
        return predictor.logits(x)

    app = create_app(Predictor(broken, predictor.preprocess, predictor.labels))
    with caplog.at_level(logging.ERROR):
        reply = app.test_client().post("/v1/predict", data=support.noise())
    document = check_problem(reply, 500, "internal")
    assert "secret" not in reply.text
    assert document["instance"] in caplog.text
    assert "secret detail" in caplog.text


def test_an_engine_that_gives_nan_is_not_believed(predictor):
    def broken(x):
        return np.full((len(x), 16), np.nan if x.any() else 0, np.float32)

    app = create_app(Predictor(broken, predictor.preprocess, predictor.labels))
    check_problem(app.test_client().post("/v1/predict", data=support.noise()), 500, "internal")


# What operators look at


def metrics(client) -> dict[tuple[str, ...], float]:
    text = client.get("/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, *map(sample.labels.get, sorted(sample.labels))): sample.value for sample in samples}


def test_metrics_count_what_happened(predictor):
    client = create_app(predictor, limits=LIMITS).test_client()
    client.post("/v1/predict", data=form(support.sample("stop"), b"x"))
    client.post("/v1/predict", data=b"x")
    client.get("/wp-login.php")
    client.get("/v2/models/x")
    got = metrics(client)
    assert got["deploylab_requests_total", "/v1/predict", "200"] == 1
    assert got["deploylab_requests_total", "/v1/predict", "415"] == 1
    assert got["deploylab_requests_total", "other", "404"] == 1
    assert got["deploylab_requests_total", "/v2", "404"] == 1
    assert got["deploylab_request_seconds_count", "/v1/predict"] == 2
    assert got["deploylab_pictures_total", "answered"] == 1
    assert got["deploylab_pictures_total", "refused"] == 2
    assert got["deploylab_stage_seconds_count", "inference"] == 1
    assert got["deploylab_batch_rows_count",] == 1
    assert got["deploylab_requests_in_flight",] == 0
    assert got["deploylab_queue_length",] == 0
    version = predictor.facts["version"]
    assert got["deploylab_model_info", "onnxruntime", "signnet", "fp32", "1", version] == 1


def test_metrics_of_several_processes_are_summed(tmp_path):
    """Two processes, three and four requests: each of them, and a third one, tells of seven."""
    program = """
import sys
from deploylab.serving import Predictor, create_app
client = create_app(Predictor.load()).test_client()
for _ in range(int(sys.argv[1])):
    client.post("/v1/predict", data=open(sys.argv[2], "rb").read())
print(client.get("/metrics").text)
"""
    photo = tmp_path / "stop.jpg"
    photo.write_bytes(support.sample("stop"))
    folder = tmp_path / "metrics"
    folder.mkdir()
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    texts = [
        subprocess.run(
            [sys.executable, "-c", program, str(count), str(photo)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for count in (3, 4, 0)
    ]
    for text, expected in zip(texts, (3, 7, 7), strict=True):
        assert re.search(rf'^deploylab_requests_total{{route="/v1/predict",status="200"}} {expected}\.0$', text, re.M)
        assert re.search(rf'^deploylab_stage_seconds_count{{stage="decode"}} {expected}\.0$', text, re.M)


def test_the_access_log_has_a_line_for_every_request(predictor, tmp_path):
    path = tmp_path / "access.jsonl"
    client = create_app(predictor, access_log=path).test_client()
    client.post("/v1/predict?top_k=2", data=support.noise(), headers={"User-Agent": 'a"b\n\\'.replace("\n", " ")})
    problem = client.get("/nothing%0a%22").json
    good, bad = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert (good["method"], good["path"], good["query"], good["status"]) == ("POST", "/v1/predict", "top_k=2", 200)
    assert good["received"] == len(support.noise())
    assert good["agent"] == 'a"b \\'
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", good["time"])
    assert (bad["path"], bad["status"], bad["problem"]) == ('/nothing\n"', 404, problem["instance"])


def test_an_access_log_that_cannot_be_written_is_told(predictor, tmp_path):
    with pytest.raises(InputError, match="cannot write the access log"):
        create_app(predictor, access_log=tmp_path / "missing" / "access.jsonl")


# The page


def test_the_page_and_its_parts(client):
    page = client.get("/")
    assert page.status_code == 200
    assert page.mimetype == "text/html"
    parts = re.findall(r'(?:src|href)="(?!data:|https?:|/)([^"#]+)"', page.text)
    assert parts
    for part in parts:
        assert client.get(f"/{part}").status_code == 200
    assert "'unsafe" not in page.headers["Content-Security-Policy"]


def test_a_site_of_ones_own(predictor, tmp_path):
    site = tmp_path / "site"
    (site / "assets").mkdir(parents=True)
    (site / "index.html").write_text("<!doctype html>own page", encoding="utf-8")
    for name in ("ort.wasm", "app.mjs", "model.onnx"):
        (site / "assets" / name).write_bytes(b"\0asm")
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    (site / "link.txt").symlink_to(tmp_path / "secret.txt")
    client = create_app(predictor, site=site).test_client()
    page = client.get("/")
    assert page.text == "<!doctype html>own page"
    for reply in (page, client.get("/assets/ort.wasm")):
        assert reply.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert reply.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert client.get("/assets/ort.wasm").mimetype == "application/wasm"
    assert client.get("/assets/app.mjs").mimetype == "text/javascript"
    assert client.get("/../secret.txt").status_code == 404
    assert client.get("/healthz").json == {"status": "alive"}


def test_a_site_that_is_not_built_is_told(predictor, tmp_path):
    with pytest.raises(InputError, match=r"no index\.html"):
        create_app(predictor, site=tmp_path)


# The predictor by itself


def test_batching_gives_the_same_answers(predictor):
    pictures = [support.sample(label) for label in CLASSES]
    batched = Predictor.load(batch=8, max_wait_s=0.05)
    assert isinstance(batched.queue, MicroBatcher)
    answers: dict[int, object] = {}

    def ask(index: int) -> None:
        answers[index] = batched.predict([pictures[index]], top_k=1)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(pictures))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[index].results[0][0][0] for index in range(len(pictures))] == list(CLASSES)
    assert max(answer.batch for answer in answers.values()) > 1
    batched.close()


@pytest.mark.parametrize("engine", ["ncnn", "mnn", "openvino"])
def test_other_engines_answer_alike(predictor, engine):
    pictures = [support.sample("stop"), support.sample("none")]
    other = Predictor.load(engine=engine)
    assert other.facts["engine"] == engine
    np.testing.assert_allclose(other.probabilities(pictures), predictor.probabilities(pictures), atol=1e-4)


def test_a_model_with_a_fixed_batch(tmp_path, predictor):
    """Several pictures are then run one by one, and joining requests is refused."""
    import onnx

    model = onnx.load(Artifact.read(artifacts.prepare("signnet")).file(".onnx"))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    path = tmp_path / "one.onnx"
    onnx.save(model, path)
    one = Predictor.load(str(path))
    assert one.facts["batch"] == 1
    pictures = [support.sample(label) for label in ("stop", "yield", "none")]
    np.testing.assert_allclose(one.probabilities(pictures), predictor.probabilities(pictures), atol=1e-6)
    with pytest.raises(EngineError, match="leave batch out"):
        Predictor.load(str(path), batch=4)


def test_an_onnx_file_of_ones_own(tmp_path, predictor):
    path = tmp_path / "mine.onnx"
    path.write_bytes(Artifact.read(artifacts.prepare("signnet")).file(".onnx").read_bytes())
    mine = Predictor.load(str(path))
    assert mine.name == "mine"
    data = support.sample("stop")
    assert mine.predict([data]).results[0][0][0] == f"class {CLASSES.index('stop')}"
    with pytest.raises(ModelError, match="no such ONNX file"):
        Predictor.load(str(tmp_path / "absent.onnx"))


def test_a_conversion_that_fails_is_told(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(image.InputError.__base__, match="not a readable ONNX file"):
        Predictor.load(str(path))


def test_loading_needs_no_torch():
    program = (
        "import sys; from deploylab.serving import Predictor, create_app; create_app(Predictor.load());"
        "print([name for name in ('torch', 'onnx', 'matplotlib', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_labels_must_fit(predictor):
    with pytest.raises(InputError, match="2 labels were given for a model with 16 classes"):
        Predictor(predictor.logits, predictor.preprocess, ("a", "b"))


@pytest.mark.parametrize("name", ["max_bytes", "max_pixels", "max_images", "max_queue", "timeout_s"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_are_positive(name, value):
    with pytest.raises(InputError, match=f"{name} must be positive"):
        Limits(**{name: value})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(-80, 80, width=32), min_size=3, max_size=3), min_size=1, max_size=4))
def test_softmax(rows):
    logits = np.array(rows, np.float32)
    got = softmax(logits)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got.sum(1), 1)
    expected = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(1, keepdims=True)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_bulky_pictures_are_decoded_one_at_a_time(predictor):
    """Four threads with a picture above the threshold: never two at work at once, and all are answered."""
    large = support.encoded(Image.new("RGB", (2500, 1700), "red"), "PNG")
    other = Predictor(predictor.logits, predictor.preprocess, predictor.labels)
    inside, most, lock = 0, 0, threading.Lock()
    resize = other.preprocess.resize

    def watched(decoded):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        try:
            return resize(decoded)
        finally:
            with lock:
                inside -= 1

    other.preprocess = SimpleNamespace(**{name: getattr(other.preprocess, name) for name in ("open", "normalise")})
    other.preprocess.resize = watched
    answers: list = []
    threads = [threading.Thread(target=lambda: answers.append(other.predict([large]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    assert most == 1


def test_a_smaller_decode_keeps_the_answer(predictor, capsys):
    """All sample photographs, some at 12 megapixels, and an eighth of the frozen test split enlarged, as JPEGs.

    The enlarged pictures have no two sizes alike, so that all scales and rounded edges occur.
    """
    whole = dataclasses.replace(predictor.preprocess, reducing_gap=None)
    samples = dataset.samples()
    enlarged = [Image.fromarray(pixels) for pixels in dataset.test_split()[0][::8]]
    widths = np.random.default_rng(0).integers(200, 1000, len(enlarged)).tolist()
    sets = {
        "samples": [sample.path.read_bytes() for sample in samples],
        "samples at 12 MP": [support.encoded(Image.open(one.path).resize((4000, 3000))) for one in samples[::16]],
        "test split, enlarged": [
            support.encoded(one.resize((width, width * 3 // 4), Image.Resampling.BICUBIC), quality=90)
            for one, width in zip(enlarged, widths, strict=True)
        ],
    }
    for name, pictures in sets.items():
        full, scaled = (
            softmax(predictor.logits(preprocess.batch(pictures))) for preprocess in (whole, predictor.preprocess)
        )
        difference = np.abs(full - scaled).max()
        best = np.sort(full, axis=1)
        unclear = best[:, -1] - best[:, -2] < 0.05  # the answer of such a picture hangs on a single pixel
        with capsys.disabled():
            print(f"\nscaled decode, {name}: n={len(full)}, largest difference of a probability {difference:.4f}")
        assert difference < 0.08
        assert unclear.mean() < 0.02
        assert (full.argmax(1) == scaled.argmax(1))[~unclear].all()


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/v1/predict", support.noise()[:-200], "image/jpeg"),
        ("/v1/predict", b"no picture", "image/jpeg"),
        ("/v1/predict?top_k=1", b"no picture", "image/jpeg"),
        ("/v2/models/signnet/infer", b"{", "application/json"),
    ],
)
def test_a_refused_request_leaves_nothing_to_the_garbage_collector(client, path, body, kind):
    """It would hold the bodies of many refused requests until it runs."""
    assert 400 <= client.post(path, data=body, content_type=kind).status_code < 500
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            client.post(path, data=body, content_type=kind)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kept = [thing for thing in gc.garbage if isinstance(thing, (FrameType, DeployLabError))]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert kept == []


def test_requests_at_once_get_the_answers_they_get_alone():
    photos = [sample.path.read_bytes() for sample in dataset.samples()[:16]]
    with contextlib.closing(Predictor.load()) as predictor:
        alone = [predictor.predict([photo]).results for photo in photos]
        with ThreadPoolExecutor(8) as pool:
            together = [*pool.map(lambda photo: predictor.predict([photo]).results, photos * 8)]
    assert together == alone * 8
