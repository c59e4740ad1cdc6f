"""Solutions of lab 10: one function per exercise."""

from __future__ import annotations

import torch


def invert_bright(x):
    return torch.where(x.mean() > 0.5, 1 - x, x)


def agrees(model, caught, inputs):
    for x in inputs:
        expected = model(x)
        try:
            got = caught(x)
        except Exception:
            return False
        if got.shape != expected.shape or not torch.allclose(got, expected):
            return False
    return True


def count_nodes(graph, kind):
    here = sum(node.kind() == kind for node in graph.nodes())
    return here + sum(
        count_nodes(block, kind) for node in graph.nodes() for block in node.blocks()
    )
