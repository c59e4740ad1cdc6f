"""Requests that a server on the open Internet gets sooner or later, made from a seed, and a client that sends them.

``python tests/unit/hostile.py URL --requests 10000`` fires at a running ``deploylab serve`` on this machine and prints
what came back.
"""

from __future__ import annotations

import argparse
import base64
import collections
import functools
import io
import json
import random
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

PREDICT = "/v1/predict"
TENSOR = "/v2/models/signnet/infer"
PICTURES = "/v2/models/signnet-images/infer"
TIMEOUT_S = 60.0

REFUSED = frozenset({400, 404, 405, 413, 414, 415, 417, 422, 431})
"""What a client may be told that did something wrong."""
BUSY = frozenset({503, 504})
UNSUPPORTED = frozenset({501, 505})
CLOSED = 0
"""The server closed the connection instead of an answer."""


@dataclass(frozen=True)
class Attack:
    """Bytes for a connection, and which statuses are right for each of the ``replies`` they cause.

    ``cut``: the client goes away after the last byte; no answer is needed.
    """

    kind: str
    wire: bytes
    right: frozenset[int]
    replies: int = 1
    cut: bool = False


def request(
    path: str = PREDICT,
    body: bytes = b"",
    *,
    method: str = "POST",
    content_type: str | None = "image/jpeg",
    headers: Sequence[tuple[str, str]] = (),
    length: int | None = None,
) -> bytes:
    """A request as it goes over the wire; ``length`` is what it says of its body, if not the truth."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"Content-Type: {content_type}"] if content_type is not None else []
    lines += [f"{name}: {value}" for name, value in headers]
    lines += [f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body


# --- pictures ---------------------------------------------------------------------------------------------------------


def encoded(pixels: np.ndarray) -> list[tuple[str, bytes]]:
    """One picture as (content type, file) in every format the server reads, plain and in harder variants."""
    variants = (
        ("jpeg", {"quality": 85}),
        ("jpeg", {"quality": 60, "progressive": True}),
        ("jpeg", {"quality": 85, "exif": _turned()}),
        ("png", {}),
        ("webp", {"quality": 80}),
        ("webp", {"lossless": True}),
    )
    found = []
    for form, options in variants:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, form, **options)
        found.append((f"image/{form}", stream.getvalue()))
    return found


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A file after an accident: bits turned, bytes lost, doubled, blanked or taken from elsewhere."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not changed:
            break
        start = rng.randrange(len(changed))
        length = min(rng.choice((1, 2, 4, 32, 256)), len(changed) - start)
        match rng.randrange(7):
            case 0:
                changed[start] ^= 1 << rng.randrange(8)
            case 1:
                changed[start : start + length] = rng.randbytes(length)
            case 2:
                del changed[start : start + length]
            case 3:
                changed[start:start] = changed[start : start + length]
            case 4:
                changed[start : start + length] = bytes([rng.choice((0, 255))]) * length
            case 5:
                del changed[max(1, start) :]
            case 6:  # the header, where sizes and tables are
                changed[rng.randrange(min(64, len(changed)))] = rng.randrange(256)
    return bytes(changed)


def fuzzed_pictures(rng: random.Random, pictures: Sequence[tuple[str, bytes]]) -> Iterator[Attack]:
    while True:
        kind, data = rng.choice(pictures)
        yield Attack("fuzzed picture", request(body=mutated(rng, data), content_type=kind), REFUSED | {200})


def noise(rng: random.Random, _: object) -> Iterator[Attack]:
    starts = (
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\xff\xff\xff\xffWEBPVP8X",
        b"GIF89a",
        b"BM",
        b"II*\0",
        b"\0\0\0\x20ftypavif",
    )
    while True:
        body = rng.choice((*starts, b"")) + rng.randbytes(rng.randrange(2000))
        yield Attack("noise", request(body=body), REFUSED)


def giants(rng: random.Random, _: object) -> Iterator[Attack]:
    """Pictures that are small files and would be gigabytes of pixels, or hours of work."""
    makers: tuple[Callable[[int, int], bytes], ...] = (_png, _jpeg, _webp_extended, _webp_lossless, _webp_lossy)
    sides = (9_000, 16_383, 30_000, 65_500, 65_535, 0x00FFFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
    while True:
        maker = rng.choice(makers)
        data = rng.choice((maker(rng.choice(sides), rng.choice(sides)), _text_bomb(), _too_much_data(), _scans(2_000)))
        yield Attack("giant picture", request(body=data, content_type="image/png"), REFUSED)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width: int, height: int, packed: bytes = zlib.compress(bytes(100)), *before: bytes) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(before) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def flat_png(width: int, height: int) -> bytes:
    """A valid PNG of one colour: a thousand times smaller than its pixels."""
    return _png(width, height, zlib.compress(bytes((1 + 3 * width) * height), 9))


@functools.cache
def _text_bomb() -> bytes:
    """A PNG whose compressed text and colour profile are 30 MB of zeros each."""
    zeros = zlib.compress(bytes(30_000_000), 9)
    return _png(
        8, 8, zlib.compress(bytes(8 * 25)), _chunk(b"zTXt", b"a\0\0" + zeros), _chunk(b"iCCP", b"a\0\0" + zeros)
    )


@functools.cache
def _too_much_data() -> bytes:
    """A PNG of one pixel, with 30 MB of data for it, and none of it a valid row."""
    return _png(1, 1, zlib.compress(b"\x09" * 30_000_000, 9))


def _jpeg(width: int, height: int) -> bytes:
    frame = struct.pack(">HBHHB", 17, 8, height & 0xFFFF, width & 0xFFFF, 3) + bytes(
        (1, 0x22, 0, 2, 0x11, 0, 3, 0x11, 0)
    )
    return (
        b"\xff\xd8\xff\xc0"
        + frame
        + b"\xff\xda\x00\x0c\x03\x01\x00\x02\x00\x03\x00\x00\x3f\x00"
        + bytes(50)
        + b"\xff\xd9"
    )


def _webp(name: bytes, data: bytes) -> bytes:
    chunk = name + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def _webp_extended(width: int, height: int) -> bytes:
    size = (width & 0xFFFFFF).to_bytes(3, "little") + (height & 0xFFFFFF).to_bytes(3, "little")
    return _webp(b"VP8X", b"\x12\0\0\0" + size) + b"ANIM" + bytes(64)


def _webp_lossless(width: int, height: int) -> bytes:
    return _webp(b"VP8L", b"\x2f" + struct.pack("<I", (width & 0x3FFF) | (height & 0x3FFF) << 14) + bytes(40))


def _webp_lossy(width: int, height: int) -> bytes:
    return _webp(b"VP8 ", b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width & 0x3FFF, height & 0x3FFF) + bytes(40))


@functools.cache
def _scans(count: int) -> bytes:
    """A progressive JPEG with far more passes over its pixels than any program writes."""
    stream = io.BytesIO()
    Image.new("RGB", (2000, 2000)).save(stream, "JPEG", progressive=True, quality=30)
    data = stream.getvalue()
    last = data.rindex(b"\xff\xda")
    scan = data[last:-2]
    return data[:last] + scan * count + b"\xff\xd9"


# --- forms and types --------------------------------------------------------------------------------------------------


def wrong_types(rng: random.Random, pictures: Sequence[tuple[str, bytes]]) -> Iterator[Attack]:
    types = (
        "text/plain", "application/json", "text/html; charset=utf-8", "image/gif", "image/svg+xml", "video/mp4",
        "application/x-www-form-urlencoded", "multipart/form-data", "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "b" * 5000, 'multipart/form-data; boundary="', "multipart/mixed; boundary=x",
        "image/", "/", "image/jpeg" * 50, "a" * 3000, "application/json; charset=utf-7",
    )  # fmt: skip
    while True:
        _, data = rng.choice(pictures)
        extra = [("Content-Encoding", rng.choice(("gzip", "br", "x" * 99, "")))] if rng.random() < 0.2 else []
        wire = request(body=data, content_type=rng.choice(types), headers=extra)
        yield Attack("wrong content type", wire, REFUSED)


def forms(rng: random.Random, pictures: Sequence[tuple[str, bytes]]) -> Iterator[Attack]:
    """Multipart forms: mutated ones, ones with hundreds of parts, headers without end, lying boundaries."""
    while True:
        parts = [_part(rng, rng.choice(pictures)[1]) for _ in range(rng.choice((1, 1, 2, 5, 60)))]
        body = b"".join(parts) + rng.choice((b"--x--\r\n", b"--x--", b"--x", b"", b"--x\r\n--x--\r\n"))
        if rng.random() < 0.5:
            body = mutated(rng, body)
        boundary = rng.choice(("x", "x", "x", "y", "x y", '"x"'))
        wire = request(body=body, content_type=f"multipart/form-data; boundary={boundary}")
        yield Attack("form", wire, REFUSED | {200})


def _part(rng: random.Random, data: bytes) -> bytes:
    name = rng.choice(("images", "image", "", "a" * 2000, "../../etc/passwd", "\0", "\xff"))
    file = rng.choice(
        ('; filename="a.jpg"', '; filename="../../a"', "; filename*=UTF-8''%ff%00", "", "; filename=" + "f" * 3000)
    )
    headers = f'Content-Disposition: form-data; name="{name}"{file}\r\n' + "X: y\r\n" * rng.choice((0, 0, 0, 500))
    content = rng.choice((data, data, b"", rng.randbytes(50), b"--x\r\n" * 10))
    return b"--x\r\n" + headers.encode("latin-1") + b"\r\n" + content + b"\r\n"


# --- the Open Inference Protocol -------------------------------------------------------------------------------------


def wrong_json(rng: random.Random, pictures: Sequence[tuple[str, bytes]]) -> Iterator[Attack]:
    """Documents that are nearly right: one member at a time has another type, shape, size or depth."""
    odd = (
        None, True, -1, 0, 1.5, 10**30, -(10**400), 1e308, float("nan"), float("inf"), "", "x", "\ud800", "9" * 5000,
        [], {}, [[]],
        [None], {"a": 1}, [1] * 5000, [[1]] * 300, ["a"], [2**31 - 1] * 4, [1, 3, 64, 64], [-1, 3, 64, 64], [0, 3, 64,
        64],
        [2**62, 3, 64, 64], [1, 3, 64], [True, 3, 64, 64], [1.0, 3, 64, 64], ["1", "3", "64", "64"], "BYTES", "FP64",
        "FP32",
    )  # fmt: skip
    keys = ("name", "shape", "datatype", "data", "parameters")
    while True:
        path = rng.choice((TENSOR, PICTURES))
        tensor = _tensor() if path == TENSOR else _image_tensor(rng.choice(pictures)[1])
        head = {"id": rng.choice(odd), "inputs": [tensor]}
        match rng.randrange(6):
            case 0:
                head["inputs"] = rng.choice(odd)
            case 1:
                head["inputs"] = [tensor] * rng.choice((0, 2, 300))
            case 2:
                head["outputs"] = rng.choice(
                    (*odd, [{"name": rng.choice(odd)}], [{"name": "output", "parameters": rng.choice(odd)}])
                )
                tensor.pop("datatype")
            case 3:
                head["parameters"] = rng.choice(odd)
                tensor["shape"] = rng.choice(odd)
            case _:
                tensor[rng.choice(keys)] = rng.choice(odd)
                tensor.pop(rng.choice(keys), None)
        text = json.dumps(head).encode()
        body = rng.choice((text, text, mutated(rng, text), *_broken_json(rng)))
        yield Attack("wrong JSON", request(path, body, content_type="application/json"), REFUSED | {200})


def _tensor() -> dict[str, object]:
    return {"name": "input", "shape": [1, 3, 64, 64], "datatype": "FP32", "data": [0.5] * 50}


def _image_tensor(data: bytes) -> dict[str, object]:
    return {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(data).decode()]}


def _broken_json(rng: random.Random) -> tuple[bytes, ...]:
    depth = rng.choice((100, 5_000, 100_000))
    return (
        b"[" * depth,
        b'{"inputs":' * depth,
        b"\xff\xfe{}",
        b"",
        b"{",
        b'"\\ud800"',
        b"1" * 10_000,
        b"{}" * 100,
        b"\0",
    )


def lying_binaries(rng: random.Random, pictures: Sequence[tuple[str, bytes]]) -> Iterator[Attack]:
    """Binary tensor data whose sizes, in three places, do not agree."""
    sizes = (0, 1, -1, 3, 4, 49_151, 49_153, 2**31, 2**63, 10**40, "49152", 1.5, True, None, [])
    while True:
        if rng.random() < 0.5:
            path, tensor, tail = TENSOR, _tensor(), rng.randbytes(rng.choice((0, 4, 49_152, 49_153, 98_304)))
        else:
            data = rng.choice(pictures)[1]
            path, tensor = PICTURES, _image_tensor(b"")
            tail = struct.pack("<I", rng.choice((len(data), 0, len(data) + 1, 2**32 - 1))) + data
            tensor["shape"] = rng.choice(([1], [2], [16], [17], [2**40], [0], [-1], [1, 1]))
        tensor.pop("data")
        tensor["parameters"] = {"binary_data_size": rng.choice((len(tail), *sizes))}
        text = json.dumps({"inputs": [tensor]}).encode()
        length = rng.choice((len(text), len(text), len(text) - 1, 0, 10**9, -1, "x", "9" * 5000, "1e3"))
        wire = request(
            path,
            text + tail,
            content_type="application/octet-stream",
            headers=[("Inference-Header-Content-Length", str(length))],
        )
        yield Attack("lying binary", wire, REFUSED | {200})


# --- HTTP itself ------------------------------------------------------------------------------------------------------


def paths(rng: random.Random, _: object) -> Iterator[Attack]:
    tricks = (
        "/../../../../etc/passwd", "/..%2f..%2f..%2fetc%2fpasswd", "/%2e%2e/%2e%2e/etc/passwd",
        "/....//....//etc/passwd",
        "/..\\..\\windows\\win.ini", "/%00", "/index.html%00.jpg", "/%ff%fe", "/%c0%ae%c0%ae/etc/passwd",
        "//etc/passwd", "/./v1/predict",
        "/v1/predict/", "/v1//predict", "/V1/PREDICT", "/v1/predict;a=b", "/v1/predict?top_k=0",
        "/v1/predict?top_k=9e9",
        "/v1/predict?top_k=" + "9" * 4000, "/v1/predict?top_k=1&top_k=%00", "/v1/predict?" + "a&" * 2000,
        "/v2/models/%2e%2e/infer",
        "/v2/models/signnet%00/infer", "/v2/models/" + "m" * 4000 + "/infer",
        "/v2/models/signnet/versions/%2e%2e/infer",
        "/problems/../../x", "/problems/%2e%2e%2f", "/metrics/../healthz", "/" + "a" * 8000, "/" + "a/" * 4000,
        "/" + "%41" * 2500,
        "http://localhost/v1/predict/x", "http://example.org/etc/passwd", "*", "/?x=\xff", "/{{7*7}}", "/%s%s%n",
        "/$(id)",
    )  # fmt: skip
    while True:
        method = rng.choice(("GET", "GET", "POST", "HEAD"))
        path = rng.choice(tricks)
        # 200: some of them amount to the page, and a HEAD or GET of it is no attack
        yield Attack("path trick", request(path, method=method, content_type=None), REFUSED | {200, 308})


def headers(rng: random.Random, pictures: Sequence[tuple[str, bytes]]) -> Iterator[Attack]:
    """Too many, too long, contradictory and malformed header fields."""
    while True:
        _, data = rng.choice(pictures)
        good = request(body=data)
        head, _, body = good.partition(b"\r\n\r\n")
        extra = rng.choice(
            (
                b"X: y\r\n" * 2_000,
                b"".join(b"X-%d: y\r\n" % number for number in range(150)),
                b"X: " + b"y" * 200_000 + b"\r\n",
                b"X" * 70_000 + b": y\r\n",
                b"Content-Length: 5\r\n",
                b"Content-Length: -1\r\n",
                b"Transfer-Encoding: chunked\r\n",
                b"Transfer-Encoding: gzip, chunked\r\n",
                b"Transfer-Encoding: \x0bchunked\r\n",
                b"No colon here\r\n",
                b": no name\r\n",
                b"Sp ace: x\r\n",
                b" folded: x\r\n",
                b"X: a\0b\r\n",
                b"X: a\rb\r\n",
                b"Host: a\r\nHost: b\r\n",
                b"Expect: 100-continue\r\nExpect: nonsense\r\n",
                b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
                b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n",
                b"Range: bytes=0-,0-,0-\r\n",
                b"Cookie: " + b"a=b; " * 3000 + b"\r\n",
                b"X-Forwarded-For: " + b"127.0.0.1, " * 500 + b"\r\n",
            )
        )
        wire = head + b"\r\n" + extra + b"\r\n" + body
        # some are harmless in one HTTP implementation and wrong in another; what follows a wrong one may be cut off
        yield Attack("header", wire, REFUSED | UNSUPPORTED | {200, 101, CLOSED}, cut=True)


def chunked(rng: random.Random, pictures: Sequence[tuple[str, bytes]]) -> Iterator[Attack]:
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
    while True:
        _, data = rng.choice(pictures)
        good = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (data[:100], data[100:])) + b"0\r\n\r\n"
        broken = rng.choice(
            (
                mutated(rng, good),
                b"zz\r\n" + data,
                b"-5\r\n" + data,
                b"f" * 40 + b"\r\n" + data,
                b"ffffffffffffffff\r\n" + data,
                b"5\r\nabc\r\n0\r\n\r\n",
                b"1;" + b"x" * 20_000 + b"\r\na\r\n0\r\n\r\n",
                b"1\r\na\r\n" * 3_000 + b"0\r\n\r\n",
                b"0\r\nTrailer: x\r\nContent-Length: 9\r\n\r\n",
                b"5 \r\nabcde\r\n0\r\n\r\n",
                b"0x5\r\nabcde\r\n0\r\n\r\n",
                good[:-5],
            )
        )
        yield Attack("chunked body", head + broken, REFUSED | {200, CLOSED}, cut=True)


def methods(rng: random.Random, pictures: Sequence[tuple[str, bytes]]) -> Iterator[Attack]:
    words = (
        "PUT",
        "DELETE",
        "PATCH",
        "TRACE",
        "CONNECT",
        "OPTIONS",
        "PROPFIND",
        "BREW",
        "get",
        "P" * 300,
        "GET\tX",
        "\x16\x03\x01",
    )
    lines = (
        b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n", b"GET /healthz\r\n\r\n", b"\r\n\r\n\r\n\r\n",
        b"GET  /healthz  HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"\0" * 500, b"SSH-2.0-x\r\n",
        b"GET /healthz HTTP/1.0\r\n\r\n", b"A" * 100_000,
    )  # fmt: skip
    while True:
        if rng.random() < 0.6:
            path = rng.choice((PREDICT, "/", "/healthz", "/metrics", TENSOR, "/nothing"))
            wire = request(path, rng.choice((b"", rng.choice(pictures)[1])), method=rng.choice(words))
        else:
            wire = rng.choice(lines)
        yield Attack("method or version", wire, REFUSED | UNSUPPORTED | {200, 204, CLOSED}, cut=True)


def truncated(rng: random.Random, pictures: Sequence[tuple[str, bytes]]) -> Iterator[Attack]:
    """Uploads that stop: a Content-Length that is never reached, a connection cut in the head or in the body."""
    while True:
        kind, data = rng.choice(pictures)
        length = len(data) + rng.choice((1, 1000, 10_000_000, 19_000_000))
        wire = request(body=data, content_type=kind, length=rng.choice((len(data), length)))
        yield Attack("truncated upload", wire[: rng.randrange(1, len(wire))], REFUSED | {CLOSED}, cut=True)


def oversized(rng: random.Random, _: object) -> Iterator[Attack]:
    """Bodies announced as larger than accepted. Nobody sends them: the head is enough to refuse them."""
    while True:
        length = rng.choice((20_000_001, 2**31, 2**63, 2**64, 10**30))
        wire = request(
            rng.choice((PREDICT, TENSOR)),
            b"x" * 100,
            content_type=rng.choice(("image/jpeg", "multipart/form-data; boundary=x")),
            length=length,
        )
        yield Attack("oversized", wire, REFUSED | {CLOSED}, cut=True)


def pipelined(rng: random.Random, pictures: Sequence[tuple[str, bytes]]) -> Iterator[Attack]:
    """Requests sent without waiting for answers, good and bad mixed; each gets its own answer, in order."""
    while True:
        wires = []
        for _ in range(8):
            kind, data = rng.choice(pictures)
            body = data if rng.random() < 0.5 else mutated(rng, data)
            wires.append(
                rng.choice(
                    (request(body=body, content_type=kind), request("/healthz", method="GET", content_type=None))
                )
            )
        yield Attack("pipelined", b"".join(wires), REFUSED | {200}, replies=len(wires))


Maker = Callable[[random.Random, Sequence[tuple[str, bytes]]], Iterator[Attack]]
SHARES: dict[Maker, int] = {
    fuzzed_pictures: 4000,
    noise: 400,
    giants: 400,
    wrong_types: 500,
    forms: 900,
    wrong_json: 1400,
    lying_binaries: 600,
    paths: 600,
    headers: 200,
    chunked: 200,
    methods: 300,
    truncated: 300,
    oversized: 100,
    pipelined: 60,  # of eight requests each
}
"""How many of each kind; their requests add up to 10,380."""


def campaign(seed: int, pictures: Sequence[tuple[str, bytes]], scale: float = 1.0) -> list[Attack]:
    """All kinds in a random order that depends on ``seed`` alone."""
    found = [
        attack
        for maker, share in SHARES.items()
        for attack in islice(maker(random.Random(f"{seed} {maker.__name__}"), pictures), max(1, round(share * scale)))
    ]
    random.Random(seed).shuffle(found)
    return found


# --- the client -------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What came back: counts by kind and status, and for each wrong answer what was sent and what was said."""

    statuses: collections.Counter[tuple[str, int]] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return sum(self.statuses.values())

    def table(self) -> str:
        kinds = sorted({kind for kind, _ in self.statuses})
        rows = []
        for kind in kinds:
            counts = {status: count for (of, status), count in self.statuses.items() if of == kind}
            told = ", ".join(f"{status or 'closed'}: {count}" for status, count in sorted(counts.items()))
            rows.append(f"{kind:20} {sum(counts.values()):6}   {told}")
        return "\n".join([*rows, f"{'all':20} {self.requests:6}   wrong: {len(self.wrong)}"])


