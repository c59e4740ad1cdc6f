"""The Open Inference Protocol over REST, as spoken by KServe, Triton, MLServer and OpenVINO Model Server.

Implemented are the protocol's required part and two of its extensions: binary tensor data and classification. Rules:
https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol and Triton's
``docs/protocol/extension_binary_data.md`` and ``extension_classification.md``.

Two models are offered. ``NAME`` takes the preprocessed tensor, FP32 (n, 3, H, W), and returns the engine's own output.
``NAME-images`` takes n encoded pictures as BYTES and returns probabilities and labels. In JSON a picture is base64.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flask import Blueprint, Response, request

from deploylab import __version__
from deploylab.errors import without_frames
from deploylab.serving import problems, uploads
from deploylab.serving.limits import Gate, Limits
from deploylab.serving.predictor import Predictor
from deploylab.serving.problems import Problem

PREFIX = "/v2"
EXTENSIONS = ("binary_tensor_data", "classification")
HEADER_LENGTH = "Inference-Header-Content-Length"
IMAGES = "-images"
VERSION = "1"

_MAX_TEXT = 200


@dataclass(frozen=True)
class Tensor:
    """What a model takes or gives: ``datatype`` in the protocol's words, -1 in ``shape`` for an axis of any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def document(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True)
class Model:
    """One of the two ways to use a predictor: its signature and the function behind it."""

    name: str
    platform: str
    takes: Tensor
    gives: tuple[Tensor, ...]
    run: Callable[[Any, float], dict[str, np.ndarray]]
    labels: Sequence[str]

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": self.platform,
            "inputs": [self.takes.document()],
            "outputs": [tensor.document() for tensor in self.gives],
        }


def blueprint(ready: Callable[[], Predictor], gate: Gate, limits: Limits) -> Blueprint:
    """The routes under ``/v2``. ``ready`` returns the predictor or raises a :class:`Problem`."""
    routes = Blueprint("open_inference", __name__, url_prefix=PREFIX)

    def model(name: str, version: str) -> Model:
        models = models_of(ready())
        if name not in models:
            raise Problem("not-found", f"there is no model {name[:_MAX_TEXT]!r}; there are: {', '.join(models)}")
        if version != VERSION:
            raise Problem("not-found", f"model {name} has no version {version[:_MAX_TEXT]!r}; there is: {VERSION}")
        return models[name]

    @routes.get("", strict_slashes=False)
    def server() -> Response:
        return _json({"name": "deploylab", "version": __version__, "extensions": list(EXTENSIONS)})

    @routes.get("/health/live")
    def live() -> Response:
        return _json({"live": True})

    @routes.get("/health/ready")
    def health_ready() -> Response:
        ready()
        return _json({"ready": True})

    def both(rule: str, **options: Any) -> Callable[[Callable[..., Response]], Callable[..., Response]]:
        """A route with and without the version."""

        def add(view: Callable[..., Response]) -> Callable[..., Response]:
            routes.add_url_rule(f"/models/<name>{rule}", view.__name__, view, defaults={"version": VERSION}, **options)
            routes.add_url_rule(f"/models/<name>/versions/<version>{rule}", view.__name__, view, **options)
            return view

        return add

    @both("")
    def metadata(name: str, version: str) -> Response:
        return _json(model(name, version).document())

    @both("/ready")
    def model_ready(name: str, version: str) -> Response:
        return _json({"name": model(name, version).name, "ready": True})

    @both("/infer", methods=["POST"])
    def infer(name: str, version: str) -> Response:
        started = time.perf_counter()
        asked = model(name, version)
        with gate:
            head, tail = _split(uploads.body(request.environ, limits.max_bytes), request.headers.get(HEADER_LENGTH))
            wanted = _wanted(head, asked)
            given = _input(head, tail, asked.takes, limits.max_images)
            left = limits.timeout_s - (time.perf_counter() - started)
            return _answer(head, asked, wanted, asked.run(given, left))

    return routes


