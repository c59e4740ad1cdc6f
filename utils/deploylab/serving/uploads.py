"""The pictures of a request, bounded before they are read."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

from flask import Request
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from deploylab.serving.limits import Limits
from deploylab.serving.problems import Problem

RAW_TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
MULTIPART = "multipart/form-data"
BEGUN = "deploylab.body"
"""Where a request's WSGI environment says that its body was begun: True once it is read to its end."""

DISCARDED_BYTES = 1 << 20
_CHUNK = 1 << 16
_EXTRA_PARTS = 16
"""Form fields besides the pictures, which are ignored."""


class Upload(NamedTuple):
    """An encoded picture and the name its sender gave it."""

    name: str
    data: bytes


class BoundedRequest(Request):
    """Keeps parts of a form in memory, where :class:`Limits` bounds them, instead of in temporary files."""

    def _get_file_stream(self, *_: Any, **__: Any) -> io.BytesIO:  # type: ignore[override]
        return io.BytesIO()


def read(request: Request, limits: Limits) -> list[Upload]:
    """The pictures of a raw body or of a multipart form, at least one.

    Raises :class:`Problem` 400 if there is none or the body ends early, 413 above ``max_bytes`` or ``max_images``,
    415 for another content type or a compressed body.
    """
    kind = request.environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if "HTTP_CONTENT_ENCODING" in request.environ and request.headers["Content-Encoding"].lower() != "identity":
        detail = f"The body has the content encoding {request.headers['Content-Encoding']!r:.40}; send it as it is."
        raise Problem("media-type", detail, headers={"Accept-Encoding": "identity"})
    if kind in RAW_TYPES or not kind:
        return [Upload("body", body(request.environ, limits.max_bytes))]
    if kind == MULTIPART:
        return _of_form(request, limits)
    raise Problem("media-type", _unsupported(kind), headers={"Accept-Post": ", ".join((*RAW_TYPES, MULTIPART))})


def body(environ: dict[str, Any], max_bytes: int) -> bytes:
    """The whole body, which must not be empty. Never reads more than ``max_bytes`` + one chunk."""
    length = _declared(environ)
    if length is not None:
        if length > max_bytes:
            raise too_large(max_bytes, length)
        environ[BEGUN] = False
        data = _read_exactly(environ["wsgi.input"], length)
    elif environ.get("wsgi.input_terminated"):
        environ[BEGUN] = False
        data = _read_to_end(environ["wsgi.input"], max_bytes)
    else:
        data = b""
    environ[BEGUN] = True
    if not data:
        raise Problem("no-picture", "The body is empty. Send the bytes of a JPEG, PNG or WebP picture.")
    return data


def finish(environ: dict[str, Any]) -> bool:
    """Whether the body is read to its end, after reading up to ``DISCARDED_BYTES`` of one that was not begun.

    What is left of a body stands before the client's next request on the same connection. So a server has to close
    that connection, and the client should know.
    """
    if BEGUN in environ:
        return environ[BEGUN]
    try:
        length = _declared(environ)
        if length is None:
            return "HTTP_TRANSFER_ENCODING" not in environ
        if length > DISCARDED_BYTES:
            return False
        _read_exactly(environ["wsgi.input"], length)
    except (Problem, OSError):
        return False
    return True


def too_large(max_bytes: int, length: int | None = None) -> Problem:
    size = f"{length:,} bytes" if length else "more bytes than that"
    return Problem("body-too-large", f"At most {max_bytes:,} bytes are accepted; the body has {size}.")


def _declared(environ: dict[str, Any]) -> int | None:
    text = environ.get("CONTENT_LENGTH")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise Problem("bad-request", f"Content-Length is {text[:40]!r}, not a number of bytes.")
    return int(text)


def _read_exactly(stream: Any, length: int) -> bytes:
    data = stream.read(length)
    if len(data) == length:
        return data
    parts, missing = [data], length - len(data)
    while missing and (part := stream.read(min(missing, _CHUNK))):
        parts.append(part)
        missing -= len(part)
    if missing:
        raise Problem("bad-request", f"The body ended {missing:,} bytes before its Content-Length of {length:,}.")
    return b"".join(parts)


def _read_to_end(stream: Any, max_bytes: int) -> bytes:
    parts, size = [], 0
    while part := stream.read(_CHUNK):
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            raise too_large(max_bytes)
    return b"".join(parts)


def _of_form(request: Request, limits: Limits) -> list[Upload]:
    request.max_content_length = limits.max_bytes
    request.max_form_parts = limits.max_images + _EXTRA_PARTS
    request.environ[BEGUN] = False
    try:
        files = [(field, part) for field, part in request.files.items(multi=True)]
    except RequestEntityTooLarge as error:
        detail = (
            f"A form may have {limits.max_bytes:,} bytes, {limits.max_images} pictures and {_EXTRA_PARTS} other "
            "fields of moderate size; this one exceeds that."
        )
        raise Problem("body-too-large", detail) from error
    except ClientDisconnected as error:
        raise Problem("bad-request", "The form ended before its Content-Length.") from error
    except ValueError as error:  # a missing boundary, a malformed part
        raise Problem("bad-request", f"The multipart form cannot be read: {error}.") from error
    request.environ[BEGUN] = True
    if not files:
        raise Problem("no-picture", _no_file(list(request.form)))
    if len(files) > limits.max_images:
        detail = f"The form holds {len(files)} pictures; at most {limits.max_images} are accepted in a request."
        raise Problem("too-many-pictures", detail)
    return [Upload(part.filename or field, part.stream.getvalue()) for field, part in files]


def _no_file(fields: list[str]) -> str:
    if not fields:
        return "The form holds no file, or its boundary does not occur in the body. Send one as a file field."
    names = ", ".join(repr(field[:40]) for field in fields[:5])
    return f"The form's field {names} holds text, no file. With curl, write an @ before the file's name."


def _unsupported(kind: str) -> str:
    hint = ""
    if kind == "application/x-www-form-urlencoded":
        hint = " With curl, name the type (-H 'Content-Type: image/jpeg') or send a form (-F image=@FILE)."
    elif kind == "application/json":
        hint = " For tensors as JSON see /v2, the Open Inference Protocol."
    return f"The content type {kind[:80]!r} is not supported; send {', '.join(RAW_TYPES)} or {MULTIPART}.{hint}"
