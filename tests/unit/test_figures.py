"""Figures of the labs are drawn from plain values, carry titles and units, and leave nothing open."""

from __future__ import annotations

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from deploylab import figures
from deploylab.bench.energy import Sample, Track

PICTURE = np.zeros((8, 8, 3), np.uint8)
TIMES = np.linspace(1.0, 3.0, 700)
JOBS = [(0, 0.0, 0.0, 4.0), (1, 1.0, 4.0, 6.0), (0, 5.0, 6.0, 9.0)]

WARM = [Sample(at=n, celsius={"cpu": 40.0 + n}) for n in range(5)]
BUSY = [Sample(at=n, watts=3.0 + n, rails={"a": 1.0, "b": 2.0 + n}, celsius={"cpu": 40.0}) for n in range(5)]

DRAWN = {
    "power_and_heat": lambda: figures.power_and_heat(Track(BUSY, "a + b"), "title", "recorded by others"),
    "heat": lambda: figures.power_and_heat(Track(WARM), "title"),
    "pictures": lambda: figures.pictures([PICTURE] * 3, ["a", "b", "c"], "title", columns=2, right=[True, False, True]),
    "picture_table": lambda: figures.picture_table({"row": [(PICTURE, "a", True)], "next": [(PICTURE, "b", False)]}),
    "answer": lambda: figures.answer(PICTURE, ["a", "b"], np.array([0.2, 0.8]), "b"),
    "lines": lambda: figures.lines({"a": TIMES, "b": iter([1.0])}, "title", "call", "ms", xscale="log"),
    "distribution": lambda: figures.distribution(TIMES, "title"),
    "dots": lambda: figures.dots({"a": [1.0, 2.0], "b": [3.0]}, "title", "ms"),
    "bars": lambda: figures.bars({"a": 1.0, "b": 2.0}, "title", "ms", highlight=["b"]),
    "percentile_bars": lambda: figures.percentile_bars({1: TIMES, 2: TIMES}, (50, 90), "title", "threads"),
    "two_series": lambda: figures.two_series({"left": ([1, 2], [3, 4], 1.5, True)}, "ms"),
    "roofline": lambda: figures.roofline(50, {"memory": 10}, {"1x1": np.array([[1.0, 5.0]])}, {"whole": (2.0, 4.0)}),
    "latency_throughput": lambda: figures.latency_throughput(
        {"a": [(1, 90.0, 10.0, 12.0), (4, 200.0, 20.0, None)], "b": [(1, 0.5, 2000.0, None)]}, "title", faint=["a"]
    ),
    "stacked_bars": lambda: figures.stacked_bars({"a": {"load": 1.0, "run": 2.0}, "b": {"run": 0.5}}, "title", "ms"),
    "timeline": lambda: figures.timeline({"one": JOBS, "two": JOBS[:1]}, "title", "request"),
    "memory_plan": lambda: figures.memory_plan([(0, 1, 0, 2000), (1, 3, 2000, 500)], "title", ("all", 2500)),
    "presence": lambda: figures.presence({"a": [True, False], "b": [True, True]}, ["1", "2"], "title"),
    "waiting_times": lambda: figures.waiting_times({"a": (TIMES, TIMES), "b": (TIMES[:1], TIMES[:1])}, 2.0, "title"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_drawn_and_closed(name):
    before = plt.get_fignums()
    with mpl.rc_context():
        figure = DRAWN[name]()
        assert isinstance(figure, Figure)
        figure.canvas.draw()
    assert plt.get_fignums() == before


def test_the_style_does_not_leak():
    before = dict(mpl.rcParams)
    DRAWN["bars"]()
    assert dict(mpl.rcParams) == before


def test_the_roof_is_the_lower_of_the_two_limits():
    figure = DRAWN["roofline"]()
    x, y = figure.axes[0].lines[0].get_data()
    assert np.allclose(y, np.minimum(50, 10 * np.asarray(x)))


def test_logarithmic_axes_have_plain_numbers():
    figure = DRAWN["distribution"]()
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert {"1", "2"} <= set(labels)


def test_a_line_keeps_the_colour_of_the_style():
    """The style is gone when a notebook shows the figure."""
    from matplotlib.colors import to_rgba

    figure = DRAWN["waiting_times"]()
    axes = figure.axes[0]
    assert axes.lines[-1].get_color() == axes.get_legend().get_lines()[0].get_color() == to_rgba("#777777")


def test_a_stacked_bar_is_as_long_as_its_parts_together():
    figure = DRAWN["stacked_bars"]()
    ends = {bar.get_y(): bar.get_x() + bar.get_width() for container in figure.axes[0].containers for bar in container}
    assert sorted(ends.values()) == [0.5, 3.0]
    assert [text.get_text() for text in figure.axes[0].texts] == ["3", "0.5"]


def test_a_timeline_splits_each_job_where_it_began():
    axes = DRAWN["timeline"]().axes[0]
    spans = [(bar.get_x(), bar.get_x() + bar.get_width()) for container in axes.containers for bar in container]
    assert spans == [span for _, sent, begun, done in JOBS for span in ((sent, begun), (begun, done))]
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3"]


def test_a_memory_plan_has_a_box_for_each_tensor():
    axes = DRAWN["memory_plan"]().axes[0]
    boxes = [box.get_bbox().bounds for container in axes.containers for box in container]
    assert boxes == [(-0.5, 0.0, 2.0, 2.0), (0.5, 2.0, 3.0, 0.5)]
    assert axes.lines[0].get_ydata()[0] == 2.5