def models_of(predictor: Predictor) -> dict[str, Model]:
    """The two models of a predictor by name."""
    platform, classes = f"deploylab_{predictor.facts.get('engine', 'python')}", len(predictor.labels)

    def tensor(x: np.ndarray, timeout_s: float) -> dict[str, np.ndarray]:
        return {predictor.output_name: predictor.logits(x, timeout_s=timeout_s)}

    def images(pictures: list[bytes], timeout_s: float) -> dict[str, np.ndarray]:
        rows = predictor.probabilities(pictures, timeout_s=timeout_s)
        names = np.array([predictor.labels[index] for index in rows.argmax(1)], object)
        return {"probabilities": rows.astype(np.float32), "label": names}

    offered = (
        Model(
            predictor.name,
            platform,
            Tensor(predictor.input_name, "FP32", (-1, *predictor.input_shape)),
            (Tensor(predictor.output_name, "FP32", (-1, classes)),),
            tensor,
            predictor.labels,
        ),
        Model(
            predictor.name + IMAGES,
            platform,
            Tensor("image", "BYTES", (-1,)),
            (Tensor("probabilities", "FP32", (-1, classes)), Tensor("label", "BYTES", (-1,))),
            images,
            predictor.labels,
        ),
    )
    return {model.name: model for model in offered}


def error_response(error: Exception) -> Response:
    """An error in the protocol's own form."""
    problem = problems.of(error)
    request.environ[problems.INSTANCE] = problems.log_if_ours(problem, error)
    reply = _json({"error": problem.detail})
    reply.status_code = problem.status
    reply.headers.extend(problem.headers)
    without_frames(error)
    return reply


def _split(body: bytes, header_length: str | None) -> tuple[dict[str, Any], memoryview]:
    """The JSON at the beginning of a body, and the binary tensors that follow it."""
    length = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 12):
            raise _wrong(f"{HEADER_LENGTH} is {header_length[:40]!r}, not a number of bytes")
        length = int(header_length)
        if length > len(body):
            raise _wrong(f"{HEADER_LENGTH} is {length}, but the body has only {len(body)} bytes")
    try:
        head = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise _wrong(f"the request is not JSON: {str(error)[:_MAX_TEXT]}") from error
    if not isinstance(head, dict):
        raise _wrong(f"the request must be a JSON object, got {_kind(head)}")
    return head, memoryview(body)[length:]


def _input(head: Mapping[str, Any], tail: memoryview, spec: Tensor, max_rows: int) -> Any:
    """The one input of a request: float32 (n, 3, H, W), or n encoded pictures."""
    inputs = _objects(head, "inputs")
    if len(inputs) != 1:
        raise _wrong(f"the model takes one input, {spec.name!r}; the request has {len(inputs)}")
    given = inputs[0]
    for key, expected in (("name", spec.name), ("datatype", spec.datatype)):
        if given.get(key) != expected:
            raise _wrong(f"the input's {key} must be {expected!r}, got {_shown(given.get(key))}")
    shape = _shape(given.get("shape"), spec)
    if shape[0] > max_rows:
        raise Problem("too-many-pictures", f"a request may have {max_rows} pictures at most, this one has {shape[0]}")
    size = _parameters(given).get("binary_data_size")
    if size is None:
        if len(tail):
            raise _wrong(f"{len(tail)} bytes follow the JSON, but the input has no parameter binary_data_size")
        return _from_json(given.get("data"), shape, spec)
    if size != len(tail) or isinstance(size, bool):
        raise _wrong(f"binary_data_size is {_shown(size)}, but {len(tail)} bytes follow the JSON")
    return _from_bytes(tail, shape, spec)


def _shape(given: Any, spec: Tensor) -> tuple[int, ...]:
    expected = "[" + ", ".join("n" if size == -1 else str(size) for size in spec.shape) + "]"
    fits = (
        isinstance(given, list)
        and len(given) == len(spec.shape)
        and all(type(size) is int for size in given)
        and given[0] > 0
        and given[1:] == list(spec.shape[1:])
    )
    if not fits:
        raise _wrong(f"the shape of input {spec.name!r} must be {expected} with n from 1, got {_shown(given)}")
    return tuple(given)


