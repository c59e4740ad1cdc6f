"""Counting instructions on an emulated board."""

from __future__ import annotations

import platform
import shutil

import pytest
import torch

from deploylab import engines
from deploylab.boards import emulator, instructions
from deploylab.boards.instructions import EXACT, GENERATED, KINDS, Count, agree
from deploylab.errors import BoardError

CHANNELS, SIDE = 16, 12
MACS = CHANNELS * CHANNELS * 9 * SIDE * SIDE


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """One convolution: every multiply-add of it is known."""
    torch.manual_seed(0)
    net = torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1).eval()
    return engines.get("onnxruntime").convert(
        net, torch.rand(1, CHANNELS, SIDE, SIDE).numpy(), tmp_path_factory.mktemp("artifacts")
    )


@pytest.fixture
def board():
    try:
        return emulator.find("pi4")
    except BoardError as error:
        pytest.skip(str(error))


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("cc"), reason="needs a C compiler")
def test_the_engines_part_is_the_same_in_every_run(board, artifact, monkeypatch, tmp_path):
    x = torch.rand(1, CHANNELS, SIDE, SIDE).numpy()
    first = instructions.count(board, artifact, x)
    monkeypatch.setenv("OF_THE_CALLER", "x" * 1000)  # this, and other files beside it, would move a program's memory
    monkeypatch.chdir(tmp_path)
    second = instructions.count(board, artifact, x)
    assert agree(*({kind: count.of_engine(kind) for kind in KINDS} for count in (first, second)))
    assert [first.of_engine(kind) for kind in EXACT] == [second.of_engine(kind) for kind in EXACT]
    assert first.of_engine("fmla_fp32") > 0
    assert first.of_engine("fmla_fp16") == first.of_engine("dot_int8") == 0
    assert 0.8 * MACS <= first.multiply_adds <= 1.3 * MACS  # padding and the first product of a sum differ
    assert first.total() > first.of_engine() > MACS / 4


def test_counts_agree_in_arithmetic_to_the_instruction():
    counts = dict.fromkeys(KINDS, 1_000_000)
    assert agree(counts, {**counts, "all": 1_000_100})
    assert not agree(counts, {**counts, "all": 1_002_000})
    assert not any(agree(counts, {**counts, kind: 1_000_001}) for kind in EXACT)


def test_counts_are_summed_by_library():
    code = instructions.mapped(
        "1000-3000 r-xp 00000000 00:00 1   /board/packages/engine/lib.so\n"
        "not a line of it\n"
        "5000-6000 r-xp 00000000 00:00 2   /board/usr/lib/libc.so.6\n\n"
        "7000-8000 r-xp 00000000 00:00 0 \n"
    )
    pages = {
        str(0x1000): [5, 1, 0, 0, 2, 0, 0],
        str(0x2000): [7, 0, 0, 0, 1, 0, 0],
        str(0x5000): [1] * 7,
        "28672": [3] * 7,
    }
    found = instructions.by_library(pages, code)
    assert found["lib.so"] == dict(zip(KINDS, [12, 1, 0, 0, 3, 0, 0], strict=True))
    assert found["libc.so.6"]["all"] == 1
    assert found[GENERATED]["all"] == 3
    count = Count(found, frozenset({"lib.so", GENERATED}))
    assert (count.of_engine(), count.total()) == (15, 16)
    assert count.multiply_adds == 3 + 4 * (3 + 3) + 8 * 3 + 16 * 3


def test_without_a_compiler_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("DEPLOYLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(instructions.shutil, "which", lambda name: None)
    with pytest.raises(BoardError, match="C compiler"):
        instructions.plugin()
