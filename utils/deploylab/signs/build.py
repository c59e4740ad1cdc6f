"""Make the committed data again: ``python -m deploylab.signs.build``.

Writes the frozen test split, the sample photographs, the printable sheet and ``SHA256SUMS`` to ``datasets/signs``.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from rich.progress import track

from deploylab.signs import CLASSES, dataset
from deploylab.signs.render import photograph, render
from deploylab.signs.sheet import draw_sheet

TEST_IMAGES_PER_CLASS = 100
SAMPLES_PER_CLASS = 2
SAMPLE_SEEDS_FROM = 500_064
"""Test images have the seeds from 0 on, samples from here on, training images from 1,000,000 on."""

DATA_SUFFIXES = {".zip", ".jpg", ".pdf", ".png"}


def build_test_split(path: Path) -> None:
    """Pack the test images as JPEGs into an uncompressed zip file, one folder a class."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as pack:
        for label in track(CLASSES, "test split"):
            for seed in range(TEST_IMAGES_PER_CLASS):
                member = zipfile.ZipInfo(test_member(label, seed), date_time=(1980, 1, 1, 0, 0, 0))
                pack.writestr(member, encode(render(label, seed), quality=90))


def test_member(label: str, seed: int) -> str:
    return f"{label}/{seed:03d}.jpg"


def build_samples(folder: Path) -> None:
    """Write the sample photographs ``<nn>_<label>.jpg``."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.jpg"):
        old.unlink()
    for number in track(range(SAMPLES_PER_CLASS * len(CLASSES)), "samples"):
        label = CLASSES[number % len(CLASSES)]
        path = folder / f"{number:02d}_{label}.jpg"
        path.write_bytes(encode(photograph(label, SAMPLE_SEEDS_FROM + number), quality=85))


def write_checksums(folder: Path) -> None:
    """``SHA256SUMS`` over the data files of the folder, in the format of the sha256sum command."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in DATA_SUFFIXES)
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n" for path in files
    ]
    (folder / dataset.SUMS).write_text("".join(lines), encoding="utf-8", newline="\n")


def encode(pixels: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
    return buffer.getvalue()


def main(
    out: Annotated[Path | None, typer.Option(help="Where to write. Default: datasets/signs.")] = None,
    only: Annotated[str, typer.Option(help="test-split, samples, sheet, sums or all.")] = "all",
) -> None:
    """Make the test split, the samples, the sheet and the checksums."""
    steps = {
        "test-split": lambda: build_test_split(folder / dataset.TEST_SPLIT),
        "samples": lambda: build_samples(folder / "samples"),
        "sheet": lambda: draw_sheet(folder / "sheet.pdf"),
        "sums": lambda: write_checksums(folder),
    }
    folder = out or dataset.folder()
    folder.mkdir(parents=True, exist_ok=True)
    if only != "all" and only not in steps:
        raise typer.BadParameter(f"{only!r} is not one of {', '.join([*steps, 'all'])}", param_hint="--only")
    for name, step in steps.items():
        if only in ("all", name) or name == "sums":
            step()


if __name__ == "__main__":
    typer.run(main)
