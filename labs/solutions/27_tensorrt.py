"""Solutions of lab 27: one function per exercise."""

from __future__ import annotations

import ast
from collections import Counter


def refused(graph, supported):
    counts = Counter(node.op_type for node in graph.node if node.op_type not in supported)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                counts.update(refused(attribute.g, supported))
    return dict(counts)


def profile(sizes):
    counts = Counter(sizes)
    usual = max(counts, key=lambda size: (counts[size], size))
    return min(sizes), usual, max(sizes)


def vanished(source, old, new):
    used = {
        node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)
    }
    before, after = ({name.rpartition(".")[2] for name in names} for names in (old, new))
    return sorted(used & before - after)


def timed(launch, synchronize, clock, runs):
    launch()
    synchronize()
    start = clock()
    for _ in range(runs):
        launch()
    synchronize()
    return (clock() - start) / runs
