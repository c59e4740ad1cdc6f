"""The helpers of lab 22: experiments in a process of its own are reported whatever becomes of it; graphs are drawn."""

from __future__ import annotations

import importlib.util
import os
from types import SimpleNamespace

import numpy as np
import pytest

from lab_contract import LABS

spec = importlib.util.spec_from_file_location("ncnn_experiments", LABS / "ncnn_experiments.py")
experiments = importlib.util.module_from_spec(spec)
spec.loader.exec_module(experiments)


@pytest.fixture
def folder(tmp_path):
    """A network whose answer is its input, three photos of three numbers, and the place of the largest of each."""
    photos = np.eye(3, dtype=np.float32)
    np.save(tmp_path / "photos.npy", photos)
    np.save(tmp_path / "top1.npy", photos.argmax(1))
    (tmp_path / "signnet.ncnn.param").write_text("7767517\n2 2\nInput in0 0 1 in0\nNoop same 1 1 in0 out0\n")
    (tmp_path / "signnet.ncnn.bin").touch()
    return tmp_path


def test_an_experiment_reports_its_answers(folder):
    script = "right([ncnn.Mat(photo).clone() for photo in photos[[0, 1, 0]]])"
    assert experiments.elsewhere(script, folder) == "2 of 3 answers as in PyTorch"


def test_an_experiment_that_raises_or_dies_is_reported_too(folder):
    assert experiments.elsewhere("right(1)", folder) == "exit code 1"
    if hasattr(os, "kill"):
        script = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
        assert experiments.elsewhere(script, folder) == "the process died: SIGSEGV"


def test_a_graph_of_ncnn_is_drawn_with_its_settings():
    def layer(kind, inputs, outputs, **params):
        numbered = {int(key[1:]): value for key, value in params.items()}
        return SimpleNamespace(type=kind, name=outputs[0], inputs=inputs, outputs=outputs, params=numbered)

    layers = [
        layer("Input", [], ["in0"]),
        layer("Convolution", ["in0"], ["1"], k0=8, k1=3, k9=3),
        layer("Reduction", ["1"], ["out0"], k0=3),
    ]
    shapes = {"in0": (3, 64, 64), "1": (8, 64, 64), "out0": (8,)}
    drawn = experiments.drawn(layers, shapes, ("in0", "out0"), "A title")
    assert drawn.description == "A title: a graph of 2 nodes: Convolution, Reduction"
    for text in ("channels 8", "kernel 3", "activation clip", "8\u00d764\u00d764"):
        assert text in drawn.svg


def test_medians_are_those_of_each_call():
    calls = []
    found = experiments.medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert list(found) == ["a", "b"]
    assert set(calls) == {"a", "b"}
    assert all(value > 0 for value in found.values())
