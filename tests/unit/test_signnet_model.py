"""SignNet and its shipped checkpoint."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch

from deploylab import image, models, paths
from deploylab.errors import ModelError
from deploylab.models.signnet import SignNet, count_parameters, example_input
from deploylab.signs import CLASSES, dataset
from deploylab.signs.evaluate import evaluate, predict


@pytest.fixture(scope="module")
def shipped():
    return models.load("signnet")


@pytest.fixture
def copy_of_the_checkpoint(tmp_path, monkeypatch):
    shutil.copytree(paths.datasets() / "models", tmp_path / "datasets" / "models")
    monkeypatch.setenv("DEPLOYLAB_HOME", str(tmp_path))
    return tmp_path / "datasets" / "models" / "signnet.safetensors"


def test_it_is_small():
    assert count_parameters(SignNet()) <= 600_000


@pytest.mark.parametrize("batch", [1, 3])
def test_shapes(batch):
    assert SignNet().eval()(example_input(batch)).shape == (batch, len(CLASSES))


def test_left_in_training_mode_it_answers_differently_each_time(shipped):
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    network = SignNet()
    network.load_state_dict(shipped.state_dict())
    network.train()
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_the_card_belongs_to_the_checkpoint():
    path = paths.datasets() / "models" / "signnet.safetensors"
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card["parameters"] == count_parameters(SignNet())
    assert all(command.startswith("python -m deploylab.signs.train") for command in card["commands"])
    assert card["test_split"]["accuracy"] >= 0.97
    assert path.stat().st_size < 5_000_000


def test_accuracy_on_the_frozen_test_split(shipped):
    images, labels = dataset.test_split()
    result = evaluate(predict(shipped, images), labels)
    assert result.accuracy >= 0.97, result.mistakes()[:10]


def test_every_sample_is_read_right(shipped):
    samples = dataset.samples()
    pixels = np.stack([image.SIGNNET.resize(sample.path) for sample in samples])
    answers = [CLASSES[index] for index in predict(shipped, pixels)]
    wrong = [(s.path.name, a) for s, a in zip(samples, answers, strict=True) if s.label != a]
    assert not wrong


def test_deployment_mistakes_show(shipped):
    """The reason why this task was chosen: each of these mistakes costs accuracy that nobody overlooks."""
    images, labels = dataset.test_split()
    images, labels = images[::8], labels[::8]
    right = evaluate(predict(shipped, images), labels).accuracy
    swapped = evaluate(predict(shipped, np.ascontiguousarray(images[..., ::-1])), labels).accuracy
    mirrored = evaluate(predict(shipped, np.ascontiguousarray(images[:, :, ::-1])), labels).accuracy
    with torch.inference_mode():
        unscaled = shipped(torch.from_numpy(images).permute(0, 3, 1, 2).float()).argmax(dim=1).numpy()
    assert swapped < right - 0.2
    assert mirrored < right - 0.1
    assert evaluate(unscaled, labels).accuracy < right - 0.1


def test_a_damaged_checkpoint_is_refused(copy_of_the_checkpoint):
    content = bytearray(copy_of_the_checkpoint.read_bytes())
    content[-10] ^= 1
    copy_of_the_checkpoint.write_bytes(content)
    with pytest.raises(ModelError, match="git checkout"):
        models.load("signnet")


def test_a_missing_checkpoint_is_refused(copy_of_the_checkpoint):
    copy_of_the_checkpoint.unlink()
    with pytest.raises(ModelError, match="git checkout"):
        models.load("signnet")
