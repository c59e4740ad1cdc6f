"""The servers of the comparison: how each is started, what it is sent, and where its answer holds the label."""

from __future__ import annotations

import base64
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import side_env
from deploylab import paths

HERE = Path(__file__).parent
SPARE_PORTS = 4
_BOUNDARY = "----deploylab-benchmark"

Settings = dict[str, Any]


def _top_label(answer: bytes) -> str:
    return json.loads(answer)["top"][0]["label"]


@dataclass(frozen=True)
class Route:
    """How a server is addressed. Unless said otherwise the body is the JPEG file itself."""

    path: str = "/predict"
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "image/jpeg"})
    body: Callable[[bytes], bytes] = bytes
    label: Callable[[bytes], str] = _top_label


@dataclass(frozen=True)
class Contender:
    """A server. ``settings`` are what the sweep tries, the best known first; their ``route`` names one of ``routes``.

    ``environment`` is one of ``tools/side_env.py``, None for ``.venv``. ``needs`` is a program that must be installed.
    """

    name: str
    title: str
    package: str
    command: Callable[[Path, Settings], list[str]]
    settings: tuple[Settings, ...]
    ready: str
    routes: dict[str, Route] = field(default_factory=lambda: {"": Route()})
    environment: str | None = None
    variables: dict[str, str] = field(default_factory=dict)
    needs: str | None = None

    def python(self) -> Path:
        """The interpreter that has the package; its environment is made if it is missing. Raises ``SetupError``."""
        if self.needs and not shutil.which(self.needs):
            raise side_env.SetupError(f"{self.title} needs the program {self.needs}, which is not installed")
        return side_env.SideEnvironment(self.environment).ensure() if self.environment else Path(sys.executable)

    def route(self, chosen: Settings) -> Route:
        return self.routes[chosen.get("route", next(iter(self.routes)))]

    def start(self, chosen: Settings, given: Settings) -> tuple[list[str], dict[str, str]]:
        """Command and environment variables. ``given``: model, labels, variant, port, spare_ports, folder."""
        wanted = {"threads": 1, "batch": 1, "max_wait_s": 0.005, **chosen, **given}
        variables = {
            "PEER_SETTINGS": json.dumps(wanted),
            "PYTHONPATH": os.pathsep.join([str(HERE), str(paths.root() / "utils")]),
            **self.variables,
            **chosen.get("variables", {}),
        }
        return self.command(self.python(), wanted), variables


def described(chosen: Settings) -> str:
    """A setting in words, for the table."""
    words = [f"{key} {value}" for key, value in chosen.items() if key not in ("variables", "metrics")]
    words += [f"{key}={value}" for key, value in chosen.get("variables", {}).items()]
    return ", ".join(words) or "its defaults"


def _script(name: str, *, with_folder: bool = False) -> Callable[[Path, Settings], list[str]]:
    def command(python: Path, wanted: Settings) -> list[str]:
        return [str(python), str(HERE / name), *([wanted["folder"]] if with_folder else [])]

    return command


def _bentoml(python: Path, wanted: Settings) -> list[str]:
    where = ["--host", "127.0.0.1", "--port", str(wanted["port"]), "--working-dir", str(HERE)]
    return [str(python.with_name("bentoml")), "serve", "--do-not-track", "-q", *where, "bentoml_app:SignNet"]


def _deploylab(python: Path, wanted: Settings) -> list[str]:
    options = [f"--{key}={value}" for key, value in wanted.items() if key in ("workers", "server")]
    options += [f"--batch={wanted['batch']}"] if wanted["batch"] > 1 else []
    return [str(python), "-m", "deploylab.cli", "serve", "signnet", f"--port={wanted['port']}", *options]


def _first_element(answer: bytes) -> str:
    """The first text of the first output, which Triton sends behind the JSON: its length, then its bytes."""
    _, end = json.JSONDecoder().raw_decode(answer.decode("latin-1"))
    (length,) = struct.unpack_from("<I", answer, end)
    return answer[end + 4 : end + 4 + length].decode()


