"""Where a Jetson's DLA would take a graph and where not, as NVIDIA's tables say."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploylab.engines import _tensorrt_dla as dla
from deploylab.errors import ModelError

FIXED = {"x": ((1, 4, 8, 8),) * 3}


def graph(body: str, **constants: np.ndarray) -> onnx.ModelProto:
    """A model with the input ``x`` (n, 4, 8, 8) and the output ``y``."""
    text = f'<ir_version: 8, opset_import: ["" : 18]> g (float[n, 4, 8, 8] x) => (float y) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def weights(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def reasons(model: onnx.ModelProto, ranges: dla.Ranges = FIXED) -> list[str]:
    return [placed.reason for placed in dla.placement(model, ranges)]


def test_a_convolutional_network_is_taken():
    body = (
        "a = Conv<pads=[1, 1, 1, 1]>(x, w) b = Clip(a, zero, six) c = Add(b, x) d = AveragePool<kernel_shape=[8, 8]>(c)"
        " y = Conv(d, v)"
    )
    constants = {"zero": np.float32(0), "six": np.float32(6), "w": weights(4, 4, 3, 3), "v": weights(16, 4, 1, 1)}
    placed = dla.placement(graph(body, **{k: np.asarray(v) for k, v in constants.items()}), FIXED)
    assert [each.where for each in placed] == ["DLA"] * 5


def test_an_open_batch_keeps_all_on_the_gpu():
    model = graph("a = Relu(x) y = Sigmoid(a)")
    ranges = {"x": ((1, 4, 8, 8), (4, 4, 8, 8), (8, 4, 8, 8))}
    assert Counter(reasons(model, ranges)) == {"the shape of 'x' is not fixed, and the DLA takes only fixed ones": 2}
    assert reasons(model) == ["", ""]


@pytest.mark.parametrize(
    ("body", "constants", "reason"),
    [
        ("y = GlobalAveragePool(x)", {}, "the DLA has no GlobalAveragePool"),
        ("y = Neg(x)", {}, "the DLA has no Neg, but it can be rebuilt out of others"),
        ("y = AveragePool<kernel_shape=[9, 1]>(x)", {}, "a window of 9x1; at most 8x8"),
        ("y = Conv(x, w)", {"w": weights(4, 4, 33, 1)}, "kernel 33x1, stride 1x1; at most 32 and 8"),
        ("y = Conv<strides=[9, 1]>(x, w)", {"w": weights(4, 4, 1, 1)}, "kernel 1x1, stride 9x1; at most 32 and 8"),
        ("y = Conv(x, w)", {"w": weights(8193, 4, 1, 1)}, "a tensor of 1x8193x8x8; the batch is at most 4096"),
        ("w = Relu(x) y = MatMul(x, w)", {}, "its second factor is not constant"),
        ("w = Relu(x) y = Conv(x, w)", {}, "its weights are not constant"),
        ("y = ConvTranspose<pads=[1, 1, 1, 1]>(x, w)", {"w": weights(4, 4, 3, 3)}, "a transposed convolution with pad"),
        ("y = ConvTranspose<group=2>(x, w)", {"w": weights(4, 2, 3, 3)}, "a transposed convolution with groups"),
        ("y = Clip(x, low)", {"low": np.float32(-1)}, "it does not clip at 0 from below"),
        ("y = Clip(x)", {}, "it does not clip at 0 from below"),
    ],
)
def test_what_is_refused(body, constants, reason):
    model = graph(body, **{name: np.asarray(value) for name, value in constants.items()})
    assert reasons(model)[-1].startswith(reason)


def test_a_large_batch_is_refused():
    assert reasons(graph("y = Relu(x)"), {"x": ((4097, 4, 8, 8),) * 3}) == [
        "a tensor of 4097x4x8x8; the batch is at most 4096, other sizes 8192"
    ]


def test_operators_of_another_domain_are_refused():
    model = graph("y = Relu(x)")
    model.graph.node[0].domain = "com.example"
    with pytest.raises(ModelError, match="cannot be inferred"):
        reasons(model)
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    assert reasons(model) == ["the DLA has no Relu"]


def test_a_profile_for_other_inputs_is_an_error():
    with pytest.raises(ModelError, match=r"the profile is for \['image'\], the model's inputs are \['x'\]"):
        dla.placement(graph("y = Relu(x)"), {"image": ((1, 3),) * 3})


def test_the_tables_name_real_operators():
    for name in dla.NATIVE | dla.REBUILT:
        assert onnx.defs.has(name), name
    assert not dla.NATIVE & dla.REBUILT


def test_a_file_is_read_and_left_alone(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(graph("y = Relu(x)"), path)
    before = path.read_bytes()
    assert [each.where for each in dla.placement(path, FIXED)] == ["DLA"]
    assert path.read_bytes() == before
