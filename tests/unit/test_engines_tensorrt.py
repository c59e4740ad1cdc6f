"""The TensorRT adapter without a GPU: what it says is missing, and its own code against NVIDIA's real bindings.

tensorrt_stand_in.py tells what the stand-ins are and are not.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import tensorrt_api
from deploylab import engines
from deploylab.engines import _cuda, _tensorrt_operators, tensorrt
from deploylab.engines.base import TensorSpec
from deploylab.errors import ConversionError, EngineError
from deploylab.models import onnx_precision

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """ONNX files, among them some that must be refused."""
    folder = tmp_path_factory.mktemp("models")
    tiny = write(folder / "tiny.onnx", TINY, conv=(12, 3, 3, 3), bias=(12,), dense=(12, 7))
    samples = np.random.default_rng(1).standard_normal((4, 3, 32, 32), np.float32)
    onnx_precision.to_int8(tiny, folder / "tiny-int8.onnx", [samples])
    write(folder / "two.onnx", TWO, dense=(3, 7), table=(10, 5))
    save(folder / "refused.onnx", onnx.load(tiny), producer="refused by the parser")
    odd = onnx.load(tiny)
    odd.graph.node[0].domain, odd.graph.node[0].op_type = "com.example", "Odd"
    save(folder / "odd.onnx", odd)
    uneven = onnx.load(folder / "tiny-int8.onnx")
    zero = next(tensor for tensor in uneven.graph.initializer if "zero_point" in tensor.name)
    zero.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(zero) + np.int8(3), zero.name))
    save(folder / "tiny-uneven.onnx", uneven)
    return folder


TINY = """<ir_version: 8, opset_import: ["" : 17]>
tiny (float[batch, 3, 32, 32] input) => (float[batch, 7] output) {
  wide = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(input, conv, bias)
  bent = Relu(wide)
  mean = ReduceMean<axes = [2, 3], keepdims = 0>(bent)
  output = MatMul(mean, dense)
}"""
TWO = """<ir_version: 8, opset_import: ["" : 17]>
two (float[2, 3, 8, 8] picture, int64[2, 4] ids) => (float[2, 7] scores, float[2, 4, 5] rows) {
  mean = ReduceMean<axes = [2, 3], keepdims = 0>(picture)
  scores = MatMul(mean, dense)
  rows = Gather(table, ids)
}"""


def write(path: Path, text: str, **weights: tuple[int, ...]) -> Path:
    """The model of a text, with random weights of these shapes."""
    model, rng = parser.parse_model(text), np.random.default_rng(0)
    for name, shape in weights.items():
        array = rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def save(path: Path, model: onnx.ModelProto, producer: str = "") -> None:
    model.producer_name = producer
    onnx.save(model, path)


@pytest.fixture(scope="module")
def cuda(tmp_path_factory) -> Path:
    compiler = shutil.which("cc")
    if sys.platform != "linux":
        pytest.skip("TensorRT's bindings are looked at on Linux only")
    if compiler is None:
        pytest.skip("there is no C compiler, so no stand-in for the CUDA runtime can be made")
    library = tmp_path_factory.mktemp("cuda") / "libcudart_stand_in.so"
    source = HERE / "stand_in_cuda.c"
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", library], check=True)
    return library


RUNS = [*((version, "") for version in tensorrt_api.VERSIONS), ("8.6", "old")]


@pytest.mark.parametrize(("version", "age"), RUNS, ids=[f"{version}{age and '-as-8.2'}" for version, age in RUNS])
def test_the_adapter_does_its_work_with_the_real_bindings(version, age, models, cuda, tmp_path):
    """Every case of tensorrt_stand_in.py; a call that this version's bindings would refuse fails."""
    if problem := tensorrt_api.why_not(version):
        pytest.skip(problem)
    tensorrt_api.make_stand_ins(version, tmp_path)
    environment = tensorrt_api.environment(version, tmp_path)
    paths = [str(Path(tensorrt_api.__file__).parent), environment["PYTHONPATH"]]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(tmp_path)}
    command = [sys.executable, HERE / "tensorrt_stand_in.py", cuda, models, *filter(None, [age])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    failed = {name: text for name, text in report.items() if text != "ok"}
    assert not failed, "\n".join(f"{name}:\n{text}" for name, text in failed.items())
    assert len(report) == 10


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="CUDA is looked for on Linux only")


