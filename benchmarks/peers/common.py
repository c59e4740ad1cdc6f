"""What runs inside every peer: SignNet on ONNX Runtime, and pictures brought to it in one of two ways.

``documented`` decodes as the peers' own examples do: Pillow reads the whole picture, then shrinks it. ``same-code`` is
the decoding and preprocessing of DeployLab's server. Between the two lies what the decoding is worth; what remains of
the difference to DeployLab in ``same-code`` is the server's own share. This module runs in the peers' environments, so
it imports nothing but NumPy, Pillow, ONNX Runtime and, for ``same-code``, DeployLab's preprocessing.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 64
TOP = 5
DOCUMENTED, SAME_CODE = "documented", "same-code"


def settings() -> dict[str, Any]:
    """What ``serving_peers.py`` wants of this server: model file, labels, variant, workers, threads, batch, port ..."""
    return json.loads(os.environ["PEER_SETTINGS"])


class Classifier:
    """Pictures to the five likeliest labels. Safe to call from several threads, as ONNX Runtime's sessions are."""

    def __init__(self) -> None:
        import onnxruntime

        wanted = settings()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = wanted["threads"]
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(wanted["model"], options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._labels: list[str] = json.loads(Path(wanted["labels"]).read_text())
        self.prepare = _ours(wanted["reducing_gap"]) if wanted["variant"] == SAME_CODE else documented

    def __call__(self, picture: bytes) -> dict[str, Any]:
        return self.infer([self.prepare(picture)])[0]

    def infer(self, prepared: list[np.ndarray]) -> list[dict[str, Any]]:
        """Answers for arrays (1, 3, 64, 64) that are run as one batch."""
        batch = prepared[0] if len(prepared) == 1 else np.concatenate(prepared)
        return [self._answer(row) for row in self._session.run(None, {self._input: batch})[0]]

    def _answer(self, logits: np.ndarray) -> dict[str, Any]:
        weights = np.exp(logits - logits.max())
        probabilities = weights / weights.sum()
        top = np.argsort(-probabilities)[:TOP]
        return {"top": [{"label": self._labels[i], "probability": float(probabilities[i])} for i in top]}


def documented(picture: bytes) -> np.ndarray:
    """Encoded picture to float32 (1, 3, 64, 64), as in any tutorial."""
    from PIL import Image

    return normalise(Image.open(io.BytesIO(picture)))


def normalise(image: Any) -> np.ndarray:
    """A Pillow picture to float32 (1, 3, 64, 64)."""
    from PIL import Image

    pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]) / np.float32(255)


def _ours(reducing_gap: float) -> Any:
    from deploylab.image import SIGNNET

    return dataclasses.replace(SIGNNET, reducing_gap=reducing_gap)
