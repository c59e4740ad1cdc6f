"""The graders of lab 10, graded: they name each planted mistake."""

from __future__ import annotations

import pytest
import torch

from deploylab.checks import lab10 as check
from graders import solutions, verdict

right = solutions("10_torchscript")


def with_if(x):
    return 1 - x if x.mean() > 0.5 else x


def with_a_number(x):
    bright = float(x.mean() > 0.5)
    return bright * (1 - x) + (1 - bright) * x


WRONG_INVERT_BRIGHT = [
    (with_if, "the trace kept one branch only"),
    (with_a_number, "the trace kept one branch only"),
    (lambda x: torch.where(x > 0.5, 1 - x, x), "pixel by pixel"),
    (lambda x: torch.where(x.mean() < 0.5, 1 - x, x), "Bright and dark are swapped"),
    (lambda x: 1 - x, "answer for a dark picture is wrong"),
    (lambda x: x.mean() > 0.5, "became []"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_INVERT_BRIGHT)
def test_invert_bright_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.invert_bright, wrong)


def the_first(model, caught, inputs):
    return torch.allclose(model(inputs[0]), caught(inputs[0]))


def the_first_two(model, caught, inputs):
    return right.agrees(model, caught, inputs[:2])


def exactly(model, caught, inputs):
    return all(torch.equal(model(x), caught(x)) for x in inputs)


def broadcasting(model, caught, inputs):
    return all(torch.allclose(model(x), caught(x)) for x in inputs)


def unguarded(model, caught, inputs):
    return all(model(x).shape == caught(x).shape and torch.allclose(model(x), caught(x)) for x in inputs)


WRONG_AGREES = [
    (the_first, "right for the first input only"),
    (the_first_two, "wrong for the last input"),
    (exactly, "differs by rounding was refused"),
    (broadcasting, "loses a row"),
    (unguarded, "catch it and return False"),
    (lambda *_: True, "right for the first input only"),
    (lambda *_: False, "A program that agrees was refused"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_AGREES)
def test_agrees_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.agrees, wrong)


def at_the_top(graph, kind):
    return sum(node.kind() == kind for node in graph.nodes())


def one_block_deep(graph, kind):
    return at_the_top(graph, kind) + sum(at_the_top(b, kind) for node in graph.nodes() for b in node.blocks())


WRONG_COUNT_NODES = [
    (at_the_top, "those at the top"),
    (one_block_deep, "must call itself"),
    (lambda graph, kind: right.count_nodes(graph, "aten::tanh"), "one inside the other"),
    (lambda graph, kind: str(graph).count(kind) + 1, "there are 4"),
    (lambda graph, kind: [right.count_nodes(graph, kind)], "whole number, not list"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_COUNT_NODES)
def test_count_nodes_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.count_nodes, wrong)