class TestWhatIsMissing:
    def test_no_gpu_is_told_first(self, monkeypatch):
        monkeypatch.setattr(_cuda, "DEVICES", ("/dev/there-is-no-such-device",))
        state = engines.get("tensorrt").available()
        assert not state.ok
        assert "no NVIDIA GPU" in state.reason
        assert "Jetson" in state.fix
        with pytest.raises(EngineError, match=r"tensorrt: this machine has no NVIDIA GPU.*Try: "):
            engines.get("tensorrt").convert("model.onnx", np.zeros((1, 3), np.float32), "nowhere")
        with pytest.raises(EngineError, match="CUDA cannot be used: this machine has no NVIDIA GPU"):
            _cuda.runtime.__wrapped__()

    @on_linux
    def test_then_the_cuda_runtime(self, monkeypatch):
        monkeypatch.setattr(_cuda, "DEVICES", (os.devnull,))
        monkeypatch.setattr(_cuda, "LIBRARIES", ("libcudart_that_is_not_there.so",))
        monkeypatch.setattr(_cuda, "library", _cuda.library.__wrapped__)
        state = engines.get("tensorrt").available()
        assert not state.ok
        assert state.reason == "the CUDA runtime library is missing: libcudart_that_is_not_there.so"
        assert state.fix == "pip install tensorrt"

    @on_linux
    def test_then_the_package(self, monkeypatch):
        monkeypatch.setattr(_cuda, "DEVICES", (os.devnull,))
        monkeypatch.setattr(_cuda, "library", lambda: None)
        monkeypatch.setattr(tensorrt.TensorRT, "modules", ("tensorrt_that_is_not_there",))
        state = engines.get("tensorrt").available()
        assert not state.ok
        assert state.reason == "Python package missing: tensorrt_that_is_not_there"

    def test_the_core_does_not_need_it(self):
        assert not engines.get("tensorrt").core


class TestShapeRanges:
    SPEC = TensorSpec("x", (None, 3, None, None))

    def test_a_batch_of_any_size_ranges_and_other_axes_stay(self):
        example = (np.zeros((2, 3, 32, 48), np.float32),)
        assert tensorrt.shape_ranges([self.SPEC], example, None) == {
            "x": ((1, 3, 32, 48), (2, 3, 32, 48), (8, 3, 32, 48))
        }
        assert tensorrt.shape_ranges([self.SPEC], example, (2, 4, 64))["x"][2] == (64, 3, 32, 48)

    def test_a_large_example_is_allowed(self):
        example = (np.zeros((20, 3, 4, 4), np.float32),)
        assert [shape[0] for shape in tensorrt.shape_ranges([self.SPEC], example, None)["x"]] == [1, 20, 20]

    def test_a_fixed_batch_stays(self):
        spec, example = TensorSpec("x", (2, 3)), (np.zeros((2, 3), np.float32),)
        assert tensorrt.shape_ranges([spec], example, None) == {"x": ((2, 3),) * 3}
        with pytest.raises(ConversionError, match="has the fixed shape"):
            tensorrt.shape_ranges([spec], example, (1, 2, 3))