class Connection:
    """A connection that is opened when needed and used as long as the server keeps it."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._socket: socket.socket | None = None
        self._buffer = b""
        self._head_only = False

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def close(self) -> None:
        if self._socket:
            self._socket.close()
        self._socket, self._buffer = None, b""

    def send(self, wire: bytes, *, fresh: bool) -> None:
        self._head_only = wire.startswith(b"HEAD ")
        if fresh or self._socket is None:
            self.close()
            self._socket = socket.create_connection(self._address, timeout=TIMEOUT_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(wire)

    def finish_sending(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def reply(self) -> tuple[int, bytes, bytes]:
        """Status, head and body of the next answer; status :data:`CLOSED` if the server closed instead."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._more():
                self.close()
                return CLOSED, b"", b""
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").lower().split("\r\n")
        status = int(lines[0].split()[1])
        if status == 100:
            return self.reply()
        fields = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        if self._head_only:
            body = b""
        elif "chunked" in fields.get("transfer-encoding", ""):
            body = self._chunks()
        elif "content-length" in fields and status not in (204, 304):
            body = self._exactly(int(fields["content-length"]))
        else:
            body = b""
        if fields.get("connection") == "close":
            self.close()
        return status, head, body

    def _more(self) -> bool:
        try:
            data = self._socket.recv(1 << 16) if self._socket else b""
        except ConnectionError:
            return False
        self._buffer += data
        return bool(data)

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size and self._more():
            pass
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        return body

    def _chunks(self) -> bytes:
        parts = []
        while True:
            while b"\r\n" not in self._buffer and self._more():
                pass
            size, _, self._buffer = self._buffer.partition(b"\r\n")
            parts.append(self._exactly(int(size or b"0", 16) + 2)[:-2])
            if not parts[-1]:
                return b"".join(parts)