def _from_json(data: Any, shape: tuple[int, ...], spec: Tensor) -> Any:
    if not isinstance(data, list):
        raise _wrong(f"input {spec.name!r} needs data, a list in row-major order; got {_kind(data)}")
    if spec.datatype == "BYTES":
        if len(data) != shape[0]:
            raise _wrong(f"the shape announces {shape[0]} pictures, data has {len(data)}")
        return [_from_base64(text) for text in data]
    try:
        values = np.array(data)
    except ValueError as error:
        raise _wrong(f"data of input {spec.name!r} must be nested evenly, or flat") from error
    if values.dtype.kind not in "iuf":
        raise _wrong(f"data of input {spec.name!r} must be numbers")
    if values.size != math.prod(shape):
        raise _wrong(f"the shape announces {math.prod(shape)} numbers, data has {values.size}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, which the session refuses
        return values.astype(np.float32).reshape(shape)


def _from_base64(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise _wrong(
            "in JSON a picture is its bytes in base64; or send it as binary tensor data, which takes less room"
        ) from error


def _from_bytes(tail: memoryview, shape: tuple[int, ...], spec: Tensor) -> Any:
    if spec.datatype == "BYTES":
        return _elements(tail, shape[0])
    wanted = math.prod(shape) * 4
    if len(tail) != wanted:
        raise _wrong(f"the shape announces {wanted} bytes of FP32, {len(tail)} follow the JSON")
    return np.frombuffer(tail, "<f4").astype(np.float32, copy=False).reshape(shape)


def _elements(tail: memoryview, count: int) -> list[bytes]:
    """The elements of a BYTES tensor: each a length, four bytes little-endian, and as many bytes."""
    found, position = [], 0
    for _ in range(count):
        if position + 4 > len(tail):
            raise _wrong(f"the shape announces {count} pictures, the binary data holds {len(found)}")
        (length,) = struct.unpack_from("<I", tail, position)
        position += 4
        if position + length > len(tail):
            raise _wrong(f"picture {len(found)} should have {length} bytes, only {len(tail) - position} are left")
        found.append(bytes(tail[position : position + length]))
        position += length
    if position != len(tail):
        raise _wrong(f"{len(tail) - position} bytes are left over after {count} picture(s)")
    return found


@dataclass(frozen=True)
class Wanted:
    """An output a request asks for."""

    tensor: Tensor
    binary: bool
    classes: int


def _wanted(head: Mapping[str, Any], model: Model) -> list[Wanted]:
    """The outputs that a request names, all of them if it names none."""
    all_binary = _parameters(head).get("binary_data_output") is True
    known = {tensor.name: tensor for tensor in model.gives}
    if not head.get("outputs"):
        return [Wanted(tensor, all_binary, 0) for tensor in model.gives]
    wanted = []
    for asked in _objects(head, "outputs"):
        name, parameters = asked.get("name"), _parameters(asked)
        if not isinstance(name, str) or name not in known:
            raise _wrong(f"there is no output {_shown(name)}; there are: {', '.join(known)}")
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0 or (classes and known[name].datatype != "FP32"):
            raise _wrong(f"classification must be a number of classes, of an FP32 output; got {_shown(classes)}")
        wanted.append(Wanted(known[name], parameters.get("binary_data", all_binary) is True, classes))
    return wanted


def _answer(head: Mapping[str, Any], model: Model, wanted: list[Wanted], rows: dict[str, np.ndarray]) -> Response:
    outputs, blobs = [], []
    for output in wanted:
        values, datatype = rows[output.tensor.name], output.tensor.datatype
        if output.classes:
            values, datatype = _classification(values, output.classes, model.labels), "BYTES"
        document: dict[str, Any] = {"name": output.tensor.name, "datatype": datatype, "shape": list(values.shape)}
        if output.binary:
            blobs.append(_to_bytes(values, datatype))
            document["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            document["data"] = values.ravel().tolist()
        outputs.append(document)
    said: dict[str, Any] = {"model_name": model.name, "model_version": VERSION, "outputs": outputs}
    if isinstance(head.get("id"), str):
        said["id"] = head["id"]
    reply = _json(said)
    if blobs:
        text = reply.get_data()
        reply = Response(b"".join([text, *blobs]), content_type="application/octet-stream")
        reply.headers[HEADER_LENGTH] = str(len(text))
    return reply


def _classification(values: np.ndarray, count: int, labels: Sequence[str]) -> np.ndarray:
    """The ``count`` highest of each row as text, "value:index:label" (the protocol's classification extension)."""
    best = np.argsort(-values, axis=1, kind="stable")[:, :count]
    texts = [
        [f"{row[index]:f}:{index}:{labels[index]}" for index in indices]
        for row, indices in zip(values, best, strict=True)
    ]
    return np.array(texts, object)


def _to_bytes(values: np.ndarray, datatype: str) -> bytes:
    if datatype == "FP32":
        return values.astype("<f4", copy=False).tobytes()
    texts = [text.encode() for text in values.ravel()]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _objects(head: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = head.get(key)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise _wrong(f"{key} must be a list of objects, got {_kind(found)}")
    return found


def _parameters(of: Mapping[str, Any]) -> dict[str, Any]:
    found = of.get("parameters") or {}
    if not isinstance(found, dict):
        raise _wrong(f"parameters must be an object, got {_kind(found)}")
    return found


def _wrong(detail: str) -> Problem:
    return Problem("bad-request", detail)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "..."


def _json(value: Any) -> Response:
    return Response(json.dumps(value), content_type="application/json")