class TestInspector:
    """Texts as TensorRT writes them: its migration guide to 11, and issue 4020 of NVIDIA/TensorRT."""

    def test_one_field_up_to_10(self):
        text = json.dumps(
            {
                "Layers": [
                    {
                        "Name": "Reformatting CopyNode for Input Tensor 0",
                        "LayerType": "Reformat",
                        "Outputs": [{"Name": "x", "Format/Datatype": "Row major Int8 format"}],
                    },
                    {
                        "Name": "conv + relu",
                        "LayerType": "CaskConvActPool",
                        "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP16 format"}],
                    },
                    {"Name": "gemm", "LayerType": "gemm", "Outputs": [{"Format/Datatype": "Row major linear FP32"}]},
                ],
                "Bindings": ["x", "y"],
            }
        )
        assert tensorrt.parse_layers(text) == [
            {"name": "Reformatting CopyNode for Input Tensor 0", "kind": "Reformat", "types": ["int8"]},
            {"name": "conv + relu", "kind": "CaskConvActPool", "types": ["fp16"]},
            {"name": "gemm", "kind": "gemm", "types": ["fp32"]},
        ]

    def test_two_fields_since_11(self):
        output = {"Name": "y", "DataType": "Float", "Format": "Row major linear FP16 format (kLINEAR)"}
        text = json.dumps({"Layers": [{"Name": "a", "LayerType": "Conv", "Outputs": [output]}], "I/O Tensors": []})
        assert tensorrt.parse_layers(text) == [{"name": "a", "kind": "Conv", "types": ["fp32"]}]

    def test_names_only_and_unknown_types(self):
        assert tensorrt.parse_layers('{"Layers": ["a", "b"]}')[1] == {"name": "b", "kind": "", "types": []}
        text = '{"Layers": [{"Name": "a", "Outputs": [{"Format/Datatype": "new"}, {}]}]}'
        assert tensorrt.parse_layers(text)[0]["types"] == ["new", "unknown"]
        assert tensorrt.parse_layers("{}") == []


class TestOperators:
    def test_our_networks_pass_both_tables(self, models):
        for version in _tensorrt_operators.SUPPORTED:
            assert _tensorrt_operators.unsupported(models / "tiny.onnx", version) == {}
            assert _tensorrt_operators.unsupported(models / "tiny-int8.onnx", version) == {}

    def test_what_only_newer_ones_take(self, tmp_path):
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in "xy")
        inner = helper.make_graph(
            [helper.make_node("Unique", ["x"], ["z"])], "then", [], [helper.make_empty_tensor_value_info("z")]
        )
        nodes = [
            helper.make_node("Gelu", ["x"], ["g"]),
            helper.make_node("Gelu", ["g"], ["y"]),
            helper.make_node("If", ["c"], ["w"], then_branch=inner, else_branch=inner),
        ]
        model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 20)])
        onnx.save(model, tmp_path / "m.onnx")
        assert _tensorrt_operators.unsupported(tmp_path / "m.onnx") == {"Unique": 2}
        assert _tensorrt_operators.unsupported(tmp_path / "m.onnx", "8.5") == {"Gelu": 2, "Unique": 2}

    def test_the_tables_name_operators_that_there_are(self):
        known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain}
        legacy = {"ImageScaler", "ParametricSoftplus", "ScaledTanh"}  # experimental once, removed from ONNX since
        for names in _tensorrt_operators.SUPPORTED.values():
            assert names - known - legacy == set()


class TestPrecisionInTheFile:
    def test_float16_keeps_the_outside_float32(self, models, tmp_path):
        half = onnx_precision.to_float16(models / "tiny.onnx", tmp_path / "half.onnx")
        onnx.checker.check_model(half, full_check=True)
        graph = onnx.load(half).graph
        assert graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
        assert graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
        weights = [tensor for tensor in graph.initializer if len(tensor.dims) == 4]
        assert weights
        assert all(tensor.data_type == TensorProto.FLOAT16 for tensor in weights)

    def test_int8_is_symmetric_and_leaves_biases_alone(self, models):
        onnx.checker.check_model(models / "tiny-int8.onnx", full_check=True)
        assert onnx_precision.faults_for_tensorrt(models / "tiny-int8.onnx") == []
        assert onnx_precision.quantized_nodes(models / "tiny-int8.onnx") > 0
        assert onnx_precision.quantized_nodes(models / "tiny.onnx") == 0
        assert any(
            "the zero point is 3, not 0" in fault
            for fault in onnx_precision.faults_for_tensorrt(models / "tiny-uneven.onnx")
        )

    def test_what_cannot_be_calibrated_is_told(self, models, tmp_path):
        with pytest.raises(ConversionError, match="no batch was given"):
            onnx_precision.to_int8(models / "tiny.onnx", tmp_path / "x.onnx", [])
        with pytest.raises(ConversionError, match="has 2 inputs"):
            onnx_precision.to_int8(models / "two.onnx", tmp_path / "x.onnx", [])
