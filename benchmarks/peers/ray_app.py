"""SignNet in Ray Serve on one machine: a proxy process, and one process a replica."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from common import Classifier, settings
from ray import serve
from starlette.requests import Request

wanted = settings()


class SignNet:
    """One request after the other: with a processor for each replica, a thread would only cost."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    async def __call__(self, request: Request) -> dict[str, Any]:
        return self.classifier(await request.body())


class BatchedSignNet(SignNet):
    async def __call__(self, request: Request) -> dict[str, Any]:
        return await self.answers(await request.body())

    @serve.batch(max_batch_size=wanted["batch"], batch_wait_timeout_s=wanted["max_wait_s"])
    async def answers(self, pictures: list[bytes]) -> list[dict[str, Any]]:
        return self.classifier.infer([self.classifier.prepare(picture) for picture in pictures])


def main() -> None:
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    folder = tempfile.mkdtemp(prefix="ray-")  # not under build/: Ray's sockets need a short path
    try:
        ray.init(
            address="local",
            num_cpus=wanted["workers"] + 1,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100_000_000,
            _temp_dir=folder,
            _node_ip_address="127.0.0.1",
        )
        serve.start(http_options={"host": "127.0.0.1", "port": wanted["port"]})
        deployment = serve.deployment(
            BatchedSignNet if wanted["batch"] > 1 else SignNet,
            num_replicas=wanted["workers"],
            max_ongoing_requests=wanted.get("ongoing", 16),
            ray_actor_options={"num_cpus": 1},
        )
        serve.run(deployment.bind(), route_prefix="/predict")
        ended.wait()
    finally:
        serve.shutdown()
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
