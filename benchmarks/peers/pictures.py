"""The uploads of the benchmark: photographs of road signs in three sizes, drawn by our own renderer."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from deploylab.signs import CLASSES
from deploylab.signs.render import photograph, render

PER_SIZE = 8
SEEDS_FROM = 700_000
"""Far from the seeds of the test split, the samples and the training images (``deploylab.signs.build``)."""
_TRIES = 5


@dataclass(frozen=True)
class Upload:
    """A JPEG file and the class it shows."""

    path: Path
    label: str


def small(label: str, seed: int) -> Image.Image:
    """A crop of 64 to 96 pixels, as a detector in front of the classifier would send."""
    return Image.fromarray(render(label, seed, 64 + 8 * (seed % 5)))


def vga(label: str, seed: int) -> Image.Image:
    return Image.fromarray(photograph(label, seed))


def camera(label: str, seed: int) -> Image.Image:
    """4000 x 3000 pixels: drawn at 1600 x 1200 and enlarged, with the grain that gives a camera's file its size."""
    image = Image.fromarray(photograph(label, seed, 1600, 1200)).resize((4000, 3000), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(seed).normal(0, 4, (3000, 4000, 1)).astype(np.float32)
    return Image.fromarray((np.asarray(image, np.float32) + grain).clip(0, 255).astype(np.uint8))


SIZES: dict[str, Callable[[str, int], Image.Image]] = {"small": small, "vga": vga, "12mp": camera}


def make(size: str, folder: Path, recognised: Callable[[bytes], str]) -> list[Upload]:
    """``PER_SIZE`` uploads of different classes, made once. Photographs that the model gets wrong are drawn again,
    so that a wrong label later is a server's fault."""
    folder.mkdir(parents=True, exist_ok=True)
    uploads = []
    for number in range(PER_SIZE):
        label = CLASSES[(2 * number) % len(CLASSES)]
        path = folder / f"{size}-{number}-{label}.jpg"
        if not path.is_file():
            _store(path, _draw(size, label, SEEDS_FROM + 100 * number, recognised))
        uploads.append(Upload(path, label))
    return uploads


def _draw(size: str, label: str, seed: int, recognised: Callable[[bytes], str]) -> bytes:
    for attempt in range(_TRIES):
        stream = io.BytesIO()
        SIZES[size](label, seed + attempt).save(stream, "JPEG", quality=90, subsampling="4:2:0")
        if recognised(stream.getvalue()) == label:
            return stream.getvalue()
    raise RuntimeError(f"no {size} photograph of {label} from seed {seed} on is recognised")


def _store(path: Path, content: bytes) -> None:
    unfinished = path.with_suffix(".part")
    unfinished.write_bytes(content)
    unfinished.rename(path)
