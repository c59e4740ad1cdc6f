"""The committed data: complete, unchanged, and made by the committed program."""

from __future__ import annotations

import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from deploylab import paths
from deploylab.errors import InputError
from deploylab.signs import CLASSES, build, dataset, pool
from deploylab.signs.build import SAMPLE_SEEDS_FROM, TEST_IMAGES_PER_CLASS
from deploylab.signs.render import photograph, render


@pytest.fixture
def copy_of_the_data(tmp_path, monkeypatch):
    """The data set's folder in a checkout of its own, to be damaged."""
    target = tmp_path / "datasets" / "signs"
    shutil.copytree(paths.datasets() / "signs", target)
    monkeypatch.setenv("DEPLOYLAB_HOME", str(tmp_path))
    return target


def test_every_file_has_its_checksum():
    files = {path.relative_to(dataset.folder()).as_posix() for path in dataset.folder().rglob("*") if path.is_file()}
    assert files - {dataset.SUMS, "README.md"} == set(dataset.checksums())
    for name in dataset.checksums():
        assert dataset.verify(name).is_file()


def test_no_file_is_large():
    sizes = {name: (dataset.folder() / name).stat().st_size for name in dataset.checksums()}
    assert max(sizes.values()) < 5_000_000
    assert sum(size for name, size in sizes.items() if name.startswith("samples/")) < 2_000_000
    assert sizes["sheet.pdf"] < 1_000_000


def test_the_test_split_has_a_hundred_images_of_each_class():
    images, labels = dataset.test_split()
    assert images.shape == (1600, 64, 64, 3)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert np.bincount(labels, minlength=16).tolist() == [100] * 16


def test_callers_cannot_damage_the_test_split():
    images, labels = dataset.test_split()
    images[:], labels[:] = 0, 0
    again, again_labels = dataset.test_split()
    assert again.any()
    assert again_labels.any()


@pytest.mark.parametrize("label", CLASSES[::3])
def test_rendering_again_gives_the_frozen_images(label):
    images, labels = dataset.test_split()
    frozen = images[labels == CLASSES.index(label)]
    for seed in (0, 57):
        again = Image.open(io.BytesIO(build.encode(render(label, seed), quality=90)))
        # another libjpeg or NumPy may round differently, nothing more
        assert np.abs(np.asarray(again, int) - frozen[seed]).mean() < 1.0


def test_training_never_sees_a_test_image_or_a_sample():
    assert TEST_IMAGES_PER_CLASS <= SAMPLE_SEEDS_FROM < pool.TRAIN_SEEDS_FROM


def test_samples_are_camera_pictures_of_every_class():
    samples = dataset.samples()
    assert len(samples) >= 32
    assert all([sample.label for sample in samples].count(label) >= 2 for label in CLASSES)
    for sample in samples:
        with Image.open(sample.path) as picture:
            assert picture.format == "JPEG"
            assert picture.size == (640, 480)
            assert not picture.getexif()


def test_a_sample_is_made_by_the_committed_program():
    sample = dataset.samples()[5]
    frozen = np.asarray(Image.open(sample.path), int)
    again = Image.open(io.BytesIO(build.encode(photograph(sample.label, SAMPLE_SEEDS_FROM + 5), quality=85)))
    assert np.abs(np.asarray(again, int) - frozen).mean() < 1.0


def test_the_sheet_is_one_a4_page_of_vectors():
    document = (dataset.folder() / "sheet.pdf").read_bytes()
    assert document.startswith(b"%PDF-")
    assert document.rstrip().endswith(b"%%EOF")
    width, height = map(float, re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+) ?\]", document).groups())
    assert abs(width - 210 / 25.4 * 72) < 1
    assert abs(height - 297 / 25.4 * 72) < 1
    assert document.count(b"/Type /Page ") == 1
    assert b"/Subtype /Image" not in document


def test_a_damaged_test_split_is_refused(copy_of_the_data):
    path = copy_of_the_data / dataset.TEST_SPLIT
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"test_split\.zip is damaged.*git checkout"):
        dataset.test_split()


def test_a_missing_sample_is_named(copy_of_the_data):
    (copy_of_the_data / "samples" / "05_stop.jpg").unlink()
    with pytest.raises(InputError, match=r"05_stop\.jpg.*git checkout"):
        dataset.samples()


def test_missing_checksums_are_named(copy_of_the_data):
    (copy_of_the_data / dataset.SUMS).unlink()
    with pytest.raises(InputError, match=r"SHA256SUMS.*git checkout"):
        dataset.test_split()


def test_rewriting_the_checksums_changes_nothing(copy_of_the_data):
    before = (copy_of_the_data / dataset.SUMS).read_bytes()
    build.write_checksums(copy_of_the_data)
    assert (copy_of_the_data / dataset.SUMS).read_bytes() == before
