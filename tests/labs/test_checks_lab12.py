"""The graders of lab 12, graded: they name each planted mistake."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deploylab.checks import lab12 as check
from graders import solutions, verdict

right = solutions("12_graph_optimization")


def folded(scale=lambda g, v, e: g / np.sqrt(v + e), bias=lambda b, m, s, beta: (b - m) * s + beta, axis=0):
    def attempt(weights, own, gamma, beta, mean, variance, epsilon):
        s = scale(gamma, variance, epsilon)
        return weights * s.reshape([-1 if place == axis else 1 for place in range(4)]), bias(own, mean, s, beta)

    return attempt


WRONG_FOLD = [
    (folded(scale=lambda g, v, e: g / np.sqrt(v)), "epsilon is missing"),
    (folded(scale=lambda g, v, e: g / (np.sqrt(v) + e)), "under the square root"),
    (folded(scale=lambda g, v, e: g / (v + e)), "square root of the variance is missing"),
    (folded(axis=1), "along the input channels"),
    (folded(bias=lambda b, m, s, beta: -m * s + beta), "own bias got lost"),
    (folded(bias=lambda b, m, s, beta: b - m * s + beta), "own bias must be scaled"),
    (folded(bias=lambda b, m, s, beta: (b + m) * s + beta), "mean is added"),
    (folded(bias=lambda b, m, s, beta: (b - m) * s), "beta is missing"),
    (lambda *a: right.fold(*a)[0], "return two arrays"),
    (lambda *a: (right.fold(*a)[0], 2 * right.fold(*a)[1]), "new bias is off"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_FOLD)
def test_fold_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.fold, wrong)


def in_the_old_place(model, conv, norm, weights, bias):
    model = right.put_in_place(model, conv, norm, weights, bias)
    model.graph.initializers["shared"].const_value = ir.tensor(weights, name="shared")
    conv.replace_input_with(1, model.graph.initializers["shared"])
    return model


def without_removing(model, conv, norm, weights, bias):
    for place, array in ((1, weights),):
        value = ir.val("new", const_value=ir.tensor(array, name="new"))
        model.graph.register_initializer(value)
        conv.replace_input_with(place, value)
    return model


def without_bias(model, conv, norm, weights, bias):
    model = right.put_in_place(model, conv, norm, weights, bias)
    conv.resize_inputs(2)
    return model


def both_convolutions(model, conv, norm, weights, bias):
    model = right.put_in_place(model, conv, norm, weights, bias)
    model.graph[2].replace_input_with(1, conv.inputs[1])
    return model


def swapped(model, conv, norm, weights, bias):
    return right.put_in_place(model, conv, norm, np.ascontiguousarray(weights.swapaxes(0, 1)), bias)


WRONG_PUT_IN_PLACE = [
    (in_the_old_place, "You changed the old weights"),
    (without_removing, "still in the graph"),
    (without_bias, "has no bias"),
    (both_convolutions, "lost its weights"),
    (swapped, "answers of the graph have changed"),
    (lambda *a: right.put_in_place(*a).graph, "Return the ir.Model, not Graph"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_PUT_IN_PLACE)
def test_put_in_place_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.put_in_place, wrong)


WRONG_COMPOSE = [
    (lambda a, b: right.compose(a[..., ::-1, ::-1], b), "turned upside down"),
    (lambda a, b: right.compose(a, b).swapaxes(0, 1), "are swapped; weights are"),
    (lambda a, b: right.compose(a.swapaxes(-1, -2), b.swapaxes(-1, -2)), "rows and columns are swapped"),
    (lambda a, b: right.compose(a, b)[..., 1:4, 1:4], "3 and 3 reach 5 pixels"),
    (lambda a, b: right.compose(b, a) if a.shape == b.shape else right.compose(a, b), "second kernel first"),
    (lambda a, b: 2 * right.compose(a, b), "adds to tap i + j"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_COMPOSE)
def test_compose_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.compose, wrong)