def fire(
    url: str, attacks: Sequence[Attack], *, clients: int = 8, problem_type: str = "application/problem+json"
) -> Outcome:
    """Send all attacks, over ``clients`` connections at once, and judge what comes back."""
    parts = urlsplit(url)
    outcome, queue, lock = Outcome(), collections.deque(attacks), threading.Lock()

    def work() -> None:
        connection = Connection(parts.hostname or "", parts.port or 80)
        while True:
            try:
                attack = queue.popleft()
            except IndexError:
                break
            statuses, wrong = _judged(connection, attack, problem_type)
            with lock:
                outcome.statuses.update((attack.kind, status) for status in statuses)
                outcome.wrong += wrong
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcome


def _judged(connection: Connection, attack: Attack, problem_type: str) -> tuple[list[int], list[str]]:
    statuses, wrong = [], []
    try:
        replies = _exchange(connection, attack)
    except OSError as error:
        connection.close()
        return [CLOSED], [f"{attack.kind}: {error!r} after {attack.wire[:200]!r}"]
    for status, head, body in replies:
        statuses.append(status)
        objection = _objection(attack, status, head, body, problem_type)
        if objection:
            wrong.append(f"{attack.kind}: {objection}; sent {attack.wire[:300]!r}; got {head[:300]!r} {body[:200]!r}")
    return statuses, wrong


