"""SignNet in MLServer: ``python mlserver_app.py FOLDER`` writes the settings into FOLDER and starts ``mlserver``.

``POST /predict`` is MLServer's custom handler and takes the picture as the whole body; ``/v2/models/signnet/infer`` is
its own protocol, in which a picture is base64 text in JSON (MLServer has no binary tensors over REST), and the only one
that it batches.
"""

# No `from __future__ import annotations`: FastAPI needs the annotations of the handler as objects.
import asyncio
import base64
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from common import Classifier, settings
from fastapi import Depends, Request
from mlserver import MLModel
from mlserver.handlers import custom_handler
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


async def raw_body(request: Request) -> bytes:
    return await request.body()


class SignNet(MLModel):
    async def load(self) -> bool:
        self.classifier = Classifier()
        self.threaded = settings()["workers"] == 0  # in a process of its own a thread would only cost
        return True

    @custom_handler(rest_path="/predict")
    async def answer_raw(self, picture: Annotated[bytes, Depends(raw_body)]) -> dict[str, Any]:
        return await asyncio.to_thread(self.classifier, picture) if self.threaded else self.classifier(picture)

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        pictures = [base64.b64decode(text) for text in payload.inputs[0].data.root]
        answers = await asyncio.to_thread(self.answers, pictures) if self.threaded else self.answers(pictures)
        lines = [json.dumps(answer) for answer in answers]
        output = ResponseOutput(name="answer", shape=[len(lines), 1], datatype="BYTES", data=lines)
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=[output])

    def answers(self, pictures: list[bytes]) -> list[dict[str, Any]]:
        return self.classifier.infer([self.classifier.prepare(picture) for picture in pictures])


def write_settings(folder: Path, wanted: dict[str, Any]) -> None:
    server = {
        "host": "127.0.0.1",
        "http_port": wanted["port"],
        "grpc_port": wanted["spare_ports"][0],
        "metrics_port": wanted["spare_ports"][1],
        "parallel_workers": wanted["workers"],
        "debug": False,
        "use_structured_logging": False,
    }
    model = {
        "name": "signnet",
        "implementation": "mlserver_app.SignNet",
        "max_batch_size": wanted["batch"] if wanted["batch"] > 1 else 0,
        "max_batch_time": wanted["max_wait_s"] if wanted["batch"] > 1 else 0,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(server))
    (folder / "model-settings.json").write_text(json.dumps(model))


if __name__ == "__main__":
    write_settings(Path(sys.argv[1]), settings())
    program = str(Path(sys.executable).with_name("mlserver"))
    os.execv(program, [program, "start", sys.argv[1]])
