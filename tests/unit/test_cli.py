"""The command line: quick help, clear errors, exit codes, files, and what Ctrl-C leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from deploylab.bench import ledger
from deploylab.cli import app

COMMAND = [sys.executable, "-m", "deploylab.cli"]
QUICK = ["--samples", "9", "--rounds", "2", "--no-memory"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    weight = numpy_helper.from_array(np.random.default_rng(0).random((7, 5), np.float32), "w")
    infos = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", size])] for n, size in (("x", 7), ("y", 5))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "net", *infos, [weight])
    path = tmp_path_factory.mktemp("cli") / "linear.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A checkout of its own for the artifacts and the ledger."""
    monkeypatch.setenv("DEPLOYLAB_HOME", str(tmp_path))
    return tmp_path


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_help_imports_nothing_heavy():
    code = "import sys; import deploylab.cli; print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy', 'rich', "
    code += "'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    shown = run("--help")
    assert shown.exit_code == 0
    for command in ("doctor", "compare", "signs"):
        assert command in shown.stdout


def test_a_comparison_prints_writes_and_records(model, home):
    files = {"--json": home / "a" / "c.json", "--html": home / "c.html", "--png": home / "c.png"}
    options = [part for item in files.items() for part in item]
    done = run("compare", model, "--engines", "onnxruntime", *options, *QUICK)
    assert done.exit_code == 0, done.output
    assert "onnxruntime" in done.stdout
    assert "[0/5] preparing" in done.stderr
    assert json.loads(files["--json"].read_text())["model"] == "linear.onnx"
    assert "</html>" in files["--html"].read_text()
    assert files["--png"].read_bytes().startswith(b"\x89PNG")
    assert [row["engine"] for row in ledger.read(home / "build" / "ledger.jsonl")] == ["onnxruntime"]


def test_an_engine_that_was_named_and_cannot_run_is_a_failure(model, home):
    done = run("compare", model, "--engines", "onnxruntime,eager", *QUICK)
    assert done.exit_code == 1
    assert "eager: failed: eager cannot convert from onnx" in done.stdout
    assert json.loads((home / "build" / "ledger.jsonl").read_text().splitlines()[1])["status"] == "failed"


def test_files_that_cannot_be_written_lose_no_result(model, home):
    (home / "build").write_text("in the way of the ledger")
    (home / "blocked").write_text("in the way of the page")
    artifacts = home / "elsewhere"
    code = "from pathlib import Path; from deploylab.bench import compare; from deploylab import cli;"
    code += f"run = compare.compare; compare.compare = lambda *a, **k: run(*a, **k, out_dir=Path({str(artifacts)!r}));"
    code += "cli.main()"
    arguments = ["compare", model, "--engines", "onnxruntime", *QUICK, "--html", home / "blocked" / "c.html"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "p50 ms" in done.stdout
    assert "error: cannot write the ledger" in done.stderr
    assert "error: cannot write" in done.stderr
    assert "c.html" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "vgg19"], "unknown model 'vgg19'; give one of signnet"),
        (["compare", "missing.onnx"], "missing.onnx: no such file"),
        (["compare", "signnet", "--engines", "tensorrt9"], "unknown engine 'tensorrt9'; there are: eager"),
        (["compare", "signnet", "--image", "missing.jpg"], "missing.jpg: no such file"),
        (["compare", "signnet", "--threads", "many"], "--threads takes whole numbers"),
        (["compare", "signnet", "--threads", "0"], "threads must be numbers of at least 1, got 0"),
        (["compare", "signnet", "--shape", "x:3"], "--shape takes NAME=1,3,224,224; got 'x:3'"),
    ],
)
def test_a_mistake_is_answered_in_one_line(home, arguments, words):
    done = run(*arguments)
    assert done.exit_code == 1
    assert f"error: {words}" in done.stderr.replace("error: --image ", "error: ")
    assert "Traceback" not in done.output


def test_a_picture_that_is_none(model, home, tmp_path):
    (tmp_path / "note.jpg").write_text("no picture")
    done = run("compare", model, "--image", tmp_path / "note.jpg", *QUICK)
    assert done.exit_code == 1
    assert "takes no picture" in done.stderr


@pytest.mark.parametrize("when", ["converting", "checking", "measuring"])
def test_an_interrupt_ends_the_workers_and_leaves_the_ledger_alone(model, home, when):
    ledger.append([{"n": 1}], home / "build" / "ledger.jsonl")
    arguments = ["compare", str(model), "--engines", "onnxruntime,openvino", "--samples", "1000000"]
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--max-seconds", "60", "--rounds", "1"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while when not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(0.3)
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        said = process.stderr.read()
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.communicate()
    assert "interrupted: workers ended, nothing recorded, the ledger is intact" in said
    assert "Traceback" not in said
    assert psutil.wait_procs(children, timeout=60)[1] == []
    assert ledger.read(home / "build" / "ledger.jsonl") == [{"n": 1}]
    assert [p.name for p in (home / "build" / "artifacts").glob(".*")] == []


def test_other_commands_have_help():
    for command in (["doctor"], ["compare"], ["signs", "train"], ["signs", "evaluate"]):
        shown = run(*command, "--help")
        assert shown.exit_code == 0
        assert "Usage" in shown.output
