"""Solutions of lab 02: one function per exercise."""

from __future__ import annotations

import io

import numpy as np
import requests
from flask import abort
from PIL import Image, UnidentifiedImageError


def ask(url, data, form):
    if form:
        answer = requests.post(url, files={"file": data}, timeout=10)
    else:
        answer = requests.post(url, data, headers={"Content-Type": "image/jpeg"}, timeout=10)
    answer.raise_for_status()
    return answer.json()


def decode(data, max_bytes, max_pixels):
    if not data:
        abort(400, "the upload is empty; send a picture")
    if len(data) > max_bytes:
        abort(413, f"the upload has {len(data)} bytes; at most {max_bytes} are accepted")
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    except UnidentifiedImageError:
        abort(415, "not a JPEG, PNG or WebP picture")
    except OSError as error:
        abort(400, f"the picture's header is damaged: {error}")
    if image.width * image.height > max_pixels:
        abort(413, f"{image.width} x {image.height} pixels; at most {max_pixels} are accepted")
    try:
        return np.array(image.convert("RGB"))
    except OSError as error:
        abort(400, f"the picture is damaged: {error}")


def best_offer(profile, offers):
    def saved(name):
        stage, factor = offers[name]
        return profile[stage] - profile[stage] / factor

    return max(offers, key=saved)


def swap_red_and_blue(data):
    """The same picture as a JPEG with red and blue exchanged (as in the lab)."""
    pixels = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., ::-1].copy()).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def find_fault(ask, photos):
    def share_right(change=lambda data: data):
        return np.mean([ask(change(data))[0]["label"] == label for data, label in photos])

    first = photos[0][0]
    if any(ask(first) != ask(first) for _ in range(5)):
        return "train"
    if share_right() > 0.9:
        return "healthy"
    return "bgr" if share_right(swap_red_and_blue) > 0.9 else "other"
