"""Where a flat plate lands in the picture: orientation in space, projection, and the warp that puts it there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

Quad = np.ndarray
"""Corners in pixels, float64 (4, 2): top left, top right, bottom right, bottom left of the plate's square."""

_PLATE = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


@dataclass(frozen=True)
class Pose:
    """Turn of the plate against the camera, in degrees, and the camera's distance in plate half-widths."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    distance: float = 8.0


def project(points: np.ndarray, pose: Pose) -> np.ndarray:
    """Pinhole projection of plate points (N, 2) to the image plane; a plate seen straight on keeps its coordinates."""
    yaw, pitch, roll = np.radians([pose.yaw, pose.pitch, pose.roll])
    x = points[:, 0] * np.cos(roll) - points[:, 1] * np.sin(roll)
    y = points[:, 0] * np.sin(roll) + points[:, 1] * np.cos(roll)
    depth = x * np.sin(yaw)
    x = x * np.cos(yaw)
    y, depth = y * np.cos(pitch) - depth * np.sin(pitch), y * np.sin(pitch) + depth * np.cos(pitch)
    scale = pose.distance / (pose.distance + depth)
    return np.stack([x * scale, y * scale], axis=1)


def plate_quad(pose: Pose, centre: tuple[float, float], half_width: float, half_height: float) -> Quad:
    """The plate's corners when its projection is scaled to ``half_width`` and ``half_height`` pixels about ``centre``.

    The scales are those of the inscribed circle's bounding box, which every sign about fills.
    """
    corners = project(_PLATE, pose)
    turns = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    rim = project(np.stack([np.cos(turns), np.sin(turns)], axis=1), pose)
    low, high = rim.min(axis=0), rim.max(axis=0)
    scale = 2 * np.array([half_width, half_height]) / (high - low)
    return (corners - (low + high) / 2) * scale + np.array(centre)


def shift_quad(quad: Quad, right: float, down: float) -> Quad:
    """A neighbouring plate in the same plane, ``right`` and ``down`` plate widths away."""
    across = (quad[1] + quad[2] - quad[0] - quad[3]) / 2
    along = (quad[2] + quad[3] - quad[0] - quad[1]) / 2
    return quad + across * right + along * down


def scale_quad(quad: Quad, factor: float) -> Quad:
    middle = quad.mean(axis=0)
    return middle + (quad - middle) * factor


def warp(plate: Image.Image, quad: Quad, height: int, width: int) -> np.ndarray:
    """``plate`` (RGBA, square) laid into ``quad`` of an empty picture: float32 (height, width, 4) in [0, 1]."""
    extent = float(max(np.ptp(quad[:, 0]), np.ptp(quad[:, 1]), 1.0))
    if plate.size[0] > 1.5 * extent:
        side = max(2, round(extent))
        plate = plate.resize((side, side), Image.Resampling.BOX)
    size = plate.size[0]
    source = np.array([[0, 0], [size, 0], [size, size], [0, size]], float)
    picture = plate.transform(
        (width, height), Image.Transform.PERSPECTIVE, _homography(quad, source).tolist(), Image.Resampling.BILINEAR
    )
    return np.asarray(picture, np.float32) / 255


def _homography(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Eight coefficients of the projective map from four points to four points (Hartley and Zisserman, chapter 4)."""
    rows, values = [], []
    for (x, y), (u, v) in zip(start, end, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
        values += [u, v]
    return np.linalg.solve(np.array(rows), np.array(values))
