"""Where the boxes and arrows of a directed acyclic graph go: every arrow points down, few of them cross.

The method of Sugiyama, Tagawa and Toda (IEEE Trans. Systems, Man, and Cybernetics 11(2), 1981): put every node on a
layer below its predecessors, give long arrows a place on each layer they pass, order the layers by barycentres, then
move every node as near to its neighbours as the order allows.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Point: TypeAlias = tuple[float, float]
_Bend: TypeAlias = tuple[Hashable, Hashable, int]

_SWEEPS = 8
_BEND_WIDTH = 0.35
_STRAIGHT = 8.0
"""How much more it matters that a chain of nodes is straight than that a long arrow is near its ends."""


@dataclass(frozen=True)
class Layout:
    """Centres of the nodes, and for every edge the points it passes on the layers between its ends.

    x counts widths of the widest node, y counts layers from the top.
    """

    places: dict[Hashable, Point]
    bends: dict[tuple[Hashable, Hashable], list[Point]]


def layered(edges: Sequence[tuple[Hashable, Hashable]], nodes: Sequence[Hashable] = ()) -> Layout:
    """Lay out a graph given by its edges (source, target) and, where any has no edge, its nodes.

    Raises :class:`ValueError` for a graph with a circle.
    """
    names = list(dict.fromkeys([*nodes, *(end for edge in edges for end in edge)]))
    depth = _depths(names, edges)
    layers, short = _with_bends(names, edges, depth)
    for sweep in range(_SWEEPS):
        _order(layers, short, downwards=sweep % 2 == 0)
    x = _positions(layers, short)
    bends = {edge: [(x[edge[0], edge[1], y], float(y)) for y in _passed(edge, depth)] for edge in edges}
    return Layout({name: (x[name], float(depth[name])) for name in names}, bends)


def _depths(names: Sequence[Hashable], edges: Sequence[tuple[Hashable, Hashable]]) -> dict[Hashable, int]:
    """The layer of each node: one below its lowest predecessor; of one without any, right above its first successor."""
    depth = dict.fromkeys(names, 0)
    for _ in names:
        lower = {end: depth[start] + 1 for start, end in edges if depth[end] <= depth[start]}
        if not lower:
            break
        depth.update(lower)
    if any(depth[end] <= depth[start] for start, end in edges):
        raise ValueError("the graph has a circle, so it cannot be drawn from top to bottom")
    targets = {end for _, end in edges}
    for name in names:
        below = [depth[end] for start, end in edges if start == name]
        if name not in targets and below:
            depth[name] = min(below) - 1
    return depth


def _passed(edge: tuple[Hashable, Hashable], depth: Mapping[Hashable, int]) -> range:
    return range(depth[edge[0]] + 1, depth[edge[1]])


def _with_bends(
    names: Sequence[Hashable], edges: Sequence[tuple[Hashable, Hashable]], depth: Mapping[Hashable, int]
) -> tuple[list[list[Hashable]], list[tuple[Hashable, Hashable]]]:
    """The layers, with a bend wherever a long edge passes one, and the edges cut into pieces of one layer."""
    layers: list[list[Hashable]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for name in names:
        layers[depth[name]].append(name)
    short = []
    for edge in edges:
        bends: list[_Bend] = [(*edge, y) for y in _passed(edge, depth)]
        for bend in bends:
            layers[bend[2]].append(bend)
        stops = [edge[0], *bends, edge[1]]
        short += list(itertools.pairwise(stops))
    return layers, short


def _order(layers: list[list[Hashable]], short: Sequence[tuple[Hashable, Hashable]], downwards: bool) -> None:
    """Sort every layer by the mean place of each node's neighbours on the layer before it."""
    steps = range(1, len(layers)) if downwards else range(len(layers) - 2, -1, -1)
    for y in steps:
        before = {name: place for place, name in enumerate(layers[y - 1 if downwards else y + 1])}
        own = {name: place for place, name in enumerate(layers[y])}
        means = {}
        for name in layers[y]:
            near = [before[other] for other in _neighbours(name, short, downwards)]
            means[name] = sum(near) / len(near) if near else own[name]
        layers[y].sort(key=means.get)


def _neighbours(name: Hashable, short: Sequence[tuple[Hashable, Hashable]], above: bool) -> list[Hashable]:
    return [start if above else end for start, end in short if (end if above else start) == name]


def _positions(
    layers: Sequence[Sequence[Hashable]], short: Sequence[tuple[Hashable, Hashable]]
) -> dict[Hashable, float]:
    bends = {name for layer in layers for name in layer if isinstance(name, tuple) and len(name) == 3}
    width = {name: _BEND_WIDTH if name in bends else 1.0 for layer in layers for name in layer}
    x = {name: float(place) for layer in layers for place, name in enumerate(layer)}
    for sweep in range(2 * _SWEEPS):
        for layer in layers if sweep % 2 == 0 else layers[::-1]:
            wanted = []
            for name in layer:
                near = _neighbours(name, short, True) + _neighbours(name, short, False)
                weights = [_STRAIGHT if (other in bends) == (name in bends) else 1.0 for other in near]
                total = sum(w * x[other] for w, other in zip(weights, near, strict=True))
                wanted.append(total / sum(weights) if near else x[name])
            x.update(zip(layer, _apart(wanted, [width[name] for name in layer]), strict=True))
    left = min((x[name] - width[name] / 2 for name in x), default=0.0)
    return {name: place - left for name, place in x.items()}


def _apart(wanted: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Positions nearest to ``wanted`` (least squares) that keep the order and do not overlap: isotonic regression."""
    gaps = [0.0]
    for one, two in itertools.pairwise(widths):
        gaps.append(gaps[-1] + (one + two) / 2)
    blocks: list[list[float]] = []
    for place, gap in zip(wanted, gaps, strict=True):
        blocks.append([place - gap])
        while len(blocks) > 1 and _mean(blocks[-2]) > _mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    flat = [_mean(block) for block in blocks for _ in block]
    return [place + gap for place, gap in zip(flat, gaps, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
