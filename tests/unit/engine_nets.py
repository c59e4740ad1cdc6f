"""Small networks and ONNX files that the tests of the engines share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from deploylab import engines

SHAPE = (1, 3, 32, 32)


def testable_engines() -> list[str]:
    """The core's engines, which have to be here, and the others where their packages and devices are."""
    return [name for name in engines.names() if engines.get(name).core or engines.get(name).available().ok]


class Tiny(nn.Module):
    """Convolution, batch norm, depthwise, residual, pooling, linear. Starts in place, to see who guards its input."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.ReLU6(inplace=True)
        self.widen = nn.Conv2d(3, 12, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.head = nn.Linear(12, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.widen(self.start(x))))
        x = x + self.depthwise(x)
        return self.head(x.mean((2, 3)))


def tiny(seed: int = 0) -> Tiny:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Tiny().eval()
        net.norm.running_mean.uniform_(-0.5, 0.5)
        net.norm.running_var.uniform_(0.5, 2.0)
    return net


def pictures(count: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *SHAPE[1:]), np.float32)


def truth(net: nn.Module, *arrays: np.ndarray) -> np.ndarray:
    """What the module gives in float64."""
    import copy

    wide = copy.deepcopy(net).double()
    with torch.no_grad():
        given = [torch.from_numpy(a.astype(np.float64) if a.dtype.kind == "f" else a.copy()) for a in arrays]
        return wide(*given).numpy()


def two_inputs_onnx(path: Path, batch: str | int = "n") -> Path:
    """A picture and four integers to seven numbers and two: what a foreign file with several tensors looks like."""
    rng = np.random.default_rng(0)
    weights = {
        "kernel": rng.standard_normal((5, 3, 3, 3)).astype(np.float32) * 0.2,
        "table": rng.standard_normal((10, 6)).astype(np.float32),
        "matrix": rng.standard_normal((11, 7)).astype(np.float32) * 0.3,
        "axis": np.array([1], np.int64),
        "two": np.array([0, 2], np.int64),
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["picture", "kernel"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("ReduceMean", ["e", "axis"], ["m"], keepdims=0),
        helper.make_node("Concat", ["f", "m"], ["fm"], axis=1),
        helper.make_node("MatMul", ["fm", "matrix"], ["scores"]),
        helper.make_node("Sigmoid", ["m"], ["gates"]),
    ]
    graph = helper.make_graph(
        nodes,
        "two_inputs",
        [
            helper.make_tensor_value_info("picture", TensorProto.FLOAT, [batch, 3, 8, 8]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, [batch, 4]),
        ],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 7]),
            helper.make_tensor_value_info("gates", TensorProto.FLOAT, [batch, 6]),
        ],
        [
            numpy_helper.from_array(value, name)
            for name, value in weights.items()
            if name in ("kernel", "table", "matrix", "axis")
        ],
    )
    return save(graph, path)


def one_node_onnx(path: Path, op: str, domain: str = "", **attributes: object) -> Path:
    """One operator between ``x`` and ``y``, both (1, 3, 4, 4)."""
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], domain=domain, **attributes)],
        "one_node",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 4, 4])],
    )
    return save(graph, path, domain)


def save(graph: onnx.GraphProto, path: Path, domain: str = "") -> Path:
    imports = [helper.make_opsetid("", 18)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), str(path))
    return path


def matrix_product(folder: Path) -> Path:
    """An ONNX file in ``folder``: one product with a matrix of 12 x 4."""
    path = folder / "small.onnx"
    weight = numpy_helper.from_array(np.random.default_rng(0).random((12, 4), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
