"""SignNet in LitServe. The raw body comes in through a FastAPI dependency, which spares the client base64 or a form."""

from __future__ import annotations

from typing import Annotated, Any

import litserve
import numpy as np
from common import Classifier, settings
from fastapi import Depends, Request


async def raw_body(request: Request) -> bytes:
    return await request.body()


class SignNet(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.classifier = Classifier()

    def predict(self, prepared: np.ndarray | list[np.ndarray]) -> list[dict[str, Any]]:
        return self.classifier.infer(prepared if isinstance(prepared, list) else [prepared])

    def batch(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return inputs

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        return output[0] if isinstance(output, list) else output


def decode_request(self: SignNet, request: Any) -> np.ndarray:
    return self.classifier.prepare(request)


# LitServe reads the annotation itself, so it must be the object and not, as with the import above, its text.
decode_request.__annotations__["request"] = Annotated[bytes, Depends(raw_body)]
SignNet.decode_request = decode_request


if __name__ == "__main__":
    wanted = settings()
    api = SignNet(max_batch_size=wanted["batch"], batch_timeout=wanted["max_wait_s"], api_path="/predict")
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=wanted["workers"], fast_queue=wanted.get("fast_queue", False)
    )
    server.run(
        host="127.0.0.1",
        port=wanted["port"],
        num_api_servers=wanted.get("frontends"),
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
