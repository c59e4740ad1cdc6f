"""Engines compared on an emulated board."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from rich.console import Console

from deploylab import engines, report
from deploylab.bench.compare import compare
from deploylab.boards import emulator, places
from deploylab.errors import BoardError, InputError

INFER = """
import os, pathlib, sys
sys.path.insert(0, sys.argv[2])
import numpy as np
from deploylab import engines
engines.get("openvino").load(pathlib.Path(sys.argv[1]), 1)(np.zeros((1, 3, 8, 8), np.float32))
print(os.getpid())
"""


@pytest.fixture(scope="module")
def pi4():
    try:
        return places.place("emulated:pi4")
    except BoardError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def comparison(pi4, tmp_path_factory):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 4))
    folder = tmp_path_factory.mktemp("compared")
    return compare(
        net.eval(), ["onnxruntime"], example=torch.rand(1, 3, 8, 8).numpy(), place=pi4,
        out_dir=folder, ledger_path=folder / "ledger.jsonl",
    )  # fmt: skip


def test_a_board_has_only_the_engines_that_need_no_torch(pi4):
    assert {"onnxruntime", "ncnn", "mnn", "openvino", "litert"} <= set(pi4.engines())
    assert not {"eager", "executorch", "tvm"} & set(pi4.engines())


def test_it_is_checked_and_counted_but_not_timed(comparison):
    (row,) = comparison.rows
    assert row.ok, row.reason
    assert row.verdict.ok
    assert row.latency is None
    assert row.cold_start is None
    assert row.instructions.call["all"] > row.instructions.engine["all"] > 0
    assert row.memory.peak > 0
    assert comparison.machine["board"] == "Raspberry Pi 4 Model B (emulated)"
    assert comparison.passed == [row]


def test_its_table_shows_instructions_and_no_milliseconds(comparison):
    console = Console(record=True, width=200, file=None)
    report.print_comparison(comparison, console)
    text = console.export_text()
    assert "multiply-adds" in text
    assert "p50 ms" not in text
    assert "no board time" in text
    assert "<svg" in report.to_html(comparison)


@pytest.mark.parametrize("how", ["alone", "in the board's shell"])
def test_openvino_runs_and_leaves_no_map_of_its_code_in_the_folder_for_temporary_files(how, tmp_path):
    try:
        board = emulator.find("pi5")
    except BoardError as error:
        pytest.skip(str(error))
    example = torch.rand(1, 3, 8, 8).numpy()
    artifact = engines.get("openvino").convert(torch.nn.Conv2d(3, 8, 3).eval(), example, tmp_path)
    program = tmp_path / "infer.py"
    program.write_text(INFER)
    words = (str(program), str(artifact.path), str(Path(engines.__file__).parents[2]))
    command = board.python(*words) if how == "alone" else board.shell("/usr/bin/python3", *words)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not Path(f"/tmp/perf-{int(done.stdout)}.map").exists()


@pytest.mark.parametrize("text", ["", "pi4", "emulated", "ssh", "board:pi4"])
def test_a_place_that_is_none_says_what_to_give(text):
    with pytest.raises(InputError, match="emulated:NAME"):
        places.place(text)
