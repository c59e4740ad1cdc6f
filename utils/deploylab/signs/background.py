"""Procedural surroundings: sky, foliage, facades, roads, clutter; float32 RGB arrays (height, width, 3) in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from deploylab.signs.faces import Random, chance

Array = np.ndarray


def scene(rng: Random, height: int, width: int) -> Array:
    """A view without any traffic sign: one to three kinds of surroundings, one behind the other."""
    image = _pick(rng)(rng, height, width)
    for _ in range(rng.choice(3, p=[0.35, 0.4, 0.25])):
        other = _pick(rng)(rng, height, width)
        mask = _region(rng, height, width)[..., None]
        image = image * (1 - mask) + other * mask
    if chance(rng, 0.5):
        image = _clutter(rng, image, int(rng.integers(1, 7)))
    return np.clip(image, 0, 1, dtype=np.float32)


def noise(rng: Random, height: int, width: int, cells: float, octaves: int = 1) -> Array:
    """Value noise in about [0, 1], float32 (height, width); ``cells`` across the image, doubled in each octave."""
    total = np.zeros((height, width), np.float32)
    strength, sum_of_strengths = 1.0, 0.0
    for octave in range(octaves):
        across = max(2, min(int(cells * 2**octave), width))
        down = max(2, min(round(across * height / width), height))
        grid = Image.fromarray(rng.random((down, across), np.float32))
        total += strength * np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
        sum_of_strengths += strength
        strength *= 0.65
    return total / sum_of_strengths


def _mix(low: Array, high: Array, share: Array) -> Array:
    return (low + (high - low) * share[..., None]).astype(np.float32)


def _colour(rng: Random, low: tuple[float, float, float], high: tuple[float, float, float]) -> Array:
    low_, high_ = np.array(low), np.array(high)
    return (low_ + (high_ - low_) * np.clip(rng.random() + rng.normal(0, 0.1, 3), 0, 1)).astype(np.float32)


def _ramp(rng: Random, height: int, width: int) -> Array:
    """A linear gradient in a random direction, 0 to 1."""
    angle = rng.uniform(0, 2 * np.pi)
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    values = np.cos(angle) * xs / width + np.sin(angle) * ys / height
    return (values - values.min()) / max(float(np.ptp(values)), 1e-6)


# --- kinds of surroundings -------------------------------------------------------------------------------------------


def _sky(rng: Random, height: int, width: int) -> Array:
    blue = _colour(rng, (0.10, 0.25, 0.55), (0.60, 0.78, 0.98))
    if chance(rng, 0.4):
        blue = _colour(rng, (0.6, 0.62, 0.66), (1.0, 1.0, 1.0))
    horizon = np.clip(blue + rng.uniform(0, 0.35), 0, 1)
    share = np.linspace(0, 1, height, dtype=np.float32)[:, None].repeat(width, 1)
    image = _mix(blue, horizon, share)
    if chance(rng, 0.5):
        clouds = np.clip((noise(rng, height, width, rng.uniform(2, 5), 3) - 0.45) * 3, 0, 1)
        image = image + (np.float32(rng.uniform(0.75, 1)) - image) * clouds[..., None]
    return image


_FOLIAGE = (
    ((0.02, 0.05, 0.01), (0.35, 0.50, 0.15)),
    ((0.05, 0.08, 0.02), (0.55, 0.70, 0.30)),
    ((0.06, 0.05, 0.03), (0.45, 0.40, 0.30)),
    ((0.10, 0.05, 0.01), (0.85, 0.55, 0.15)),
    ((0.08, 0.08, 0.09), (0.60, 0.62, 0.62)),
    ((0.01, 0.02, 0.01), (0.18, 0.22, 0.12)),
)


def _foliage(rng: Random, height: int, width: int) -> Array:
    """Leaves, bushes, grass: contrasty fine noise, with sky in the gaps."""
    low, high = (np.array(colour, np.float32) for colour in _FOLIAGE[rng.integers(len(_FOLIAGE))])
    tint = rng.normal(1, 0.12, 3).astype(np.float32)
    share = noise(rng, height, width, rng.uniform(4, 16), 4)
    share = np.clip((share - 0.5) * rng.uniform(1.2, 3.5) + rng.uniform(0.3, 0.6), 0, 1)
    image = _mix(low * tint, high * tint, share)
    if chance(rng, 0.4):
        gaps = np.clip((noise(rng, height, width, rng.uniform(4, 14), 3) - rng.uniform(0.5, 0.7)) * 12, 0, 1)
        image = image + (_sky(rng, height, width) - image) * gaps[..., None]
    return image


def _branches(rng: Random, height: int, width: int) -> Array:
    """A bare tree against the sky."""
    image = _sky(rng, height, width)
    canvas, draw = _canvas(image)
    dark = _bytes(_colour(rng, (0.03, 0.03, 0.03), (0.35, 0.3, 0.25)))
    scale = min(height, width)
    for _ in range(rng.integers(8, 40)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        angle = rng.uniform(0, 2 * np.pi)
        points = [(x, y)]
        for _ in range(4):
            angle += rng.normal(0, 0.5)
            x, y = x + np.cos(angle) * scale * 0.15, y + np.sin(angle) * scale * 0.15
            points.append((x, y))
        draw.line(points, dark, max(1, int(scale * rng.uniform(0.004, 0.03))))
    return _array(canvas)


def _facade(rng: Random, height: int, width: int) -> Array:
    """A house front: wall, texture and a grid of windows, balconies or boards."""
    wall = _colour(rng, (0.15, 0.12, 0.10), (0.95, 0.92, 0.88))
    if chance(rng, 0.2):
        wall = _colour(rng, (0.35, 0.12, 0.08), (0.75, 0.40, 0.30))
    image = wall * (0.85 + 0.3 * noise(rng, height, width, rng.uniform(3, 30), 2)[..., None])
    canvas, draw = _canvas(image)
    cell_x, cell_y = width * rng.uniform(0.15, 0.8), height * rng.uniform(0.15, 0.8)
    share_x, share_y = rng.uniform(0.3, 0.9), rng.uniform(0.1, 0.9)
    pane, frame = _colour(rng, (0.02, 0.03, 0.05), (0.75, 0.8, 0.85)), _colour(rng, (0.2, 0.2, 0.2), (1, 1, 1))
    skew = rng.uniform(-0.25, 0.25)
    border = rng.uniform(0, 0.12) * cell_x
    for column in range(-1, int(width / cell_x) + 2):
        for row in range(-1, int(height / cell_y) + 2):
            x, y = column * cell_x, row * cell_y + column * cell_x * skew
            drop = cell_x * share_x * skew
            right, bottom = x + cell_x * share_x, y + cell_y * share_y
            draw.polygon([(x, y), (right, y + drop), (right, bottom + drop), (x, bottom)], _bytes(frame))
            inner = [(x + border, y + border), (right - border, y + drop + border)]
            inner += [(right - border, bottom + drop - border), (x + border, bottom - border)]
            draw.polygon(inner, _bytes(pane * rng.uniform(0.6, 1.2)))
    return _array(canvas)


def _stripes(rng: Random, height: int, width: int) -> Array:
    """Boards, fences, brick courses, tiles: parallel bands with noise."""
    low, high = _colour(rng, (0.05, 0.05, 0.05), (0.5, 0.45, 0.4)), _colour(rng, (0.3, 0.3, 0.3), (1.0, 0.95, 0.9))
    phase = _ramp(rng, height, width) * rng.uniform(2, 14) + 0.4 * noise(rng, height, width, 3)
    share = np.clip((np.abs(phase % 1 - 0.5) * 2 - rng.uniform(0.1, 0.8)) * rng.uniform(2, 12), 0, 1)
    return _mix(low, high, share) * (0.8 + 0.4 * noise(rng, height, width, 20)[..., None])


def _road(rng: Random, height: int, width: int) -> Array:
    grey = _colour(rng, (0.15, 0.15, 0.16), (0.6, 0.6, 0.62))
    image = grey * (0.75 + 0.5 * noise(rng, height, width, rng.uniform(5, 30), 2)[..., None])
    canvas, draw = _canvas(image)
    white = _bytes(_colour(rng, (0.6, 0.6, 0.55), (1, 1, 1)))
    for _ in range(rng.integers(0, 5)):
        x, y = rng.uniform(-0.2, 1.2) * width, rng.uniform(0, 1) * height
        thick = rng.uniform(0.02, 0.12) * height
        slide, run = rng.uniform(-0.6, 0.6) * width, rng.uniform(0.1, 1.2) * width
        draw.polygon([(x, y), (x + run, y + slide * 0.5), (x + run, y + slide * 0.5 + thick), (x, y + thick)], white)
    return _array(canvas)


def _plain(rng: Random, height: int, width: int) -> Array:
    """Fog, walls, out-of-focus surroundings: two colours and a soft transition."""
    share = _ramp(rng, height, width) if chance(rng, 0.5) else noise(rng, height, width, rng.uniform(2, 5), 2)
    return _mix(_colour(rng, (0, 0, 0), (1, 1, 1)), _colour(rng, (0, 0, 0), (1, 1, 1)), share)


def _night(rng: Random, height: int, width: int) -> Array:
    """Darkness with blurred lamps."""
    image = (
        np.full((height, width, 3), rng.uniform(0, 0.12), np.float32)
        + 0.05 * noise(rng, height, width, 6, 2)[..., None]
    )
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    for _ in range(rng.integers(0, 5)):
        x, y, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.03, 0.25) * width
        glow = np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * radius**2))
        image += glow[..., None] * _colour(rng, (0.6, 0.1, 0.05), (1, 0.9, 0.7))
    return np.clip(image, 0, 1)


_KINDS: tuple[tuple[Callable[[Random, int, int], Array], float], ...] = (
    (_sky, 0.20),
    (_foliage, 0.26),
    (_branches, 0.08),
    (_facade, 0.16),
    (_stripes, 0.08),
    (_road, 0.08),
    (_plain, 0.09),
    (_night, 0.05),
)


def _pick(rng: Random) -> Callable[[Random, int, int], Array]:
    return _KINDS[rng.choice(len(_KINDS), p=[weight for _, weight in _KINDS])][0]


def _region(rng: Random, height: int, width: int) -> Array:
    """A soft or sharp mask that covers one side of the image, with a straight or ragged border."""
    ramp = _ramp(rng, height, width)
    if chance(rng, 0.5):
        ramp = ramp + rng.uniform(0.05, 0.3) * (noise(rng, height, width, rng.uniform(3, 20), 2) - 0.5)
    return np.clip((ramp - rng.uniform(0.25, 0.75)) * rng.uniform(8, 80), 0, 1).astype(np.float32)


# --- clutter ---------------------------------------------------------------------------------------------------------


def _clutter(rng: Random, image: Array, count: int) -> Array:
    """Posts, cables, cars, lamps, bins: plain shapes of any colour."""
    canvas, draw = _canvas(image)
    height, width = image.shape[:2]
    for _ in range(count):
        colour = _bytes(rng.random(3) * rng.uniform(0.4, 1.0) if chance(rng, 0.5) else np.full(3, rng.random()))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        across, down = rng.uniform(0.03, 0.6, 2) * (width, height)
        kind = rng.integers(5)
        if kind == 4:
            _vehicle(draw, rng, x, y, max(across, 0.2 * width), colour)
        elif kind == 0:
            draw.rectangle([x, y, x + across, y + down], colour)
        elif kind == 1:
            draw.ellipse([x, y, x + across, y + down], colour)
        elif kind == 2:
            end = (x + rng.normal(0, width), y + rng.normal(0, height))
            draw.line([(x, y), end], colour, max(1, int(width * rng.uniform(0.01, 0.08))))
        else:
            corners = rng.normal(0, 0.25, (4, 2)) * (width, height) + (x, y)
            draw.polygon([tuple(corner) for corner in corners.tolist()], colour)
    return _array(canvas)


def _vehicle(
    draw: ImageDraw.ImageDraw, rng: Random, x: float, y: float, length: float, colour: tuple[int, int, int]
) -> None:
    """A car from the front or from behind: body, window, lamps, wheels."""
    tall = length * rng.uniform(0.5, 0.9)
    glass, dark = int(rng.uniform(10, 120)), int(rng.uniform(0, 50))
    lamp = (255, 240, 200) if chance(rng, 0.5) else (int(rng.uniform(120, 255)), 20, 20)
    for side in (0.08, 0.77):
        draw.rectangle([x + side * length, y + 0.7 * tall, x + (side + 0.15) * length, y + tall], (dark,) * 3)
    draw.rounded_rectangle([x, y + 0.4 * tall, x + length, y + 0.88 * tall], 0.06 * length, colour)
    roof = [
        (x + 0.2 * length, y),
        (x + 0.8 * length, y),
        (x + 0.95 * length, y + 0.45 * tall),
        (x + 0.05 * length, y + 0.45 * tall),
    ]
    draw.polygon(roof, colour)
    window = [(x + 0.25 * length, y + 0.06 * tall), (x + 0.75 * length, y + 0.06 * tall)]
    draw.polygon([*window, (x + 0.87 * length, y + 0.4 * tall), (x + 0.13 * length, y + 0.4 * tall)], (glass,) * 3)
    for side in (0.05, 0.79):
        draw.ellipse([x + side * length, y + 0.5 * tall, x + (side + 0.16) * length, y + 0.64 * tall], lamp)


def _bytes(colour: Array) -> tuple[int, int, int]:
    red, green, blue = (int(channel) for channel in np.clip(np.asarray(colour) * 255, 0, 255))
    return red, green, blue


def _canvas(image: Array) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8))
    return canvas, ImageDraw.Draw(canvas)


def _array(canvas: Image.Image) -> Array:
    return np.asarray(canvas, np.float32) / 255
