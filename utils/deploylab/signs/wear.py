"""What years outdoors do to a sign: fading, dirt, peeling, snow, stickers, graffiti, bolts."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from deploylab.signs.background import noise
from deploylab.signs.faces import Random, chance


def weather(face: Image.Image, rng: Random, harshness: float) -> Image.Image:
    """An older copy of ``face`` (RGBA). ``harshness`` 0 leaves it new, 1 is an ordinary street, more is a rough one."""
    face = _scribble(face, rng, harshness)
    pixels = np.asarray(face, np.float32) / 255
    rgb, alpha = pixels[..., :3], pixels[..., 3:]
    if chance(rng, 0.5 * harshness):
        rgb = _fade(rgb, rng)
    if chance(rng, 0.35 * harshness):
        rgb = _dirt(rgb, rng)
    if chance(rng, 0.07 * harshness):
        rgb = _peel(rgb, rng)
    if chance(rng, 0.05 * harshness):
        rgb = _snow(rgb, rng)
    if chance(rng, 0.2 * harshness):
        rgb = _glare(rgb, rng)
    worn = np.concatenate([np.clip(rgb, 0, 1), alpha], axis=2)
    return Image.fromarray((worn * 255 + 0.5).astype(np.uint8))


def _fade(rgb: np.ndarray, rng: Random) -> np.ndarray:
    """Sunlight bleaches: towards a pale grey, and red towards orange or pink."""
    pale = rng.uniform(0.5, 0.95) + rng.normal(0, 0.04, 3).astype(np.float32)
    amount = np.float32(rng.uniform(0, 0.55) ** 1.3)
    faded = rgb + (pale.astype(np.float32) - rgb) * amount
    faded[..., 1] += np.float32(rng.uniform(0, 0.15)) * (1 - faded[..., 1]) * faded[..., 0]
    return faded


def _dirt(rgb: np.ndarray, rng: Random) -> np.ndarray:
    size = rgb.shape[0]
    stain = np.clip((noise(rng, size, size, rng.uniform(2, 12), 3) - rng.uniform(0.3, 0.6)) * 3, 0, 1)
    colour = np.array([0.25, 0.22, 0.17], np.float32) * np.float32(rng.uniform(0.5, 1.6))
    return rgb + (colour - rgb) * (stain * np.float32(rng.uniform(0.1, 0.6)))[..., None]


def _peel(rgb: np.ndarray, rng: Random) -> np.ndarray:
    """Foil comes off in sharp patches, from at most a quarter of the plate."""
    size = rgb.shape[0]
    strength = noise(rng, size, size, rng.uniform(2, 8), 3)
    patch = np.clip((strength - np.quantile(strength, rng.uniform(0.75, 0.98))) * 40, 0, 1).astype(np.float32)
    colour = np.float32(rng.uniform(0.4, 1.0)) + rng.normal(0, 0.05, 3).astype(np.float32)
    return rgb + (colour - rgb) * patch[..., None]


def _snow(rgb: np.ndarray, rng: Random) -> np.ndarray:
    """Snow sticks to one side, at most to 40 % of the plate."""
    size = rgb.shape[0]
    ys, xs = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    side = xs * np.float32(np.cos(angle)) + ys * np.float32(np.sin(angle))
    cover = side * 0.5 + 1.2 * (noise(rng, size, size, rng.uniform(3, 9), 3) - 0.5)
    cover = np.clip((cover - np.quantile(cover, rng.uniform(0.6, 0.95))) * rng.uniform(4, 20), 0, 1).astype(np.float32)
    white = np.array([0.9, 0.92, 0.96], np.float32) * np.float32(rng.uniform(0.75, 1.08))
    return rgb + (white - rgb) * cover[..., None]


def _glare(rgb: np.ndarray, rng: Random) -> np.ndarray:
    """A broad reflection of the sky or of a lamp."""
    size = rgb.shape[0]
    ys, xs = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    x, y = rng.uniform(-1, 1, 2).astype(np.float32)
    spot = np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / np.float32(rng.uniform(0.1, 1.2)))
    return rgb + np.float32(rng.uniform(0.05, 0.5)) * spot[..., None]


def _scribble(face: Image.Image, rng: Random, harshness: float) -> Image.Image:
    """Bolts, stickers and spray paint; only where there is a plate."""
    bolts, stickers, spray = chance(rng, 0.3 * harshness), chance(rng, 0.12 * harshness), chance(rng, 0.05 * harshness)
    if not (bolts or stickers or spray):
        return face
    size = face.size[0]
    layer = face.copy()
    draw = ImageDraw.Draw(layer)
    if bolts:
        _draw_bolts(draw, rng, size)
    for _ in range(rng.integers(1, 4) if stickers else 0):
        corners = rng.uniform(0.1, 0.9, 2) + rng.normal(0, rng.uniform(0.02, 0.09), (4, 2))
        draw.polygon([tuple(corner) for corner in (corners * size).tolist()], _any_colour(rng))
    for _ in range(rng.integers(1, 4) if spray else 0):
        points = rng.uniform(0.1, 0.9, 2) + np.cumsum(rng.normal(0, 0.12, (6, 2)), axis=0)
        line = [tuple(point) for point in (points * size).tolist()]
        draw.line(line, _any_colour(rng), max(1, int(size * rng.uniform(0.01, 0.05))), joint="curve")
    layer.putalpha(face.getchannel("A"))
    return layer


def _draw_bolts(draw: ImageDraw.ImageDraw, rng: Random, size: int) -> None:
    grey = int(rng.uniform(40, 200))
    spread, radius = rng.uniform(0.2, 0.42) * size, max(0.5, rng.uniform(0.008, 0.02) * size)
    for x, y in ((0, -spread), (0, spread)) if chance(rng, 0.7) else ((-spread, 0), (spread, 0)):
        x, y = x + size / 2, y + size / 2
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], (grey, grey, grey, 255))


def _any_colour(rng: Random) -> tuple[int, int, int, int]:
    red, green, blue = rng.integers(0, 256, 3).tolist() if chance(rng, 0.5) else [int(rng.integers(0, 256))] * 3
    return red, green, blue, 255
