"""ONNX graphs as drawings: a box for each node with its attributes and constants, an arrow for each value."""

from __future__ import annotations

import base64
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from deploylab.drawing.layered import Layout, Point, layered
from deploylab.errors import InputError, ModelError
from deploylab.figures import STYLE

if TYPE_CHECKING:
    import onnx
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Model: TypeAlias = Union["onnx.ModelProto", Path, str]
Between: TypeAlias = tuple[str, str]

MOST_NODES = 60
PAGE_WIDTH = 7.6
"""Inches that a notebook shows without scrolling."""

# Inches, points
_LINE, _GAP, _MARGIN, _LETTER = 0.145, 0.42, 0.12, 0.072
_TITLE, _HEAD, _SMALL = 10, 9.5, 7.5
_HINTED = 1.08  # letters fitted to pixels are wider than their outlines

_COLOURS = {
    "weights": ("#cfe3f1", ("Conv", "FusedConv", "ConvTranspose", "Gemm", "MatMul", "ConvInteger", "MatMulInteger")),
    "normalisation": ("#f3dcea", ("BatchNormalization", "InstanceNormalization", "LayerNormalization")),
    "activation": ("#cdebe0", ("Clip", "Relu", "HardSwish", "HardSigmoid", "Sigmoid", "LeakyRelu", "Tanh", "Softmax")),
    "two inputs": ("#fae6c0", ("Add", "Mul", "Sub", "Div", "Concat")),
}
_OTHER, _VALUE = "#eeeeee", "#ffffff"


