"""Solutions of lab 21: one function per exercise."""

from __future__ import annotations

import numpy as np

DTYPES = {"f32": "<f4", "f16": "<f2", "i64": "<i8", "i32": "<i4", "u8": "u1"}


def read_constant(layer, weights):
    data = layer.find("data").attrib
    shape = [int(size) for size in data["shape"].split(",") if size.strip()]
    begin = int(data["offset"])
    part = weights[begin : begin + int(data["size"])]
    return np.frombuffer(part, DTYPES[data["element_type"]]).reshape(shape)


def in_order(queue, arrays):
    answers = [None] * len(arrays)

    def keep(request, number):
        answers[number] = request.get_output_tensor().data.copy()

    queue.set_callback(keep)
    for number, array in enumerate(arrays):
        queue.start_async(array, userdata=number)
    queue.wait_all()
    return answers


def began(submitted, done, streams):
    begun = np.array(submitted, dtype=float)
    for i in range(streams, len(begun)):
        # It may begin when at most streams - 1 of the i before it are unfinished.
        a_stream_is_free = np.sort(done[:i])[i - streams]
        begun[i] = max(begun[i], a_stream_is_free)
    return begun
