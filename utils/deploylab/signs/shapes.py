"""Plane geometry of road signs and the pen that draws it.

Coordinates: x to the right, y downwards, the sign plate inside the square from -1 to 1. Angles in degrees, clockwise on
the page, 0 pointing right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float]
Colour = tuple[float, float, float]
"""Red, green, blue in [0, 1]."""


class Pen:
    """Draws filled shapes on a transparent square plate, antialiased by drawing larger and shrinking."""

    def __init__(self, size: int, supersample: int = 2) -> None:
        self.size = size
        self._pixels = size * supersample
        self._image = Image.new("RGBA", (self._pixels, self._pixels), (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self._image)

    def polygon(self, points: Iterable[Point], fill: Colour) -> None:
        self._draw.polygon([self._to_pixels(point) for point in points], fill=_to_bytes(fill))

    def disc(self, radius: float, fill: Colour, centre: Point = (0.0, 0.0)) -> None:
        x, y = centre
        corners = [self._to_pixels((x - radius, y - radius)), self._to_pixels((x + radius, y + radius))]
        self._draw.ellipse(corners, fill=_to_bytes(fill))

    def stroke(self, points: Sequence[Point], width: float, fill: Colour) -> None:
        """A line of ``width`` along ``points`` with blunt ends and rounded joints."""
        pixels = max(1, round(width * self._pixels / 2))
        self._draw.line([self._to_pixels(point) for point in points], _to_bytes(fill), pixels, joint="curve")

    def rectangle(self, centre: Point, width: float, height: float, fill: Colour, radius: float = 0.0) -> None:
        points = rectangle(centre, width, height)
        self.polygon(round_corners(points, radius) if radius else points, fill)

    def image(self) -> Image.Image:
        """The plate, RGBA, ``size`` x ``size``."""
        return self._image.resize((self.size, self.size), Image.Resampling.BOX)

    def _to_pixels(self, point: Point) -> tuple[float, float]:
        half = self._pixels / 2
        return half + point[0] * half, half + point[1] * half


def _to_bytes(colour: Colour) -> tuple[int, int, int, int]:
    red, green, blue = (round(255 * min(max(channel, 0.0), 1.0)) for channel in colour)
    return red, green, blue, 255


def polar(radius: float, angle: float, centre: Point = (0.0, 0.0)) -> Point:
    turn = math.radians(angle)
    return centre[0] + radius * math.cos(turn), centre[1] + radius * math.sin(turn)


def regular_polygon(corners: int, radius: float, first_angle: float) -> list[Point]:
    """Corners on a circle of ``radius``."""
    return [polar(radius, first_angle + 360 * corner / corners) for corner in range(corners)]


def rectangle(centre: Point, width: float, height: float) -> list[Point]:
    x, y = centre
    half_width, half_height = width / 2, height / 2
    return [
        (x - half_width, y - half_height),
        (x + half_width, y - half_height),
        (x + half_width, y + half_height),
        (x - half_width, y + half_height),
    ]


def arc(centre: Point, radius_x: float, radius_y: float, start: float, end: float, steps: int = 24) -> list[Point]:
    """Points on an elliptical arc from angle ``start`` to ``end``."""
    angles = np.radians(np.linspace(start, end, steps + 1))
    xs = centre[0] + radius_x * np.cos(angles)
    ys = centre[1] + radius_y * np.sin(angles)
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def move(points: Iterable[Point], dx: float = 0.0, dy: float = 0.0, scale: float = 1.0) -> list[Point]:
    return [(x * scale + dx, y * scale + dy) for x, y in points]


def rotate(points: Iterable[Point], angle: float) -> list[Point]:
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return [(cos * x - sin * y, sin * x + cos * y) for x, y in points]


def mirror(points: Iterable[Point]) -> list[Point]:
    """Left becomes right."""
    return [(-x, y) for x, y in points]


def round_corners(points: Sequence[Point], radius: float, closed: bool = True) -> list[Point]:
    """Replace each corner by a quadratic Bezier curve that starts ``radius`` before it (at most half of the edge)."""
    rounded: list[Point] = [] if closed else [points[0]]
    inner = range(len(points)) if closed else range(1, len(points) - 1)
    for index in inner:
        before, corner, after = points[index - 1], points[index], points[(index + 1) % len(points)]
        start, end = _towards(corner, before, radius), _towards(corner, after, radius)
        for t in (0.0, 0.17, 0.33, 0.5, 0.67, 0.83, 1.0):
            a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t**2
            rounded.append((a * start[0] + b * corner[0] + c * end[0], a * start[1] + b * corner[1] + c * end[1]))
    return rounded if closed else [*rounded, points[-1]]


def _towards(origin: Point, target: Point, distance: float) -> Point:
    dx, dy = target[0] - origin[0], target[1] - origin[1]
    share = min(distance / max(math.hypot(dx, dy), 1e-9), 0.5)
    return origin[0] + dx * share, origin[1] + dy * share


def arrow(
    pen: Pen,
    path: Sequence[Point],
    width: float,
    fill: Colour,
    head: str = "chevron",
    size: float = 0.5,
    open_: float = 43,
) -> None:
    """An arrow along ``path``.

    ``head`` is "chevron" (two barbs as thick as the shaft), "triangle" or "notched" (a triangle with its base cut in);
    ``size`` is the length of a barb, ``open_`` the angle between barb and shaft.
    """
    tip, before = path[-1], path[-2]
    heading = math.degrees(math.atan2(tip[1] - before[1], tip[0] - before[0]))
    length = size * math.cos(math.radians(open_))
    half = size * math.sin(math.radians(open_))
    if head == "chevron":
        back = width / math.sin(math.radians(open_))
        cut_x, cut_y = width * math.sin(math.radians(open_)), width * math.cos(math.radians(open_))
        outline = [(0, 0), (-length, half), (-length - cut_x, half - cut_y), (-back, 0)]
        outline += [(-length - cut_x, -half + cut_y), (-length, -half)]
        reach = back * 0.6
    else:
        outline = [(0, 0), (-length, half), (-length * (0.7 if head == "notched" else 1.0), 0), (-length, -half)]
        reach = length * 0.6
    pen.stroke([*shorten(path, reach)], width, fill)
    pen.polygon(move(rotate(outline, heading), *tip), fill)


def shorten(path: Sequence[Point], distance: float) -> list[Point]:
    """``path`` without its last ``distance``."""
    points = list(path)
    while len(points) > 2:
        (x0, y0), (x1, y1) = points[-2], points[-1]
        step = math.hypot(x1 - x0, y1 - y0)
        if step > distance:
            break
        distance -= step
        points.pop()
    (x0, y0), (x1, y1) = points[-2], points[-1]
    share = 1 - min(distance / max(math.hypot(x1 - x0, y1 - y0), 1e-9), 0.95)
    return [*points[:-1], (x0 + (x1 - x0) * share, y0 + (y1 - y0) * share)]
