"""The web application: a picture in, the most likely classes out, and what operators need around that."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flask import Flask, Response, request, send_from_directory
from flask.sessions import NullSession, SessionInterface
from werkzeug.exceptions import NotFound
from werkzeug.routing import PathConverter

from deploylab.errors import InputError
from deploylab.serving import open_inference, problems, uploads
from deploylab.serving.access_log import STANDARD_ERROR, AccessLog
from deploylab.serving.limits import Limits
from deploylab.serving.metrics import CONTENT_TYPE, Metrics
from deploylab.serving.predictor import Predictor, Steps
from deploylab.serving.problems import RETRY_AFTER_S, Problem
from deploylab.serving.service import ARRIVED, Reply, Service
from deploylab.serving.uploads import Upload

PREDICT = "/v1/predict"
PAGE = Path(__file__).parent / "page"
JSON = "application/json"
TIMING = "Server-Timing"


class Application(Flask):
    """Flask, with a look at the clock around each request, and a short cut for the most frequent one."""

    request_class = uploads.BoundedRequest
    service: Service
    metrics: Metrics
    access_log: AccessLog | None
    closing: list[tuple[str, str]]
    """Headers that announce the end of a connection, for servers that leave it to the application to say so."""

    def wsgi_app(self, environ: dict[str, Any], start_response: Any) -> Any:
        started = environ.get(ARRIVED) or time.perf_counter()
        sent: list[Any] = [500, []]

        def note(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            sent[:] = int(status[:3]), headers
            if not environ.get(uploads.BEGUN) and not uploads.finish(environ):
                headers = [*headers, *self.closing]
            return start_response(status, headers, *exc_info)

        try:
            if is_plain(environ):
                return self._predict(environ, note, started)
            return super().wsgi_app(environ, note)
        finally:
            seconds = time.perf_counter() - started
            self.metrics.request(_route(environ["PATH_INFO"]), sent[0], seconds)
            if self.access_log:
                self.access_log.write(**_logged(environ, *sent, seconds))

    def _predict(self, environ: dict[str, Any], start_response: Any, started: float) -> Any:
        """What the route of the same name does, without Flask's objects: they cost as much as decoding a small JPEG."""
        try:
            limit = self.service.limits.max_bytes
            reply = self.service.predict(lambda: [Upload("body", uploads.body(environ, limit))], started)
        except Exception as error:
            return problems.response(error, environ)(environ, start_response)
        length = str(len(reply.body))
        start_response("200 OK", [("Content-Type", JSON), ("Content-Length", length), (TIMING, reply.timing)])
        return [reply.body]

    def recognise(self, picture: bytes, started: float) -> Steps[Reply]:
        """The answer to a plain request, for a server that writes HTTP itself. Raises what the service raises."""
        reply = yield from self.service.steps(lambda: [Upload("body", picture)], started)
        self.metrics.request(PREDICT, 200, time.perf_counter() - started)
        return reply


def is_plain(environ: dict[str, Any]) -> bool:
    """Whether a request only sends a picture to be recognised, with nothing else to look at."""
    return (
        environ["PATH_INFO"] == PREDICT
        and environ["REQUEST_METHOD"] == "POST"
        and problems.FOUND not in environ
        and environ.get("CONTENT_TYPE") in uploads.RAW_TYPES
        and not environ.get("QUERY_STRING")
        and "HTTP_CONTENT_ENCODING" not in environ
    )


