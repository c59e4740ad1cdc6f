"""What is told of other people's servers: whether they can run here, and how much they install."""

from __future__ import annotations

import os
import sys
from importlib import metadata

import pytest

from deploylab.errors import InputError
from deploylab.serving import model_servers


def program(folder, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.skipif(os.name == "nt", reason="plants shell scripts")
def test_java_must_be_there_run_and_be_new_enough(tmp_path, monkeypatch):
    pytest.importorskip("ts", reason="needs the extra 'serving'")
    folder = tmp_path / "bin"
    monkeypatch.setenv("PATH", str(folder))
    assert "there is no java" in model_servers.missing("torchserve")
    program(folder, "java", "exit 1")
    assert "there is no java" in model_servers.missing("torchserve")
    program(folder, "java", """echo 'openjdk version "1.8.0_392"' >&2""")
    assert "java is version 8" in model_servers.missing("torchserve")
    program(folder, "java", """echo 'openjdk version "17.0.15" 2025-04-15' >&2""")
    assert model_servers.missing("torchserve") is None


@pytest.mark.skipif(os.name == "nt", reason="plants shell scripts")
def test_tensorflow_serving_needs_its_binary_or_an_engine_that_runs_and_has_its_image(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    monkeypatch.setenv("PATH", str(folder))
    ask = lambda: model_servers.missing("tensorflow-serving")  # noqa: E731
    assert "no container engine" in ask()
    program(folder, "docker", "exit 1")
    assert "docker does not run" in ask()
    program(folder, "docker", "exit 0")
    assert "no image tensorflow/serving" in ask()
    program(folder, "docker", "echo 1234abcd")
    assert ask() is None
    program(folder, "docker", "exit 1")
    program(folder, "tensorflow_model_server", "exit 0")
    assert ask() is None


def test_triton_is_missing_until_its_environment_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYLAB_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert "make servers" in model_servers.missing("triton")
        python = model_servers.triton_python()
        python.parent.mkdir(parents=True)
        python.touch()
        assert model_servers.missing("triton") is None
    else:
        assert "Linux only" in model_servers.missing("triton")


def test_an_unknown_server_is_named():
    with pytest.raises(InputError, match="choose from torchserve"):
        model_servers.missing("apache")


def test_the_size_counts_what_a_package_requires_each_once():
    alone = model_servers.install_size(["markupsafe"])
    both = model_servers.install_size(["jinja2", "markupsafe", "Jinja2"])
    assert alone[1] == 1
    assert both[1] == 2
    assert both[0] > alone[0] > 0
    assert alone[0] < 2
    assert model_servers.install_size(["jinja2"], sys.executable) == pytest.approx(both)


def test_the_size_follows_an_extra_and_leaves_out_what_is_not_installed():
    plain, with_extra = (model_servers.install_size([name])[1] for name in ("tritonclient", "tritonclient[http]"))
    assert with_extra > plain
    assert model_servers.install_size(["a-package-that-is-not-there"]) == (0, 0)
    assert metadata.version("tritonclient")


def test_a_server_beside_us_finds_our_python_and_our_package():
    env = model_servers.beside_python({"PATH": "/bin", "PYTHONPATH": "/other"})
    assert env["PATH"].split(os.pathsep)[1] == "/bin"
    assert env["PYTHONPATH"].split(os.pathsep)[1] == "/other"
    assert os.path.isdir(os.path.join(env["PYTHONPATH"].split(os.pathsep)[0], "deploylab"))
