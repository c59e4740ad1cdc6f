"""The committed data of the task: sample photographs and the frozen test split, each checked against its SHA-256."""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from deploylab import paths
from deploylab.errors import InputError
from deploylab.signs import CLASSES

TEST_SPLIT = "test_split.zip"
SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Sample:
    """A photograph of camera size and the class it shows."""

    path: Path
    label: str


def folder() -> Path:
    return paths.datasets() / "signs"


def samples() -> list[Sample]:
    """The sample photographs (JPEG, 640 x 480), at least two of each class, in the order of their file names.

    Raises :class:`InputError` if one is missing or differs from the committed file.
    """
    sums = {name: digest for name, digest in checksums().items() if name.startswith("samples/")}
    for name in sums:
        verify(name)
    return [Sample(folder() / name, Path(name).stem.split("_", 1)[1]) for name in sorted(sums)]


def test_split() -> tuple[np.ndarray, np.ndarray]:
    """The frozen test split: images, uint8 RGB (N, 64, 64, 3), and class indices, int64 (N,).

    Rendered from seeds that training never sees. Raises :class:`InputError` if the file is missing or damaged.
    """
    images, labels = _read_test_split(verify(TEST_SPLIT))
    return images.copy(), labels.copy()


# pytest would take a function of this name for a test where it is imported.
test_split.__test__ = False  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=2)
def _read_test_split(archive: Path) -> tuple[np.ndarray, np.ndarray]:
    with zipfile.ZipFile(archive) as pack:
        names = sorted(pack.namelist())
        images = np.stack([np.asarray(Image.open(io.BytesIO(pack.read(name))).convert("RGB")) for name in names])
    labels = np.array([CLASSES.index(Path(name).parent.name) for name in names], np.int64)
    return images, labels


def checksums() -> dict[str, str]:
    """File name, relative to the data set's folder, to SHA-256."""
    path = folder() / SUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); {_REPAIR}") from error
    return {name: digest for digest, name in (line.split(maxsplit=1) for line in lines if line)}


def verify(name: str) -> Path:
    """The path of a committed file whose content is what it should be, else :class:`InputError`."""
    path = folder() / name
    expected = checksums().get(name)
    if expected is None:
        raise InputError(f"{folder() / SUMS} has no line for {name}; {_REPAIR}")
    try:
        got = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); {_REPAIR}") from error
    if got != expected:
        raise InputError(f"{path} is damaged: its SHA-256 is {got[:12]}..., expected {expected[:12]}...; {_REPAIR}")
    return path


_REPAIR = "restore it with: git checkout -- datasets/signs"
