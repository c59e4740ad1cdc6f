"""Solutions of lab 12: one function per exercise."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def fold(weights, bias, gamma, beta, mean, variance, epsilon):
    scale = gamma / np.sqrt(variance + epsilon)
    return weights * scale[:, None, None, None], (bias - mean) * scale + beta


def put_in_place(model, conv, norm, weights, bias):
    conv.resize_inputs(3)
    for place, name, array in ((1, "new.weights", weights), (2, "new.bias", bias)):
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        model.graph.register_initializer(value)
        conv.replace_input_with(place, value)
    norm.outputs[0].replace_all_uses_with(conv.outputs[0])
    model.graph.remove(norm, safe=True)
    return model


def compose(first, second):
    result = np.zeros((second.shape[0], first.shape[1], 5, 5))
    for i in range(3):
        for j in range(3):
            moved = np.einsum("om,mikl->oikl", second[:, :, i, j], first)
            result[:, :, i : i + 3, j : j + 3] += moved
    return result
