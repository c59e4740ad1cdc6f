"""The passes of lab 12 keep every answer: on the course's networks and on random graphs made to trip them up."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, checker, helper, numpy_helper

from deploylab import models, parity
from deploylab.models.onnx_cost import cost
from lab_contract import LABS

sys.path.insert(0, str(LABS.parent / "tests" / "unit"))
from traced import traced

spec = importlib.util.spec_from_file_location("graph_passes", LABS / "graph_passes.py")
passes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(passes)

EVERY = (*passes.STANDARD, *passes.FUSIONS)
# 1.23, the last for Python 3.10, fails at its highest level on convolutions that add.
HIGHEST = "ORT_ENABLE_EXTENDED" if onnxruntime.__version__.startswith("1.23.") else "ORT_ENABLE_ALL"


def run(model: onnx.ModelProto, x: np.ndarray, level: str = "ORT_DISABLE_ALL") -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


# ---------------------------------------------------------------------------------------------------------------------
# The networks of the course


@pytest.mark.parametrize("name", models.names())
def test_the_networks_keep_their_answers_and_lose_their_batch_norms(name):
    shape = models.info(name).input_shape
    x = np.random.default_rng(1).random((2, *shape[1:]), np.float32)
    module = models.load(name)
    truth = parity.module_reference(module, [(x,)])
    model = passes.loaded(traced(name))
    before = cost(ir.to_proto(model))

    passes.optimise(model, passes.STANDARD)
    plain = ir.to_proto(model)
    checker.check_model(plain, full_check=True)
    assert parity.compare_outputs(truth.outputs, [run(plain, x)], truth.tolerance)
    after = cost(plain)
    assert not {"BatchNormalization", "CastLike", "Expand", "Identity"} & set(after.by_op())
    assert after.macs == before.macs
    assert after.bytes_moved < before.bytes_moved

    passes.optimise(model, passes.FUSIONS)
    fused = ir.to_proto(model)
    for level in ("ORT_DISABLE_ALL", HIGHEST):
        assert parity.compare_outputs(truth.outputs, [run(fused, x, level)], truth.tolerance)
    assert not {"Clip", "Relu", "Add"} & set(cost(fused).by_op())
    assert cost(fused).macs == before.macs
    assert cost(fused).bytes_moved < after.bytes_moved


# ---------------------------------------------------------------------------------------------------------------------
# Small graphs, each with what a careless pass gets wrong


class Graph:
    """Builds an ONNX graph node by node; ``x`` is the value to go on from."""

    def __init__(self, channels: int, size: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes, self.weights, self.count = [], {}, 0
        self.x, self.channels, self.input = "input", channels, (channels, size, size)

    def add(self, op: str, inputs: list[str], **attributes) -> str:
        self.count += 1
        self.nodes.append(helper.make_node(op, inputs, [f"{op}_{self.count}"], name=f"node_{self.count}", **attributes))
        return self.nodes[-1].output[0]

    def constant(self, array: np.ndarray) -> str:
        self.weights[name := f"w{len(self.weights)}"] = array
        return name

    def normal(self, *shape: int, spread: float = 1.0) -> str:
        return self.constant((spread * self.rng.standard_normal(shape)).astype(np.float32))

    def conv(self, outputs=None, kernel=1, groups=1, bias=False, pad=0, stride=1, weights=None) -> None:
        outputs = outputs or self.channels
        each = self.channels // groups
        weights = weights or self.normal(outputs, each, kernel, kernel, spread=(each * kernel**2) ** -0.5)
        inputs = [self.x, weights, *([self.normal(outputs)] if bias else [])]
        self.x = self.add("Conv", inputs, group=groups, pads=[pad] * 4, strides=[stride] * 2)
        self.channels = outputs

    def norm(self, epsilon=1e-3) -> None:
        variance = self.constant(self.rng.uniform(1e-3, 2, self.channels).astype(np.float32))
        parts = [self.normal(self.channels) for _ in range(3)]
        self.x = self.add("BatchNormalization", [self.x, *parts, variance], epsilon=epsilon)

    def relu6(self) -> None:
        self.x = self.add("Clip", [self.x, self.number(0), self.number(6)])

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def hard_swish(self, way: int) -> None:
        x, three, six = self.x, self.number(3), self.number(6)
        gate = self.add("Clip", [self.add("Add", [x, three]), self.number(0), six])
        if way == 0:
            self.x = self.add("Div", [self.add("Mul", [x, gate]), six])
        elif way == 1:
            self.x = self.add("Mul", [self.add("Div", [gate, six]), x])
        else:
            self.x = self.add("Mul", [x, self.add("HardSigmoid", [x], alpha=1 / 6, beta=0.5)])

    def pad(self, amount: int, value: float = 0.0) -> None:
        amounts = self.constant(np.array([0, 0, amount, amount, 0, 0, amount, amount], np.int64))
        self.x = self.add("Pad", [self.x, amounts, self.number(value)])

    def model(self, outputs=()) -> onnx.ModelProto:
        made = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", *self.input])]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (self.x, *outputs)]
        tensors = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "random", made, ends, tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def optimised(model: onnx.ModelProto, which=EVERY) -> tuple[onnx.ModelProto, dict[str, int]]:
    changed = ir.from_proto(model)
    counts = passes.optimise(changed, which)
    return ir.to_proto(changed), counts


def assert_same(model: onnx.ModelProto, other: onnx.ModelProto, seed: int = 0) -> None:
    shape = [axis.dim_value or 2 for axis in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(seed).standard_normal(shape, np.float32)
    exact = parity.reference.evaluate_in_double(model, [x])[model.graph.output[0].name]
    tolerance = parity.tolerance_from_noise(parity.relative_error(exact, run(model, x)))
    verdict = parity.compare_outputs(exact, run(other, x), tolerance)
    assert verdict, verdict.text


@pytest.mark.parametrize("pad", [0, 1])
def test_a_batch_norm_before_a_convolution_is_folded_unless_that_pads(pad):
    graph = Graph(4, 6, seed=2)
    graph.norm()
    graph.conv(kernel=3, pad=pad)
    made, counts = optimised(graph.model())
    assert_same(graph.model(), made)
    assert counts["fold_batch_norms_before"] == (0 if pad else 1)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_grouped_convolutions_with_and_without_bias(groups, bias, before):
    graph = Graph(4, 5, seed=groups)
    if before:
        graph.norm()
        graph.conv(8, kernel=3, groups=groups, bias=bias)
    else:
        graph.conv(8, kernel=3, groups=groups, bias=bias, pad=1)
        graph.norm()
    made, counts = optimised(graph.model())
    assert_same(graph.model(), made)
    assert counts["fold_batch_norms"] + counts["fold_batch_norms_before"] == 1


def test_shared_weights_are_not_changed_for_the_other_user():
    graph = Graph(4, 5, seed=3)
    shared = graph.normal(4, 4, 3, 3)
    graph.conv(kernel=3, weights=shared, pad=1)
    graph.norm()
    graph.conv(kernel=3, weights=shared, pad=1)
    made, counts = optimised(graph.model())
    assert_same(graph.model(), made)
    assert counts["fold_batch_norms"] == 1


def test_a_convolution_that_somebody_else_reads_is_left_alone():
    graph = Graph(4, 5, seed=4)
    graph.conv()
    watched = graph.x
    graph.norm()
    graph.x = graph.add("Add", [graph.x, watched])
    made, counts = optimised(graph.model())
    assert_same(graph.model(), made)
    assert counts["fold_batch_norms"] == 0


def test_a_convolution_that_is_an_output_is_left_alone():
    graph = Graph(4, 5, seed=4)
    graph.conv()
    watched = graph.x
    graph.norm()
    graph.relu6()
    _, counts = optimised(graph.model(outputs=[watched]))
    assert counts["fold_batch_norms"] == counts["fuse_activations"] == 0


def test_padding_with_ones_is_not_merged():
    graph = Graph(4, 5, seed=5)
    graph.pad(1, value=1.0)
    graph.conv(kernel=3)
    graph.x = graph.add("Relu", [graph.x])
    made, counts = optimised(graph.model())
    assert_same(graph.model(), made)
    assert counts["merge_pads"] == 0


def test_a_batch_norm_in_training_mode_is_left_alone():
    graph = Graph(4, 5, seed=6)
    graph.conv()
    graph.norm()
    graph.nodes[-1].attribute.append(helper.make_attribute("training_mode", 1))
    graph.nodes[-1].output.extend(["mean", "variance"])
    graph.x = graph.add("Relu", [graph.x])
    assert optimised(graph.model())[1]["fold_batch_norms"] == 0


@pytest.mark.parametrize("way", [0, 1, 2])
def test_hard_swish_is_recognised_in_three_ways_of_writing_it(way):
    graph = Graph(4, 5, seed=7)
    graph.conv()
    graph.hard_swish(way)
    graph.x = graph.add("Relu", [graph.x])
    made, counts = optimised(graph.model())
    assert_same(graph.model(), made)
    assert counts["recognise_hard_swish"] == 1
    assert "Div" not in cost(made).by_op()


def test_what_only_looks_like_hard_swish_is_left_alone():
    graph = Graph(4, 5, seed=8)
    x, other = graph.x, graph.add("Neg", [graph.x])
    gate = graph.add("Clip", [graph.add("Add", [x, graph.number(3)]), graph.number(0), graph.number(6)])
    graph.x = graph.add("Relu", [graph.add("Div", [graph.add("Mul", [other, gate]), graph.number(6)])])
    made, counts = optimised(graph.model())
    assert_same(graph.model(), made)
    assert counts["recognise_hard_swish"] == 0


def test_an_add_that_broadcasts_is_not_fused():
    graph = Graph(4, 5, seed=9)
    small = graph.add("GlobalAveragePool", [graph.x])
    graph.conv()
    graph.x = graph.add("Relu", [graph.add("Add", [graph.x, small])])
    made, counts = optimised(graph.model())
    assert_same(graph.model(), made)
    assert counts["fuse_residual_adds"] == 0


def test_a_convolution_added_to_itself():
    graph = Graph(4, 5, seed=10)
    graph.conv()
    graph.x = graph.add("Relu", [graph.add("Add", [graph.x, graph.x])])
    made, _ = optimised(graph.model())
    assert_same(graph.model(), made)


def test_the_sum_of_two_convolutions_reads_one_of_them():
    graph = Graph(4, 5, seed=11)
    graph.conv(kernel=3, pad=1, bias=True)
    left = graph.x
    graph.x = "input"
    graph.conv(kernel=1)
    graph.x = graph.add("Relu", [graph.add("Add", [left, graph.x])])
    graph.conv()
    made, counts = optimised(graph.model())
    assert_same(graph.model(), made)
    assert counts["fuse_residual_adds"] == counts["fuse_activations"] == 1


def test_constants_are_folded_with_the_meaning_of_the_files_opset():
    text = """<ir_version: 7, opset_import: ["" : 11]> g (float[2,2] x) => (float[2,2] y)
    <float[1,2,2] w = {1, 2, 3, 4}> { s = Softmax(w)  y = Add(x, s) }"""
    model = onnx.parser.parse_model(text.replace("=> (float[2,2] y)", "=> (float[1,2,2] y)"))
    made, counts = optimised(model, passes.STANDARD)
    x = np.zeros((2, 2), np.float32)
    assert counts["fold_constants"] == 1
    np.testing.assert_allclose(run(made, x), run(model, x), atol=1e-6)


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("conv"),
            st.sampled_from([4, 8]),
            st.sampled_from([1, 3]),
            st.sampled_from([1, 2, 4]),
            st.booleans(),
            st.integers(0, 1),
        ),
        st.tuples(st.just("norm"), st.sampled_from([1e-5, 1e-2])),
        st.tuples(st.just("relu6")),
        st.tuples(st.just("relu")),
        st.tuples(st.just("hard_swish"), st.integers(0, 2)),
        st.tuples(st.just("pad"), st.integers(0, 2), st.sampled_from([0.0, 0.0, 1.0])),
        st.tuples(st.just("identity")),
        st.tuples(st.just("residual"), st.booleans()),
        st.tuples(st.just("shared")),
    ),
    min_size=1,
    max_size=9,
)


def built(recipe, seed: int) -> Graph:
    graph = Graph(4, 7, seed)
    shared = None
    for step, *how in recipe:
        if step == "conv":
            graph.conv(how[0], kernel=how[1], groups=how[2], bias=how[3], pad=max(how[4], how[1] // 2))
        elif step == "shared":
            shared = shared or graph.normal(4, 4, 1, 1, spread=0.5)
            if graph.channels == 4:
                graph.conv(4, weights=shared)
        elif step == "residual":
            before = graph.x
            graph.conv(kernel=3, pad=1)
            if how[0]:
                graph.norm()
            graph.x = graph.add("Add", [graph.x, before])
        elif step in ("relu", "identity"):
            graph.x = graph.add(step.capitalize(), [graph.x])
        else:
            getattr(graph, step)(*how)
    return graph


@settings(max_examples=120, deadline=None)
@given(steps, st.integers(0, 1000))
def test_random_graphs_keep_their_answers(recipe, seed):
    model = built(recipe, seed).model()
    plain, _ = optimised(model, passes.STANDARD)
    checker.check_model(plain, full_check=True)
    assert_same(model, plain, seed)
    fused, _ = optimised(model)
    assert_same(model, fused, seed)
    assert len(fused.graph.node) <= len(plain.graph.node) <= len(model.graph.node)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 3]), st.sampled_from([1, 3, 5]))
def test_two_convolutions_composed_are_one(inputs, middle, outputs, k, size):
    rng = np.random.default_rng(inputs + 10 * middle + 100 * outputs)
    first, second = rng.standard_normal((middle, inputs, k, k)), rng.standard_normal((outputs, middle, size, size))
    x = torch.from_numpy(rng.standard_normal((1, inputs, 9, 9)))
    conv = torch.nn.functional.conv2d
    one = conv(x, torch.from_numpy(passes.composed(first, second)))
    two = conv(conv(x, torch.from_numpy(first)), torch.from_numpy(second))
    torch.testing.assert_close(one, two)


# ---------------------------------------------------------------------------------------------------------------------
# Planted wrong folds


def without_epsilon(w, b, gamma, beta, mean, variance, epsilon):
    return passes.folded(w, b, gamma, beta, mean, variance, 0.0)


def along_the_inputs(w, b, gamma, beta, mean, variance, epsilon):
    _, bias = passes.folded(w, b, gamma, beta, mean, variance, epsilon)
    return w * (gamma / np.sqrt(variance + epsilon)).reshape(1, -1, 1, 1), bias


def without_bias(w, b, gamma, beta, mean, variance, epsilon):
    return passes.folded(w, 0 * b, gamma, beta, mean, variance, epsilon)


@pytest.mark.parametrize("wrong", [without_epsilon, along_the_inputs, without_bias])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_bisect_finds_a_wrong_fold_where_it_was_planted(wrong, place):
    graph = Graph(8, 6, seed=12)
    for _ in range(3):
        graph.conv(kernel=3, pad=1, bias=True)
        graph.norm()
        graph.relu6()
    model, calls = graph.model(), []

    def fold(*arguments):
        calls.append(1)
        return (wrong if len(calls) == place + 1 else passes.folded)(*arguments)

    suspect = ir.from_proto(model)
    assert passes.fold_batch_norms(suspect, fold) == 3
    x = np.random.default_rng(0).standard_normal((2, 8, 6, 6), np.float32)
    found = parity.bisect(model, ir.to_proto(suspect), x)
    norms = [node.output[0] for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert found.first.name == norms[place]
    right = ir.from_proto(model)
    passes.fold_batch_norms(right)
    assert parity.bisect(model, ir.to_proto(right), x).first is None
