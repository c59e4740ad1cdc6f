"""Solutions of lab 22: one function per exercise."""

from __future__ import annotations

import ncnn
import numpy as np

FLAG, FLOAT = 4, 4  # bytes


def weight_bytes(layer):
    keys = {"Convolution": (6, 5), "ConvolutionDepthWise": (6, 5), "InnerProduct": (2, 1)}
    if layer.type not in keys:
        return 0
    weights, has_bias = (layer.params.get(key, 0) for key in keys[layer.type])
    return FLAG + FLOAT * (weights + has_bias * layer.params[0])


def bfloat16(values):
    bits = values.view(np.uint32)
    lowest_kept = (bits >> 16) & 1
    return ((bits + 0x7FFF + lowest_kept) & 0xFFFF0000).view(np.float32)


def infer_guarded(net, photo):
    photo = np.ascontiguousarray(photo, dtype=np.float32)  # a name, so that it lives on
    with net.create_extractor() as extractor:
        code = extractor.input("in0", ncnn.Mat(photo).clone())
        if code != 0:
            raise RuntimeError(f"ncnn refused the input (code {code})")
        code, answer = extractor.extract("out0")
        if code != 0:
            raise RuntimeError(f"ncnn could not compute the output (code {code})")
        return np.array(answer)
