"""Train SignNet on rendered signs only: ``python -m deploylab.signs.train``.

Progress is shown, Ctrl-C saves and says how to go on, and a resumed run ends with the weights of an uninterrupted one:
the order of the images, the augmentation and the dropout of each step follow from the seed and the step's number.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from safetensors.torch import save_file
from torch.nn import functional

from deploylab import paths
from deploylab.errors import ModelError
from deploylab.models.signnet import SignNet
from deploylab.signs.pool import load_pool, render_pool


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    images: int = 100_000
    epochs: int = 10
    batch: int = 128
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    smoothing: float = 0.05
    ema: float = 0.998
    seed: int = 1
    bfloat16: bool = True

    @property
    def steps_per_epoch(self) -> int:
        return self.images // self.batch

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch


class Trainer:
    """Model, moving average, optimizer and step counter; all that a resumed run needs."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.model = SignNet().to(memory_format=torch.channels_last)
        self.average = SignNet().eval()
        self.average.load_state_dict(self.model.state_dict())
        self.optimizer = torch.optim.AdamW(
            _decay_groups(self.model, recipe.weight_decay), lr=recipe.learning_rate, betas=(0.9, 0.99)
        )
        self.step = 0

    def train_step(self, images: Tensor, labels: Tensor) -> float:
        """One update from uint8 images (B, 64, 64, 3) and int64 labels (B,); returns the loss."""
        torch.manual_seed(self.recipe.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step)
        self.model.train()
        batch = augment(images.permute(0, 3, 1, 2).float() / 255).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bfloat16):
            logits = self.model(batch)
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 2.0)
        self.optimizer.step()
        self.step += 1
        self._update_average()
        return loss.item()

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(self.recipe.ema, self.step / (self.step + 9))
        for mean, value in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - keep)
            else:
                mean.copy_(value)

    def save(self, path: Path) -> None:
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        try:
            state = torch.load(path, weights_only=True)
            saved = state["recipe"]
        except Exception as error:
            raise ModelError(f"cannot read the training state {path} ({error}); delete it to start again") from error
        if saved != asdict(self.recipe):
            raise ModelError(
                f"{path} was made with another recipe ({saved}); give the same options, or another --run folder"
            )
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def _decay_groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels, none for biases and batch norms."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up over the first 3 %, then a half cosine down to zero (arXiv:1608.03983)."""
    warm_up = max(1, recipe.steps * 3 // 100)
    if step < warm_up:
        return recipe.learning_rate * (step + 1) / warm_up
    done = (step - warm_up) / max(1, recipe.steps - warm_up)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def augment(images: Tensor) -> Tensor:
    """Small shifts, turns, stretches, colour casts and erased patches, so that no epoch sees the same pool.

    No mirroring (left is not right) and no change of hue (blue is not red).
    """
    batch = images.shape[0]
    turn, squeeze = torch.randn(batch) * 0.05, torch.exp(torch.randn(batch, 2) * 0.05)
    cos, sin = torch.cos(turn), torch.sin(turn)
    shift = torch.randn(batch, 2) * 0.04
    rows = [
        torch.stack([cos * squeeze[:, 0], -sin, shift[:, 0]], 1),
        torch.stack([sin, cos * squeeze[:, 1], shift[:, 1]], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    images = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    gain = torch.exp(torch.randn(batch, 1, 1, 1) * 0.12 + torch.randn(batch, 3, 1, 1) * 0.05)
    images = images * gain + torch.randn(batch, 1, 1, 1) * 0.03
    return _erase(images).clamp(0, 1)


def _erase(images: Tensor, share: float = 0.2) -> Tensor:
    """A grey rectangle over part of some images (random erasing, arXiv:1708.04896)."""
    size = images.shape[-1]
    for index in torch.nonzero(torch.rand(images.shape[0]) < share).flatten().tolist():
        height, width = torch.randint(size // 10, size // 3, (2,)).tolist()
        top, left = torch.randint(0, size - size // 3, (2,)).tolist()
        images[index, :, top : top + height, left : left + width] = torch.rand(3, 1, 1)
    return images


@contextmanager
def stop_on_interrupt() -> Iterator[list[bool]]:
    """Ctrl-C only asks: the list becomes non-empty, and the step under way ends in order."""
    asked: list[bool] = []
    previous = signal.signal(signal.SIGINT, lambda *_: asked.append(True))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, previous)


def fit(trainer: Trainer, images: np.ndarray, labels: np.ndarray, state: Path | None, progress: Progress) -> bool:
    """Train to the end of the recipe, saving ``state`` each minute; False if Ctrl-C ended it early."""
    recipe = trainer.recipe
    task = progress.add_task("training", total=recipe.steps, completed=trainer.step)
    shuffled_for, order = -1, np.empty(0)
    loss_mean, last_save = 0.0, time.monotonic()
    with stop_on_interrupt() as asked:
        while trainer.step < recipe.steps and not asked:
            epoch, position = divmod(trainer.step, recipe.steps_per_epoch)
            if epoch != shuffled_for:
                shuffled_for, order = epoch, np.random.default_rng([recipe.seed, epoch]).permutation(recipe.images)
            chosen = order[position * recipe.batch : (position + 1) * recipe.batch]
            loss = trainer.train_step(torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen]))
            loss_mean = 0.98 * loss_mean + 0.02 * loss if loss_mean else loss
            text = f"epoch {epoch + 1}/{recipe.epochs}, loss {loss_mean:.3f}"
            progress.update(task, completed=trainer.step, description=text)
            if state and time.monotonic() - last_save > 60:
                trainer.save(state)
                last_save = time.monotonic()
    if state:
        trainer.save(state)
    return trainer.step == recipe.steps


def prepare_pool(recipe: Recipe, workers: int, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    task = progress.add_task("rendering", total=recipe.images)
    chunks = list(render_pool(recipe.images, workers, lambda done: progress.advance(task, done)))
    return load_pool(chunks)


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )


def main(
    images: int = typer.Option(Recipe.images, help="Size of the rendered pool."),
    epochs: int = typer.Option(Recipe.epochs, help="Passes over the pool."),
    batch: int = typer.Option(Recipe.batch, help="Images in a step."),
    learning_rate: float = typer.Option(Recipe.learning_rate, help="Largest learning rate."),
    seed: int = typer.Option(Recipe.seed, help="Seed of weights, order, augmentation and dropout."),
    bfloat16: bool = typer.Option(
        Recipe.bfloat16, help="Mixed precision; fast only where the CPU has AVX512-BF16 or AMX."
    ),
    threads: int = typer.Option(0, help="CPU threads and rendering processes; 0 means all usable cores."),
    run: Path = typer.Option(
        None, help="Folder of the training state; the same folder resumes. Default build/signs/train."
    ),
    out: Path = typer.Option(None, help="Folder for signnet.safetensors and signnet.json. Default: the run folder."),
) -> None:
    """Render a pool of signs, train SignNet on it, measure it on the frozen test split, and save it."""
    recipe = Recipe(images, epochs, batch, learning_rate, seed=seed, bfloat16=bfloat16)
    threads = threads or len(os.sched_getaffinity(0))
    run = run or paths.build() / "signs" / "train"
    torch.set_num_threads(threads)
    trainer = Trainer(recipe)
    state = run / "state.pt"
    if state.exists():
        trainer.load(state)
    with progress_bar() as progress:
        pool = prepare_pool(recipe, threads, progress)
        finished = fit(trainer, *pool, state, progress)
    if not finished:
        typer.echo(f"Stopped at step {trainer.step} of {recipe.steps}. The same command goes on from {state}.")
        raise typer.Exit(130)
    save_file(trainer.average.state_dict(), run / "signnet.safetensors")


if __name__ == "__main__":
    typer.run(main)
