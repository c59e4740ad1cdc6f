"""SignNet in TorchServe, with ONNX Runtime in the handler, whose entry point is :func:`handle`.

``python torchserve_handler.py FOLDER`` packs the archive, writes the configuration and starts ``torchserve``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import Classifier, settings

_classifier: Classifier | None = None


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[dict[str, Any]] | None:
    """TorchServe calls this once without data, so that the model is loaded, then with the requests of a batch."""
    global _classifier
    if _classifier is None:
        _classifier = Classifier()
    if data is None:
        return None
    pictures = [bytes(request.get("body") or request["data"]) for request in data]
    return _classifier.infer([_classifier.prepare(picture) for picture in pictures])


def write_configuration(folder: Path, wanted: dict[str, Any]) -> Path:
    management, metrics, grpc_inference, grpc_management = wanted["spare_ports"]
    model = {
        "1.0": {
            "defaultVersion": True,
            "marName": "signnet.mar",
            "minWorkers": wanted["workers"],
            "maxWorkers": wanted["workers"],
            "batchSize": wanted["batch"],
            "maxBatchDelay": max(1, int(1e3 * wanted["max_wait_s"])),
            "responseTimeout": 60,
        }
    }
    lines = [
        f"inference_address=http://127.0.0.1:{wanted['port']}",
        f"management_address=http://127.0.0.1:{management}",
        f"metrics_address=http://127.0.0.1:{metrics}",
        f"grpc_inference_port={grpc_inference}",
        f"grpc_management_port={grpc_management}",
        "disable_token_authorization=true",
        "disable_system_metrics=true",
        "async_logging=true",
        "max_request_size=25000000",
        "job_queue_size=1000",
        f"model_store={folder}",
        f"models={json.dumps({'signnet': model})}",
        f"vmargs=-Djava.io.tmpdir={tempfile.gettempdir()}",
    ]
    configuration = folder / "config.properties"
    configuration.write_text("\n".join(lines) + "\n")
    return configuration


def main(folder: Path, wanted: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    programs = Path(sys.executable).parent
    archive = ["--model-name", "signnet", "--version", "1.0", "--handler", str(Path(__file__).resolve())]
    subprocess.run(
        [programs / "torch-model-archiver", *archive, "--export-path", folder, "--force"],
        check=True,
    )
    configuration = write_configuration(folder, wanted)
    os.environ["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"  # its workers run `python`
    os.environ["LOG_LOCATION"] = os.environ["METRICS_LOCATION"] = str(folder / "logs")
    os.chdir(folder)
    start = ["--start", "--foreground", "--ncs", "--ts-config", str(configuration), "--models", "all"]
    program = str(programs / "torchserve")
    os.execv(program, [program, *start])


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), settings())
