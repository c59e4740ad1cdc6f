"""Train SignNet on rendered signs only: ``python -m deploylab.signs.train``.

Progress is shown, Ctrl-C saves and says how to go on, and a resumed run ends with the weights of an uninterrupted one:
the order of the images, the augmentation and the dropout of each step follow from the seed and the step's number.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from deploylab import files, paths
from deploylab.errors import DeployLabError, InputError, ModelError
from deploylab.machine import usable_cores
from deploylab.models.signnet import SignNet, count_parameters
from deploylab.signs import dataset
from deploylab.signs.evaluate import evaluate, predict
from deploylab.signs.pool import MIXES, load_pool, render_pool


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    images: int = 60_000
    epochs: int = 7
    batch: int = 128
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    smoothing: float = 0.05
    ema: float = 0.998
    seed: int = 1
    bfloat16: bool = True
    mix: str = "all"
    start: str = ""
    """SHA-256 of the weights to start from; empty for random ones."""

    def __post_init__(self) -> None:
        if self.mix not in MIXES:
            raise InputError(f"unknown mix {self.mix!r}: expected {' or '.join(MIXES)}")
        if self.epochs < 1 or not 2 <= self.batch <= self.images:
            raise InputError(
                f"{self.images} images in batches of {self.batch} for {self.epochs} epochs: "
                "give at least one epoch, a batch of 2 or more, and as many images as a batch has"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.images // self.batch

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class Origin:
    """Weights to start from, and the share of the new weights in the mean of both that is published."""

    path: Path
    blend: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.blend <= 1:
            raise InputError(f"--blend {self.blend}: expected a share above 0 and up to 1")


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
        self.seconds = 0.0

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

    def start_from(self, path: Path) -> None:
        """Begin with the weights of a checkpoint instead of random ones."""
        try:
            weights = load_file(path)
            self.model.load_state_dict(weights)
            self.average.load_state_dict(weights)
        except Exception as error:
            raise ModelError(f"cannot start from {path}: {error}") from error

    @torch.no_grad()
    def blend_with(self, path: Path, share: float) -> None:
        """Average with the weights the run started from: keeps what a drill would forget (arXiv:2109.01903)."""
        before = load_file(path)
        for name, value in self.average.state_dict().items():
            if value.is_floating_point():
                value.copy_(before[name].lerp(value, share))

    def save(self, path: Path) -> None:
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with files.draft(path) as unfinished:
            torch.save(state, unfinished)

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
        self.step, self.seconds = state["step"], state["seconds"]


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
    loss_mean, last_save, began = 0.0, time.monotonic(), time.monotonic() - trainer.seconds
    with stop_on_interrupt() as asked:
        while trainer.step < recipe.steps and not asked:
            epoch, position = divmod(trainer.step, recipe.steps_per_epoch)
            if epoch != shuffled_for:
                shuffled_for, order = epoch, np.random.default_rng([recipe.seed, epoch]).permutation(recipe.images)
            chosen = order[position * recipe.batch : (position + 1) * recipe.batch]
            loss = trainer.train_step(torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen]))
            trainer.seconds = time.monotonic() - began
            loss_mean = 0.98 * loss_mean + 0.02 * loss if loss_mean else loss
            text = f"epoch {epoch + 1}/{recipe.epochs}, loss {loss_mean:.3f}"
            progress.update(task, completed=trainer.step, description=text)
            if state and time.monotonic() - last_save > 60:
                trainer.save(state)
                last_save = time.monotonic()
                if not progress.console.is_terminal:
                    progress.console.print(f"step {trainer.step} of {recipe.steps}: {text}")
    if state:
        trainer.save(state)
    return trainer.step >= recipe.steps


def prepare_pool(recipe: Recipe, workers: int, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    task = progress.add_task("rendering", total=recipe.images)
    chunks = list(render_pool(recipe.images, workers, lambda done: progress.advance(task, done), recipe.mix))
    return load_pool(chunks, recipe.mix)


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )


def publish(trainer: Trainer, folder: Path, commands: list[str]) -> dict[str, Any]:
    """Write ``signnet.safetensors`` and its card ``signnet.json``: hash, commands, recipe, measured accuracy."""
    path = folder / "signnet.safetensors"
    files.write(path, save(trainer.average.state_dict()))
    images, labels = dataset.test_split()
    result = evaluate(predict(trainer.average, images), labels)
    card = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "parameters": count_parameters(trainer.average),
        "commands": commands,
        "recipe": asdict(trainer.recipe),
        "torch": torch.__version__.split("+")[0],
        "steps": trainer.step,
        "training_seconds": round(trainer.seconds),
        "test_split": result.to_json(),
    }
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return card


def main(
    images: Annotated[int, typer.Option(help="Size of the rendered pool.")] = Recipe.images,
    epochs: Annotated[int, typer.Option(help="Passes over the pool.")] = Recipe.epochs,
    batch: Annotated[int, typer.Option(help="Images in a step.")] = Recipe.batch,
    learning_rate: Annotated[float, typer.Option(help="Largest learning rate.")] = Recipe.learning_rate,
    seed: Annotated[int, typer.Option(help="Seed of weights, order, augmentation and dropout.")] = Recipe.seed,
    bfloat16: Annotated[bool, typer.Option(help="Mixed precision; pays on CPUs with AVX512-BF16 or AMX.")] = True,
    mix: Annotated[str, typer.Option(help="Which images the pool holds: all or numbers.")] = Recipe.mix,
    start: Annotated[Path | None, typer.Option(help="Weights to start from, with their card beside them.")] = None,
    blend: Annotated[float, typer.Option(help="Share of the new weights in a mean with those of --start.")] = 1.0,
    threads: Annotated[int, typer.Option(help="CPU threads and rendering processes; 0 is all usable cores.")] = 0,
    run: Annotated[Path | None, typer.Option(help="Folder of the training state. Default: build/signs/train.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the checkpoint goes. Default: the folder of the run.")] = None,
) -> None:
    """Render a pool of signs, train SignNet on it, measure it on the frozen test split, and save it.

    The same command goes on where an earlier one was stopped. To replace the shipped checkpoint: --out datasets/models.
    """
    try:
        start_hash = hashlib.sha256(start.read_bytes()).hexdigest() if start else ""
        recipe = Recipe(images, epochs, batch, learning_rate, seed=seed, bfloat16=bfloat16, mix=mix, start=start_hash)
        origin = Origin(start, blend) if start else None
        _train(recipe, origin, threads or usable_cores(), run or paths.build() / "signs" / "train", out)
    except (OSError, DeployLabError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def _train(recipe: Recipe, origin: Origin | None, threads: int, run: Path, out: Path | None) -> None:
    torch.set_num_threads(threads)
    trainer, state = Trainer(recipe), run / "state.pt"
    commands = [command_of(recipe, origin, run)]
    if origin:
        trainer.start_from(origin.path)
        card = json.loads(origin.path.with_suffix(".json").read_text(encoding="utf-8"))
        commands = [*card["commands"], *commands]
    if state.exists():
        trainer.load(state)
    with progress_bar() as progress:
        pool = prepare_pool(recipe, threads, progress)
        finished = fit(trainer, *pool, state, progress)
    if not finished:
        typer.echo(f"Stopped at step {trainer.step} of {recipe.steps}; the same command goes on from {state}.")
        raise typer.Exit(130)
    if origin and origin.blend < 1:
        trainer.blend_with(origin.path, origin.blend)
    card = publish(trainer, out or run, commands)
    typer.echo(f"test split: {card['test_split']['accuracy']:.2%} right; checkpoint in {out or run}")


def command_of(recipe: Recipe, origin: Origin | None, run: Path) -> str:
    """The command that makes the same weights again; options left at their defaults are not repeated."""
    default = Recipe()
    names = ("images", "epochs", "batch", "learning_rate", "seed", "mix")
    options = [(name, getattr(recipe, name)) for name in names if getattr(recipe, name) != getattr(default, name)]
    words = [f"--{name.replace('_', '-')} {value}" for name, value in options]
    words += [] if recipe.bfloat16 else ["--no-bfloat16"]
    words += [f"--start {_relative(origin.path)} --blend {origin.blend}"] if origin else []
    return " ".join(["python -m deploylab.signs.train", *words, f"--run {_relative(run)}"])


def _relative(path: Path) -> str:
    """A path inside the checkout as seen from there, so that no card names a machine's folders."""
    path = path.resolve()
    return path.relative_to(paths.root()).as_posix() if path.is_relative_to(paths.root()) else path.name


if __name__ == "__main__":
    typer.run(main)