def _exchange(connection: Connection, attack: Attack) -> list[tuple[int, bytes, bytes]]:
    """Send and receive. A kept connection that turns out to have been closed meanwhile is replaced once."""
    if attack.cut:
        return [_cut_off(connection, attack)]
    kept = connection.is_open
    try:
        connection.send(attack.wire, fresh=False)
    except ConnectionError:
        if not kept:
            raise
        connection.send(attack.wire, fresh=True)
    replies = [connection.reply()]
    if replies[0][0] == CLOSED and kept:
        connection.send(attack.wire, fresh=True)
        replies = [connection.reply()]
    while len(replies) < attack.replies and connection.is_open:
        replies.append(connection.reply())
    return replies


def _cut_off(connection: Connection, attack: Attack) -> tuple[int, bytes, bytes]:
    """Send all there is and say that nothing follows; the answer may be none, and the connection is done for."""
    try:
        connection.send(attack.wire, fresh=True)
        connection.finish_sending()
    except OSError:  # it was refused before its end
        if not connection.is_open:
            raise
    try:
        return connection.reply()
    finally:
        connection.close()


def _objection(attack: Attack, status: int, head: bytes, body: bytes, problem_type: str) -> str | None:
    if status not in attack.right | BUSY:
        return f"answered {status}"
    if b"Traceback" in body:
        return "told its traceback"
    if status >= 400 and body and b"json" in head:
        try:
            document = json.loads(body)
        except ValueError:
            return "said something that is not JSON"
        if problem_type.encode() in head and document.get("status") != status:
            return "sent a problem document with another status"
    return None


