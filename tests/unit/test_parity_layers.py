"""Planted faults are found at their layer, in torch modules and in ONNX graphs; references agree with each other."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from deploylab import parity
from deploylab.errors import EngineError, InputError, ModelError
from deploylab.models.onnx_export import export_onnx

LAYERS = "conv1 bn1 relu1 conv2 bn2 relu2 pool flat head"


class Net(nn.Module):
    """Two convolutions with batch norm, a residual in plain code, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.conv2, self.bn2, self.relu2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.pool, self.flat, self.head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = x + self.relu2(self.bn2(self.conv2(x)))
        return self.head(self.flat(self.pool(x)))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    module = Net().train()
    with torch.no_grad():
        for _ in range(3):
            module(torch.rand(16, 3, 8, 8))
    return module.eval()


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)


def wrong_epsilon(module: Net) -> str:
    module.bn1.eps = 1e-3
    return "bn1"


def swapped_weights(module: Net) -> str:
    module.conv2.weight.data = module.conv2.weight.data.flip(0)
    return "conv2"


def missing_relu(module: Net) -> str:
    module.relu1 = nn.Identity()
    return "input of conv2"  # Identity is another layer, so what follows it is the first that can be compared


def weights_in_half_precision(module: Net) -> str:
    module.head.weight.data = module.head.weight.data.half().float()
    return "head"


@pytest.mark.parametrize("plant", [wrong_epsilon, swapped_weights, missing_relu, weights_in_half_precision])
def test_a_fault_in_a_module_is_found(net, x, plant):
    suspect = copy.deepcopy(net)
    place = plant(suspect)
    found = parity.bisect(net, suspect, x)
    assert found.first.name == place
    assert place in str(found)
    if plant is missing_relu:
        assert found.missing == ("relu1 (ReLU)",)


def test_a_fault_between_modules_is_found_at_the_next_input(net, x):
    class Wrong(Net):
        def forward(self, x):
            x = self.relu1(self.bn1(self.conv1(x)))
            x = x - self.relu2(self.bn2(self.conv2(x)))
            return self.head(self.flat(self.pool(x)))

    suspect = Wrong().eval()
    suspect.load_state_dict(net.state_dict())
    assert parity.bisect(net, suspect, x).first.name == "input of pool"


def test_a_sound_module_departs_nowhere(net, x):
    found = parity.bisect(net, copy.deepcopy(net), x)
    assert found.first is None
    names = [layer.name for layer in found.layers if not layer.name.startswith("input")]
    assert names == LAYERS.split()
    assert str(found) == "no layer of 18 departs"


def test_a_layer_called_twice_is_compared_twice(x):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x):
            return self.relu(self.relu(x) - 1)

    names = [layer.name for layer in parity.bisect(Twice(), Twice(), x).layers]
    assert names == ["input of relu", "relu", "input of relu (call 2)", "relu (call 2)"]


def test_bisect_refuses_what_cannot_be_compared(net, x):
    with pytest.raises(InputError, match="not one with the other"):
        parity.bisect(net, "model.onnx", x)
    with pytest.raises(ModelError, match="no layer name in common"):
        parity.bisect(nn.Sequential(nn.ReLU()), nn.Sigmoid(), x)


def test_the_tolerance_of_a_module_is_measured_and_leaves_it_alone(net, x):
    before = copy.deepcopy(net.state_dict())
    tolerance = parity.tolerance_for(net, x)
    assert 1e-7 < tolerance.value < 1e-4
    assert all(
        torch.equal(value, before[key]) and value.dtype == before[key].dtype for key, value in net.state_dict().items()
    )
    with pytest.raises(ModelError, match="Net does not run on these inputs"):
        parity.tolerance_for(net, x[:, :2])


