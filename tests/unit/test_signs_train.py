"""Training: repeatable, resumable, and refusing what does not fit."""

from __future__ import annotations

import hashlib
import json
import os
import signal

import numpy as np
import pytest
import torch
from rich.progress import Progress
from safetensors.torch import save

from deploylab import paths
from deploylab.errors import InputError, ModelError
from deploylab.signs import CLASSES, dataset, pool
from deploylab.signs.render import render
from deploylab.signs.train import Recipe, Trainer, augment, command_of, fit, learning_rate, publish

TINY = Recipe(images=32, epochs=2, batch=8, bfloat16=False)


@pytest.fixture(autouse=True)
def one_thread():
    """Small steps gain nothing from more, and lose much where other work is going on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny_pool():
    labels = np.arange(32) % len(CLASSES)
    return np.stack([render(CLASSES[label], 10_000 + i) for i, label in enumerate(labels)]), labels


def _train(pool_, steps=None, trainer=None, state=None):
    trainer = trainer or Trainer(TINY)
    while steps is not None and trainer.step < steps:
        epoch, position = divmod(trainer.step, TINY.steps_per_epoch)
        order = np.random.default_rng([TINY.seed, epoch]).permutation(TINY.images)
        chosen = order[position * TINY.batch : (position + 1) * TINY.batch]
        trainer.train_step(torch.from_numpy(pool_[0][chosen]), torch.from_numpy(pool_[1][chosen]))
    if steps is None:
        assert fit(trainer, *pool_, state, Progress(disable=True))
    return trainer


def test_a_resumed_run_ends_like_an_uninterrupted_one(tiny_pool, tmp_path):
    straight = _train(tiny_pool)
    stopped = _train(tiny_pool, steps=3)
    stopped.save(tmp_path / "state.pt")
    resumed = Trainer(TINY)
    resumed.load(tmp_path / "state.pt")
    assert resumed.step == 3
    _train(tiny_pool, trainer=resumed)
    for name, value in straight.average.state_dict().items():
        assert torch.equal(value, resumed.average.state_dict()[name]), name


def test_training_lowers_the_loss(tiny_pool):
    trainer = Trainer(TINY)
    images, labels = torch.from_numpy(tiny_pool[0]), torch.from_numpy(tiny_pool[1])
    losses = [trainer.train_step(images, labels) for _ in range(8)]
    assert losses[-1] < losses[0]


def test_control_c_saves_and_stops(tiny_pool, tmp_path, monkeypatch):
    trainer = Trainer(TINY)
    step = Trainer.train_step

    def interrupted_step(self, images, labels):
        loss = step(self, images, labels)
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    monkeypatch.setattr(Trainer, "train_step", interrupted_step)
    before = signal.getsignal(signal.SIGINT)
    assert not fit(trainer, *tiny_pool, tmp_path / "state.pt", Progress(disable=True))
    assert signal.getsignal(signal.SIGINT) is before
    again = Trainer(TINY)
    again.load(tmp_path / "state.pt")
    assert again.step == trainer.step == 2


def test_a_state_of_another_recipe_is_refused(tmp_path):
    Trainer(TINY).save(tmp_path / "state.pt")
    with pytest.raises(ModelError, match="another recipe"):
        Trainer(Recipe(images=64, batch=8)).load(tmp_path / "state.pt")


def test_a_damaged_state_is_refused(tmp_path):
    (tmp_path / "state.pt").write_bytes(b"not a state")
    with pytest.raises(ModelError, match="delete it"):
        Trainer(TINY).load(tmp_path / "state.pt")


def test_the_learning_rate_rises_and_falls_to_zero():
    recipe = Recipe(images=1000, epochs=10, batch=10)
    rates = [learning_rate(recipe, step) for step in range(recipe.steps)]
    assert max(rates) == pytest.approx(recipe.learning_rate)
    assert rates[0] < 0.1 * recipe.learning_rate
    assert rates[-1] < 1e-4 * recipe.learning_rate


def test_augmentation_keeps_shape_and_range_and_follows_the_seed():
    images = torch.rand(4, 3, 64, 64)
    torch.manual_seed(5)
    first = augment(images.clone())
    torch.manual_seed(5)
    assert torch.equal(first, augment(images.clone()))
    assert first.shape == images.shape
    assert first.min() >= 0
    assert first.max() <= 1


def test_the_card_tells_the_hash_the_command_and_the_accuracy(tmp_path, monkeypatch):
    images, labels = dataset.test_split()
    monkeypatch.setattr(dataset, "test_split", lambda: (images[::50], labels[::50]))
    card = publish(Trainer(TINY), tmp_path, [command_of(TINY, None, paths.build() / "run")])
    assert card == json.loads((tmp_path / "signnet.json").read_text(encoding="utf-8"))
    assert card["sha256"] == hashlib.sha256((tmp_path / "signnet.safetensors").read_bytes()).hexdigest()
    assert card["commands"] == [
        "python -m deploylab.signs.train --images 32 --epochs 2 --batch 8 --no-bfloat16 --run build/run"
    ]
    assert card["test_split"]["pictures"] == 32


def test_the_pool_is_rendered_once(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYLAB_HOME", str(tmp_path))
    chunks = list(pool.render_pool(5, workers=1))
    written = chunks[0].stat().st_mtime_ns
    images, labels = pool.load_pool(list(pool.render_pool(5, workers=1)))
    assert chunks[0].stat().st_mtime_ns == written
    assert images.shape == (5, 64, 64, 3)
    assert [CLASSES[label] for label in labels] == [pool.subject(index) for index in range(5)]
    assert np.array_equal(images[3], render(pool.subject(3), pool.TRAIN_SEEDS_FROM + 3))


def test_a_run_can_start_from_a_checkpoint(tmp_path):
    first = Trainer(TINY)
    publish_path = tmp_path / "signnet.safetensors"
    publish_path.write_bytes(save(first.average.state_dict()))
    second = Trainer(Recipe(seed=9))
    second.start_from(publish_path)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])
    torch.nn.init.zeros_(second.average.classifier.weight)
    second.blend_with(publish_path, 0.25)
    assert torch.allclose(second.average.classifier.weight, 0.75 * first.average.classifier.weight)
    with pytest.raises(ModelError, match="cannot start from"):
        second.start_from(tmp_path / "missing.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix": "stars"}, "unknown mix 'stars'"),
        ({"images": 10}, "10 images in batches of 128"),
        ({"epochs": 0}, "0 epochs"),
    ],
)
def test_recipes_that_cannot_work_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Recipe(**options)


def test_other_numbers_are_none():
    mix = [pool.subject(index, "numbers") for index in range(40)]
    other = mix.index("other_number")
    assert CLASSES[pool.class_index(other, "numbers")] == "none"
    assert pool.render_image(other, "numbers").shape == (64, 64, 3)
    assert [CLASSES[pool.class_index(index)] for index in range(16)] == list(CLASSES)