@dataclass(frozen=True)
class Drawing:
    """A drawing that a notebook shows as SVG, or as PNG where it may not show SVG."""

    figure: Figure
    description: str

    @property
    def svg(self) -> str:
        """The drawing as an SVG document with selectable text."""
        import matplotlib

        stream = io.StringIO()
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "deploylab"}):
            self.figure.savefig(stream, format="svg", metadata={"Date": None, "Title": self.description})
        width, height = self.figure.get_size_inches()
        shown = min(1.0, PAGE_WIDTH / width)  # a wider drawing is scaled; its view box stays
        size = f'<svg width="{shown * width:.3f}in" height="{shown * height:.3f}in"'
        return re.sub(
            r"<svg[^>]*?(?= viewBox)", lambda found: size + _without_size(found[0]), stream.getvalue(), count=1
        )

    @property
    def png(self) -> bytes:
        """The drawing as a PNG with a palette of 64 colours: a drawing has few, and a file stays small."""
        from PIL import Image

        drawn, stream = io.BytesIO(), io.BytesIO()
        self.figure.savefig(drawn, format="png", dpi=110)
        few = Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE)
        few.save(stream, "PNG", optimize=True)
        return stream.getvalue()

    def save(self, path: Path | str) -> Path:
        """Write the drawing as ``.svg`` or ``.png`` and return its path. Raises :class:`InputError` for others."""
        path = Path(path)
        if path.suffix not in (".svg", ".png"):
            raise InputError(f"a drawing is saved as .svg or .png, not as {path.name!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.svg.encode() if path.suffix == ".svg" else self.png)
        return path

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {
            "image/svg+xml": self.svg,
            "image/png": base64.b64encode(self.png).decode(),
            "text/plain": self.description,
        }


def _without_size(tag: str) -> str:
    return re.sub(r'^<svg| (width|height)="[^"]*"', "", tag)


def graph(model: Model, between: Between | None = None, title: str = "") -> Drawing:
    """Draw an ONNX graph, or its part ``between`` two values (the names of where it begins and where it ends).

    Raises :class:`InputError` for a name that the graph does not have, for values that no path connects, and for
    more than 60 nodes, which nobody can read.
    """
    return side_by_side({title: (model, between)})


def side_by_side(parts: Mapping[str, tuple[Model, Between | None]]) -> Drawing:
    """Draw several graphs, or parts of graphs, beside each other under their titles."""
    import matplotlib.pyplot as plt

    pictures = {title: _Picture.of(_loaded(model), between) for title, (model, between) in parts.items()}
    widths = {title: max(picture.width, _title_width(title)) for title, picture in pictures.items()}
    width = sum(widths.values()) + _GAP * (len(pictures) - 1)
    head = 0.35 if any(pictures) else 0.0
    height = max(picture.height for picture in pictures.values()) + head
    with plt.style.context([STYLE, {"figure.constrained_layout.use": False}]):
        figure = plt.figure(figsize=(width, height))
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        left = 0.0
        for title, picture in pictures.items():
            axes.text(left + _MARGIN, head / 2, title, weight="bold", fontsize=_TITLE, va="center")
            picture.paint(axes, left, head)
            left += widths[title] + _GAP
        plt.close(figure)
    return Drawing(figure, "; ".join(_described(*each) for each in pictures.items()))


def _title_width(title: str) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    if not title:
        return 0.0
    outline = TextPath((0, 0), title, prop=FontProperties(weight="bold", size=_TITLE))
    return _HINTED * outline.get_extents().width / 72 + 2 * _MARGIN


@dataclass(frozen=True)
class _Box:
    head: str
    lines: tuple[str, ...]
    colour: str

    @property
    def width(self) -> float:
        letters = max([1.2 * len(self.head), *(0.82 * len(line) for line in self.lines)])
        return letters * _LETTER + 2 * _MARGIN

    @property
    def height(self) -> float:
        return _LINE * (1.25 + len(self.lines)) + 0.1


@dataclass(frozen=True)
class _Picture:
    """One graph: its boxes by key, the shape of the value that each gives, and where everything goes (in inches)."""

    boxes: dict[str, _Box]
    shapes: dict[str, str]
    layout: Layout

    @classmethod
    def of(cls, model: onnx.ModelProto, between: Between | None) -> _Picture:
        nodes = _nodes_between(model, between)
        if len(nodes) > MOST_NODES:
            raise InputError(f"{len(nodes)} nodes are too many to read; draw a part with between=(begin, end)")
        constants = _constants(model)
        kept = [node for node in nodes if not set(node.output) <= set(constants)]
        boxes, edges = {}, []
        producers = {name: _key(node) for node in kept for name in node.output}
        for node in kept:
            for name in node.input:
                if name and name not in constants:
                    begin = producers.get(name, f"value {name}")
                    boxes.setdefault(begin, _Box(name, (), _VALUE))
                    edges.append((begin, _key(node)))
            boxes[_key(node)] = _box(node, constants)
        shapes = _shapes(model)
        for name in _ends(model, kept, between):
            boxes[f"end {name}"] = _Box(name, (), _VALUE)
            edges.append((producers[name], f"end {name}"))
        given = {key: shapes.get(key.removeprefix("value "), "") for key in boxes}
        given |= {_key(node): shapes.get(node.output[0], "") for node in kept}
        return cls(boxes, given, layered(list(dict.fromkeys(edges)), list(boxes)))

    @property
    def column(self) -> float:
        return max(box.width for box in self.boxes.values()) + _MARGIN

    @property
    def width(self) -> float:
        places, column = self.layout.places, self.column
        boxes = [place[0] * column + self.boxes[key].width / 2 for key, place in places.items()]
        labels = [places[key][0] * column + 0.1 + len(text) * _LETTER * 0.82 for key, text in self.shapes.items()]
        bends = [x * column for way in self.layout.bends.values() for x, _ in way]
        return max(*boxes, *labels, *bends) + 2 * _MARGIN

    @property
    def tops(self) -> list[float]:
        """The upper edge of every layer, and of the one after the last."""
        tops = [0.0]
        for y in range(int(max(y for _, y in self.layout.places.values())) + 1):
            heights = [self.boxes[key].height for key, place in self.layout.places.items() if place[1] == y]
            tops.append(tops[-1] + max(heights, default=0.0) + _GAP)
        return tops

    @property
    def height(self) -> float:
        return self.tops[-1] - _GAP + 2 * _MARGIN

    def paint(self, axes: Axes, left: float, top: float) -> None:
        centres = {key: self._at(place, left, top) for key, place in self.layout.places.items()}
        for (start, end), bends in self.layout.bends.items():
            (x0, y0), (x1, y1) = centres[start], centres[end]
            way = [(x0, y0 + self.boxes[start].height / 2), *(self._at(bend, left, top) for bend in bends)]
            _arrow(axes, [*way, (x1, y1 - self.boxes[end].height / 2)])
        for key, centre in centres.items():
            _paint_box(axes, self.boxes[key], centre)
            if self.shapes[key] and not key.startswith("end "):
                x, y = centre[0], centre[1] + self.boxes[key].height / 2
                _paint_label(axes, self.shapes[key], (x + 0.07, y + 0.3 * _GAP))

    def _at(self, place: Point, left: float, top: float) -> Point:
        x, y = place
        tops = self.tops
        return left + x * self.column + _MARGIN, top + _MARGIN + (tops[int(y)] + tops[int(y) + 1] - _GAP) / 2


def _paint_box(axes: Axes, box: _Box, centre: Point) -> None:
    from matplotlib.patches import FancyBboxPatch

    x, y = centre
    corner = (x - box.width / 2, y - box.height / 2)
    style = "round,pad=0,rounding_size=0.06"
    dashed = "--" if box.colour == _VALUE else "-"
    patch = FancyBboxPatch(
        corner, box.width, box.height, style, facecolor=box.colour, edgecolor="#555555", lw=0.8, ls=dashed
    )
    axes.add_patch(patch)
    first = y - box.height / 2 + 0.05 + 0.62 * _LINE
    weight = "normal" if box.colour == _VALUE else "bold"
    axes.text(x, first, box.head, ha="center", va="center", fontsize=_HEAD, weight=weight)
    for number, line in enumerate(box.lines):
        below = first + _LINE * (number + 1.1)
        axes.text(x, below, line, ha="center", va="center", fontsize=_SMALL, color="#333333")


def _paint_label(axes: Axes, text: str, place: Point) -> None:
    clear = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8}
    axes.text(*place, text, fontsize=_SMALL, color="#555555", va="center", bbox=clear)


