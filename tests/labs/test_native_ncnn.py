"""The C++ program of lab 22: the same answers as Python, and clear errors. Skips where ncnn's library is not built."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from deploylab import engines, image, models, parity, paths
from deploylab.signs import dataset
from lab_contract import LABS
from ncnn_library import Library

missing = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
library = Library()
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"needs {' and '.join(missing)}"),
    pytest.mark.skipif(not library.is_current(), reason="ncnn's C++ library is not built; make native builds it"),
]


@pytest.fixture(scope="module")
def program():
    """The built program; kept under ``build/``, where CMake sees whether anything has changed."""
    folder = paths.build() / "cache" / "native-ncnn"
    for command in (
        ["cmake", "-S", LABS / "native" / "ncnn", "-B", folder, f"-DCMAKE_PREFIX_PATH={library.folder}"],
        ["cmake", "--build", folder],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run_ncnn"


@pytest.fixture(scope="module")
def signnet():
    """The two files of SignNet, in the artifact that lab 22 makes too."""
    example = np.zeros((1, 3, 64, 64), np.float32)
    artifact = engines.get("ncnn").convert(models.load("signnet"), example, paths.build() / "artifacts")
    return artifact.file(".param"), artifact.file(".bin")


def run(*words):
    return subprocess.run([str(word) for word in words], capture_output=True, text=True)


def test_the_answers_are_those_of_python(program, signnet, tmp_path):
    x = np.concatenate([image.SIGNNET(photo.path) for photo in dataset.samples()[:5]])
    truth = parity.module_reference(models.load("signnet"), [(x,)])
    x.tofile(tmp_path / "in")
    done = run(program, *signnet, tmp_path / "in", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    logits = np.fromfile(tmp_path / "out", np.float32).reshape(5, 16)
    assert parity.compare_outputs(truth.outputs[0], logits, truth.tolerance)
    assert done.stdout == f"ncnn: [5, 16], largest at {' '.join(map(str, logits.argmax(1)))}\n"


def test_what_it_cannot_use_is_an_error(program, signnet, tmp_path):
    param, weights = signnet
    photo, short, half, pooling = (tmp_path / name for name in ("photo", "short", "half.bin", "pooling.param"))
    np.zeros((1, 3, 64, 64), np.float32).tofile(photo)
    np.zeros(7, np.float32).tofile(short)
    half.write_bytes(weights.read_bytes()[:1000])
    pooling.write_text("7767517\n2 2\nInput in0 0 1 in0\nPooling pool 1 1 in0 out0 0=0 1=2 2=2\n")
    usage = run(program)
    assert usage.returncode == 2
    assert "usage: run_ncnn" in usage.stderr
    for words, message in (
        ((param, weights, short, tmp_path / "out"), "does not hold photos of 3x64x64 float32 numbers"),
        ((param, weights, tmp_path / "nothing", tmp_path / "out"), "does not hold photos of 3x64x64"),
        ((tmp_path / "nothing", weights, photo, tmp_path / "out"), "cannot read the network"),
        ((pooling, weights, photo, tmp_path / "out"), "cannot read the network"),  # a layer that was cut out
        ((param, half, photo, tmp_path / "out"), "cannot read the weights"),
        ((param, weights, photo, tmp_path / "no" / "folder"), "cannot write"),
    ):
        done = run(program, *words)
        assert (done.returncode, message in done.stderr) == (1, True), (words, done)
        assert not (tmp_path / "out").exists()
