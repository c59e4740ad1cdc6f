"""Figures of the labs: pictures, latencies, bars, the roofline. Each function returns a figure that a notebook shows.

All use the style ``deploylab.figures`` (``figures.mplstyle`` beside this file). Comparisons of engines are drawn by
:mod:`deploylab.report`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from deploylab.bench.energy import Track

STYLE = "deploylab.figures"
RIGHT, WRONG = "C2", "C1"


def pictures(
    images: Sequence[np.ndarray], titles: Sequence[str], title: str = "", columns: int = 8, right: Sequence[bool] = ()
) -> Figure:
    """A grid of pictures, (H, W, 3) or (H, W), uint8 or floats in 0..1. ``right`` colours each title."""
    rows = -(-len(images) // columns)
    shape = max(picture.shape[0] / picture.shape[1] for picture in images)
    height = (0.4 if title else 0) + rows * (7.6 / columns * shape + 0.25)
    with _drawn(rows, columns, figsize=(7.6, height)) as (figure, grid):
        for axes, *picture in zip(grid.flat, images, titles, right or [None] * len(images), strict=False):
            _show_picture(axes, *picture)
        for axes in grid.flat:
            axes.axis("off")
        _head(figure, title)
    return figure


def picture_table(rows: Mapping[str, Sequence[tuple[np.ndarray, str, bool]]], title: str = "") -> Figure:
    """One row of pictures for each key; each picture comes with its caption and whether that is right."""
    columns = max(map(len, rows.values()))
    with _drawn(len(rows), columns, figsize=(7.6, 0.4 + 1.45 * len(rows))) as (figure, grid):
        for line, (name, cells) in zip(grid, rows.items(), strict=True):
            for axes, cell in zip(line, cells, strict=False):
                _show_picture(axes, *cell)
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(True)
            line[0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center", labelpad=8)
        _head(figure, title)
    return figure


def answer(picture: np.ndarray, names: Sequence[str], probabilities: np.ndarray, title: str = "") -> Figure:
    """A picture beside the probability of each class."""
    with _drawn(1, 2, figsize=(7.6, 3.4), width_ratios=(1, 1.4)) as (figure, grid):
        left, right = grid.flat
        left.imshow(picture)
        left.axis("off")
        right.barh(names, probabilities)
        right.set(title=title, xlabel="probability", xlim=(0, 1))
        right.grid(axis="y", visible=False)
        right.invert_yaxis()
    return figure


def lines(series: Mapping[str, Iterable[float]], title: str, xlabel: str, ylabel: str, **axes_options: Any) -> Figure:
    """Values over their number (1, 2, ...), one line for each key. ``axes_options``: ``xscale="log"`` and the like."""
    with _drawn() as (figure, grid):
        axes = grid.flat[0]
        for name, values in series.items():
            values = list(values)
            axes.plot(range(1, len(values) + 1), values, marker="o", label=name)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel, **axes_options)
        axes.legend()
    return figure


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str, xlabel: str, ylabel: str, **options: Any
) -> Figure:
    """Lines through points (x values, y values), one for each key. ``options`` go to the axes: ``yscale="log"``."""
    with _drawn() as (figure, grid):
        axes = grid.flat[0]
        for name, (x, y) in series.items():
            axes.plot(x, y, label=name)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel, **options)
        axes.legend()
    return figure


def distribution(samples: np.ndarray, title: str, percentiles: Sequence[float] = (50, 90, 99)) -> Figure:
    """A histogram of latencies in milliseconds on a logarithmic axis, with their mean and percentiles."""
    with _drawn() as (figure, grid):
        axes = grid.flat[0]
        axes.hist(samples, bins=np.geomspace(samples.min(), samples.max(), 80), color="C5")
        for percentile, colour in zip(percentiles, ("C0", "C4", "C1"), strict=False):
            value = np.percentile(samples, percentile)
            axes.axvline(value, color=colour, label=f"P{percentile:g} {value:.2f} ms")
        axes.axvline(samples.mean(), color="C6", linestyle="--", label=f"mean {samples.mean():.2f} ms")
        axes.set(title=title, xlabel="latency (ms)", ylabel="calls", xscale="log")
        axes.legend()
    return figure


def dots(groups: Mapping[str, Iterable[float]], title: str, xlabel: str) -> Figure:
    """Every value as a dot, one line for each group, on a logarithmic axis."""
    with _drawn(figsize=(7.6, 1.1 + 0.42 * len(groups))) as (figure, grid):
        axes = grid.flat[0]
        for place, values in enumerate(groups.values()):
            axes.scatter(list(values), [place] * len(list(values)), alpha=0.6, color=f"C{place}")
        axes.set(title=title, xlabel=xlabel, xscale="log", ylim=(len(groups) - 0.5, -0.5))
        axes.set_yticks(range(len(groups)), groups)
    return figure


def bars(values: Mapping[str, float], title: str, unit: str, highlight: Sequence[str] = ()) -> Figure:
    """Horizontal bars with their values; those named in ``highlight`` are dark."""
    with _drawn(figsize=(7.6, 1.2 + 0.3 * len(values))) as (figure, grid):
        axes = grid.flat[0]
        colours = ["C0" if name in highlight or not highlight else "C5" for name in values]
        drawn = axes.barh(list(values), list(values.values()), color=colours)
        axes.bar_label(drawn, fmt="%.3g", padding=3, fontsize=9)
        axes.set(title=title, xlabel=unit)
        axes.grid(axis="y", visible=False)
        axes.invert_yaxis()
        axes.margins(x=0.12)
    return figure


def percentile_bars(samples: Mapping[Any, np.ndarray], percentiles: Sequence[float], title: str, xlabel: str) -> Figure:
    """For each key of ``samples`` (latencies in ms) one bar a percentile, on a logarithmic axis."""
    with _drawn() as (figure, grid):
        axes, places = grid.flat[0], np.arange(len(samples))
        width = 0.8 / len(percentiles)
        for index, percentile in enumerate(percentiles):
            values = [np.percentile(times, percentile) for times in samples.values()]
            shift = (index - (len(percentiles) - 1) / 2) * width
            drawn = axes.bar(places + shift, values, width * 0.95, label=f"P{percentile:g}")
            axes.bar_label(drawn, fmt="%.2f", padding=2, fontsize=9)
        axes.set(title=title, xlabel=xlabel, ylabel="latency (ms)", yscale="log")
        axes.set_xticks(places, [str(key) for key in samples])
        axes.margins(y=0.15)
        axes.legend()
    return figure


def two_series(panels: Mapping[str, tuple[Sequence[float], Sequence[float], float, bool]], ylabel: str) -> Figure:
    """Panels side by side, each with a series A and B, the number at which something happened, and whether B comes
    after A (else beside it)."""
    with _drawn(1, len(panels), sharey=True) as (figure, grid):
        for axes, (title, (a, b, event, after)) in zip(grid.flat, panels.items(), strict=True):
            axes.plot(np.arange(len(a)) + 1, a, "o", label="A")
            axes.plot(np.arange(len(b)) + 1 + (len(a) if after else 0), b, "o", label="B")
            axes.axvline(event, color="C6", linestyle="--", label="a neighbour arrives")
            axes.set(title=title, xlabel="number", yscale="log")
        grid.flat[0].set(ylabel=ylabel)
        grid.flat[0].legend()
    return figure


def roofline(
    peak: float,
    bandwidths: Mapping[str, float],
    layers: Mapping[str, np.ndarray],
    programs: Mapping[str, tuple[float, float]],
    title: str = "The roofline of this machine",
) -> Figure:
    """The roof min(peak, intensity * bandwidth), and what layers and whole programs reach below it.

    ``peak`` in GFLOP/s, ``bandwidths`` in GB/s, ``layers`` arrays of which column 0 is FLOP per byte and column 1
    GFLOP/s, ``programs`` the same for one point each. Williams, Waterman and Patterson, CACM 52(4), 2009.
    """
    with _drawn(figsize=(7.6, 4.4)) as (figure, grid):
        axes = grid.flat[0]
        points = np.vstack([*(found[:, :2] for found in layers.values()), *programs.values()])
        intensity = np.geomspace(
            points[:, 0].min() / 2, max(points[:, 0].max(), peak / min(bandwidths.values())) * 3, 200
        )
        for (name, bandwidth), style in zip(bandwidths.items(), ("-", "--", ":"), strict=False):
            axes.plot(intensity, np.minimum(peak, bandwidth * intensity), style, color="black", label=f"roof, {name}")
        for name, found in layers.items():
            axes.scatter(found[:, 0], found[:, 1], alpha=0.7, label=f"layer, {name}")
        for (name, point), marker in zip(programs.items(), "s*^Dv", strict=False):
            axes.scatter(*point, marker=marker, s=140, color="white", edgecolor="black", zorder=3, label=name)
        axes.set(title=title, xscale="log", yscale="log")
        axes.set(xlabel="arithmetic intensity (FLOP per byte)", ylabel="speed (GFLOP/s)")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def latency_throughput(
    curves: Mapping[str, Sequence[tuple[int, float, float, float | None]]], title: str, faint: Sequence[str] = ()
) -> Figure:
    """One line for each way to serve, through its points (clients, requests/s, P50, P90 or None), latencies in ms.

    A whisker reaches from P50 up to P90 where that is known; each point carries its number of clients. The lines
    named in ``faint`` are drawn thin.
    """
    with _drawn(figsize=(7.6, 4.6)) as (figure, grid):
        axes = grid.flat[0]
        for name, points in curves.items():
            clients, rates, typical, _ = zip(*points, strict=True)
            style = {"alpha": 0.35 if name in faint else 1.0}
            (line,) = axes.plot(rates, typical, marker="o", label=name, **style)
            style["color"] = line.get_color()
            for _, rate, p50, p90 in points:
                if p90 is not None:
                    axes.plot((rate, rate), (p50, p90), linewidth=1, marker="_", markevery=(1, 1), **style)
            for count, rate, p50 in zip(clients, rates, typical, strict=True):
                axes.annotate(str(count), (rate, p50), (4, -10), textcoords="offset points", fontsize=8, **style)
        axes.set(title=title, xlabel="throughput (requests/s)", ylabel="latency, P50 to P90 (ms)", yscale="log")
        axes.set_xlim(left=0)
        figure.legend(loc="outside lower center", ncols=3)
    return figure


def waiting_times(panels: Mapping[str, tuple[np.ndarray, np.ndarray]], budget_ms: float, title: str = "") -> Figure:
    """Panels side by side: for each request, when it was due (s) and how long its answer took (ms), and a budget."""
    with _drawn(1, len(panels), sharey=True) as (figure, grid):
        for axes, (name, (due_s, took_ms)) in zip(grid.flat, panels.items(), strict=True):
            axes.plot(due_s, took_ms, ".", alpha=0.5, markersize=4)
            axes.axhline(budget_ms, color="C6", linestyle="--", label="budget")
            axes.set(title=name, xlabel="request due (s)", yscale="log")
        grid.flat[0].set(ylabel="latency (ms)")
        grid.flat[0].legend(loc="upper left")
        _head(figure, title)
    return figure


def stacked_bars(rows: Mapping[str, Mapping[str, float]], title: str, unit: str) -> Figure:
    """One horizontal bar a row, made of its parts one after the other; the sum stands at its end."""
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    with _drawn(figsize=(7.6, 1.5 + 0.35 * len(rows))) as (figure, grid):
        axes, ends = grid.flat[0], np.zeros(len(rows))
        for part in parts:
            lengths = np.array([row.get(part, 0.0) for row in rows.values()])
            drawn = axes.barh(list(rows), lengths, left=ends, label=part)
            ends += lengths
        axes.bar_label(drawn, [f"{end:.3g}" for end in ends], padding=3, fontsize=9)
        axes.set(title=title, xlabel=unit)
        axes.grid(axis="y", visible=False)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        figure.legend(loc="outside lower center", ncols=len(parts))
    return figure


def timeline(panels: Mapping[str, Sequence[tuple[int, float, float, float]]], title: str, row: str = "") -> Figure:
    """Panels below each other on one time axis, with a bar for each job (row, submitted, begun, done), times in ms.

    The part from submitted to begun, the waiting, is pale; each bar carries the number of its job, from 1. ``row``
    names what a row of bars is.
    """
    heights = [len({job[0] for job in jobs}) + 0.6 for jobs in panels.values()]
    size = (7.6, 1.2 + 0.3 * sum(heights) + 0.3 * len(panels))
    options = {"sharex": True, "height_ratios": heights, "figsize": size}
    with _drawn(len(panels), 1, **options) as (figure, grid):
        for axes, (name, jobs) in zip(grid.flat, panels.items(), strict=True):
            for number, (place, submitted, begun, done) in enumerate(jobs, 1):
                waits, works = {"color": "C4", "alpha": 0.35}, {"color": "C0", "edgecolor": "white"}
                axes.barh(place, begun - submitted, left=submitted, label="waiting" if number == 1 else None, **waits)
                axes.barh(place, done - begun, left=begun, label="computing" if number == 1 else None, **works)
                axes.text((begun + done) / 2, place, str(number), ha="center", va="center", fontsize=7, color="white")
            places = sorted({job[0] for job in jobs})
            axes.set_yticks(places, [f"{row} {place + 1}".strip() for place in places])
            axes.set_title(name, fontsize=9.5, pad=4)
            axes.grid(axis="y", visible=False)
            axes.invert_yaxis()
        axes.set_xlabel("time (ms)")
        figure.legend(*grid.flat[-1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        _head(figure, title)
    return figure


def memory_plan(
    blocks: Sequence[tuple[int, int, int, int]], title: str, limit: tuple[str, int] | None = None
) -> Figure:
    """Where tensors lie in one piece of memory: a box for each (first step, last step, offset, size), sizes in bytes.

    ``limit`` draws a line with its name, such as what a device has.
    """
    with _drawn() as (figure, grid):
        axes = grid.flat[0]
        for number, (first, last, offset, size) in enumerate(blocks):
            box = {"color": f"C{number % 6}", "edgecolor": "white", "linewidth": 0.5}
            axes.barh(offset / 1e3, last - first + 1, size / 1e3, left=first - 0.5, align="edge", **box)
        axes.set(title=title, xlabel="operator", ylabel="address (kB)")
        if limit is not None:
            name, size = limit
            axes.axhline(size / 1e3, color="black", linestyle="--", label=name)
            axes.legend(loc="center right")
        axes.margins(x=0.01)
    return figure


def power_and_heat(track: Track, title: str, source: str = "", zones: Sequence[str] = ()) -> Figure:
    """Power and temperatures of a board over time. ``source`` says below the figure whose readings they are.

    Of the rails the five with most power are drawn, of the temperatures the four that rose or fell most, or those named
    in ``zones``.
    """
    watts = {name: np.array(track.rail(name)) for name in track.names("rails")}
    largest = sorted(watts, key=lambda name: -np.nanmean(watts[name]))[:5]
    heat = {name: np.array(track.temperature(name)) for name in zones or track.names("celsius")}
    moved = sorted((name for name in heat if np.isfinite(heat[name]).any()), key=lambda name: -np.nanstd(heat[name]))
    whole = {} if track.scope in watts or not watts else {"in all": np.array(track.watts())}
    panels = {
        "power (W)": {**whole, **{name: watts[name] for name in largest}},
        "temperature (°C)": {name: heat[name] for name in moved[:4]},
    }
    panels = {name: lines for name, lines in panels.items() if lines}
    with _drawn(max(1, len(panels)), 1, sharex=True, figsize=(7.6, 1.4 + 2.0 * len(panels))) as (figure, grid):
        for axes, (quantity, drawn) in zip(grid.flat, panels.items(), strict=False):
            for name, values in drawn.items():
                axes.plot(track.seconds, values, label=name)
            axes.set(ylabel=quantity)
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        grid.flat[0].set_ylim(bottom=0 if "power (W)" in panels else None)
        grid.flat[-1].set_xlabel("time (s)")
        if source:
            figure.supxlabel(source, fontsize=7, color="#555555")
        _head(figure, title)
    return figure


def presence(rows: Mapping[str, Sequence[bool]], columns: Sequence[str], title: str) -> Figure:
    """What is there and what is not: a row of filled or empty cells for each name."""
    with _drawn(figsize=(7.6, 1.0 + 0.24 * len(rows))) as (figure, grid):
        axes = grid.flat[0]
        for place, marks in enumerate(rows.values()):
            for column, there in enumerate(marks):
                fill = {"color": "C0"} if there else {"color": "none", "edgecolor": "#bbbbbb"}
                axes.barh(place, 0.9, 0.8, left=column - 0.45, **fill)
        axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_xlim(-0.55, len(columns) - 0.45)
        axes.xaxis.tick_top()
        axes.grid(False)
        axes.invert_yaxis()
        _head(figure, title)
    return figure


def _show_picture(axes: Axes, picture: np.ndarray, caption: str, right: bool | None = None) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1 if picture.dtype.kind == "f" else 255)
    axes.grid(False)
    colour = "#333333" if right is None else RIGHT if right else WRONG
    axes.set_title(caption, fontsize=7.5, loc="center", weight="normal", pad=3, color=colour)


def _head(figure: Figure, title: str) -> None:
    if title:
        figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=11)


@contextlib.contextmanager
def _drawn(rows: int = 1, columns: int = 1, **options: Any) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure with its grid of axes in the course's style; closed afterwards, so that a notebook shows it once."""
    import matplotlib.pyplot as plt

    with plt.style.context(STYLE):
        figure, grid = plt.subplots(rows, columns, squeeze=False, **options)
        yield figure, grid
        for axes in grid.flat:
            _plain_numbers(axes)
            _keep_colours(axes)
        plt.close(figure)


def _keep_colours(axes: Axes) -> None:
    """Lines look up a colour such as C1 when they are shown, which is after the style is gone: look it up now."""
    from matplotlib.colors import to_rgba

    legends = [*axes.figure.legends, axes.get_legend()]
    in_legends = [line for legend in legends if legend for line in legend.get_lines()]
    for line in (*axes.lines, *in_legends):
        line.set_color(to_rgba(line.get_color()))


def _plain_numbers(axes: Axes) -> None:
    """0.5, 1, 2, 5 on logarithmic axes instead of powers of ten."""
    from matplotlib import ticker

    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        if axis.get_scale() == "log":
            marks = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
            axis.set_major_locator(ticker.LogLocator(subs=marks))
            axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(ticker.NullFormatter())
