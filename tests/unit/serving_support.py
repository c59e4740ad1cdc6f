"""What the serving tests share: a small real model behind a real HTTP server, and pictures made on the spot."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from flask import Flask
from PIL import Image
from werkzeug.serving import make_server

from deploylab.signs import dataset


def encoded(picture: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def sample(label: str) -> bytes:
    """A sample photograph of a class, as its file's bytes."""
    return next(sample.path for sample in dataset.samples() if sample.label == label).read_bytes()


def noise(width: int = 40, height: int = 30, seed: int = 0, form: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return encoded(Image.fromarray(pixels), form)


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """The address, ``127.0.0.1:PORT``, of a real server for ``app`` that ends with the block."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
