"""Solutions of lab 11: one function per exercise."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def tensor_to_array(tensor):
    dtype = {1: "<f4", 7: "<i8"}[tensor.data_type]
    return np.frombuffer(tensor.raw_data, dtype).reshape(tuple(tensor.dims))


def takes_any_batch(run, x, sizes=(2, 5, 7)):
    alone = np.concatenate([run(x[i : i + 1]) for i in range(max(sizes))])
    for size in sizes:
        try:
            answers = run(x[:size])
        except Exception:
            return False
        if answers.shape != alone[:size].shape or not np.allclose(
            answers, alone[:size], atol=1e-4
        ):
            return False
    return True


def give_probabilities(model):
    logits = model.graph.outputs[0]
    softmax = ir.node("Softmax", [logits], {"axis": -1})
    probabilities = softmax.outputs[0]
    probabilities.name, probabilities.type, probabilities.shape = (
        "probabilities",
        logits.type,
        logits.shape,
    )
    model.graph.append(softmax)
    model.graph.outputs[0] = probabilities
    return model