class SlowClients:
    """Connections that send a byte now and then and never come to an end, until the block is left."""

    def __init__(self, url: str, wire: bytes, count: int, *, pause_s: float = 0.5) -> None:
        parts = urlsplit(url)
        self._address, self._wire, self._count, self._pause_s = (parts.hostname, parts.port), wire, count, pause_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._drip, daemon=True)
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> SlowClients:
        for _ in range(self._count):
            one = socket.create_connection(self._address, timeout=TIMEOUT_S)
            one.sendall(self._wire)
            one.setblocking(False)
            self._sockets.append(one)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for one in self._sockets:
            one.close()

    def open(self) -> int:
        """How many of them the server still lets wait."""
        return sum(not _ended(one) for one in self._sockets)

    def _drip(self) -> None:
        while not self._stop.wait(self._pause_s):
            for one in self._sockets:
                try:
                    one.send(b"a")
                except OSError:
                    continue


def _ended(one: socket.socket) -> bool:
    try:
        while one.recv(1 << 16):  # an answer before the end
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


SLOW_HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
SLOW_BODY = request(body=b"\xff\xd8", length=1_000_000)


class ValidClients:
    """Well-behaved clients in between: each asks for the label of a picture over and over, until the block is left.

    ``answered`` counts right answers, ``wrong`` holds whatever else came, 503 and 504 included.
    """

    def __init__(
        self, url: str, pictures: Sequence[tuple[bytes, str]], *, clients: int = 2, pause_s: float = 0.02
    ) -> None:
        parts = urlsplit(url)
        self._address, self._pictures, self._pause_s = (parts.hostname or "", parts.port or 80), pictures, pause_s
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]
        self.answered = 0
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def __enter__(self) -> ValidClients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        connection = Connection(*self._address)
        turn = number
        while not self._stop.wait(self._pause_s):
            picture, label = self._pictures[turn % len(self._pictures)]
            turn += 1
            problem = answer_problem(connection, picture, label)
            with self._lock:
                self.answered += problem is None
                self.wrong += [problem] if problem else []
        connection.close()


def answer_problem(connection: Connection, picture: bytes, label: str) -> str | None:
    """Ask for the label of a picture; None if the answer is right, else what is wrong with it."""
    attack = Attack("valid", request(body=picture, content_type="application/octet-stream"), frozenset({200}))
    try:
        ((status, _, body),) = _exchange(connection, attack)
        got = json.loads(body)["predictions"][0]["top"][0]["label"] if status == 200 else body[:200]
    except (OSError, ValueError, LookupError) as error:
        connection.close()
        return repr(error)
    return None if got == label else f"{status}: {got!r} instead of {label!r}"


def main() -> None:
    from deploylab.signs import dataset

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if urlsplit(given.url).hostname not in ("127.0.0.1", "localhost", "::1"):
        sys.exit("error: only servers on this machine are fired at")
    images, _ = dataset.test_split()
    attacks = campaign(
        given.seed, [file for image in images[::200] for file in encoded(image)], given.requests / 10_380
    )
    began = time.perf_counter()
    outcome = fire(given.url, attacks)
    print(f"{outcome.table()}\n{time.perf_counter() - began:.1f} s")
    print("\n".join(outcome.wrong[:20]))
    sys.exit(bool(outcome.wrong))


if __name__ == "__main__":
    main()
