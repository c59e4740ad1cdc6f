"""A pool of rendered training images on disk, made once by several processes and read through memory maps."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from deploylab import files, paths
from deploylab.signs import CLASSES
from deploylab.signs.render import render, render_other_number

TRAIN_SEEDS_FROM = 1_000_000
"""Seeds of the training images start here; the frozen test split and the sample photographs use smaller ones."""

CHUNK = 2000
_OTHER_NUMBER = "other_number"
_NUMBERS = ("speed_limit_30", "speed_limit_50", "speed_limit_80")
MIXES: dict[str, tuple[str, ...]] = {
    "all": (*CLASSES, "none", "none", "none", *_NUMBERS),
    "numbers": (*CLASSES, "none", "none", *_NUMBERS, *_NUMBERS, *(_OTHER_NUMBER,) * 8),
}
"""Subjects in turn. "all" is for learning the classes; "numbers" is for telling 30, 50 and 80 from other limits."""


def subject(index: int, mix: str = "all") -> str:
    return MIXES[mix][index % len(MIXES[mix])]


def class_index(index: int, mix: str = "all") -> int:
    name = subject(index, mix)
    return CLASSES.index("none" if name == _OTHER_NUMBER else name)


def render_image(index: int, mix: str = "all") -> np.ndarray:
    name, seed = subject(index, mix), TRAIN_SEEDS_FROM * (1 + list(MIXES).index(mix)) + index
    return render_other_number(seed) if name == _OTHER_NUMBER else render(name, seed)


def renderer_hash() -> str:
    """Changes when the renderer's source does, so that an old pool is never taken for a new one."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for name in ("shapes", "glyphs", "faces", "others", "background", "wear", "placement", "camera", "render", "pool"):
        digest.update((folder / f"{name}.py").read_bytes())
    return digest.hexdigest()[:12]


def pool_folder(mix: str = "all") -> Path:
    folder = paths.build() / "signs" / f"pool-{mix}-{renderer_hash()}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def render_pool(
    count: int, workers: int, progress: Callable[[int], None] = lambda done: None, mix: str = "all"
) -> Iterator[Path]:
    """Render what is missing of ``count`` images; yield the chunk files in order. A killed run goes on where it was."""
    folder = pool_folder(mix)
    chunks = [(folder, start, min(CHUNK, count - start), mix) for start in range(0, count, CHUNK)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for path, size in pool.imap(_render_chunk, chunks):
            progress(size)
            yield path


def _render_chunk(chunk: tuple[Path, int, int, str]) -> tuple[Path, int]:
    folder, start, size, mix = chunk
    path = folder / f"{start:07d}-{size}.npy"
    if not path.exists():
        images = np.stack([render_image(index, mix) for index in range(start, start + size)])
        with files.draft(path) as unfinished:
            np.save(unfinished, images)
    return path, size


def load_pool(chunks: list[Path], mix: str = "all") -> tuple[np.ndarray, np.ndarray]:
    """All images, uint8 (N, 64, 64, 3), and their labels, int64 (N,)."""
    images = np.concatenate([np.load(path) for path in chunks])
    return images, np.array([class_index(index, mix) for index in range(len(images))], np.int64)