def _arrow(axes: Axes, way: Sequence[Point]) -> None:
    """A curve through the points that leaves and arrives vertically."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    points, codes = [way[0]], [Curve.MOVETO]
    for (x0, y0), (x1, y1) in itertools.pairwise(way):
        middle = (y0 + y1) / 2
        points += [(x0, middle), (x1, middle), (x1, y1)]
        codes += [Curve.CURVE4] * 3
    patch = FancyArrowPatch(
        path=Curve(points, codes), arrowstyle="-|>", mutation_scale=8, color="#555555", lw=0.9, shrinkA=0, shrinkB=0
    )
    axes.add_patch(patch)


def _described(title: str, picture: _Picture) -> str:
    ops = [box.head for box in picture.boxes.values() if box.colour != _VALUE]
    return f"{title + ': ' if title else ''}a graph of {len(ops)} nodes: {', '.join(ops)}"


# ---------------------------------------------------------------------------------------------------------------------
# Reading the graph


def _loaded(model: Model) -> onnx.ModelProto:
    import onnx

    return onnx.load(str(model), load_external_data=False) if isinstance(model, (str, Path)) else model


def _key(node: onnx.NodeProto) -> str:
    return f"node {next(name for name in node.output if name)}"


def _nodes_between(model: onnx.ModelProto, between: Between | None) -> list[onnx.NodeProto]:
    """The nodes on any way from the first value to the second, in the order of the file."""
    if between is None:
        return list(model.graph.node)
    begin, end = between
    made = {name: node for node in model.graph.node for name in node.output if name}
    for name in between:
        if name not in made and name not in {value.name for value in model.graph.input}:
            raise InputError(f"the graph has no value {name!r}")
    after = {begin}
    for node in model.graph.node:
        if after & set(node.input):
            after.update(node.output)
    wanted, open_names = set(), [end]
    while open_names:
        name = open_names.pop()
        if name in made and name in after and name != begin and id(made[name]) not in wanted:
            wanted.add(id(made[name]))
            open_names += made[name].input
    found = [node for node in model.graph.node if id(node) in wanted]
    if not found:
        raise InputError(f"no way leads from {begin!r} to {end!r}")
    return found


def _ends(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], between: Between | None) -> list[str]:
    made = {name for node in nodes for name in node.output}
    return [between[1]] if between else [value.name for value in model.graph.output if value.name in made]


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    made = {node.output[0]: _made(node) for node in model.graph.node if node.op_type == "Constant"}
    return made | {tensor.name: tensor for tensor in model.graph.initializer}


def _made(node: onnx.NodeProto) -> onnx.TensorProto:
    import numpy as np
    import onnx

    value = onnx.helper.get_attribute_value(node.attribute[0])
    return value if isinstance(value, onnx.TensorProto) else onnx.numpy_helper.from_array(np.asarray(value))


def _shapes(model: onnx.ModelProto) -> dict[str, str]:
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"the graph cannot be drawn, its shapes contradict each other: {error}") from error
    found = {}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            found[value.name] = _times([axis.dim_param or str(axis.dim_value) for axis in kind.shape.dim]) or "scalar"
    return found


def _box(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> _Box:
    colour = next((colour for colour, ops in _COLOURS.values() if node.op_type in ops), _OTHER)
    lines = [*_attribute_lines(node), *_constant_lines(node, constants)]
    return _Box(node.op_type, tuple(line for line in lines if line), colour)


def _attribute_lines(node: onnx.NodeProto) -> list[str]:
    import onnx

    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type not in ("Conv", "FusedConv", "ConvTranspose"):
        plain = {name: value for name, value in values.items() if isinstance(value, (int, float, bytes, list))}
        plain.pop("value", None)
        return [f"{name} {_short(value)}" for name, value in plain.items() if not _is_default(node, name, value)][:3]
    parts = [f"{_times(values['kernel_shape'])}"] if "kernel_shape" in values else []
    if any(step != 1 for step in values.get("strides", ())):
        parts.append(f"stride {values['strides'][0]}")
    if any(values.get("pads", ())):
        parts.append(f"pad {'/'.join(map(str, dict.fromkeys(values['pads'])))}")
    if values.get("group", 1) != 1:
        parts.append(f"{values['group']} groups")
    activation = values.get("activation", b"").decode()
    more = ["adds the other input"] if len(node.input) > 3 and node.input[3] else []
    return [", ".join(parts), ", ".join([*more, *([f"then {activation}"] if activation else [])])]


def _is_default(node: onnx.NodeProto, name: str, value: object) -> bool:
    import onnx

    if not onnx.defs.has(node.op_type, node.domain):
        return False
    attribute = onnx.defs.get_schema(node.op_type, domain=node.domain).attributes.get(name)
    default = attribute.default_value if attribute else None
    return bool(default and default.type) and onnx.helper.get_attribute_value(default) == value


def _constant_lines(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> list[str]:
    """Names (as the operator calls them) with the shape or, of a single number, the value; two on a line."""
    import onnx

    op, domain = ("Conv", "") if node.op_type == "FusedConv" else (node.op_type, node.domain)
    formal = []
    if onnx.defs.has(op, domain):
        formal = [each.name for each in onnx.defs.get_schema(op, domain=domain).inputs]
    texts = []
    for place, name in enumerate(node.input):
        if name in constants:
            tensor = constants[name]
            label = formal[place] if place < len(formal) else f"input {place}"
            single = math.prod(tensor.dims) == 1 and not tensor.external_data
            value = _short(onnx.numpy_helper.to_array(tensor).item()) if single else _times(tensor.dims)
            texts.append(f"{label} {value}" if single else f"{label} [{value}]")
    return [", ".join(texts[i : i + 2]) for i in range(0, len(texts), 2)]


def _times(sizes: Sequence[object]) -> str:
    return "\u00d7".join(map(str, sizes))


def _short(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, list):
        return "[" + ", ".join(map(_short, value[:4])) + (", ..." if len(value) > 4 else "") + "]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
