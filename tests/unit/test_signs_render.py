"""The renderer: deterministic, every class, every size, and left stays left."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from deploylab.errors import InputError
from deploylab.signs import CLASSES
from deploylab.signs.faces import PAINTERS, draw_face
from deploylab.signs.glyphs import Style, draw_text, text_width
from deploylab.signs.others import draw_other_face
from deploylab.signs.placement import Pose, plate_quad, project, warp
from deploylab.signs.render import photograph, render
from deploylab.signs.shapes import Pen, arrow, regular_polygon, round_corners, shorten

LABELS = st.sampled_from(CLASSES)
SEEDS = st.integers(0, 2**40)


def test_there_are_sixteen_classes_and_none_is_last():
    assert len(CLASSES) == len(set(CLASSES)) == 16
    assert CLASSES[-1] == "none"
    assert tuple(PAINTERS) == CLASSES[:-1]


@settings(max_examples=30, deadline=None)
@given(LABELS, SEEDS)
def test_the_same_seed_gives_the_same_picture(label, seed):
    first = render(label, seed)
    np.random.seed(1)  # a caller's global random numbers change nothing
    assert np.array_equal(first, render(label, seed))
    assert not np.array_equal(first, render(label, seed + 1))


@pytest.mark.parametrize("label", CLASSES)
@pytest.mark.parametrize("size", [16, 64, 101])
def test_every_class_at_every_size(label, size):
    picture = render(label, 7, size)
    assert picture.shape == (size, size, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 1


def test_photographs_have_camera_size():
    assert photograph("stop", 3, width=320, height=200).shape == (200, 320, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("halt", 1), "unknown class 'halt'"), (("stop", -1), "seed -1"), (("stop", 1, 4), "size 4")],
)
def test_bad_requests_are_refused_with_the_value(arguments, message):
    with pytest.raises(InputError, match=message):
        render(*arguments)


@pytest.mark.parametrize(("right", "left"), [("turn_right_ahead", "turn_left_ahead")])
def test_left_is_right_mirrored(right, left):
    for seed in range(3):
        one = ImageOps.mirror(draw_face(right, np.random.default_rng(seed), 64))
        two = draw_face(left, np.random.default_rng(seed), 64)
        assert np.abs(np.asarray(one, int) - np.asarray(two, int)).mean() < 6


def test_faces_have_their_colours():
    rng = np.random.default_rng(0)
    blue = np.asarray(draw_face("keep_left", rng, 48), float)
    red = np.asarray(draw_face("no_entry", rng, 48), float)
    assert blue[blue[..., 3] > 0][:, 2].mean() > blue[blue[..., 3] > 0][:, 0].mean()
    assert red[red[..., 3] > 0][:, 0].mean() > red[red[..., 3] > 0][:, 2].mean()


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_other_signs_can_always_be_drawn(seed):
    face = draw_other_face(np.random.default_rng(seed), 32)
    assert face.size == (32, 32)
    assert face.getchannel("A").getextrema()[1] == 255


@given(st.floats(-60, 60), st.floats(-30, 30), st.floats(-25, 25), st.floats(4, 15))
def test_a_round_sign_spans_the_box_it_was_given(yaw, pitch, roll, distance):
    quad = plate_quad(Pose(yaw, pitch, roll, distance), (50.0, 40.0), 20.0, 30.0)
    assert quad.shape == (4, 2)
    assert np.isfinite(quad).all()
    assert abs(quad[:, 0].mean() - 50) < 20
    # the square plate is larger than the round sign in it, but not by more than the tilted corner allows
    assert 39 <= np.ptp(quad[:, 0]) < 40 * 2.1


def test_projection_straight_on_changes_nothing():
    points = np.array([[0.3, -0.7], [1.0, 1.0]])
    assert np.allclose(project(points, Pose()), points)


def test_warp_puts_the_plate_where_it_belongs():
    plate = Image.new("RGBA", (32, 32), (255, 0, 0, 255))
    quad = np.array([[10, 20], [40, 20], [40, 50], [10, 50]], float)
    picture = warp(plate, quad, height=60, width=80)
    assert picture.shape == (60, 80, 4)
    assert picture[35, 25].tolist() == [1, 0, 0, 1]
    assert picture[5, 5, 3] == 0


@given(st.text("0123456789STOPALR!", min_size=1, max_size=5), st.floats(0.3, 0.8), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_text_stays_inside_its_box(text, aspect, square):
    style = Style(aspect=aspect, square=square)
    height = 1.6 / max(text_width(text, 1.0, style), 1.6)
    pen = Pen(100)
    draw_text(pen, text, (0, 0), height, style, (1.0, 1.0, 1.0))
    box = pen.image().getbbox()
    assert box is not None
    left, top, right, bottom = ((edge - 50) / 50 for edge in box)
    width = text_width(text, height, style)
    assert left >= -width / 2 - 0.1
    assert right <= width / 2 + 0.1
    assert top >= -height / 2 - 0.1
    assert bottom <= height / 2 + 0.1


def test_rounding_keeps_a_polygon_inside_itself():
    square = regular_polygon(4, 1.0, 0)
    rounded = round_corners(square, 0.2)
    assert all(abs(x) + abs(y) <= 1 + 1e-9 for x, y in rounded)


@given(st.floats(0.01, 0.9))
def test_shortening_takes_off_the_length(distance):
    path = [(0.0, 0.0), (0.5, 0.0), (1.0, 0.0)]
    assert math.isclose(shorten(path, distance)[-1][0], 1 - distance, abs_tol=0.03)


@pytest.mark.parametrize("head", ["chevron", "triangle", "notched"])
def test_an_arrow_reaches_its_tip(head):
    pen = Pen(200)
    arrow(pen, [(0.0, 0.5), (0.0, -0.5)], 0.15, (1.0, 1.0, 1.0), head, 0.4)
    left, top, right, bottom = pen.image().getbbox()
    assert abs(top - 50) <= 2
    assert abs(bottom - 150) <= 2
    assert abs((left + right) / 2 - 100) <= 2
