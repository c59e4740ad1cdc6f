"""Wheels that crash on some boards: one that does so for real, and which instruction it is."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from deploylab import paths
from deploylab.boards import boards_cli, emulator, wheels
from deploylab.boards.emulator import Board
from deploylab.boards.profiles import PROFILES
from deploylab.errors import BoardError


def require(name: str) -> Board:
    try:
        wheels.find()
        return emulator.find(name)
    except BoardError as error:
        pytest.skip(str(error))


def test_the_wheel_crashes_on_a_pi_4_and_the_instruction_is_found():
    board = require("pi4")
    trial = wheels.try_import(board, wheels.find())
    assert (trial.ok, trial.illegal_instruction) == (False, True)
    assert "SIGILL" in trial.ending
    assert re.search(r"Illegal instruction(?s:.*)onnxruntime.*_pybind_state\.py", trial.said)
    fault = wheels.fault(board, wheels.find())
    assert fault is not None
    assert fault.feature
    assert fault.feature not in board.profile.features.split()


def test_the_wheel_works_on_a_pi_5():
    program = "import onnxruntime; print(onnxruntime.__version__)"
    assert emulator.run(require("pi5"), "-c", program, first=wheels.find()).split()[-1] == wheels.CRASHING.version


@pytest.mark.parametrize(
    ("word", "feature"),
    [
        (0xF8F60016, "atomics"),  # ldaddal x22, x22, [x0]: where torch 2.10.0 ends
        (0xC8A07C41, "atomics"),  # cas x0, x1, [x2]
        (0x0F03FC01, "asimdhp"),  # fmov v1.4h, #0.5
        (0x4E400C00, "asimdhp"),  # fmla v0.8h, v0.8h, v0.8h
        (0x4F001000, "asimdhp"),  # fmla v0.8h, v0.8h, v0.h[0]
        (0x1EE02800, "fphp"),  # fadd h0, h0, h0
        (0x4E809400, "asimddp"),  # sdot v0.4s, v0.16b, v0.16b
        (0x6E809400, "asimddp"),  # udot v0.4s, v0.16b, v0.16b
        (0x6F80E000, "asimddp"),  # udot v0.4s, v0.16b, v0.4b[0]
        (0x6E808400, "asimdrdm"),  # sqrdmlah v0.4s, v0.4s, v0.4s
        (0x04A00000, "sve"),  # add z0.s, z0.s, z0.s
        # of the first Armv8
        (0xD503201F, ""),  # nop
        (0xF9400000, ""),  # ldr x0, [x0]
        (0xC85FFC00, ""),  # ldaxr x0, [x0]
        (0x4E20CC00, ""),  # fmla v0.4s, v0.4s, v0.4s
        (0x4F801000, ""),  # fmla v0.4s, v0.4s, v0.s[0]
        (0x4F03F401, ""),  # fmov v1.4s, #0.5
        (0x1E202800, ""),  # fadd s0, s0, s0
        (0x1EE24000, ""),  # fcvt s0, h0
        (0x0E217800, ""),  # fcvtl v0.4s, v0.4h
        (0x4E808400, ""),  # add v0.4s, v0.4s, v0.4s
    ],
)
def test_an_instruction_tells_which_feature_it_needs(word, feature):
    assert wheels.feature_of(word) == feature


def test_a_log_without_instructions_is_told():
    with pytest.raises(BoardError, match="in_asm"):
        wheels.last_translated("IN: main\nOBJD-T: 1f2003d5\n")
    log = "IN:\n0x55: d503201f  nop\n0x59:  f8f60016  ldaddal  x22, x22, [x0]\n"
    assert wheels.last_translated(log) == wheels.Fault(0xF8F60016, "atomics")


def test_a_wheel_that_is_not_there_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("DEPLOYLAB_CACHE", str(tmp_path))
    with pytest.raises(BoardError, match="deploylab boards create"):
        wheels.find()


def test_the_wheel_is_pinned_by_hash():
    text = (paths.root() / "hardware/emulator/crashing.txt").read_text(encoding="utf-8")
    assert f"{wheels.CRASHING.package}=={wheels.CRASHING.version} " in text
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", text)) >= 4


def test_boards_are_made_without_it_where_it_cannot_be_had(monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise BoardError("pip install failed; is the package index reachable?")

    board = Board(PROFILES["pi4"], tmp_path / "pi4", tmp_path)
    monkeypatch.setenv("DEPLOYLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(emulator, "create", lambda *_, **__: board)
    monkeypatch.setattr(emulator, "boards", lambda: [board])
    monkeypatch.setattr(wheels.index, "install", unreachable)
    done = CliRunner().invoke(boards_cli.app, ["create", "pi4"])
    assert done.exit_code == 0, done.output
    assert "pi4: ready" in done.output
    assert "left out: pip install failed" in done.output
    assert not (tmp_path / "boards" / wheels.FOLDER).exists()
