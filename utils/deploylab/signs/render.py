"""Photographs of signs that never existed: draw a face, let it weather, put it into a scene, take the picture.

Everything follows from (label, seed): the same picture in every process and on every machine, up to the rounding of
Pillow's image codecs.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from deploylab.errors import InputError
from deploylab.signs import CLASSES, camera
from deploylab.signs.background import noise, scene
from deploylab.signs.faces import PAINTERS, Random, chance, draw_face
from deploylab.signs.others import draw_other_face, draw_other_number, draw_plate
from deploylab.signs.placement import Pose, Quad, plate_quad, scale_quad, shift_quad, warp
from deploylab.signs.wear import weather

_SIGNS = tuple(PAINTERS)
_OTHER_NUMBER = "other_number"
_RESAMPLINGS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.NEAREST)


def render(label: str, seed: int, size: int = 64) -> np.ndarray:
    """A camera crop of class ``label`` as the network sees it: uint8 RGB (size, size, 3).

    Crops are as in reality: from 15 to 150 pixels wide before they were scaled, tight or loose, sharp or not.
    """
    return _crop(label, random_for(label, seed), size)


def render_other_number(seed: int, size: int = 64) -> np.ndarray:
    """A camera crop of a speed limit that is none of the three classes, uint8 RGB (size, size, 3)."""
    return _crop(_OTHER_NUMBER, np.random.default_rng([len(CLASSES), seed]), size)


def _crop(subject: str, rng: Random, size: int) -> np.ndarray:
    if size < 8:
        raise InputError(f"render size {size}: at least 8 pixels are needed")
    harshness = rng.uniform(0.1, 1.0)
    sensor = np.exp(rng.uniform(np.log(15), np.log(150))) * max(size, 64) / 64
    canvas = int(np.clip(sensor, 0.7 * size, 1.6 * size))
    image, share = _compose(subject, rng, canvas, canvas, harshness, stretched=True)
    sensor = int(max(sensor, 16 / share))
    picture = _take(image, rng, (sensor, sensor), harshness, share)
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))


def photograph(label: str, seed: int, width: int = 640, height: int = 480) -> np.ndarray:
    """A camera frame with the sign held up large: uint8 RGB (height, width, 3), in ordinary conditions."""
    rng = random_for(label, seed)
    harshness = 0.25
    image, share = _compose(label, rng, height, width, harshness, stretched=False)
    return np.asarray(_take(image, rng, (width, height), harshness, 0.5 * share))


def random_for(label: str, seed: int) -> Random:
    """The stream of random numbers that belongs to a label and a seed."""
    if label not in CLASSES:
        raise InputError(f"unknown class {label!r}: expected one of {', '.join(CLASSES)}")
    if seed < 0:
        raise InputError(f"seed {seed} is negative: expected 0 or more")
    return np.random.default_rng([CLASSES.index(label), seed])


# --- the street ------------------------------------------------------------------------------------------------------


def _compose(
    subject: str, rng: Random, height: int, width: int, harshness: float, stretched: bool
) -> tuple[np.ndarray, float]:
    """The scene in front of the lens, float32 (height, width, 3), and which share of the frame the sign spans."""
    image = _out_of_focus(scene(rng, height, width), rng)
    size = _face_size(height, width)
    kind = rng.random()
    if subject == _OTHER_NUMBER:
        face, quad = draw_other_number(rng, size), _framing(rng, height, width, stretched)
    elif subject != "none":
        face, quad = draw_face(subject, rng, size), _framing(rng, height, width, stretched)
    elif kind < 0.45:
        return image, 1.0
    elif kind < 0.87:
        face, quad = draw_other_face(rng, size), _framing(rng, height, width, stretched)
    else:
        face, quad = draw_face(str(rng.choice(_SIGNS)), rng, size), _cut_off(rng, height, width)
    share = float(min(np.ptp(quad[:, 0]) / width, np.ptp(quad[:, 1]) / height, 1.0))
    return _mount(image, face, rng, quad, harshness), share


def _face_size(height: int, width: int) -> int:
    return int(min(max(height, width) * 1.2, 720))


def _out_of_focus(image: np.ndarray, rng: Random) -> np.ndarray:
    if not chance(rng, 0.4):
        return image
    radius = rng.uniform(0.005, 0.04) * image.shape[1]
    return camera.to_array(camera.blur(camera.to_picture(image), radius))


def _pose(rng: Random) -> Pose:
    """Mostly frontal and upright, sometimes seen from the side or bent."""
    roll = rng.normal(0, 4) if chance(rng, 0.8) else rng.uniform(-22, 22)
    yaw = rng.normal(0, 18) if chance(rng, 0.8) else rng.uniform(-58, 58)
    return Pose(float(np.clip(yaw, -60, 60)), float(rng.normal(0, 8)), float(roll), rng.uniform(4, 15))


def _framing(rng: Random, height: int, width: int, stretched: bool) -> Quad:
    """The sign inside the picture: tight and stretched to the frame, as crops are, or looser and off the centre."""
    pose = _pose(rng)
    if stretched and chance(rng, 0.5):
        half_width = width / 2 * rng.uniform(0.78, 1.02)
        half_height = height / 2 * rng.uniform(0.78, 1.02)
        slack = 0.04
    else:
        half_height = min(height, width) / 2 * rng.uniform(0.48 if stretched else 0.66, 1.0)
        half_width = half_height * np.cos(np.radians(pose.yaw)) * (_squeeze(rng) if stretched else 1.0)
        slack = 0.08
    free_x = max(width / 2 - half_width, 0) * 0.7 + slack * half_width
    free_y = max(height / 2 - half_height, 0) * 0.7 + slack * half_height
    centre = (width / 2 + rng.uniform(-free_x, free_x), height / 2 + rng.uniform(-free_y, free_y))
    return plate_quad(pose, centre, half_width, half_height)


def _squeeze(rng: Random) -> float:
    """Width by height of a round sign after a 4:3 or 16:9 frame, or an uneven crop, was resized to a square."""
    return rng.uniform(0.55, 0.85) if chance(rng, 0.25) else rng.uniform(0.85, 1.18)


def _cut_off(rng: Random, height: int, width: int) -> Quad:
    """A sign of which only a part is in the picture."""
    half = min(height, width) / 2 * rng.uniform(0.4, 1.6)
    angle = rng.uniform(0, 2 * np.pi)
    away = np.array([np.cos(angle), np.sin(angle)])
    away = away / np.abs(away).max() * (np.array([width, height]) / 2 + half * rng.uniform(0.15, 0.6))
    return plate_quad(_pose(rng), (width / 2 + away[0], height / 2 + away[1]), half, half)


def _mount(image: np.ndarray, face: Image.Image, rng: Random, quad: Quad, harshness: float) -> np.ndarray:
    """Sign, pole, plates and neighbours in front of the scene, under their own light."""
    height, width = image.shape[:2]
    daylight = np.float32(_sign_brightness(rng, harshness))
    layers = _neighbours(rng, quad, _face_size(height, width), harshness)
    layers.append((weather(face, rng, harshness), quad))
    if chance(rng, 0.5):
        image = _pole(image, rng, quad, daylight)
    if chance(rng, 0.3):
        image = image * np.float32(np.exp(rng.normal(0, 0.5)))
    for plate, place in layers:
        picture = warp(plate, place, height, width)
        alpha = picture[..., 3:]
        image = image * (1 - alpha) + picture[..., :3] * daylight * alpha
    if chance(rng, 0.14 * harshness):
        image = _occlude(image, rng, quad)
    return image


def _sign_brightness(rng: Random, harshness: float) -> float:
    """Front light about 0.9; against the light or at dusk the face is dark; headlights overexpose it."""
    kind = rng.random()
    if kind < 0.25 * min(harshness, 1):
        return rng.uniform(0.3, 0.6)
    if kind > 1 - 0.1 * harshness:
        return rng.uniform(1.05, 1.6)
    return rng.uniform(0.6, 1.05)


def _neighbours(rng: Random, quad: Quad, size: int, harshness: float) -> list[tuple[Image.Image, Quad]]:
    """Plates below, another sign above, below or beside, and sometimes a mounting board behind."""
    layers = []
    if chance(rng, 0.15):
        plate = draw_plate(rng, size // 2)
        layers.append((plate, shift_quad(scale_quad(quad, rng.uniform(0.5, 1.0)), 0, rng.uniform(0.75, 1.05))))
    if chance(rng, 0.15):
        label = str(rng.choice(_SIGNS))
        other = draw_face(label, rng, size // 2) if chance(rng, 0.5) else draw_other_face(rng, size // 2)
        right, down = ((0, -1.06), (0, 1.06), (1.06, 0), (-1.06, 0))[rng.integers(4)]
        layers.append((weather(other, rng, harshness), shift_quad(quad, right, down)))
    if chance(rng, 0.05):
        shade = int(rng.uniform(30, 255))
        board = Image.new("RGBA", (8, 8), (shade, shade, shade, 255))
        layers.insert(0, (board, scale_quad(quad, rng.uniform(1.0, 1.12))))
    return layers


def _pole(image: np.ndarray, rng: Random, quad: Quad, light: np.float32) -> np.ndarray:
    height, width = image.shape[:2]
    middle = quad.mean(axis=0)
    thick = max(1.0, float(np.ptp(quad[:, 0])) * rng.uniform(0.03, 0.12))
    left, right = int(middle[0] - thick / 2), int(middle[0] + thick / 2) + 1
    top = int(middle[1]) if chance(rng, 0.6) else 0
    left, right, top = (int(np.clip(v, 0, limit)) for v, limit in ((left, width), (right, width), (top, height)))
    if right > left:
        shades = np.linspace(rng.uniform(0.2, 0.9), rng.uniform(0.2, 0.9), right - left, dtype=np.float32)
        image[top:, left:right] = (shades * light)[None, :, None]
    return image


def _occlude(image: np.ndarray, rng: Random, quad: Quad) -> np.ndarray:
    """Foliage, a wall or a pole hides a part of the sign, at most about a quarter."""
    height, width = image.shape[:2]
    middle = quad.mean(axis=0)
    reach = float(np.ptp(quad[:, 0])) / 2
    angle = rng.uniform(0, 2 * np.pi)
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    along = (np.cos(angle) * (xs - middle[0]) + np.sin(angle) * (ys - middle[1])) / reach
    ragged = rng.uniform(0, 1.0) * (noise(rng, height, width, rng.uniform(3, 14), 2) - 0.5)
    mask = np.clip((along + ragged - rng.uniform(0.45, 0.95)) * rng.uniform(8, 40), 0, 1).astype(np.float32)
    return image + (scene(rng, height, width) - image) * mask[..., None]


# --- the picture -----------------------------------------------------------------------------------------------------


def _take(image: np.ndarray, rng: Random, sensor: tuple[int, int], harshness: float, share: float) -> Image.Image:
    """Light, lens, sensor and file of one shot; the result has ``sensor`` (width, height) pixels.

    ``share`` of the frame is what the sign spans; blur is measured by it, so that small signs stay readable.
    """
    if chance(rng, 0.18 * harshness):
        image = camera.cast_shadow(image, rng)
    if chance(rng, 0.2 * harshness):
        image = camera.veil(image, rng)
    image = camera.expose(image, rng, harshness)
    if chance(rng, 0.03 * harshness):
        image = camera.watermark(image, rng)
    scale = share * image.shape[1] / 64
    if chance(rng, 0.15 * harshness):
        image = camera.shake(image, rng, rng.uniform(2, 5) * scale)
    picture = camera.to_picture(image)
    if chance(rng, 0.45 * harshness):
        picture = camera.blur(picture, rng.uniform(0.3, 1.6) * scale)
    if picture.size != sensor:
        picture = picture.resize(sensor, _RESAMPLINGS[rng.choice(3, p=[0.65, 0.25, 0.1])])
    if chance(rng, 0.2 * harshness):
        picture = camera.sharpen(picture, rng)
    if chance(rng, 0.6):
        picture = camera.to_picture(camera.grain(camera.to_array(picture), rng, rng.uniform(0.0, 0.05) * harshness))
    if chance(rng, 0.5):
        picture = camera.jpeg(picture, int(rng.uniform(95 - 60 * min(harshness, 1.2), 96)))
    return picture
