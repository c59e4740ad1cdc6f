"""The graders of lab 11, graded: they name each planted mistake."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deploylab.checks import lab11 as check
from graders import solutions, verdict

right = solutions("11_onnx")


def read(f4="<f4", i8="<i8", order="C", shaped=True, turned=False):
    def attempt(tensor):
        flat = np.frombuffer(tensor.raw_data, {1: f4, 7: i8}[tensor.data_type])
        shape = tuple(tensor.dims)[:: -1 if turned else 1]
        return flat.reshape(shape, order=order) if shaped else flat

    return attempt


WRONG_TENSOR_TO_ARRAY = [
    (lambda tensor: np.frombuffer(tensor.raw_data, "<f4"), "in one row"),
    (read(i8="<f8"), "you read it as float64"),
    (read(f4=">f4"), "little-endian"),
    (read(order="F"), "the last one does"),
    (read(shaped=False), "in one row"),
    (read(turned=True), "dims has it in this order"),
    (lambda tensor: tensor.raw_data, "return a NumPy array, not bytes"),
    (lambda tensor: 2 * right.tensor_to_array(tensor), "the numbers differ"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_TENSOR_TO_ARRAY)
def test_tensor_to_array_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.tensor_to_array, wrong)


def runs(run, x, sizes):
    try:
        return all(run(x[:size]) is not None for size in sizes)
    except RuntimeError:
        return False


def runs_at_first_size(run, x, sizes):
    run(x[:7])
    return runs(run, x, sizes[:1])


def exactly_equal(run, x, sizes):
    alone = np.concatenate([run(x[i : i + 1]) for i in range(7)])
    return all(np.array_equal(run(x[:size]), alone[:size]) for size in sizes)


def swallows(run, x, sizes):
    runs(run, x, sizes)
    return True


def shape_only(run, x, sizes):
    try:
        return all(len(run(x[:size])) == size for size in sizes)
    except RuntimeError:
        return False


def in_any_order(run, x, sizes):
    alone = np.concatenate([run(x[i : i + 1]) for i in range(7)])
    try:
        answers = {size: run(x[:size]) for size in sizes}
    except RuntimeError:
        return False
    return all(
        np.shape(got) == alone[:size].shape and np.allclose(np.sort(got, 0), np.sort(alone[:size], 0), atol=1e-4)
        for size, got in answers.items()
    )


WRONG_TAKES_ANY_BATCH = [
    (lambda run, x, sizes: True, "never called"),
    (lambda run, x, sizes: run(x[:2]) is not None, "You tried batches of [2]"),
    (lambda run, x, sizes: run(x), "Return True or False, not ndarray"),
    (lambda run, x, sizes: not right.takes_any_batch(run, x, sizes), "takes every batch was refused"),
    (exactly_equal, "differs by rounding alone was refused"),
    (swallows, "frozen to a batch of one passed"),
    (runs_at_first_size, "You tried batches of [2, 7]"),
    (runs, "one row of answers whatever the batch"),
    (shape_only, "depend on their neighbours"),
    (in_any_order, "mixes up the order"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_TAKES_ANY_BATCH)
def test_takes_any_batch_names_the_mistake(capsys, wrong, hint):
    line = verdict(capsys, check.takes_any_batch, wrong)
    assert hint in line


def appended(name="probabilities", axis=-1, replace=True, use=True, typed=True):
    def attempt(model):
        logits = model.graph.outputs[0]
        softmax = ir.node("Softmax", [logits], {"axis": axis})
        softmax.outputs[0].name = name
        if typed:
            softmax.outputs[0].type, softmax.outputs[0].shape = logits.type, logits.shape
        model.graph.append(softmax)
        if use and replace:
            model.graph.outputs[0] = softmax.outputs[0]
        elif use:
            model.graph.outputs.append(softmax.outputs[0])
        return model

    return attempt


WRONG_GIVE_PROBABILITIES = [
    (appended(axis=0), "softmax over the batch"),
    (appended(name="output"), "it should be 'probabilities'"),
    (appended(use=False), "nobody uses it"),
    (appended(replace=False), "put the new value in the old one's place"),
    (appended(typed=False), "no type or shape"),
    (lambda model: model, "There is no Softmax"),
    (lambda model: model.graph, "Return the ir.Model, not Graph"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_GIVE_PROBABILITIES)
def test_give_probabilities_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.give_probabilities, wrong)
