"""Checks of lab 02, Flask serving."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from deploylab import parity
from deploylab.checks.core import exercise, expect, hint, refuses

# --- ask -------------------------------------------------------------------------------------------------------------


@exercise("It uploads both ways, waits a bounded time, and an error status does not pass for an answer.")
def ask(attempt: Callable) -> None:
    """``ask(url, data, form)``: POST a picture as a form's field ``file`` or as the bare body; the answer from JSON."""
    import requests

    jpeg = _encoded(_picture(), "JPEG")
    with _recorder() as (url, seen), _noted_timeouts() as timeouts:
        for form in (True, False):
            got = attempt(url, jpeg, form)
            expect(seen, f"With form={form} nothing arrived at {url}.")
            expect(seen[-1]["method"] == "POST", f"{seen[-1]['method']} arrived; a picture is sent with POST.")
            expect(
                not isinstance(got, requests.Response),
                "You return the whole response; the caller wants what the JSON says: answer.json().",
            )
            _expect_upload(seen[-1], jpeg, form)
            expect(got == _ANSWER, f"The server said {_ANSWER}, you return {got!r}.")
        error = refuses(attempt, url + "/refuses", jpeg, True)
        expect(
            error is not None,
            "The server answered with status 400, and you return it like a good answer: raise_for_status() raises.",
        )
        expect(
            isinstance(error, requests.HTTPError),
            f"A status of 400 raised {type(error).__name__}: {error}; raise_for_status() raises HTTPError.",
        )
        expect(
            None not in timeouts,
            "requests waits for ever unless told otherwise, and a server that hangs would take the client with it: "
            "timeout=10.",
        )


def _expect_upload(request: dict[str, Any], jpeg: bytes, form: bool) -> None:
    kind = request["type"]
    if form:
        expect(kind != "image/jpeg", "form=True should send a form; the bare bytes arrived.")
        expect(
            "multipart/form-data" in kind,
            f"With form=True the content type {kind!r} arrived. A file in a form is multipart: files={{...}}; "
            "with data={...} the bytes would be sent as text.",
        )
        fields = list(request["files"])
        expect(fields == ["file"], f"The form's file field is called {fields}; the server looks for 'file'.")
        expect(request["files"]["file"] == jpeg, "The field 'file' holds other bytes than the picture.")
    else:
        expect(
            not request["files"],
            "form=False should send the bare bytes as the body (data=...); a form with files came.",
        )
        expect(kind == "image/jpeg", f"The bare body came with the content type {kind!r}; say what it is: image/jpeg.")
        expect(request["body"] == jpeg, "The body holds other bytes than the picture.")


_ANSWER = {"top": [{"label": "yield", "probability": 0.75}]}


