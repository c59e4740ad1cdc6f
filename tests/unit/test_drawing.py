"""Drawings of graphs: arrows point down, boxes do not overlap, and the SVG says what the graph says."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from onnx import parser

from deploylab import drawing
from deploylab.drawing.layered import layered
from deploylab.errors import InputError

RESIDUAL = """<ir_version: 10, opset_import: ["" : 18]>
g (float[n,8,6,6] x) => (float[n,8,6,6] y)
<float[16,8,1,1] w, float[16] b, float low = {0}, float high = {6}, float[8,16,1,1] v>
{ a = Conv(x, w, b)  c = Clip(a, low, high)  d = Conv<kernel_shape=[1,1]>(c, v)  y = Add(x, d) }"""


def model() -> onnx.ModelProto:
    made = parser.parse_model(RESIDUAL)
    for name, shape in {"w": (16, 8, 1, 1), "b": (16,), "v": (8, 16, 1, 1)}.items():
        tensor = next((t for t in made.graph.initializer if t.name == name), None) or made.graph.initializer.add()
        tensor.CopyFrom(onnx.helper.make_tensor(name, 1, shape, bytes(4 * _count(shape)), raw=True))
    return made


def _count(shape):
    total = 1
    for size in shape:
        total *= size
    return total


def words(picture: drawing.Drawing) -> str:
    root = ElementTree.fromstring(picture.svg)
    return " ".join(node.text for node in root.iter() if node.tag.endswith("}text") and node.text)


def test_the_svg_names_operators_weights_constants_and_shapes():
    text = words(drawing.graph(model(), title="A block"))
    for expected in ("A block", "Conv", "Clip", "Add", "W [16x8x1x1], B [16]", "min 0, max 6", "nx16x6x6"):
        assert expected in text.replace("\u00d7", "x"), expected


def test_only_the_part_between_two_values_is_drawn():
    picture = drawing.graph(model(), between=("a", "d"))
    assert picture.description == "a graph of 2 nodes: Clip, Conv"
    assert "Add" not in words(picture)


def test_the_same_graph_gives_the_same_bytes():
    assert drawing.graph(model()).svg == drawing.graph(model()).svg


def test_a_notebook_gets_svg_and_png():
    bundle = drawing.graph(model())._repr_mimebundle_()
    assert set(bundle) == {"image/svg+xml", "image/png", "text/plain"}
    assert bundle["image/png"].startswith("iVBOR")


def test_two_graphs_beside_each_other():
    picture = drawing.side_by_side({"whole": (model(), None), "part": (model(), ("a", "d"))})
    assert (
        picture.description == "whole: a graph of 4 nodes: Conv, Clip, Conv, Add; part: a graph of 2 nodes: Clip, Conv"
    )


@pytest.mark.parametrize("title", ["", "Short", "ONNX Runtime, level EXTENDED, with a long title to go with it"])
def test_a_title_is_not_cut_off(title):
    figure = drawing.graph(model(), title=title).figure
    right = figure.axes[0].texts[0].get_window_extent(FigureCanvasAgg(figure).get_renderer()).x1
    assert right <= figure.bbox.x1


def test_files_are_written_by_their_suffix(tmp_path):
    picture = drawing.graph(model())
    assert picture.save(tmp_path / "new" / "g.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert picture.save(tmp_path / "g.png").read_bytes()[1:4] == b"PNG"
    with pytest.raises(InputError, match=r"as \.svg or \.png, not as 'g\.gif'"):
        picture.save(tmp_path / "g.gif")


@pytest.mark.parametrize(
    ("between", "message"),
    [(("a", "zebra"), "no value 'zebra'"), (("d", "a"), "no way leads from 'd' to 'a'")],
)
def test_a_part_that_is_not_there_is_refused(between, message):
    with pytest.raises(InputError, match=message):
        drawing.graph(model(), between=between)


def test_a_wall_of_nodes_is_refused():
    steps = "  ".join(f"v{i + 1} = Relu(v{i})" for i in range(80))
    wall = f'<ir_version: 10, opset_import: ["" : 18]> g (float[1] v0) => (float[1] v80) {{ {steps} }}'
    with pytest.raises(InputError, match="80 nodes are too many to read"):
        drawing.graph(parser.parse_model(wall))


graphs = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=18).map(
    lambda pairs: [(min(pair), max(pair)) for pair in dict.fromkeys(pairs) if pair[0] != pair[1]]
)


@settings(max_examples=100, deadline=None)
@given(graphs)
def test_arrows_point_down_and_boxes_do_not_overlap(edges):
    edges = list(dict.fromkeys(edges))
    layout = layered(edges)
    for (start, end), bends in layout.bends.items():
        heights = [layout.places[start][1], *(y for _, y in bends), layout.places[end][1]]
        assert heights == sorted(set(heights))
    taken = [(place, 1.0) for place in layout.places.values()]
    taken += [(bend, 0.35) for bends in layout.bends.values() for bend in bends]
    for ((x0, y0), w0), ((x1, y1), w1) in itertools.combinations(taken, 2):
        assert y0 != y1 or abs(x0 - x1) >= (w0 + w1) / 2 - 1e-9


def test_a_circle_is_refused():
    with pytest.raises(ValueError, match="circle"):
        layered([("a", "b"), ("b", "a")])


def test_a_chain_is_straight():
    layout = layered(list(itertools.pairwise("abcdef")))
    assert len({round(x, 6) for x, _ in layout.places.values()}) == 1


def test_no_path_of_this_machine_in_the_svg():
    assert not re.search(r"(?<![\w.])/(home|root|work|tmp|usr)/", drawing.graph(model()).svg)
