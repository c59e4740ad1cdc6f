"""How good is SignNet? ``python -m deploylab.signs.evaluate``: accuracy by class and the confusion matrix.

On the frozen test split, or on any folder of pictures with a ``labels.csv`` (columns ``file`` and ``label``).
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from deploylab import image
from deploylab.errors import DeployLabError, InputError
from deploylab.signs import CLASSES, dataset

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Evaluation:
    """Counts of true class (rows) against predicted class (columns), int64 (16, 16)."""

    confusion: np.ndarray

    @property
    def count(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of all pictures whose most probable class is right (top-1)."""
        return float(np.trace(self.confusion) / max(self.count, 1))

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the accuracies of the classes that occur."""
        return float(np.mean([right / total for right, total in self.per_class().values() if total]))

    def per_class(self) -> dict[str, tuple[int, int]]:
        """Class to (right, pictures)."""
        totals = self.confusion.sum(axis=1)
        return {name: (int(self.confusion[i, i]), int(totals[i])) for i, name in enumerate(CLASSES)}

    def mistakes(self) -> list[tuple[str, str, int]]:
        """(true class, predicted class, pictures), the most frequent first."""
        off = [(int(self.confusion[i, j]), i, j) for i, j in zip(*np.nonzero(self.confusion), strict=True) if i != j]
        return [(CLASSES[i], CLASSES[j], count) for count, i, j in sorted(off, reverse=True)]

    def to_json(self) -> dict[str, Any]:
        return {
            "pictures": self.count,
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "per_class": {
                name: {"right": right, "pictures": total} for name, (right, total) in self.per_class().items()
            },
            "mistakes": [{"true": a, "predicted": b, "pictures": count} for a, b, count in self.mistakes()],
        }


def evaluate(predicted: np.ndarray, labels: np.ndarray) -> Evaluation:
    """Compare predicted with true class indices, both int (N,)."""
    confusion = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    return Evaluation(confusion)


def predict(model: torch.nn.Module, images: np.ndarray, batch: int = 256) -> np.ndarray:
    """The most probable class of each image: uint8 (N, 64, 64, 3) to int64 (N,)."""
    import torch

    answers = []
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            pixels = image.SIGNNET.normalise(images[start : start + batch])
            answers.append(model(torch.from_numpy(pixels)).argmax(dim=1).numpy())
    return np.concatenate(answers)


def read_folder(folder: Path, labels_file: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Pictures named in a CSV file, preprocessed to uint8 (N, 64, 64, 3), and their class indices, int64 (N,).

    ``labels_file`` defaults to ``labels.csv`` in the folder or beside it. Raises :class:`InputError`.
    """
    labels_file = labels_file or _find_labels(folder)
    try:
        with open(labels_file, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"cannot read {labels_file}: {error.strerror}") from error
    if not rows or not {"file", "label"} <= rows[0].keys():
        raise InputError(f"{labels_file}: expected a CSV file with the columns file and label and at least one row")
    unknown = sorted({row["label"] for row in rows} - set(CLASSES))
    if unknown:
        raise InputError(f"{labels_file}: unknown labels {', '.join(unknown)}; known are {', '.join(CLASSES)}")
    images = np.stack([image.SIGNNET.resize(folder / row["file"]) for row in rows])
    return images, np.array([CLASSES.index(row["label"]) for row in rows], np.int64)


def _find_labels(folder: Path) -> Path:
    for candidate in (folder / "labels.csv", folder.parent / "labels.csv"):
        if candidate.is_file():
            return candidate
    raise InputError(f"no labels.csv in {folder} or beside it; name the file with --labels")


def draw_confusion(evaluation: Evaluation, path: Path, title: str) -> None:
    """Write the confusion matrix as a figure; the format follows from the file's suffix."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 7.5), layout="constrained")
    axes = figure.subplots()
    shares = evaluation.confusion / np.maximum(evaluation.confusion.sum(axis=1, keepdims=True), 1)
    plot = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [name.replace("_", " ") for name in CLASSES]
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(f"{title}: {evaluation.accuracy:.1%} of {evaluation.count} right")
    for row, column in zip(*np.nonzero(evaluation.confusion), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, evaluation.confusion[row, column], ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(plot, label="share of the true class", shrink=0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def print_table(evaluation: Evaluation, title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("class", "right", "pictures", "accuracy", title=title)
    for name, (right, total) in evaluation.per_class().items():
        table.add_row(name, str(right), str(total), f"{right / total:.1%}" if total else "-")
    table.add_section()
    right = int(np.trace(evaluation.confusion))
    table.add_row("all", str(right), str(evaluation.count), f"{evaluation.accuracy:.1%}")
    console = Console()
    console.print(table)
    for true, predicted, count in evaluation.mistakes()[:12]:
        console.print(f"  {count} x {true} taken for {predicted}")


def main(
    folder: Annotated[Path | None, typer.Option(help="Pictures; without it the frozen test split is used.")] = None,
    labels: Annotated[Path | None, typer.Option(help="CSV file with the columns file and label.")] = None,
    weights: Annotated[Path | None, typer.Option(help="A checkpoint other than the shipped one.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Where to draw the confusion matrix (PNG, PDF, SVG).")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the figures as JSON.")] = None,
) -> None:
    """Accuracy of SignNet by class."""
    from deploylab import models

    try:
        images, true = read_folder(folder, labels) if folder else dataset.test_split()
        result = evaluate(predict(models.load("signnet", weights), images), true)
    except DeployLabError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    title = f"pictures in {folder}" if folder else "frozen test split"
    print_table(result, title)
    if figure:
        draw_confusion(result, figure, "SignNet on " + ("real pictures" if folder else "rendered signs"))
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
