"""Digits and capital letters of road signs as stroke paths, so that no font file is needed.

Each glyph is a list of polylines in a box from (0, 0), top left, to (1, 1), bottom right. The skeletons follow the
geometric style of DIN 1451; width, stroke and squareness are the caller's, which covers other national alphabets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deploylab.signs.shapes import Colour, Pen, Point, arc

Path = list[Point]

FLAT_THREE, ROUND_SIX, ROUND_NINE = "f", "g", "q"
"""How to write a 3 with a flat top, and a 6 and a 9 with a curved stem."""


@dataclass(frozen=True)
class Style:
    """How to letter: width of a glyph, of its stroke and of the gap to the next, each as a share of its height."""

    aspect: float = 0.56
    weight: float = 0.15
    gap: float = 0.14
    square: float = 0.0
    """0 for round bowls, 1 for bowls with straight sides."""


def draw_text(pen: Pen, text: str, centre: Point, height: float, style: Style, fill: Colour) -> None:
    """Letter ``text`` in one line around ``centre``; unknown characters leave a blank."""
    widths = [height * style.aspect * _RELATIVE_WIDTH.get(char, 1.0) for char in text]
    x = centre[0] - (sum(widths) + height * style.gap * (len(text) - 1)) / 2
    stroke = height * style.weight
    top = centre[1] - height / 2
    for char, width in zip(text, widths, strict=True):
        for path in _GLYPHS.get(char, _blank)(style.square):
            inner_width, inner_height = max(width - stroke, 0.0), height - stroke
            points = [(x + stroke / 2 + px * inner_width, top + stroke / 2 + py * inner_height) for px, py in path]
            pen.stroke(_square_ends(points, stroke), stroke, fill)
        x += width + height * style.gap


def text_width(text: str, height: float, style: Style) -> float:
    glyphs = sum(style.aspect * _RELATIVE_WIDTH.get(char, 1.0) for char in text)
    return height * (glyphs + style.gap * (len(text) - 1))


def _square_ends(points: Path, stroke: float) -> Path:
    """Lengthen an open path by half a stroke at both ends, so that ends are flush with the box."""
    if points[0] == points[-1]:
        return [*points, points[1]]
    return [_beyond(points[1], points[0], stroke / 2), *points[1:-1], _beyond(points[-2], points[-1], stroke / 2)]


def _beyond(start: Point, end: Point, distance: float) -> Point:
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = max((dx * dx + dy * dy) ** 0.5, 1e-9)
    return end[0] + dx / length * distance, end[1] + dy / length * distance


def _bowl(top: float, bottom: float, left: float, right: float, start: float, end: float, square: float) -> Path:
    """A round or straight-sided bowl: an arc whose upper and lower halves are pulled apart by ``square``."""
    radius_x, radius_y = (right - left) / 2, (bottom - top) / 2
    straight = square * max(radius_y - radius_x * 0.6, 0.0)
    points = arc(((left + right) / 2, (top + bottom) / 2), radius_x, radius_y - straight, start, end)
    middle = (top + bottom) / 2
    return [(x, y + (straight if y > middle + 1e-9 else -straight if y < middle - 1e-9 else 0.0)) for x, y in points]


def _closed(path: Path) -> Path:
    return [*path[:-1], path[0]]


def _blank(_: float) -> list[Path]:
    return []


def _zero(s: float) -> list[Path]:
    return [_closed(_bowl(0, 1, 0, 1, 0, 360, s))]


def _two(s: float) -> list[Path]:
    return [[*_bowl(0, 0.58, 0, 1, 190, 385, s * 0.5), (0.02, 1.0), (1.0, 1.0)]]


def _three(s: float) -> list[Path]:
    upper = _bowl(0, 0.5, 0.06, 0.94, 205, 430, s * 0.5)
    lower = _bowl(0.46, 1, 0, 1, -80, 160, s * 0.5)
    return [[*upper, (0.42, 0.48)], [(0.42, 0.48), *lower]]


def _flat_three(s: float) -> list[Path]:
    return [[(0.04, 0.0), (0.94, 0.0), (0.45, 0.4), *_bowl(0.4, 1, 0, 1, -80, 160, s * 0.5)]]


def _five(s: float) -> list[Path]:
    return [[(0.92, 0.0), (0.12, 0.0), (0.06, 0.47), *_bowl(0.36, 1, 0, 1, -145, 155, s * 0.5)]]


def _six(s: float) -> list[Path]:
    return [_closed(_bowl(0.38, 1, 0, 1, 0, 360, s * 0.5)), [(0.0, 0.68), (0.02, 0.5), (0.3, 0.18), (0.72, 0.0)]]


def _round_six(s: float) -> list[Path]:
    stem = _bowl(0, 1.0, 0, 1, 180, 295, s)
    return [_closed(_bowl(0.4, 1, 0, 1, 0, 360, s * 0.5)), stem]


def _round_nine(s: float) -> list[Path]:
    return [[(1 - x, 1 - y) for x, y in path] for path in _round_six(s)]


def _eight(s: float) -> list[Path]:
    return [_closed(_bowl(0, 0.48, 0.06, 0.94, 90, 450, s * 0.5)), _closed(_bowl(0.48, 1, 0, 1, -90, 270, s * 0.5))]


def _nine(s: float) -> list[Path]:
    return [[(1 - x, 1 - y) for x, y in path] for path in _six(s)]


def _s(s: float) -> list[Path]:
    upper = _bowl(0, 0.5, 0.02, 0.98, -20, -250, s * 0.4)
    lower = _bowl(0.48, 1, 0, 1, -70, 160, s * 0.4)
    return [[*upper, (0.5, 0.49), *lower]]


def _p(s: float) -> list[Path]:
    return [
        [(0.0, 1.0), (0.0, 0.0), (0.45, 0.0), *_bowl(0, 0.55, 0.1, 1, -80, 80, s * 0.5), (0.45, 0.55), (0.05, 0.55)]
    ]


def _r(s: float) -> list[Path]:
    return [*_p(s), [(0.5, 0.55), (1.0, 1.0)]]


def _lines(*paths: Path) -> Callable[[float], list[Path]]:
    return lambda _: list(paths)


_GLYPHS: dict[str, Callable[[float], list[Path]]] = {
    "0": _zero,
    "1": _lines([(0.1, 0.28), (0.7, 0.0), (0.7, 1.0)]),
    "2": _two,
    "3": _three,
    FLAT_THREE: _flat_three,
    "4": _lines([(0.72, 1.0), (0.72, 0.0), (0.0, 0.72), (1.0, 0.72)]),
    "5": _five,
    "6": _six,
    ROUND_SIX: _round_six,
    ROUND_NINE: _round_nine,
    "7": _lines([(0.0, 0.0), (1.0, 0.0), (0.35, 1.0)]),
    "8": _eight,
    "9": _nine,
    "A": _lines([(0.0, 1.0), (0.5, 0.0), (1.0, 1.0)], [(0.2, 0.68), (0.8, 0.68)]),
    "B": lambda s: [*_p(s), [(0.45, 0.5), *_bowl(0.5, 1, 0.1, 1, -80, 80, 0.0), (0.05, 1.0)]],
    "C": lambda s: [_bowl(0, 1, 0, 1, -40, -320, s)],
    "D": lambda s: [
        _closed([(0.0, 0.0), (0.4, 0.0), *_bowl(0, 1, 0, 1, -80, 80, s), (0.4, 1.0), (0.0, 1.0), (0.0, 0.0)])
    ],
    "E": _lines([(1.0, 0.0), (0.0, 0.0), (0.0, 1.0), (1.0, 1.0)], [(0.0, 0.5), (0.85, 0.5)]),
    "F": _lines([(1.0, 0.0), (0.0, 0.0), (0.0, 1.0)], [(0.0, 0.5), (0.85, 0.5)]),
    "G": lambda s: [[*_bowl(0, 1, 0, 1, -40, -350, s), (1.0, 0.55), (0.6, 0.55)]],
    "H": _lines([(0.0, 0.0), (0.0, 1.0)], [(1.0, 0.0), (1.0, 1.0)], [(0.0, 0.5), (1.0, 0.5)]),
    "I": _lines([(0.5, 0.0), (0.5, 1.0)]),
    "K": _lines([(0.0, 0.0), (0.0, 1.0)], [(1.0, 0.0), (0.05, 0.6)], [(0.35, 0.4), (1.0, 1.0)]),
    "L": _lines([(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)]),
    "M": _lines([(0.0, 1.0), (0.0, 0.0), (0.5, 0.7), (1.0, 0.0), (1.0, 1.0)]),
    "N": _lines([(0.0, 1.0), (0.0, 0.0), (1.0, 1.0), (1.0, 0.0)]),
    "O": _zero,
    "P": _p,
    "R": _r,
    "S": _s,
    "T": _lines([(0.0, 0.0), (1.0, 0.0)], [(0.5, 0.0), (0.5, 1.0)]),
    "U": lambda s: [[(0.0, 0.0), *_bowl(0.3, 1, 0, 1, 180, 0, s), (1.0, 0.0)]],
    "V": _lines([(0.0, 0.0), (0.5, 1.0), (1.0, 0.0)]),
    "W": _lines([(0.0, 0.0), (0.25, 1.0), (0.5, 0.25), (0.75, 1.0), (1.0, 0.0)]),
    "X": _lines([(0.0, 0.0), (1.0, 1.0)], [(1.0, 0.0), (0.0, 1.0)]),
    "Y": _lines([(0.0, 0.0), (0.5, 0.5), (1.0, 0.0)], [(0.5, 0.5), (0.5, 1.0)]),
    "Z": _lines([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)]),
    "-": _lines([(0.1, 0.5), (0.9, 0.5)]),
    "!": _lines([(0.5, 0.0), (0.5, 0.66)], [(0.5, 0.92), (0.5, 1.0)]),
}

_RELATIVE_WIDTH = {"1": 0.72, "I": 0.3, "M": 1.25, "W": 1.4, " ": 0.5, "L": 0.9, "!": 0.3}