def _base64_tensor(picture: bytes) -> bytes:
    text = base64.b64encode(picture).decode()
    tensor = {"name": "picture", "shape": [1, 1], "datatype": "BYTES", "data": [text]}
    return json.dumps({"inputs": [tensor]}).encode()


def _form(picture: bytes) -> bytes:
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n'
    return f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + picture + f"\r\n--{_BOUNDARY}--\r\n".encode()


DEPLOYLAB = Contender(
    "deploylab",
    "DeployLab",
    "deploylab",
    _deploylab,
    ({}, {"workers": 1}, {"batch": 8}),
    "/readyz",
    {"": Route("/v1/predict", label=lambda answer: json.loads(answer)["predictions"][0]["top"][0]["label"])},
)

LITSERVE = Contender(
    "litserve",
    "LitServe",
    "litserve",
    _script("litserve_app.py"),
    (
        {"workers": 2, "fast_queue": True},
        {"workers": 2, "fast_queue": False},
        {"workers": 2, "fast_queue": True, "frontends": 1},
        {"workers": 1, "threads": 2, "batch": 8, "fast_queue": True},
    ),
    "/health",
    environment="litserve",
)

BENTOML = Contender(
    "bentoml",
    "BentoML",
    "bentoml",
    _bentoml,
    (
        {"workers": 2, "route": "raw", "metrics": False},
        {"workers": 1, "route": "raw", "metrics": False},
        {"workers": 2, "route": "typed", "metrics": False},
        {"workers": 2, "route": "batched", "batch": 8, "metrics": False},
    ),
    "/readyz",
    {
        "raw": Route("/raw/predict"),
        "typed": Route(),
        "batched": Route(
            headers={"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"},
            body=_form,
            label=lambda answer: json.loads(answer)[0]["top"][0]["label"],
        ),
    },
    environment="bentoml",
    variables={"BENTOML_DO_NOT_TRACK": "True"},
)

RAY = Contender(
    "ray",
    "Ray Serve",
    "ray",
    _script("ray_app.py"),
    (
        {"workers": 2, "variables": {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}},
        {"workers": 2},
        {"workers": 1, "variables": {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}},
        {"workers": 1, "threads": 2, "batch": 8},
    ),
    "/-/healthz",
    variables={
        "RAY_AUTH_MODE": "disabled",  # else Ray writes a token into the user's home; here it listens on loopback only
        "RAY_raylet_start_wait_time_s": "80",
        "RAY_SERVE_LOG_TO_STDERR": "0",
    },
)

MLSERVER = Contender(
    "mlserver",
    "MLServer",
    "mlserver",
    _script("mlserver_app.py", with_folder=True),
    (
        {"workers": 0, "route": "raw"},
        {"workers": 2, "route": "raw"},
        {"workers": 0, "route": "v2"},
        {"workers": 0, "route": "v2", "batch": 8},
    ),
    "/v2/health/ready",
    {
        "raw": Route(),
        "v2": Route(
            "/v2/models/signnet/infer",
            {"Content-Type": "application/json"},
            _base64_tensor,
            lambda answer: _top_label(json.loads(answer)["outputs"][0]["data"][0]),
        ),
    },
    environment="mlserver",
)

TRITON = Contender(
    "triton",
    "Triton",
    "nvidia-pytriton",
    _script("triton_app.py"),
    ({"workers": 2}, {"workers": 4}, {"workers": 1}, {"workers": 1, "threads": 2, "batch": 8}),
    "/v2/health/ready",
    {
        "": Route(
            "/v2/models/signnet/infer",
            {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"},
            label=_first_element,
        )
    },
    environment="triton",
)

TORCHSERVE = Contender(
    "torchserve",
    "TorchServe",
    "torchserve",
    _script("torchserve_handler.py", with_folder=True),
    ({"workers": 2}, {"workers": 4}, {"workers": 1}, {"workers": 1, "threads": 2, "batch": 8}),
    "/ping",
    {"": Route("/predictions/signnet")},
    needs="java",
)

PEERS = (LITSERVE, BENTOML, RAY, MLSERVER, TRITON, TORCHSERVE)
