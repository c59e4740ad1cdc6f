"""The networks have torchvision's parameters, useful made-up weights, and load a reader's own."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from deploylab import models, paths
from deploylab.errors import ConversionError, ModelError
from deploylab.models import onnx_export
from deploylab.models.made_up import smooth_pictures
from deploylab.models.mobilenet_v2 import MobileNetV2
from deploylab.models.resnet import ResNet18

DATA = Path(__file__).resolve().parents[1] / "data"
KINDS = {"mobilenet_v2": MobileNetV2, "resnet18": ResNet18}
PARAMETERS = {"mobilenet_v2": 3_504_872, "resnet18": 11_689_512}  # as in torchvision's documentation


@pytest.fixture(scope="module")
def made_up():
    return {name: models.load(name) for name in KINDS}


@pytest.mark.parametrize("name", KINDS)
def test_parameters_are_torchvisions(name):
    model = KINDS[name]()
    expected = dict(line.split() for line in (DATA / f"{name}.txt").read_text().splitlines())
    got = {key: "x".join(map(str, tensor.shape)) or "scalar" for key, tensor in model.state_dict().items()}
    assert got == expected
    assert list(got) == list(expected)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", KINDS)
def test_made_up_weights_tell_pictures_apart(name, made_up):
    model = made_up[name]
    assert not model.training
    pictures = torch.from_numpy(smooth_pictures(np.random.default_rng(7), (4, 3, 224, 224)))
    with torch.no_grad():
        logits = model(pictures)
        rounded = KINDS[name]().eval()
        rounded.load_state_dict({key: _to_bfloat16(tensor) for key, tensor in model.state_dict().items()})
        error = (rounded(pictures) - logits).abs().max()
    assert 0.5 < logits.std() < 2
    assert len(set(logits.argmax(1).tolist())) > 1
    assert error < 0.5  # weights with 8 significant bits still give about these logits


def _to_bfloat16(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.bfloat16().float() if tensor.is_floating_point() else tensor


def test_made_up_weights_are_the_same_every_time(made_up):
    again = models.load("mobilenet_v2").state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in made_up["mobilenet_v2"].state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_own_weights_load(suffix, tmp_path):
    state = KINDS["resnet18"]().state_dict()
    path = tmp_path / f"mine{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    loaded = models.load("resnet18", weights=path)
    assert not loaded.training
    assert torch.equal(loaded.fc.weight, state["fc.weight"])


def test_weights_that_do_not_fit_are_told(tmp_path):
    missing, junk, foreign, module = (tmp_path / f"{name}.pth" for name in ("missing", "junk", "foreign", "list"))
    junk.write_bytes(b"not a checkpoint")
    torch.save({"fc.weight": torch.zeros(3)}, foreign)
    torch.save([1, 2], module)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\xff" * 64)
    for path, told in (
        (missing, "does not exist"),
        (junk, "damaged"),
        (broken, "damaged"),
        (foreign, "does not fit ResNet18"),
        (module, "holds a list, expected a state dict"),
    ):
        with pytest.raises(ModelError, match=told):
            models.load("resnet18", weights=path)


def test_unknown_model_is_told():
    for ask in (models.load, models.info, models.verify):
        with pytest.raises(ModelError, match="unknown model 'vgg'; there are: signnet, mobilenet_v2, resnet18"):
            ask("vgg")
    assert models.names() == ["signnet", "mobilenet_v2", "resnet18"]
    assert models.info("resnet18").input_shape == (1, 3, 224, 224)
    assert models.info("signnet").input_shape == (1, 3, 64, 64)
    assert len(models.info("signnet").labels) == 16
    with pytest.raises(ModelError, match="ships without a checkpoint"):
        models.verify("resnet18")


def test_a_damaged_checkpoint_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "datasets", lambda: tmp_path)
    folder = tmp_path / "models"
    folder.mkdir()
    with pytest.raises(ModelError, match=r"missing; restore it with: git checkout"):
        models.load("signnet")
    (folder / "signnet.safetensors").write_bytes(b"weights")
    (folder / "signnet.json").write_text("{}")
    with pytest.raises(ModelError, match=r"signnet.json is damaged"):
        models.load("signnet")
    (folder / "signnet.json").write_text('{"sha256": "0123456789abcdef"}')
    with pytest.raises(ModelError, match=r"SHA-256 is [0-9a-f]{12}\.\.\., expected 0123456789ab"):
        models.load("signnet")


class Pair(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a + b.float(), a * 2


class TestOnnxExport:
    def test_names_opset_and_batch(self, tmp_path, capfd, recwarn):
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten()).eval()
        example = np.zeros((1, 3, 8, 8), np.float32)
        path = onnx_export.export_onnx(model, example, tmp_path / "new" / "model.onnx", output_names=["logits"])
        graph = onnx.load(path)
        onnx.checker.check_model(graph, full_check=True)
        assert [entry.version for entry in graph.opset_import if entry.domain == ""] == [onnx_export.OPSET]
        assert [value.name for value in (*graph.graph.input, *graph.graph.output)] == ["input", "logits"]
        sizes = [value.type.tensor_type.shape.dim[0].dim_param for value in (*graph.graph.input, *graph.graph.output)]
        assert sizes == ["batch", "batch"]
        assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
        assert capfd.readouterr() == ("", "")
        assert not [warning for warning in recwarn if "onnx" in str(warning.filename)]

    def test_fixed_batch_and_several_tensors(self, tmp_path):
        arrays = (np.zeros((1, 4), np.float32), np.zeros((1, 4), np.int64))
        path = onnx_export.export_onnx(Pair().eval(), arrays, tmp_path / "pair.onnx", dynamic_batch=False)
        graph = onnx.load(path).graph
        assert [value.name for value in graph.input] == ["input_0", "input_1"]
        assert [value.name for value in graph.output] == ["output_0", "output_1"]
        assert graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1

    def test_what_cannot_be_exported_is_told(self, tmp_path):
        class Branching(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x * 2 if x.sum() > 0 else x

        example = np.zeros((1, 4), np.float32)
        with pytest.raises(ConversionError, match=r"training mode.*model.eval\(\)"):
            onnx_export.export_onnx(Pair(), example, tmp_path / "x.onnx")
        with pytest.raises(ConversionError, match="Branching cannot be exported to ONNX"):
            onnx_export.export_onnx(Branching().eval(), example, tmp_path / "x.onnx")
        (tmp_path / "file").write_text("")
        with pytest.raises(ConversionError, match="cannot write"):
            onnx_export.export_onnx(torch.nn.ReLU().eval(), example, tmp_path / "file" / "x.onnx")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
