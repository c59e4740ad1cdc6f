"""The C++ program of lab 10: the same answers as Python, and clear errors. Skips without a compiler."""

from __future__ import annotations

import shutil
import subprocess
import warnings

import numpy as np
import pytest
import torch

from deploylab import image, models, parity, paths
from deploylab.signs import dataset
from lab_contract import LABS

missing = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {' and '.join(missing)}")


@pytest.fixture(scope="module")
def program():
    """The built program; kept under ``build/``, where CMake sees whether anything has changed."""
    folder = paths.build() / "cache" / "native-torchscript"
    torch_dir = f"{torch.utils.cmake_prefix_path}/Torch"
    source = LABS / "native" / "torchscript"
    for command in (
        ["cmake", "-S", source, "-B", folder, f"-DTorch_DIR={torch_dir}"],
        ["cmake", "--build", folder],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run_torchscript"


@pytest.fixture(scope="module")
def signnet(tmp_path_factory):
    path = tmp_path_factory.mktemp("torchscript") / "signnet.pt"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..*deprecated.*")  # which is what lab 10 is about
        traced = torch.jit.trace(models.load("signnet"), torch.zeros(1, 3, 64, 64))
        torch.jit.save(torch.jit.freeze(traced), path)
    return path


def run(*words):
    return subprocess.run([str(word) for word in words], capture_output=True, text=True)


def test_the_answers_are_those_of_python(program, signnet, tmp_path):
    x = np.concatenate([image.SIGNNET(photo.path) for photo in dataset.samples()[:5]])
    truth = parity.module_reference(models.load("signnet"), [(x,)])
    x.tofile(tmp_path / "in")
    done = run(program, signnet, tmp_path / "in", tmp_path / "out", *x.shape)
    assert done.returncode == 0, done.stderr
    logits = np.fromfile(tmp_path / "out", np.float32).reshape(5, 16)
    assert parity.compare_outputs(truth.outputs[0], logits, truth.tolerance)
    assert done.stdout == f"libtorch: [5, 16], largest at {' '.join(map(str, logits.argmax(1)))}\n"


def test_what_it_cannot_use_is_an_error(program, signnet, tmp_path):
    np.zeros(7, np.float32).tofile(tmp_path / "short")
    usage = run(program)
    assert usage.returncode == 2
    assert "usage: run_torchscript" in usage.stderr
    for words, message in (
        ((signnet, tmp_path / "short", tmp_path / "out", 1, 3, 64, 64), "does not hold 12288 float32 numbers"),
        ((tmp_path / "short", tmp_path / "short", tmp_path / "out", 1, 1, 1, 7), "run_torchscript: "),
    ):
        done = run(program, *words)
        assert done.returncode == 1
        assert message in done.stderr
        assert not (tmp_path / "out").exists()
