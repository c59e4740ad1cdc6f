"""What a client is told when a request cannot be answered: problem documents (RFC 9457)."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from flask import Response
from werkzeug.exceptions import HTTPException

from deploylab import image
from deploylab.errors import DeployLabError, InputError, without_frames
from deploylab.serving.batcher import DeadlineExceeded, Draining, QueueFull

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "/problems/"

RETRY_AFTER_S = 1
"""What a refused client is told to wait. A full queue usually empties sooner."""
INSTANCE = "deploylab.problem"
"""Where a request's WSGI environment names the problem it met, for the access log."""
FOUND = "deploylab.found"
"""Where an HTTP server gives the error that is all there is to say about the request."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """A type of problem: what is the same whenever it occurs."""

    status: int
    title: str


KINDS: Mapping[str, Kind] = {
    "bad-request": Kind(400, "The request cannot be understood"),
    "bad-parameter": Kind(400, "A parameter of the request is wrong"),
    "no-picture": Kind(400, "The request holds no picture"),
    "picture-damaged": Kind(400, "The picture is damaged"),
    "pictures": Kind(400, "None of the pictures can be read"),
    "not-found": Kind(404, "There is nothing at this address"),
    "method": Kind(405, "The address does not answer to this method"),
    "picture-too-large": Kind(413, "The picture is too large"),
    "body-too-large": Kind(413, "The request is too large"),
    "too-many-pictures": Kind(413, "The request holds too many pictures"),
    "media-type": Kind(415, "The request's content type is not supported"),
    "picture-format": Kind(415, "The picture's format is not supported"),
    "head-too-large": Kind(431, "The request's address and fields are too large"),
    "internal": Kind(500, "The server made a mistake"),
    "overloaded": Kind(503, "The server is busy"),
    "loading": Kind(503, "The model is being loaded"),
    "draining": Kind(503, "The server is shutting down"),
    "timeout": Kind(504, "The answer took too long"),
}
"""Every problem this service reports on its own, by the last part of its ``type``."""

_KIND_OF_STATUS = {400: "bad-request", 404: "not-found", 405: "method", 413: "body-too-large", 415: "media-type"}


class Problem(DeployLabError):
    """A reason not to answer. Raise it anywhere in a request; it becomes the response."""

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        **extensions: Any,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.status = KINDS[kind].status
        self.title = KINDS[kind].title
        self.detail = detail
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(max(1, round(retry_after_s)))
        self.extensions = extensions

    def document(self, instance: str | None = None) -> dict[str, Any]:
        """The members of RFC 9457: type, title, status, detail, ``instance`` where one is given, and extensions."""
        members: dict[str, Any] = {
            "type": TYPE_PREFIX + self.kind,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if instance:
            members["instance"] = instance
        return members | self.extensions


def of(error: Exception) -> Problem:
    """The problem an exception amounts to. What is nobody's fault but ours is logged and told without its details."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        return _of_http(error)
    for kind_of_error, kind in _KIND_OF_ERROR:
        if isinstance(error, kind_of_error):
            retry = RETRY_AFTER_S if KINDS[kind].status == 503 else None
            return Problem(kind, _sentence(error), retry_after_s=retry)
    return Problem("internal", "The server could not answer because of a mistake of its own, which it has logged.")


_KIND_OF_ERROR: tuple[tuple[type[Exception], str], ...] = (
    (image.TooLargeError, "picture-too-large"),
    (image.FormatError, "picture-format"),
    (InputError, "picture-damaged"),
    (QueueFull, "overloaded"),
    (Draining, "draining"),
    (DeadlineExceeded, "timeout"),
)


def response(error: Exception, environ: dict[str, Any]) -> Response:
    """The problem document of an exception, as the response to a request."""
    problem = of(error)
    instance = environ[INSTANCE] = log_if_ours(problem, error)
    reply = Response(json.dumps(problem.document(instance)) + "\n", problem.status, problem.headers)
    reply.content_type = MEDIA_TYPE
    reply.headers["Cache-Control"] = "no-store"
    without_frames(error)
    return reply


def log_if_ours(problem: Problem, error: Exception) -> str:
    """Write the traceback of an unexpected error to the log. Names this occurrence with a URN."""
    instance = uuid.uuid4().urn
    if problem.kind == "internal":
        _log.error("%s: %s", instance, error, exc_info=error)
    return instance


def _of_http(error: HTTPException) -> Problem:
    status = error.code or 500
    kind = _KIND_OF_STATUS.get(status, "bad-request" if status < 500 else "internal")
    kept = {name: value for name, value in error.get_headers() if name not in ("Content-Type", "Content-Length")}
    problem = Problem(kind, error.description or HTTPStatus(status).phrase, headers=kept)
    problem.status = status
    return problem


def _sentence(error: Exception) -> str:
    text = str(error)
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
