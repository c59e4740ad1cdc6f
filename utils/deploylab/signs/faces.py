"""The fifteen sign faces, each drawn with the variety of the countries that use it.

Proportions follow the pattern sheets of the Vienna Convention on Road Signs and Signals (1968) loosely and on purpose:
ring width, lettering, arrow shape and ground colour differ from country to country, and a network that has to read
photographs from anywhere must see all of that.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from deploylab.signs.glyphs import FLAT_THREE, Style, draw_text, text_width
from deploylab.signs.shapes import (
    Colour,
    Pen,
    Point,
    arc,
    arrow,
    mirror,
    polar,
    regular_polygon,
    round_corners,
)

Random = np.random.Generator
Painter = Callable[[Pen, Random], None]

_COLOURS: dict[str, tuple[Colour, Colour]] = {
    # darkest and lightest fresh paint
    "red": ((0.60, 0.0, 0.02), (0.92, 0.20, 0.18)),
    "blue": ((0.0, 0.16, 0.42), (0.16, 0.50, 0.90)),
    "yellow": ((0.90, 0.62, 0.0), (1.0, 0.84, 0.18)),
    "amber": ((0.86, 0.52, 0.0), (1.0, 0.80, 0.15)),
    "white": ((0.86, 0.86, 0.84), (1.0, 1.0, 1.0)),
    "black": ((0.0, 0.0, 0.0), (0.14, 0.14, 0.16)),
    "navy": ((0.05, 0.08, 0.25), (0.16, 0.20, 0.50)),
    "grey": ((0.40, 0.40, 0.40), (0.68, 0.68, 0.68)),
    "green": ((0.0, 0.30, 0.15), (0.10, 0.55, 0.32)),
    "orange": ((0.90, 0.35, 0.0), (1.0, 0.55, 0.10)),
    "brown": ((0.35, 0.18, 0.05), (0.50, 0.28, 0.14)),
}


def paint(rng: Random, name: str) -> Colour:
    """A shade of a traffic colour."""
    low, high = np.array(_COLOURS[name])
    mixed = low + (high - low) * np.clip(rng.random() + rng.normal(0, 0.08, 3), 0, 1)
    return float(mixed[0]), float(mixed[1]), float(mixed[2])


def chance(rng: Random, probability: float) -> bool:
    return bool(rng.random() < probability)


def draw_face(label: str, rng: Random, size: int) -> Image.Image:
    """A sign of class ``label`` (not "none") seen straight on: RGBA, ``size`` x ``size``, clear outside the plate."""
    pen = Pen(size)
    PAINTERS[label](pen, rng)
    return pen.image()


def ground(rng: Random, yellow: float = 0.12) -> Colour:
    """White ground; yellow in Sweden, Finland, Iceland, Poland (warnings) and at road works."""
    return paint(rng, "yellow" if chance(rng, yellow) else "white")


def lettering(rng: Random) -> Style:
    """One of many national alphabets: narrow or wide, light or heavy, round or straight-sided."""
    return Style(
        aspect=rng.uniform(0.46, 0.76),
        weight=rng.uniform(0.115, 0.205),
        gap=rng.uniform(0.05, 0.2),
        square=rng.uniform(0.0, 1.0),
    )


# --- round signs with a red ring -------------------------------------------------------------------------------------


def red_ring(pen: Pen, rng: Random, yellow: float = 0.1) -> float:
    """The prohibitory disc; returns the radius of the free ground inside the ring."""
    edge = rng.choice([0.0, rng.uniform(0.01, 0.05)])
    width = rng.uniform(0.13, 0.34) if chance(rng, 0.85) else rng.uniform(0.08, 0.14)
    if edge:
        pen.disc(1.0, paint(rng, "white" if chance(rng, 0.8) else "black"))
    pen.disc(1.0 - edge, paint(rng, "red"))
    pen.disc(1.0 - edge - width, ground(rng, yellow))
    return 1.0 - edge - width


def number_sign(pen: Pen, rng: Random, number: str) -> None:
    """A speed limit of any number; sometimes with "ZONE", "km/h"-like small print or a word in the ring."""
    if chance(rng, 0.03):
        led_number_sign(pen, rng, number)
        return
    free = red_ring(pen, rng)
    style = lettering(rng)
    text = number.replace("3", FLAT_THREE) if chance(rng, 0.06) else number
    height = min(free * rng.uniform(0.8, 1.25), free * rng.uniform(1.45, 1.75) * 1.0 / text_width(text, 1.0, style))
    height = max(height, 0.45)
    colour = paint(rng, "black" if chance(rng, 0.9) else "navy")
    centre = (rng.normal(0, 0.015), rng.normal(0, 0.02))
    if chance(rng, 0.06):
        small_print(pen, rng, (0.0, free * 0.68 * rng.choice([-1, 1])), colour, rng.uniform(0.12, 0.2))
        height *= 0.8
    draw_text(pen, text, centre, height, style, colour)
    if chance(rng, 0.04):
        small_print(pen, rng, (0.0, -(free + 1) / 2 + 0.03), paint(rng, "white"), (1 - free) * 0.6)


def small_print(pen: Pen, rng: Random, centre: Point, colour: Colour, height: float) -> None:
    word = rng.choice(["ZONE", "KM H", "GENERELL", "RAPPEL", "TOTAL", "AREA", "MAX"])
    draw_text(pen, str(word), centre, height, Style(weight=0.16, aspect=0.5), colour)


def led_number_sign(pen: Pen, rng: Random, number: str) -> None:
    """A variable-message sign: light on black."""
    pen.rectangle((0, 0), 2, 2, paint(rng, "black"), radius=0.1)
    outer = rng.uniform(0.8, 0.95)
    pen.disc(outer, (0.95, 0.15, 0.1))
    free = outer - rng.uniform(0.1, 0.2)
    pen.disc(free, paint(rng, "black"))
    style = lettering(rng)
    height = min(free, free * 1.45 / text_width(number, 1.0, style))
    draw_text(pen, number, (0, 0), height, style, (1.0, 1.0, rng.uniform(0.4, 1.0)))


def _speed_limit(number: str) -> Painter:
    return lambda pen, rng: number_sign(pen, rng, number)


def _no_vehicles(pen: Pen, rng: Random) -> None:
    red_ring(pen, rng, yellow=0.08)


def _no_entry(pen: Pen, rng: Random) -> None:
    edge = rng.choice([0.0, rng.uniform(0.02, 0.08)])
    if edge:
        pen.disc(1.0, paint(rng, "white" if chance(rng, 0.85) else "black"))
    pen.disc(1.0 - edge, paint(rng, "red"))
    height = rng.uniform(0.22, 0.46)
    width = rng.uniform(1.25, 1.75)
    radius = rng.choice([0.0, 0.0, 0.04])
    pen.rectangle((0, 0), width, height, ground(rng, 0.04), radius)


# --- triangles -------------------------------------------------------------------------------------------------------


def triangle(pen: Pen, rng: Random, first_angle: float, yellow: float, border: str = "red") -> float:
    """A triangle with a broad border; returns how far its incentre lies below the middle of the plate."""
    down = first_angle > 0
    shift = -0.25 if down else 0.25
    corner = rng.uniform(0.05, 0.4)
    stretch = rng.uniform(0.93, 1.07)

    def fill(inset: float, colour: Colour, rounding: float) -> None:
        outline = regular_polygon(3, 1.15 - 2 * inset, first_angle)
        outline = [(x * stretch, y + shift) for x, y in outline]
        pen.polygon(round_corners(outline, rounding), colour)

    edge = rng.choice([0.0, rng.uniform(0.01, 0.05)])
    width = rng.uniform(0.10, 0.22)
    if edge:
        fill(0.0, paint(rng, rng.choice(["white", "white", "black", "yellow"])), corner + 0.05)
    fill(edge, paint(rng, border), corner)
    fill(edge + width, ground(rng, yellow), max(corner - width * rng.uniform(0.5, 2.0), 0.02))
    return shift


def _yield(pen: Pen, rng: Random) -> None:
    shift = triangle(pen, rng, 90, yellow=0.12)
    if chance(rng, 0.12):
        style = Style(weight=0.17, aspect=rng.uniform(0.5, 0.65))
        colour = paint(rng, "black" if chance(rng, 0.7) else "red")
        words = rng.choice(["GIVE WAY", "YIELD -", "CEDA PASO", "DAJ PREDNOST"])
        first, second = str(words).split()
        height = rng.uniform(0.13, 0.19)
        draw_text(pen, first, (0, shift - 0.12), height, style, colour)
        draw_text(pen, second, (0, shift + 0.12), height, style, colour)


def _general_caution(pen: Pen, rng: Random) -> None:
    if chance(rng, 0.04):
        shift = triangle(pen, rng, -90, yellow=1.0, border="black")
    else:
        shift = triangle(pen, rng, -90, yellow=0.2)
    colour = paint(rng, "black")
    bottom = shift + rng.uniform(0.30, 0.42)
    height = rng.uniform(0.65, 1.0)
    dot = rng.uniform(0.07, 0.12)
    top_width, foot_width = rng.uniform(0.07, 0.14), rng.uniform(0.03, 0.08)
    if chance(rng, 0.25):
        foot_width = top_width
    gap = rng.uniform(0.03, 0.09)
    foot, top = bottom - 2 * dot - gap, bottom - height
    body = [(-top_width, top), (top_width, top), (foot_width, foot), (-foot_width, foot)]
    pen.polygon(round_corners(body, rng.choice([0.01, 0.12])), colour)
    if chance(rng, 0.75):
        pen.disc(dot, colour, (0, bottom - dot))
    else:
        pen.rectangle((0, bottom - dot), 2 * dot, 2 * dot, colour)


# --- stop, priority --------------------------------------------------------------------------------------------------


def _stop(pen: Pen, rng: Random) -> None:
    edge = rng.uniform(0.02, 0.09)
    red = paint(rng, "red")
    if chance(rng, 0.1):
        pen.polygon(regular_polygon(8, 1.08, 22.5), red)
    pen.polygon(regular_polygon(8, 1.05, 22.5), paint(rng, "white"))
    pen.polygon(regular_polygon(8, 1.05 - edge, 22.5), red)
    if chance(rng, 0.03):
        _foreign_script(pen, rng, paint(rng, "white"))
        return
    word = "STOP" if chance(rng, 0.9) else str(rng.choice(["ALTO", "PARE", "ARRET", "DUR", "BERHENTI"]))
    style = Style(
        aspect=rng.uniform(0.38, 0.62),
        weight=rng.uniform(0.12, 0.22),
        gap=rng.uniform(0.08, 0.2),
        square=rng.uniform(0.3, 1.0),
    )
    height = min(rng.uniform(0.5, 0.85), rng.uniform(1.45, 1.72) / text_width(word, 1.0, style))
    draw_text(pen, word, (0, rng.normal(0, 0.02)), height, style, ground(rng, 0.02))


def _foreign_script(pen: Pen, rng: Random, colour: Colour) -> None:
    """Something written in another script: a tangle of strokes."""
    width = rng.uniform(0.07, 0.13)
    for _ in range(rng.integers(4, 9)):
        points = rng.uniform(-0.45, 0.45, (int(rng.integers(2, 4)), 2)) * (1.2, 0.9)
        pen.stroke([(float(x), float(y)) for x, y in points], width, colour)


def _priority_road(pen: Pen, rng: Random) -> None:
    white, black = paint(rng, "white"), paint(rng, "black")
    corner = rng.uniform(0.02, 0.2)

    def fill(radius: float, colour: Colour, rounding: float) -> None:
        pen.polygon(round_corners(regular_polygon(4, radius, 0), rounding), colour)

    outer = 1.0
    inner = rng.uniform(0.45, 0.76)
    if chance(rng, 0.25):
        fill(outer, white, corner)
        outer -= rng.uniform(0.02, 0.05)
    if chance(rng, 0.7):
        fill(outer, black, corner)
        outer -= rng.uniform(0.02, 0.08)
    fill(outer, white, corner)
    if chance(rng, 0.55):
        fill(inner, black, corner * 0.5)
        inner -= rng.uniform(0.02, 0.06)
    fill(inner, paint(rng, "amber"), corner * 0.5)


# --- blue discs ------------------------------------------------------------------------------------------------------


def blue_disc(pen: Pen, rng: Random) -> Colour:
    """The mandatory disc; returns the colour of its symbol."""
    white = paint(rng, "white")
    edge = rng.choice([0.0, rng.uniform(0.015, 0.08)], p=[0.3, 0.7])
    blue = paint(rng, "blue")
    if chance(rng, 0.1):
        pen.disc(1.0, blue)
        pen.disc(0.96, white)
        edge += 0.04
    elif edge:
        pen.disc(1.0, white)
    pen.disc(1.0 - edge, blue)
    return white


def random_arrow(pen: Pen, rng: Random, path: list[Point], colour: Colour, scale: float = 1.0) -> None:
    """An arrow in one of the national shapes."""
    head = str(rng.choice(["chevron", "triangle", "notched"], p=[0.55, 0.3, 0.15]))
    width = scale * (rng.uniform(0.13, 0.25) if head == "chevron" else rng.uniform(0.16, 0.34))
    size = scale * rng.uniform(0.48, 0.74) if head == "chevron" else scale * rng.uniform(0.5, 0.78)
    opening = rng.uniform(38, 50) if head == "chevron" else rng.uniform(30, 52)
    arrow(pen, path, width, colour, head, size, opening)


def bend(rng: Random) -> list[Point]:
    """From the bottom upwards and round to the right."""
    left = rng.uniform(-0.42, -0.15)
    turn = rng.uniform(-0.32, -0.02)
    path = [(left, rng.uniform(0.5, 0.75)), (left, turn), (rng.uniform(0.55, 0.76), turn)]
    if chance(rng, 0.2):
        path[2] = (path[2][0], turn + rng.uniform(-0.12, 0.06))
    radius = rng.choice([0.0, rng.uniform(0.15, 0.6)], p=[0.25, 0.75])
    return round_corners(path, radius, closed=False) if radius else path


def _turn_right_ahead(pen: Pen, rng: Random) -> None:
    colour = blue_disc(pen, rng)
    random_arrow(pen, rng, bend(rng), colour, rng.uniform(0.8, 1.0))


def _turn_left_ahead(pen: Pen, rng: Random) -> None:
    colour = blue_disc(pen, rng)
    random_arrow(pen, rng, mirror(bend(rng)), colour, rng.uniform(0.8, 1.0))


def _ahead_only(pen: Pen, rng: Random) -> None:
    colour = blue_disc(pen, rng)
    random_arrow(pen, rng, straight(rng, -90), colour, rng.uniform(0.85, 1.15))


def straight(rng: Random, angle: float) -> list[Point]:
    """A straight arrow path pointing to ``angle``."""
    return [polar(rng.uniform(0.5, 0.76), angle + 180), polar(rng.uniform(0.6, 0.8), angle)]


def _keep_right(pen: Pen, rng: Random) -> None:
    colour = blue_disc(pen, rng)
    random_arrow(pen, rng, straight(rng, rng.normal(45, 4)), colour, rng.uniform(0.85, 1.2))


def _keep_left(pen: Pen, rng: Random) -> None:
    colour = blue_disc(pen, rng)
    random_arrow(pen, rng, straight(rng, rng.normal(135, 4)), colour, rng.uniform(0.85, 1.2))


def _roundabout(pen: Pen, rng: Random) -> None:
    """Three arrows running round; against the clock where traffic keeps right, with it where it keeps left."""
    colour = blue_disc(pen, rng)
    arrows = 3 if chance(rng, 0.95) else 4
    radius = rng.uniform(0.44, 0.62)
    span = rng.uniform(0.6, 0.88) * 360 / arrows
    first = rng.choice([-90, -30, 30, 90]) + rng.normal(0, 12)
    clockwise = chance(rng, 0.35)
    head = str(rng.choice(["chevron", "triangle", "notched"], p=[0.5, 0.35, 0.15]))
    width = rng.uniform(0.09, 0.18)
    size = rng.uniform(0.26, 0.44)
    opening = rng.uniform(38, 52)
    for index in range(arrows):
        start = first + index * 360 / arrows
        path = arc((0, 0), radius, radius, start, start + span, steps=14)
        arrow(pen, path if clockwise else mirror(path), width, colour, head, size, opening)


PAINTERS: dict[str, Painter] = {
    "speed_limit_30": _speed_limit("30"),
    "speed_limit_50": _speed_limit("50"),
    "speed_limit_80": _speed_limit("80"),
    "priority_road": _priority_road,
    "yield": _yield,
    "stop": _stop,
    "no_vehicles": _no_vehicles,
    "no_entry": _no_entry,
    "general_caution": _general_caution,
    "turn_right_ahead": _turn_right_ahead,
    "turn_left_ahead": _turn_left_ahead,
    "ahead_only": _ahead_only,
    "keep_right": _keep_right,
    "keep_left": _keep_left,
    "roundabout": _roundabout,
}
"""How to draw each class. "none" has no face of its own: see ``others`` and ``background``."""
