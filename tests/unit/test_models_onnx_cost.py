"""The counter agrees with published figures and with counts done by hand."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser
from traced import traced

from deploylab import models
from deploylab.errors import InputError, ModelError
from deploylab.models.onnx_cost import cost

# Multiply-accumulates in thousand millions. MobileNetV2: 300 M "MAdds", table 4 of Sandler et al. 2018,
# https://arxiv.org/abs/1801.04381. ResNet-18: 1.8 thousand million "FLOPs (multiply-adds)", table 1 of He et al. 2015,
# https://arxiv.org/abs/1512.03385. With two digits in torchvision's tables of weights ("GFLOPS 0.30", "1.81"),
# https://docs.pytorch.org/vision/stable/models.html, which also give 3.5 M and 11.7 M parameters.
PUBLISHED = {"mobilenet_v2": (0.30, 3.5), "resnet18": (1.81, 11.7)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name):
    found = cost(traced(name))
    gmacs, millions = PUBLISHED[name]
    assert round(found.macs / 1e9, 2) == gmacs
    assert round(found.parameters / 1e6, 1) == pytest.approx(millions, abs=0.1)  # batch-norm statistics included


@pytest.mark.parametrize("name", models.names())
def test_agrees_with_hooks_on_the_torch_module(name):
    macs = []

    def note(module, given, output):
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            macs.append(module.weight.numel() * output.numel() // output.shape[1])

    model = models.load(name)
    for part in model.modules():
        part.register_forward_hook(note)
    with torch.inference_mode():
        model(torch.zeros(models.info(name).input_shape))
    state = [tensor for tensor in model.state_dict().values() if tensor.dtype == torch.float32]
    found = cost(traced(name))
    assert found.macs == sum(macs)
    assert found.parameters == sum(tensor.numel() for tensor in state)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.sampled_from([1, 3, 5]), st.integers(1, 2), st.integers(1, 4))
def test_a_convolution_counted_by_hand(groups, each, kernel, stride, batch):
    channels, size = groups * each, 9
    out = (size - kernel) // stride + 1
    model = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 18]> g (float[n,{channels},{size},{size}] x,
        float[{channels},{each},{kernel},{kernel}] w) => (float[n,{channels},o,o] y) {{
        y = Conv<group={groups}, strides=[{stride},{stride}]>(x, w) }}"""
    )
    found = cost(model, {"x": (batch, channels, size, size)})
    outputs = batch * channels * out * out
    assert found.macs == outputs * each * kernel * kernel
    numbers = batch * channels * size * size + channels * each * kernel * kernel + outputs
    assert found.bytes_moved == 4 * numbers


def one(body: str, inputs: str = "float[2,3,4] x", output: str = "float[N,M,K] y") -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]> g ({inputs}) => ({output}) {{ {body} }}')


def test_matrix_products_and_transposed_convolution():
    assert cost(one("y = MatMul(x, w)", "float[2,3,4] x, float[4,5] w")).macs == 2 * 3 * 4 * 5
    assert cost(one("y = Gemm<transA=1>(x, w)", "float[4,3] x, float[4,5] w", "float[N,M] y")).macs == 3 * 4 * 5
    up = one("y = ConvTranspose(x, w)", "float[1,2,5,5] x, float[2,3,2,2] w", "float[N,C,H,W] y")
    assert cost(up).macs == 2 * 25 * 3 * 4


def test_views_move_nothing_and_copies_both_ways():
    assert cost(one("y = Flatten(x)", output="float[N,M] y")).bytes_moved == 0
    assert cost(one("y = Relu(x)")).bytes_moved == 2 * 4 * 24
    half = one("y = Relu(x)", "float16[2,3,4] x", "float16[N,M,K] y")
    assert cost(half).bytes_moved == 2 * 2 * 24


def test_functions_are_counted_as_what_they_contain():
    text = """<ir_version: 10, opset_import: ["" : 18, "own" : 1]>
    g (float[2,3] x, float[3,4] w) => (float[N,M] y) { y = own.dense(x, w) }
    <domain: "own", opset_import: ["" : 18]> dense (a, b) => (c) { p = MatMul(a, b)  c = Relu(p) }"""
    found = cost(parser.parse_model(text))
    assert found.macs == 24
    assert found.by_op() == {"MatMul": 1, "Relu": 1}


def test_a_shared_weight_is_one_parameter_and_is_read_twice():
    model = one("p = MatMul(x, w)  y = MatMul(p, w)", "float[2,3] x", "float[N,M] y")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((3, 3), np.float32), "w"))
    found = cost(model)
    assert found.parameters == 9
    assert found.bytes_moved == 2 * 4 * (6 + 9 + 6)


def test_the_model_is_not_changed():
    model = onnx.load(str(traced("signnet")))
    before = model.SerializeToString(deterministic=True)
    cost(model, {"input": (3, 3, 64, 64)})
    assert model.SerializeToString(deterministic=True) == before


def test_batches_scale():
    path = traced("signnet")
    assert cost(path, {"input": (3, 3, 64, 64)}).macs == 3 * cost(path).macs


@pytest.mark.parametrize(
    ("shapes", "message"),
    [({"picture": (1, 3, 64, 64)}, "no input 'picture'; it has 'input'"), ({"input": (1, 3, 9, 9)}, "not 1x3x9x9")],
)
def test_shapes_that_do_not_fit_are_refused(shapes, message):
    with pytest.raises(InputError, match=message):
        cost(traced("signnet"), shapes)


def test_what_cannot_be_counted_is_refused_not_taken_for_nothing():
    with pytest.raises(ModelError, match="no rule for Einsum"):
        cost(one('y = Einsum<equation="abc->cba">(x)'))
    with pytest.raises(ModelError, match=r"the shape of .* is unknown"):
        cost(one("m = NonZero(x)  y = Cast<to=1>(m)", output="float[N,M] y"))


def test_bytes_of_all_nodes_add_up():
    found = cost(traced("signnet"))
    assert found.bytes_moved == sum(node.bytes_moved for node in found.nodes)
    assert sum(found.by_op().values()) == len(found.nodes)
    assert math.isclose(found.macs / 1e6, 13.6, rel_tol=0.01)