@contextlib.contextmanager
def _recorder() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that remembers what arrives, its URL, and the list of it."""
    from werkzeug.serving import WSGIRequestHandler, make_server
    from werkzeug.wrappers import Request, Response

    class Quiet(WSGIRequestHandler):
        def log(self, *_: Any) -> None:
            pass

    seen: list[dict[str, Any]] = []

    @Request.application
    def app(request: Request) -> Response:
        files = {name: file.read() for name, file in request.files.items()}
        body = b"" if files else request.get_data()
        seen.append({"method": request.method, "type": request.content_type or "", "files": files, "body": body})
        refuse = request.path.endswith("/refuses")
        content = {"error": "no picture"} if refuse else _ANSWER
        return Response(json.dumps(content), 400 if refuse else 200, content_type="application/json")

    server = make_server("127.0.0.1", 0, app, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def _noted_timeouts() -> Iterator[list[Any]]:
    """The timeouts with which requests are sent meanwhile."""
    import requests

    noted: list[Any] = []
    send = requests.Session.send

    @functools.wraps(send)
    def noting(session: Any, request: Any, **options: Any) -> Any:
        noted.append(options.get("timeout"))
        return send(session, request, **{**options, "timeout": options.get("timeout") or 10})

    requests.Session.send = noting
    try:
        yield noted
    finally:
        requests.Session.send = send


# --- decode ----------------------------------------------------------------------------------------------------------

_MAX_BYTES, _MAX_PIXELS = 100_000, 1_000_000


@exercise("Each kind of bad input is refused with its own status, and before it can do harm.")
def decode(attempt: Callable) -> None:
    """``decode(data, max_bytes, max_pixels)``: uint8 RGB (H, W, 3), else ``abort(400 | 413 | 415, "why")``."""

    def call(data: bytes) -> Any:
        return attempt(data, _MAX_BYTES, _MAX_PIXELS)

    picture = _picture()
    for kind in ("PNG", "JPEG", "WEBP"):
        got = _array(call(_encoded(picture, kind)), kind)
        expect(
            np.abs(got.astype(int) - picture).mean() < 8,
            f"The {kind} was decoded to other pixels; red and blue swapped?",
        )
    _array(call(_encoded(picture[..., 0], "PNG")), "grey PNG")
    for what, (status, data) in _bad_inputs().items():
        _expect_refused(attempt, what, status, data)


def _array(got: Any, kind: str) -> np.ndarray:
    expect(isinstance(got, np.ndarray), f"A {kind} should give a NumPy array, not {type(got).__name__}.")
    expect(
        got.ndim == 3 and got.shape[2] == 3,
        f"A {kind} gave the shape {got.shape}; every picture becomes RGB (H, W, 3): convert('RGB').",
    )
    expect(got.dtype == np.uint8, f"The pixels are {got.dtype}, they should be uint8.")
    expect(got.shape == (40, 60, 3), f"A {kind} of 40 rows and 60 columns gave {got.shape}.")
    return got


def _bad_inputs() -> dict[str, tuple[int, bytes]]:
    """What is wrong with it -> the status it deserves, and the bytes."""
    picture = _picture()
    jpeg = _encoded(picture, "JPEG")
    return {
        "an empty upload": (400, b""),
        "a text file": (415, b"Dear server, this is not a picture.\n" * 20),
        "a GIF, which Pillow knows and we do not serve": (415, _encoded(picture, "GIF")),
        "a truncated JPEG": (400, jpeg[: -len(jpeg) // 4]),
        "more bytes than max_bytes": (413, jpeg + bytes(_MAX_BYTES)),
        "a PNG whose header says 8000 x 8000 pixels": (413, _png_header(8000, 8000)),
        "a PNG one row above max_pixels": (413, _png_header(1000, 1001)),
    }


_STATUS = {
    400: "400 Bad Request: the right kind of thing, but broken",
    413: "413 Content Too Large",
    415: "415 Unsupported Media Type: not a kind of file that is served",
}


def _expect_refused(attempt: Callable, what: str, status: int, data: bytes) -> None:
    from werkzeug.exceptions import HTTPException

    error = refuses(attempt, data, _MAX_BYTES, _MAX_PIXELS)
    expect(error is not None, f"{what[0].upper()}{what[1:]} was let pass. It deserves {_STATUS[status]}.")
    if not isinstance(error, HTTPException):
        hint(
            f"For {what} you let {type(error).__name__} escape, which becomes a 500, as if the server were at fault. "
            f"Use abort({status}, ...)."
        )
    if "header" in what and error.code == 400:
        hint(
            f"For {what} you answer 400, after trying to decode it: look at image.size first. Image.open() reads the "
            "header only."
        )
    expect(error.code == status, f"For {what} you answer {error.code}. It deserves {_STATUS[status]}.")
    expect(
        error.description and error.description != type(error).description,
        f"For {what} the status is right. Say why as well, abort({status}, 'what was wrong and what to do'): a person "
        "reads it.",
    )


def _picture() -> np.ndarray:
    """uint8 (40, 60, 3), smooth, different in every channel."""
    y, x = np.mgrid[0:40, 0:60]
    return np.stack([4 * x, 6 * y, 120 - x - y], -1).clip(0, 255).astype(np.uint8)


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=95)
    return buffer.getvalue()


def _png_header(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and holds none (PNG specification, 11.2.2)."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# --- best_offer ------------------------------------------------------------------------------------------------------


@exercise("What counts is the time saved for the user, not the factor and not the stage alone.")
def best_offer(attempt: Callable) -> None:
    """``best_offer(profile, offers)``: stage -> ms, and offer -> (stage, factor); the offer that saves most."""
    for profile, offers, want, comment in _OFFERS:
        got = attempt(dict(profile), dict(offers))
        expect(got in offers, f"Return the name of an offer, one of {', '.join(map(repr, offers))}, not {got!r}.")
        largest_factor = max(offers, key=lambda name: offers[name][1])
        largest_stage = max(offers, key=lambda name: profile[offers[name][0]])
        where = f"With {profile} and {offers} you take {got!r}"
        expect(
            got == want or got != largest_factor, f"{where}, the largest factor. Of how many milliseconds? {comment}"
        )
        expect(got == want or got != largest_stage, f"{where}, the largest stage. How much of it is saved? {comment}")
        expect(got == want, f"{where}. {comment}")


_OFFERS: tuple[tuple[dict[str, float], dict[str, tuple[str, float]], str, str], ...] = (
    (
        {"decode": 6.0, "resize": 1.0, "inference": 3.0, "rest": 2.0},
        {"faster engine": ("inference", 10), "scaled decoding": ("decode", 3), "other filter": ("resize", 2)},
        "scaled decoding",
        "Ten times faster at 3 ms saves 2.7 ms; three times faster at 6 ms saves 4.",
    ),
    (
        {"decode": 5.0, "inference": 4.0, "rest": 1.0},
        {"newer decoder": ("decode", 1.2), "faster engine": ("inference", 4)},
        "faster engine",
        "A fifth faster at 5 ms saves 0.8 ms; four times faster at 4 ms saves 3.",
    ),
    (
        {"decode": 120.0, "inference": 4.0, "JSON": 0.1},
        {"faster engine": ("inference", 100), "other JSON": ("JSON", 1000), "small thumbnails": ("decode", 1.1)},
        "small thumbnails",
        "A tenth faster at 120 ms saves more than the network takes altogether.",
    ),
    (
        {"decode": 2.0, "inference": 8.0},
        {"slower but safer decoder": ("decode", 0.5), "faster engine": ("inference", 2)},
        "faster engine",
        "A factor of 0.5 is twice as slow, and saves nothing.",
    ),
)


# --- find_fault ------------------------------------------------------------------------------------------------------

Ask = Callable[[bytes], list[dict[str, Any]]]


@exercise("Three questions from outside, and the server has told what is wrong inside it.")
def find_fault(attempt: Callable) -> None:
    """``find_fault(ask, photos)``: "healthy", "train", "bgr" or "other", from the answers of a server alone."""
    photos = _photos()
    for fault, server in planted_servers().items():
        got = attempt(server, list(photos))
        expect(got in _FAULTS, f"Return one of {', '.join(map(repr, _FAULTS))}, not {got!r}.")
        expect(
            got == fault.partition(" ")[0],
            f"You said {got!r}. {_FAULTS[fault.partition(' ')[0]]}{_wrongly(fault, got)}",
        )


_FAULTS = {
    "healthy": "That server answers as it should: all photos right, and the same answer to the same photo.",
    "train": "That server has its network in training mode: the same photo, asked twice, gets two answers.",
    "bgr": "That server takes red for blue: it is right as soon as you swap the colours before you send the photo.",
    "other": "That server is wrong in another way: the same photo gets the same answer, and it is wrong with the "
    "colours swapped as well.",
}


def _wrongly(fault: str, got: str) -> str:
    if fault == "train" and got == "bgr":
        return " Ask that first: while the answers vary, nothing else can be concluded."
    if fault.startswith("other") and got == "bgr":
        return " Wrong answers alone do not prove BGR."
    return ""


def planted_servers() -> dict[str, Ask]:
    """A healthy server and broken ones, as functions: encoded picture -> the three best classes, best first."""
    from deploylab import models
    from deploylab.signs import CLASSES

    healthy = models.load("signnet")
    shifted = (*CLASSES[1:], CLASSES[0])
    return {
        "healthy": _server(healthy, CLASSES),
        "bgr": _server(healthy, CLASSES, lambda pixels: pixels[..., ::-1]),
        "train": _server(models.load("signnet").train(), CLASSES),
        "other (labels shifted by one)": _server(healthy, shifted),
        "other (all pictures black)": _server(healthy, CLASSES, lambda pixels: pixels // 255),
        "train and bgr": _server(models.load("signnet").train(), CLASSES, lambda pixels: pixels[..., ::-1]),
    }


def _server(
    model: Any, labels: tuple[str, ...], spoil: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels
) -> Ask:
    import torch

    from deploylab.image import SIGNNET, decode

    def ask(data: bytes) -> list[dict[str, Any]]:
        x = SIGNNET(np.ascontiguousarray(spoil(decode(data))))
        with torch.no_grad(), parity.one_torch_thread():
            best = model(torch.from_numpy(x)).softmax(1)[0].topk(3)
        return [
            {"label": labels[i], "probability": p}
            for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    return ask


def _photos() -> list[tuple[bytes, str]]:
    """One sample photo of each class, made small so that the check is quick, with its label."""
    from deploylab.signs import dataset

    def small(photo: dataset.Sample) -> bytes:
        with Image.open(photo.path) as image:
            return _encoded(np.asarray(image.convert("RGB").resize((160, 120), Image.Resampling.LANCZOS)), "JPEG")

    one_each = {photo.label: photo for photo in dataset.samples()}
    return [(small(photo), label) for label, photo in one_each.items()]
