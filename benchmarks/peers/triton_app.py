"""SignNet in NVIDIA Triton on the CPU, through nvidia-pytriton: Triton's HTTP front end and batching, Python inside.

The client sends Triton's "raw binary request": the picture is the whole body, and the header
``Inference-Header-Content-Length: 0`` says so.
"""

from __future__ import annotations

import logging
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from common import TOP, Classifier, settings
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.proxy.types import Request
from pytriton.triton import Triton, TritonConfig
from tritonclient.utils import InferenceServerException

TRIES = 4
"""On a busy machine an instance may ask for its configuration before the process that has it listens."""


def infer_function(classifier: Classifier, batching: bool) -> Callable[[list[Request]], list[dict[str, Any]]]:
    def infer(requests: list[Request]) -> list[dict[str, Any]]:
        pictures = [request["picture"].reshape(-1)[0] for request in requests]
        answers = classifier.infer([classifier.prepare(picture) for picture in pictures])
        return [as_tensors(answer["top"], (1, TOP) if batching else (TOP,)) for answer in answers]

    return infer


def as_tensors(top: list[dict[str, Any]], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    labels = np.array([entry["label"].encode() for entry in top], object)
    probabilities = np.array([entry["probability"] for entry in top], np.float32)
    return {"label": labels.reshape(shape), "probability": probabilities.reshape(shape)}


def serve(wanted: dict[str, Any], workspace: str) -> None:
    batching = wanted["batch"] > 1
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=wanted["port"],
        http_thread_count=wanted.get("frontends", 8),
        allow_grpc=False,
        allow_metrics=False,
    )
    batcher = DynamicBatcher(max_queue_delay_microseconds=int(1e6 * wanted["max_wait_s"]))
    with Triton(config=config, workspace=workspace) as triton:
        triton.bind(
            model_name="signnet",
            infer_func=[infer_function(Classifier(), batching) for _ in range(wanted["workers"])],
            inputs=[Tensor(name="picture", dtype=np.bytes_, shape=(1,))],
            outputs=[
                Tensor(name="label", dtype=np.bytes_, shape=(TOP,)),
                Tensor(name="probability", dtype=np.float32, shape=(TOP,)),
            ],
            config=ModelConfig(max_batch_size=wanted["batch"], batching=batching, batcher=batcher),
            strict=False,
        )
        triton.serve()


def main() -> None:
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that Triton unloads the model and its files go
    for attempt in range(TRIES):
        with tempfile.TemporaryDirectory() as folder:  # not under build/: its sockets need a short path
            try:
                serve(settings(), f"{folder}/w")
                return
            except InferenceServerException:
                if attempt == TRIES - 1:
                    raise


if __name__ == "__main__":
    main()
