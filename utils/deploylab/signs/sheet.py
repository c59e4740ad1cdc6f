"""The printable sheet: all fifteen signs on one A4 page, as vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon

from deploylab.signs.faces import PAINTERS
from deploylab.signs.shapes import Colour, Pen, Point

MILLIMETRES = 1 / 25.4
PAGE = (210.0, 297.0)
COLUMNS, ROWS = 3, 5
SIGN = 48.0
"""Diameter of a sign on paper in millimetres."""

_DEFAULT_VARIANT = 5
_VARIANTS = {"speed_limit_30": 9, "speed_limit_50": 9, "speed_limit_80": 9, "priority_road": 11, "yield": 13}
_VARIANTS |= {"stop": 10, "no_vehicles": 13, "no_entry": 10, "general_caution": 3, "roundabout": 14}
"""Which of a sign's many variants is printed: the seed of its painter."""


class PagePen(Pen):
    """Draws the same shapes as :class:`Pen`, but as vectors on a matplotlib axes that spans -1 to 1."""

    def __init__(self, axes: Axes, diameter: float) -> None:
        self._axes = axes
        self._points_per_unit = diameter / 2 * MILLIMETRES * 72

    def polygon(self, points: Iterable[Point], fill: Colour) -> None:
        self._axes.add_patch(Polygon(np.array(list(points)), facecolor=fill, linewidth=0))

    def disc(self, radius: float, fill: Colour, centre: Point = (0.0, 0.0)) -> None:
        self._axes.add_patch(Circle(centre, radius, facecolor=fill, linewidth=0))

    def stroke(self, points: Sequence[Point], width: float, fill: Colour) -> None:
        xs, ys = zip(*points, strict=True)
        self._axes.plot(
            xs, ys, color=fill, linewidth=width * self._points_per_unit, solid_capstyle="butt", solid_joinstyle="round"
        )


def draw_sheet(path: Path) -> None:
    """Write the sheet as a PDF without a date, so that the same program makes the same file."""
    with rc_context({"pdf.compression": 9}):
        metadata = {"CreationDate": None, "Title": "RoadSigns", "Creator": "deploylab"}
        sheet_figure().savefig(path, metadata=metadata)


def sheet_figure() -> Figure:
    """The page with the signs and their names."""
    figure = Figure(figsize=(PAGE[0] * MILLIMETRES, PAGE[1] * MILLIMETRES))
    figure.text(0.5, 0.968, "RoadSigns: hold one up to the camera", ha="center", va="center", fontsize=15)
    for index, label in enumerate(PAINTERS):
        _draw_sign(figure, index, label)
    return figure


def _draw_sign(figure: Figure, index: int, label: str) -> None:
    row, column = divmod(index, COLUMNS)
    x = (column + 0.5) / COLUMNS - SIGN / PAGE[0] / 2
    y = 0.95 - (row + 0.5) * 0.95 / ROWS - SIGN / PAGE[1] / 2 + 0.012
    axes = figure.add_axes((x, y, SIGN / PAGE[0], SIGN / PAGE[1]))
    axes.set(xlim=(-1, 1), ylim=(1, -1))
    axes.set_axis_off()
    PAINTERS[label](PagePen(axes, SIGN), np.random.default_rng(_VARIANTS.get(label, _DEFAULT_VARIANT)))
    for artist in axes.get_children():
        artist.set_clip_on(False)
    figure.text(x + SIGN / PAGE[0] / 2, y - 0.014, label.replace("_", " "), ha="center", va="center", fontsize=11)
