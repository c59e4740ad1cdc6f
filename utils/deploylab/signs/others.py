"""Traffic signs and discs that are none of the fifteen: what a network must not mistake for one of them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from deploylab.signs.faces import (
    Painter,
    Random,
    bend,
    blue_disc,
    chance,
    number_sign,
    paint,
    random_arrow,
    red_ring,
    straight,
    triangle,
)
from deploylab.signs.glyphs import ROUND_NINE, ROUND_SIX, Style, draw_text
from deploylab.signs.shapes import Colour, Pen, Point, arc, mirror, move, polar, rectangle, regular_polygon, rotate

_OTHER_NUMBERS = ("5", "10", "15", "20", "25", "40", "45", "60", "70", "90", "100", "110", "120", "130")
_WORDS = ("TAXI", "BUS", "ZONE", "HOTEL", "AUSFAHRT", "CENTRO", "PARIS", "ROMA", "WC", "KM 2", "200 M", "P", "H", "I")


def draw_other_face(rng: Random, size: int) -> Image.Image:
    """A sign that is none of the classes: RGBA, ``size`` x ``size``, transparent outside the plate."""
    pen = Pen(size)
    _PAINTERS[rng.choice(len(_PAINTERS), p=_WEIGHTS)](pen, rng)
    return pen.image()


def draw_other_number(rng: Random, size: int) -> Image.Image:
    """A speed limit that is not 30, 50 or 80: what looks most like a class without being one."""
    number = str(rng.choice(_OTHER_NUMBERS))
    if chance(rng, 0.6):
        number = number.replace("6", ROUND_SIX).replace("9", ROUND_NINE)
    pen = Pen(size)
    number_sign(pen, rng, number)
    return pen.image()


def draw_plate(rng: Random, size: int) -> Image.Image:
    """A rectangular plate with text or a symbol, as hangs below a sign."""
    pen = Pen(size)
    _text_plate(pen, rng)
    return pen.image()


# --- symbols ---------------------------------------------------------------------------------------------------------


def _blob(pen: Pen, rng: Random, colour: Colour, centre: Point = (0, 0), scale: float = 0.5) -> None:
    """Something between a vehicle, an animal and a person: a few random strokes and shapes."""
    x, y = centre
    for _ in range(rng.integers(2, 6)):
        dx, dy = rng.uniform(-0.6, 0.6, 2) * scale
        kind = rng.integers(3)
        if kind == 0:
            pen.disc(scale * rng.uniform(0.1, 0.35), colour, (x + dx, y + dy))
        elif kind == 1:
            pen.rectangle((x + dx, y + dy), scale * rng.uniform(0.2, 1.2), scale * rng.uniform(0.1, 0.7), colour)
        else:
            ends = rng.uniform(-0.8, 0.8, (3, 2)) * scale + (x, y)
            pen.stroke([(float(a), float(b)) for a, b in ends], scale * rng.uniform(0.1, 0.3), colour)


def _car(pen: Pen, colour: Colour, x: float, scale: float, rear: Colour | None = None) -> None:
    """A car from the front, as on "no overtaking"."""
    body = rectangle((x, 0.12 * scale), 0.9 * scale, 0.42 * scale)
    roof = [(x - 0.3 * scale, -0.4 * scale), (x + 0.3 * scale, -0.4 * scale)]
    roof += [(x + 0.42 * scale, -0.05 * scale), (x - 0.42 * scale, -0.05 * scale)]
    pen.polygon(body, rear or colour)
    pen.polygon(roof, rear or colour)
    pen.rectangle((x - 0.32 * scale, 0.4 * scale), 0.18 * scale, 0.2 * scale, colour)
    pen.rectangle((x + 0.32 * scale, 0.4 * scale), 0.18 * scale, 0.2 * scale, colour)


def _person(pen: Pen, rng: Random, colour: Colour, centre: Point, scale: float) -> None:
    x, y = centre
    stroke = 0.16 * scale
    pen.disc(0.15 * scale, colour, (x, y - 0.75 * scale))
    pen.stroke([(x, y - 0.6 * scale), (x + rng.uniform(-0.1, 0.1) * scale, y + 0.05 * scale)], stroke * 1.8, colour)
    for side in (-1, 1):
        pen.stroke([(x, y), (x + side * rng.uniform(0.1, 0.4) * scale, y + 0.8 * scale)], stroke, colour)
        hand = (x + side * rng.uniform(0.25, 0.5) * scale, y + rng.uniform(-0.3, 0.05) * scale)
        pen.stroke([(x, y - 0.5 * scale), hand], stroke * 0.8, colour)


def _bicycle(pen: Pen, colour: Colour, centre: Point, scale: float) -> None:
    x, y = centre
    for side in (-1, 1):
        wheel = arc((x + side * 0.5 * scale, y + 0.2 * scale), 0.36 * scale, 0.36 * scale, 0, 360)
        pen.stroke(wheel, 0.08 * scale, colour)
    frame = [(-0.5, 0.2), (-0.2, -0.3), (0.35, -0.3), (0.0, 0.2), (-0.5, 0.2)]
    pen.stroke(move(frame, x, y, scale), 0.08 * scale, colour)
    pen.stroke(move([(0.5, 0.2), (0.3, -0.5), (0.55, -0.5)], x, y, scale), 0.08 * scale, colour)


# --- red rings -------------------------------------------------------------------------------------------------------


def _other_number(pen: Pen, rng: Random) -> None:
    number_sign(pen, rng, str(rng.choice(_OTHER_NUMBERS)))


def _no_overtaking(pen: Pen, rng: Random) -> None:
    free = red_ring(pen, rng)
    scale = free * rng.uniform(0.7, 0.95)
    black, red = paint(rng, "black"), paint(rng, "red")
    left_red = chance(rng, 0.7)
    _car(pen, red if left_red else black, -0.42 * scale, scale * 0.8)
    _car(pen, black if left_red else red, 0.45 * scale, scale * 0.8)


def _ring_with_symbol(pen: Pen, rng: Random) -> None:
    free = red_ring(pen, rng)
    black = paint(rng, "black")
    kind = rng.integers(6)
    if kind == 0:
        _bicycle(pen, black, (0, 0), free)
    elif kind == 1:
        _person(pen, rng, black, (0, 0.05), free * 0.75)
    elif kind == 2:
        _car(pen, black, 0, free * 1.1)
    elif kind == 3:
        text = f"{rng.integers(2, 16)} T" if chance(rng, 0.5) else f"{rng.integers(2, 5)} {rng.integers(1, 9)}M"
        draw_text(pen, text, (0, 0), free * 0.6, Style(weight=0.16), black)
    else:
        _blob(pen, rng, black, scale=free * 0.8)
    if chance(rng, 0.25):
        _slash(pen, paint(rng, "red"), free, 0.16)


def _slash(pen: Pen, colour: Colour, radius: float, width: float, angle: float = 45) -> None:
    pen.stroke([polar(radius, angle), polar(radius, angle + 180)], width, colour)


def _no_turn(pen: Pen, rng: Random) -> None:
    free = red_ring(pen, rng)
    path = bend(rng) if chance(rng, 0.6) else straight(rng, -90)
    path = path if chance(rng, 0.5) else mirror(path)
    random_arrow(pen, rng, move(path, 0, 0, free * 0.9), paint(rng, "black"), free * 0.8)
    if chance(rng, 0.85):
        _slash(pen, paint(rng, "red"), free, rng.uniform(0.1, 0.2), rng.choice([45, 135]))


def _no_parking(pen: Pen, rng: Random) -> None:
    edge = rng.choice([0.0, 0.04])
    pen.disc(1.0, paint(rng, "white"))
    red = paint(rng, "red")
    pen.disc(1.0 - edge, red)
    free = 1.0 - edge - rng.uniform(0.12, 0.24)
    pen.disc(free, paint(rng, "blue"))
    width = rng.uniform(0.12, 0.24)
    _slash(pen, red, free, width)
    if chance(rng, 0.5):
        _slash(pen, red, free, width, 135)


def _end_of_limit(pen: Pen, rng: Random) -> None:
    black = paint(rng, "grey" if chance(rng, 0.4) else "black")
    pen.disc(1.0, black if chance(rng, 0.7) else paint(rng, "red"))
    pen.disc(rng.uniform(0.9, 0.97), paint(rng, "white"))
    if chance(rng, 0.5):
        draw_text(pen, str(rng.choice([*_OTHER_NUMBERS, "30", "50", "80"])), (0, 0), 0.8, Style(), paint(rng, "grey"))
    slope = rng.choice([-45, -60])
    if chance(rng, 0.5):
        _slash(pen, black, 0.92, rng.uniform(0.15, 0.3), slope)
        return
    for offset in np.linspace(-0.2, 0.2, 5):
        line = [(-0.85, float(offset)), (0.85, float(offset))]
        pen.stroke(rotate(line, slope), 0.05, black)


# --- triangles, diamonds ---------------------------------------------------------------------------------------------


def _other_warning(pen: Pen, rng: Random) -> None:
    shift = triangle(pen, rng, -90, yellow=0.2)
    black = paint(rng, "black")
    centre = (0.0, shift + 0.08)
    kind = rng.integers(9)
    if kind == 0:
        path = (
            [(-0.05, 0.4), (-0.05, 0.0), (0.25, -0.35)]
            if chance(rng, 0.5)
            else [(0.1, 0.4), (0.1, 0.05), (-0.25, -0.3)]
        )
        random_arrow(pen, rng, move(path, 0, shift + 0.05), black, 0.55)
    elif kind == 1:
        _person(pen, rng, black, (-0.12, centre[1]), 0.45)
        _person(pen, rng, black, (0.18, centre[1] + 0.05), 0.4)
    elif kind == 2:
        _cross(pen, rng, centre, black)
    elif kind == 3:
        for y, colour in zip((-0.32, 0.0, 0.32), ("red", "yellow", "green"), strict=True):
            pen.disc(0.12, paint(rng, colour), (0, centre[1] + y))
    elif kind == 4:
        pen.stroke([(0, shift - 0.4), (0, shift + 0.45)], 0.16, black)
        pen.stroke([(-0.35, shift + 0.12), (0.35, shift + 0.12)], rng.uniform(0.06, 0.14), black)
    elif kind == 5:
        pen.stroke(arc((-0.18, shift + 0.4), 0.18, 0.22, 180, 360), 0.1, black)
        pen.stroke(arc((0.18, shift + 0.4), 0.18, 0.22, 180, 360), 0.1, black)
    elif kind == 6:
        for side in (-1, 1):
            sway = [(0.12 * side, -0.3), (0.12 * side + 0.08, -0.05), (0.12 * side, 0.2), (0.2 * side, 0.42)]
            pen.stroke(move(sway, 0, shift), 0.09, black)
    else:
        _blob(pen, rng, black, centre, 0.45)


def _cross(pen: Pen, rng: Random, centre: Point, colour: Colour) -> None:
    for angle in (45, 135) if chance(rng, 0.6) else (0, 60, 120):
        ends = [polar(0.38, angle, centre), polar(0.38, angle + 180, centre)]
        pen.stroke(ends, rng.uniform(0.05, 0.14), colour)


def _end_of_priority(pen: Pen, rng: Random) -> None:
    pen.polygon(regular_polygon(4, 1.0, 0), paint(rng, "black"))
    pen.polygon(regular_polygon(4, 0.95, 0), paint(rng, "white"))
    pen.polygon(regular_polygon(4, rng.uniform(0.5, 0.7), 0), paint(rng, "amber"))
    for offset in (-0.12, -0.04, 0.04, 0.12):
        pen.stroke([(-0.5 + offset, 0.5 + offset), (0.5 + offset, -0.5 + offset)], 0.05, paint(rng, "black"))


def _orange_diamond(pen: Pen, rng: Random) -> None:
    """Warning diamonds of the Americas and of Australia."""
    pen.polygon(regular_polygon(4, 1.0, 0), paint(rng, "black"))
    pen.polygon(regular_polygon(4, 0.95, 0), paint(rng, "orange" if chance(rng, 0.5) else "yellow"))
    _blob(pen, rng, paint(rng, "black"), scale=0.5)


# --- blue discs and squares ------------------------------------------------------------------------------------------


def _other_blue_disc(pen: Pen, rng: Random) -> None:
    colour = blue_disc(pen, rng)
    kind = rng.integers(8)
    if kind == 0:
        _bicycle(pen, colour, (0, 0), 0.85)
    elif kind == 1:
        _person(pen, rng, colour, (0, 0.05), 0.7)
        if chance(rng, 0.5):
            _person(pen, rng, colour, (0.4, 0.2), 0.45)
    elif kind == 2:
        number = str(rng.choice(["30", "40", "50", "60", "70", "80"]))
        draw_text(pen, number, (0, 0), rng.uniform(0.7, 0.95), Style(), colour)
    elif kind in (3, 4):
        _two_way_arrow(pen, rng, colour)
    elif kind == 5:
        for side in (-1, 1):
            random_arrow(pen, rng, [(side * 0.12, -0.5), (side * 0.5, 0.5)], colour, 0.55)
    elif kind == 6:
        _person(pen, rng, colour, (-0.4, 0.0), 0.55)
        _bicycle(pen, colour, (0.38, 0.1), 0.45)
        pen.stroke([(0, -0.85), (0, 0.85)], 0.06, colour)
    else:
        _blob(pen, rng, colour, scale=0.7)
    if chance(rng, 0.08):
        _slash(pen, paint(rng, "red"), 1.0, 0.14)


def _two_way_arrow(pen: Pen, rng: Random, colour: Colour) -> None:
    """Straight on or turn: an upward arrow with a branch, or both turns."""
    turn = bend(rng)
    turn = [(x + 0.25, y) for x, y in turn]
    scale = rng.uniform(0.6, 0.75)
    turn = move(turn, -0.1, 0.1, 0.8)
    other = mirror(turn) if chance(rng, 0.3) else [(turn[0][0], turn[0][1]), (turn[0][0], -0.75)]
    if chance(rng, 0.5):
        turn, other = mirror(turn), mirror(other)
    random_arrow(pen, rng, turn, colour, scale)
    random_arrow(pen, rng, other, colour, scale)


def _blue_square(pen: Pen, rng: Random) -> None:
    white = paint(rng, "white")
    edge = rng.uniform(0.0, 0.08)
    width, height = rng.choice([2.0, 2.0, 1.4]), rng.choice([2.0, 2.0, 1.4])
    corner = rng.uniform(0.02, 0.3)
    background = paint(rng, str(rng.choice(["blue", "blue", "blue", "green", "brown"])))
    pen.rectangle((0, 0), width, height, white, corner)
    pen.rectangle((0, 0), width - 2 * edge, height - 2 * edge, background, corner)
    kind = rng.integers(6)
    if kind == 0:
        draw_text(pen, str(rng.choice(["P", "H", "I", "P", "M"])), (0, 0), min(height, width) * 0.7, Style(), white)
    elif kind == 1:
        pen.polygon(regular_polygon(3, 0.85, -90), white)
        _person(pen, rng, paint(rng, "black"), (0, 0.1), 0.45)
    elif kind == 2:
        random_arrow(pen, rng, straight(rng, rng.choice([-90, 0, 180])), white, 0.8)
    elif kind == 3:
        _car(pen, white, 0, 0.9)
    elif kind == 4:
        pen.stroke([(0, 0.8), (0, -0.6)], 0.3, white)
        pen.stroke([(-0.4, -0.5), (0.4, -0.5)], 0.25, paint(rng, "red"))
    else:
        _blob(pen, rng, white, scale=0.6)


# --- plates and discs ------------------------------------------------------------------------------------------------


def _text_plate(pen: Pen, rng: Random) -> None:
    height = rng.uniform(0.5, 1.6)
    colours = [("white", "black"), ("blue", "white"), ("green", "white"), ("yellow", "black"), ("brown", "white")]
    back, front = colours[rng.choice(5, p=[0.5, 0.2, 0.1, 0.15, 0.05])]
    ink = paint(rng, front)
    pen.rectangle((0, 0), 2.0, height, ink, 0.08)
    pen.rectangle((0, 0), 1.92, height - 0.08, paint(rng, back), 0.08)
    if chance(rng, 0.25):
        random_arrow(pen, rng, [(-0.7, 0.0), (0.7, 0.0)] if chance(rng, 0.5) else [(0.7, 0.0), (-0.7, 0.0)], ink, 0.5)
        return
    rows = 1 if height < 0.9 else int(rng.integers(1, 4))
    for row in range(rows):
        y = ((row + 0.5) / rows - 0.5) * height * 0.85
        word = str(rng.choice(_WORDS))
        letter = min(0.6 * height / rows, 1.6 / max(len(word) * 0.7, 1))
        draw_text(pen, word, (0, y), letter, Style(weight=0.15, aspect=0.55), ink)


def _plain_disc(pen: Pen, rng: Random) -> None:
    """Blank discs, lamps, back sides, hub caps: rings of arbitrary colours, but not a red ring on white."""
    names = ["white", "black", "grey", "blue", "green", "yellow", "orange", "brown"]
    radius = 1.0
    for _ in range(rng.integers(1, 4)):
        pen.disc(radius, paint(rng, str(rng.choice(names))))
        radius *= rng.uniform(0.4, 0.95)


def _traffic_light(pen: Pen, rng: Random) -> None:
    pen.rectangle((0, 0), 0.8, 2.0, paint(rng, "black"), 0.1)
    lit = rng.integers(3)
    for index, name in enumerate(("red", "amber", "green")):
        colour = paint(rng, name)
        shade = colour if index == lit else tuple(channel * 0.25 for channel in colour)
        pen.disc(0.27, shade, (0, (index - 1) * 0.62))


def _chevron_board(pen: Pen, rng: Random) -> None:
    height = rng.uniform(0.5, 2.0)
    pen.rectangle((0, 0), 2.0, height, paint(rng, "white"))
    name = str(rng.choice(["red", "black", "blue"]))
    side = rng.choice([-1, 1])
    for x in np.arange(-0.8, 1.0, 0.6):
        points = [(x * side, -height / 2), ((x + 0.25) * side, 0.0), (x * side, height / 2)]
        pen.stroke([(float(a), float(b)) for a, b in points], 0.28, paint(rng, name))


_CATALOGUE: list[tuple[Painter, float]] = [
    (_other_number, 0.17),
    (_no_overtaking, 0.07),
    (_ring_with_symbol, 0.11),
    (_no_turn, 0.05),
    (_no_parking, 0.06),
    (_end_of_limit, 0.06),
    (_other_warning, 0.14),
    (_end_of_priority, 0.03),
    (_orange_diamond, 0.02),
    (_other_blue_disc, 0.10),
    (_blue_square, 0.06),
    (_text_plate, 0.05),
    (_plain_disc, 0.04),
    (_traffic_light, 0.02),
    (_chevron_board, 0.02),
]
_PAINTERS = [painter for painter, _ in _CATALOGUE]
_WEIGHTS = np.array([weight for _, weight in _CATALOGUE])
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
