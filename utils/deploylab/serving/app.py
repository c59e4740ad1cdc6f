"""The web application: a picture in, the most likely classes out, and what operators need around that."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask, Response, request, send_from_directory
from flask.sessions import NullSession, SessionInterface
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from deploylab.errors import DeployLabError
from deploylab.serving import problems, uploads
from deploylab.serving.limits import Gate, Limits
from deploylab.serving.predictor import Answer, Predictor
from deploylab.serving.problems import RETRY_AFTER_S, Problem

PAGE = Path(__file__).parent / "page"
EXTENSION = "deploylab"
JSON = "application/json"


class Service:
    """What the routes share: the model once it is loaded, the limits, the gate, and the two switches of its life.

    ``load`` may be a callable; it then runs in a thread, and until it is done the service is alive but not ready.
    """

    def __init__(self, predictor: Predictor | Callable[[], Predictor], limits: Limits) -> None:
        self.limits = limits
        self.gate = Gate(limits.max_queue)
        self.predictor: Predictor | None = None
        self.failure: str | None = None
        self.started = time.time()
        if isinstance(predictor, Predictor):
            self._use(predictor)
        else:
            threading.Thread(target=self._load, args=(predictor,), name="load", daemon=True).start()

    def ready(self) -> Predictor:
        """The predictor. Raises :class:`Problem` 503 while it is loading, if that failed, and while draining."""
        if not self.gate.open:
            raise Problem("draining", "The server is shutting down.", retry_after_s=RETRY_AFTER_S)
        if self.predictor is None:
            detail = self.failure or "The model is being loaded."
            raise Problem("loading", detail, retry_after_s=RETRY_AFTER_S)
        return self.predictor

    def drain(self, timeout_s: float = 10.0) -> bool:
        """Stop being ready, refuse new requests, wait for those under way. False if ``timeout_s`` was too short."""
        self.gate.close()
        return self.gate.wait_until_empty(timeout_s)

    def _use(self, predictor: Predictor) -> None:
        engine = {"name": predictor.name, "facts": predictor.facts}
        self.head = f'{{"model": {json.dumps(engine["name"])}, "engine": {json.dumps(engine["facts"])}, "predictions": '
        self.predictor = predictor

    def _load(self, load: Callable[[], Predictor]) -> None:
        try:
            self._use(load())
        except DeployLabError as error:
            self.failure = f"The model could not be loaded: {error}"


def create_app(
    predictor: Predictor | Callable[[], Predictor],
    *,
    limits: Limits | None = None,
    site: Path | None = None,
    access_log: bool = False,
) -> Flask:
    """The application over a predictor, or over a callable that loads one in the background.

    ``site`` is a folder of static files to serve at ``/`` instead of the small page that comes with the package.
    """
    app = Flask(__name__, static_folder=None)
    app.request_class = uploads.BoundedRequest
    app.session_interface = _NoSession()
    service = Service(predictor, limits or Limits())
    app.extensions[EXTENSION] = service
    app.register_error_handler(Exception, problems.response)

    @app.post("/v1/predict")
    def predict() -> Response:
        return _predict(service)

    @app.get("/healthz")
    def healthz() -> Response:
        return _json({"status": "alive"})

    @app.get("/readyz")
    def readyz() -> Response:
        service.ready()
        return _json({"status": "ready"})

    folder = (site or PAGE).resolve()

    @app.get("/", defaults={"name": "index.html"})
    @app.get("/<path:name>")
    def page(name: str) -> Response:
        try:
            return _isolated(send_from_directory(folder, name))
        except NotFound:
            raise _missing(app, request.path) from None

    return app


def _predict(service: Service) -> Response:
    started = time.perf_counter()
    predictor = service.ready()
    top_k = _top_k(len(predictor.labels)) if request.environ.get("QUERY_STRING") else None
    with service.gate.admit():
        pictures = uploads.read(request, service.limits)
        read = time.perf_counter() - started
        answer = predictor.predict(
            [picture.data for picture in pictures], top_k=top_k, timeout_s=service.limits.timeout_s - read
        )
    answer.seconds = {"read": read, **answer.seconds}
    return _reply(service, pictures, answer, started)


def _reply(service: Service, pictures: list[uploads.Upload], answer: Answer, started: float) -> Response:
    predictions = [_prediction(picture.name, result) for picture, result in zip(pictures, answer.results, strict=True)]
    if not answer.batch:
        raise _all_bad(predictions, answer)
    answer.seconds["total"] = time.perf_counter() - started
    timings = {stage: round(seconds * 1000, 3) for stage, seconds in answer.seconds.items()}
    body = f'{service.head}{json.dumps(predictions)}, "timings_ms": {json.dumps(timings)}}}\n'
    reply = Response(body, content_type=JSON)
    reply.headers["Server-Timing"] = ", ".join([f"{stage};dur={ms}" for stage, ms in timings.items()])
    return reply


def _prediction(name: str, result: Any) -> dict[str, Any]:
    if isinstance(result, DeployLabError):
        return {"name": name, "problem": problems.of(result).document()}
    return {"name": name, "top": [{"label": label, "probability": share} for label, share in result]}


def _all_bad(predictions: list[dict[str, Any]], answer: Answer) -> Exception:
    if len(predictions) == 1:
        return answer.results[0]
    return Problem("pictures", f"None of the {len(predictions)} pictures can be read.", predictions=predictions)


def _top_k(classes: int) -> int:
    """The query parameter ``top_k``, 1 to the number of classes, which is also what a larger one means."""
    unknown = [name for name in request.args if name != "top_k"]
    if unknown:
        raise Problem("bad-parameter", f"There is no parameter {unknown[0][:40]!r}; there is: top_k.")
    text = request.args.get("top_k", "")
    if not (text.isascii() and text.isdigit() and len(text) < 9 and int(text) > 0):
        raise Problem("bad-parameter", f"top_k must be a whole number from 1, got {text[:40]!r}.")
    return min(int(text), classes)


def _missing(app: Flask, path: str) -> HTTPException:
    """Nothing at this path; or something that only answers to another method, which the page's route hides."""
    methods = set(app.url_map.bind("").allowed_methods(path)) - {"GET", "HEAD"}
    if methods == {"OPTIONS"}:
        return NotFound("The server has nothing at this address.")
    return MethodNotAllowed(sorted(methods), "This address answers to " + ", ".join(sorted(methods)) + ".")


def _json(value: Any) -> Response:
    return Response(json.dumps(value) + "\n", content_type=JSON)


def _isolated(reply: Response) -> Response:
    """Let the page use threads in WebAssembly: that needs cross-origin isolation (HTML standard, COOP and COEP)."""
    reply.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    reply.headers["Cross-Origin-Embedder-Policy"] = "require-corp"
    return reply


class _NoSession(SessionInterface):
    """No cookies: Flask would look for one in every request."""

    def open_session(self, app: Flask, request: Any) -> NullSession:
        return NullSession()

    def save_session(self, app: Flask, session: Any, response: Any) -> None:
        return None