def graph(epsilon: float = 1e-5, relu: bool = True, flip: bool = False) -> onnx.ModelProto:
    """Five nodes, one of whose weights is also an input of the graph, as old files have it."""
    rng = np.random.default_rng(1)
    first, second = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 3, 3, 3), (4, 4, 3, 3)))
    weights = {"w1": first[::-1] if flip else first, "w2": second}
    weights |= {"scale": np.ones(4), "bias": np.zeros(4), "mean": np.ones(4) / 4, "var": np.ones(4) / 2}
    after_norm = "relu" if relu else "norm"
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["conv1"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["conv1", "scale", "bias", "mean", "var"], ["norm"], epsilon=epsilon),
        *([helper.make_node("Relu", ["norm"], ["relu"])] if relu else []),
        helper.make_node("Conv", [after_norm, "w2"], ["conv2"], pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["conv2"], ["y"]),
    ]
    image, answer = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["n", 3, 8, 8]), ("y", None))
    )
    old_habit = helper.make_tensor_value_info("w2", TensorProto.FLOAT, [4, 4, 3, 3])
    initializers = [numpy_helper.from_array(np.ascontiguousarray(v, np.float32), k) for k, v in weights.items()]
    made = helper.make_graph(nodes, "net", [image, old_habit], [answer], initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("fault", "place"), [({"epsilon": 1e-3}, "norm"), ({"flip": True}, "conv1"), ({"relu": False}, "conv2")]
)
def test_a_fault_in_an_onnx_graph_is_found(x, fault, place):
    found = parity.bisect(graph(), graph(**fault), x)
    assert found.first.name == place
    assert found.missing == (("relu (Relu)",) if "relu" in fault else ())


def test_a_sound_onnx_graph_departs_nowhere(x, tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(graph(), path)
    assert parity.bisect(path, path, x).first is None
    assert parity.bisect(str(path), None, x).first is None


def test_the_engine_itself_can_be_the_suspect(x):
    def careless(model, inputs):
        values = parity.layers._run_unoptimised(model, inputs)
        return {name: (value.astype(np.float16) if name == "conv2" else value) for name, value in values.items()}

    assert parity.bisect_onnx(graph(), None, x, run=careless).first.name == "conv2"


def test_the_onnx_reference_is_float64_and_close_to_torchs(net, x, tmp_path):
    path = tmp_path / "net.onnx"
    export_onnx(net, x, path)
    by_onnx = parity.onnx_reference(path, [(x,)])
    by_torch = parity.module_reference(net, [(x,)])
    assert by_onnx.source == "onnx.reference in float64"
    assert by_onnx.outputs[0].dtype == np.float64
    # The exporter folds batch norm into the weights, which rounds them to float32 once more.
    assert parity.relative_error(by_torch.outputs[0], by_onnx.outputs[0]) < 1e-6


def test_samples_are_concatenated(x, tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(graph(), path)
    reference = parity.onnx_reference(path, [(x[:1],), (x[1:],)])
    assert reference.outputs[0].shape == (2, 4, 1, 1)


def test_constants_casts_and_subgraphs_are_promoted():
    then, other = (
        helper.make_graph(
            [helper.make_node("Constant", [], [name], value_float=value)],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [])],
        )
        for name, value in (("a", 0.1), ("b", 0.2))
    )
    nodes = [
        helper.make_node("If", ["flag"], ["picked"], then_branch=then, else_branch=other),
        helper.make_node("Cast", ["ids"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Sum", ["picked", "floats", "zeros"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        helper.make_tensor_value_info("ids", TensorProto.INT64, [3]),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
        [numpy_helper.from_array(np.array([3]), "shape")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    values = parity.reference.evaluate_in_double(model, [np.array(True), np.arange(3)])
    assert values["y"].dtype == np.float64


def test_a_slow_float64_evaluation_falls_back_and_says_so(x, tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(graph(), path)
    reference = parity.onnx_reference(path, [(x,)], max_seconds=-1)
    assert "without graph optimisation" in reference.source
    assert "took too long" in reference.source
    assert reference.tolerance.value == 1e-4


def test_a_graph_nobody_can_run(tmp_path, x):
    model = graph()
    model.graph.node[0].op_type = "Nonsense"
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(EngineError, match=r"net\.onnx: no reference can be computed: .*Nonsense"):
        parity.onnx_reference(tmp_path / "net.onnx", [(x,)])
