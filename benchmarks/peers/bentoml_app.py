"""SignNet in BentoML: ``bentoml serve bentoml_app:SignNet``.

``POST /predict`` takes the picture as the whole body, typed as BentoML's documentation types pictures. ``POST
/raw/predict`` is a mounted ASGI application, BentoML's way around its own parsing and validation. Batching exists for
the first only.
"""

from __future__ import annotations

from typing import Any

import bentoml
from common import DOCUMENTED, Classifier, normalise, settings
from PIL.Image import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

wanted = settings()
raw = Starlette()
service = bentoml.service(
    workers=wanted["workers"],
    threads=wanted.get("pool", 4),
    traffic={"timeout": 60, "max_concurrency": 1024},
    logging={"access": {"enabled": False}},
    metrics={"enabled": wanted.get("metrics", True)},
)


def bytes_of(image: Image) -> bytes:
    """The encoded picture; Pillow has read no more than its header yet."""
    image.fp.seek(0)
    return image.fp.read()


class SignNetBase:
    def __init__(self) -> None:
        self.classifier = Classifier()
        raw.routes.append(Route("/predict", self.answer_raw, methods=["POST"]))

    def prepared(self, image: Image) -> Any:
        return normalise(image) if wanted["variant"] == DOCUMENTED else self.classifier.prepare(bytes_of(image))

    async def answer_raw(self, request: Request) -> JSONResponse:
        return JSONResponse(await run_in_threadpool(self.classifier, await request.body()))


if wanted["batch"] > 1:

    @service
    @bentoml.asgi_app(raw, path="/raw")
    class SignNet(SignNetBase):
        @bentoml.api(batchable=True, max_batch_size=wanted["batch"], max_latency_ms=50, route="/predict")
        def predict(self, images: list[Image]) -> list[dict[str, Any]]:
            return self.classifier.infer([self.prepared(image) for image in images])

else:

    @service
    @bentoml.asgi_app(raw, path="/raw")
    class SignNet(SignNetBase):
        @bentoml.api(route="/predict")
        def predict(self, image: Image, /) -> dict[str, Any]:
            return self.classifier.infer([self.prepared(image)])[0]
