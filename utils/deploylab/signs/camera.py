"""Light, lens and sensor: what happens between the street and the pixels."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from deploylab.signs.background import noise
from deploylab.signs.faces import Random, chance


def cast_shadow(image: np.ndarray, rng: Random) -> np.ndarray:
    """The shadow of a house (straight border) or of a tree (ragged)."""
    height, width = image.shape[:2]
    if chance(rng, 0.5):
        angle = rng.uniform(0, 2 * np.pi)
        ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
        along = np.cos(angle) * (xs / width - 0.5) + np.sin(angle) * (ys / height - 0.5)
        mask = np.clip((along - rng.uniform(-0.35, 0.35)) * rng.uniform(5, 60), 0, 1)
    else:
        mask = np.clip((noise(rng, height, width, rng.uniform(2, 8), 2) - 0.5) * rng.uniform(4, 20) + 0.5, 0, 1)
    return image * (1 - mask * rng.uniform(0.2, 0.65))[..., None].astype(np.float32)


def veil(image: np.ndarray, rng: Random) -> np.ndarray:
    """Haze or stray light: a coloured veil that may grow to one side."""
    height, width = image.shape[:2]
    colour = np.clip(rng.uniform(0.4, 1.0) + rng.normal(0, 0.12, 3), 0, 1).astype(np.float32)
    strength = np.float32(rng.uniform(0.05, 0.45)) * noise(rng, height, width, 2)
    return image + (colour - image) * strength[..., None]


def expose(image: np.ndarray, rng: Random, harshness: float) -> np.ndarray:
    """Exposure, contrast, colour temperature, saturation and tone curve of an automatic camera."""
    metered = (0.45 / max(float(image.mean()), 0.02)) ** rng.uniform(0.2, 0.8)
    gain = metered * np.exp(rng.normal(0.0, 0.25 * harshness))
    cast = 0.2 if chance(rng, 0.06) else 0.07
    temperature = np.exp(rng.normal(0, cast * harshness, 3))
    image = image * (gain * temperature).astype(np.float32)
    image = np.clip(image, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.25 * harshness)))
    grey = image.mean(axis=2, keepdims=True)
    image = grey + (image - grey) * np.float32(np.clip(rng.normal(1.0, 0.25 * harshness), 0.35, 1.7))
    contrast = np.float32(np.clip(rng.normal(1.0, 0.15 * harshness), 0.55, 1.5))
    return np.clip((image - 0.5) * contrast + 0.5 + rng.normal(0, 0.04 * harshness), 0, 1).astype(np.float32)


def watermark(image: np.ndarray, rng: Random) -> np.ndarray:
    """The pale mark of a picture agency: a bar with strokes across the picture."""
    height, width = image.shape[:2]
    mark = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mark)
    top, tall = rng.uniform(0.3, 0.7) * height, rng.uniform(0.06, 0.2) * height
    draw.rectangle([0.2 * width, top, width, top + tall], int(rng.uniform(20, 90)))
    for x in np.arange(0.25, 0.9, rng.uniform(0.04, 0.09)) * width:
        draw.rectangle([x, top + tall * 0.2, x + width * 0.02, top + tall * 0.8], int(rng.uniform(80, 200)))
    share = np.asarray(mark, np.float32)[..., None] / 255
    return image + (np.float32(rng.uniform(0.4, 1.0)) - image) * share


def shake(image: np.ndarray, rng: Random, length: float) -> np.ndarray:
    """Motion blur of ``length`` pixels in a random direction."""
    steps = max(2, round(length))
    angle = rng.uniform(0, np.pi)
    total = np.zeros_like(image)
    for step in np.linspace(-0.5, 0.5, steps):
        dx, dy = round(np.cos(angle) * step * length), round(np.sin(angle) * step * length)
        total += np.roll(image, (dy, dx), axis=(0, 1))
    return total / steps


def blur(picture: Image.Image, radius: float) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(radius))


def grain(image: np.ndarray, rng: Random, strength: float) -> np.ndarray:
    """Sensor noise, a little more of it in the light parts (shot noise)."""
    sigma = strength * (0.6 + 0.4 * np.sqrt(np.clip(image, 0, 1)))
    return image + sigma * rng.standard_normal(image.shape, np.float32)


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def sharpen(picture: Image.Image, rng: Random) -> Image.Image:
    return picture.filter(ImageFilter.UnsharpMask(rng.uniform(0.6, 1.5), int(rng.uniform(50, 200)), 0))


def to_picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8))


def to_array(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, np.float32) / 255