def create_app(
    predictor: Predictor | Callable[[], Predictor],
    *,
    limits: Limits | None = None,
    site: Path | None = None,
    access_log: Path | str | bool = False,
) -> Application:
    """The application over a predictor, or over a callable that loads one in the background.

    ``site`` is a folder of static files to serve at ``/`` instead of the small page that comes with the package.
    ``access_log`` is a file to append to, or True for standard error. Raises :class:`InputError` if the file cannot be
    written or the folder has no ``index.html``.
    """
    app = Application(__name__, static_folder=None)
    app.session_interface = _NoSession()
    app.url_map.redirect_defaults = app.url_map.merge_slashes = False  # one address for one thing, no redirects
    app.closing = []
    app.metrics = Metrics()
    app.access_log = AccessLog(STANDARD_ERROR if access_log is True else access_log) if access_log else None
    service = app.service = Service(predictor, limits or Limits(), app.metrics)
    app.register_error_handler(Exception, _error_response)
    app.register_blueprint(open_inference.blueprint(service.ready, service.gate, service.limits))
    _add_site(app, site or PAGE, _SITE_HEADERS if site else _PAGE_HEADERS)

    @app.before_request
    def refuse() -> None:
        if found := request.environ.get(problems.FOUND):
            raise found

    @app.post(PREDICT)
    def predict() -> Response:
        started = request.environ.get(ARRIVED) or time.perf_counter()
        top_k = _top_k(len(service.ready().labels)) if request.query_string else None
        reply = service.predict(lambda: uploads.read(request, service.limits), started, top_k)
        return Response(reply.body, content_type=JSON, headers={TIMING: reply.timing})

    @app.get("/healthz")
    def healthz() -> Response:
        return _json({"status": "alive"})

    @app.get("/readyz")
    def readyz() -> Response:
        service.ready()
        if service.leaving:
            raise Problem("draining", "The server is shutting down.", retry_after_s=RETRY_AFTER_S)
        return _json({"status": "ready"})

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(app.metrics.page(), content_type=CONTENT_TYPE)

    @app.get("/problems/<kind>")
    def problem(kind: str) -> Response:
        """What the ``type`` of a problem document points to."""
        if kind not in problems.KINDS:
            raise NotFound("There is no problem of this type.")
        return _json({"type": request.path, **dataclasses.asdict(problems.KINDS[kind])})

    return app


def _add_site(app: Flask, site: Path, headers: Mapping[str, str]) -> None:
    folder = site.resolve()
    if not (folder / "index.html").is_file():
        raise InputError(f"the site {site} has no index.html; build it first, or leave the site out")

    app.url_map.converters["site"] = _SitePath

    @app.get("/", defaults={"name": "index.html"})
    @app.get("/<site:name>")
    def page(name: str) -> Response:
        reply = send_from_directory(folder, name)
        reply.headers.update(headers)
        if name.endswith((".js", ".mjs")):
            reply.mimetype = "text/javascript"  # RFC 9239; systems differ, and browsers insist
        return reply


class _SitePath(PathConverter):
    """Any path but those of the service itself."""

    regex = r"(?!(?:v1|v2|healthz|readyz|metrics|problems)(?:/|$))[^/].*?"


_SITE_HEADERS = {
    # Threads in WebAssembly need cross-origin isolation (HTML standard).
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "X-Content-Type-Options": "nosniff",
}
_PAGE_HEADERS = _SITE_HEADERS | {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}


def _error_response(error: Exception) -> Response:
    in_protocol = request.path.startswith(open_inference.PREFIX + "/")
    return open_inference.error_response(error) if in_protocol else problems.response(error, request.environ)


def _top_k(classes: int) -> int:
    """The query parameter ``top_k``, 1 to the number of classes, which is also what a larger one means."""
    unknown = [name for name in request.args if name != "top_k"]
    if unknown:
        raise Problem("bad-parameter", f"There is no parameter {unknown[0][:40]!r}; there is: top_k.")
    text = request.args.get("top_k", "")
    if not (text.isascii() and text.isdigit() and len(text) < 9 and int(text) > 0):
        raise Problem("bad-parameter", f"top_k must be a whole number from 1, got {text[:40]!r}.")
    return min(int(text), classes)


def _json(value: Any) -> Response:
    return Response(json.dumps(value) + "\n", content_type=JSON)


def _route(path: str) -> str:
    """The path as a label of few values: clients may ask for whatever they like."""
    if path in _ROUTES:
        return path
    return open_inference.PREFIX if path.startswith(open_inference.PREFIX + "/") else "other"


_ROUTES = frozenset({"/", PREDICT, "/healthz", "/readyz", "/metrics"})


def _logged(environ: dict[str, Any], status: int, headers: list[tuple[str, str]], seconds: float) -> dict[str, Any]:
    return {
        "client": environ.get("REMOTE_ADDR"),
        "method": environ["REQUEST_METHOD"],
        # WSGI hands the path over as latin-1 (PEP 3333)
        "path": environ["PATH_INFO"].encode("latin-1", "replace").decode("utf-8", "replace"),
        "query": environ.get("QUERY_STRING") or None,
        "status": status,
        "ms": round(seconds * 1000, 3),
        "received": _number(environ.get("CONTENT_LENGTH")),
        "sent": _number(next((value for name, value in headers if name == "Content-Length"), None)),
        "agent": environ.get("HTTP_USER_AGENT"),
        "problem": environ.get(problems.INSTANCE),
    }


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 20 else None


class _NoSession(SessionInterface):
    """No cookies: Flask would look for one in every request."""

    def open_session(self, app: Flask, request: Any) -> NullSession:
        return NullSession()

    def save_session(self, app: Flask, session: Any, response: Any) -> None:
        return None
