"""What lab 40 is made of: the matrix product for Arm, the login on an emulated board, the played camera."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from types import ModuleType

import pytest

from deploylab import paths
from deploylab.boards import emulator
from deploylab.errors import BoardError
from lab_contract import LABS


def helper(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, LABS / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


loopback_board, neon_gemm, pi_camera = map(helper, ("loopback_board", "neon_gemm", "pi_camera"))
NEEDS = {"fp16": "asimdhp", "int8": "asimddp"}
LANES = {"fmadd": 1, "fmla_fp32": 4, "fmla_fp16": 8, "dot_int8": 16}
LARGEST_ERROR = {"fp16": 0.01, "int8": 0.02}


@pytest.fixture(scope="module")
def boards():
    try:
        return [emulator.find(name) for name in ("pi4", "pi5")]
    except BoardError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def counting(boards):
    reason = neon_gemm.cannot_count(boards[0])
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if not neon_gemm.compiler():
        pytest.skip("no C++ compiler for Arm; Debian: g++-aarch64-linux-gnu")
    return neon_gemm.build(tmp_path_factory.mktemp("neon"))


def test_a_core_tells_what_it_can_do(boards, program):
    pi4, pi5 = (neon_gemm.hwcap(program, board) for board in boards)
    half, dot = 1 << 10, 1 << 20  # HWCAP_ASIMDHP, HWCAP_ASIMDDP in Linux's asm/hwcap.h
    assert not pi4 & (half | dot)
    assert pi5 & half
    assert pi5 & dot


def test_what_hinders_counting_is_told(boards, counting, monkeypatch, tmp_path):
    assert neon_gemm.cannot_count(boards[0]) == ""
    monkeypatch.setattr(neon_gemm.instructions, "plugin", lambda: tmp_path / "no-plugin.so")
    assert "no-plugin.so" in neon_gemm.cannot_count(boards[0])


@pytest.mark.parametrize("kernel", neon_gemm.KERNELS)
def test_a_kernel_runs_where_the_core_has_its_instructions(boards, counting, program, kernel):
    for board in boards:
        outcome = neon_gemm.run(program, kernel, board)
        if NEEDS.get(kernel, "fp") not in board.profile.features.split():
            assert outcome.ended == "SIGILL"
            continue
        assert outcome.ended == ""
        assert outcome.error < LARGEST_ERROR.get(kernel, 1e-6)
        multiplied = sum(lanes * outcome.counts[kind] for kind, lanes in LANES.items())
        assert multiplied == outcome.multiplications
        assert neon_gemm.run(program, kernel, board) == outcome  # to the instruction


def test_a_source_that_does_not_compile_is_told(monkeypatch, tmp_path):
    if not neon_gemm.compiler():
        pytest.skip("no C++ compiler for Arm; Debian: g++-aarch64-linux-gnu")
    monkeypatch.setattr(neon_gemm, "SOURCE", tmp_path / "broken.cpp")
    (tmp_path / "broken.cpp").write_text("int main() { return nothing; }")
    with pytest.raises(RuntimeError, match="nothing"):
        neon_gemm.build(tmp_path)


@pytest.mark.skipif(bool(loopback_board.missing()), reason=f"missing: {loopback_board.missing()}")
def test_a_login_lands_on_the_emulated_board(boards, tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYLAB_SSH", "ssh -F mine")
    with loopback_board.login(boards[0], tmp_path / "a folder") as address:
        command = [*shlex.split(os.environ["DEPLOYLAB_SSH"]), address, "uname -m; cat /proc/device-tree/model"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[0] == "aarch64", done.stderr
    assert "Raspberry Pi 4" in done.stdout
    assert os.environ["DEPLOYLAB_SSH"] == "ssh -F mine"


PROGRAM = """
import json, os, socket, sys
line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
line.connect(os.environ["NOTIFY_SOCKET"])
line.send(b"READY=1")
seen = [sys.stdin.buffer.read(4) for _ in range(3)]
print(json.dumps({"seen": [part.decode() for part in seen]}))
print("last words", file=sys.stderr)
line.send(b"STOPPING=1")
"""


@pytest.mark.skipif(bool(pi_camera.missing()), reason=pi_camera.missing() or "there are sockets")
def test_a_film_is_shown_when_the_program_is_ready():
    film = pi_camera.film(lambda service: _started(PROGRAM, service), [b"one ", b"two "], rate=100)
    assert film.rows == [{"seen": ["one ", "two ", "one "]}]
    assert film.messages[0] == "READY=1"
    assert "last words" in film.said
    assert film.shown >= 3


@pytest.mark.skipif(bool(pi_camera.missing()), reason=pi_camera.missing() or "there are sockets")
def test_a_program_that_never_gets_ready_is_told():
    with pytest.raises(RuntimeError, match=r"before it was ready(?s:.*)no camera"):
        pi_camera.film(lambda service: _started("raise SystemExit('no camera')", service), [b"x"], rate=100)


def _started(program: str, service: dict[str, str]) -> list[str]:
    return ["env", *(f"{name}={value}" for name, value in service.items()), sys.executable, "-c", program]


def test_the_service_can_be_written_without_a_board():
    """Lab 40 shows the unit by the function that setup.sh uses."""
    hardware = paths.root() / "hardware"
    script = '. "$1/common.sh"; venv=VENV artifact=MODEL; unit basic.target'
    text = subprocess.run(["sh", "-c", f"hardware=$1; {script}", "sh", str(hardware)], capture_output=True, text=True)
    assert "Type=notify" in text.stdout
    assert "WatchdogSec=" in text.stdout
