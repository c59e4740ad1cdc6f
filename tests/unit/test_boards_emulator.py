"""Emulated boards: what describes them, how they are made and removed, and what runs on them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest

from deploylab import paths
from deploylab.boards import emulator, index, userland
from deploylab.boards.emulator import Board
from deploylab.boards.profiles import PROFILES, Profile
from deploylab.errors import BoardError

linux = pytest.mark.skipif(sys.platform != "linux", reason="boards are emulated on Linux")


def require(name: str) -> Board:
    try:
        return emulator.find(name)
    except BoardError as error:
        pytest.skip(str(error))


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DEPLOYLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- profiles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_a_profile_describes_every_core(profile):
    files = dict(profile.files())
    cpuinfo = files["proc/cpuinfo"]
    assert [int(number) for number in re.findall(r"^processor\t: (\d+)$", cpuinfo, re.M)] == list(range(profile.cores))
    assert cpuinfo.count(f"CPU part\t: {profile.part}\n") == profile.cores
    assert "(emulated)" in cpuinfo
    assert "(emulated)" in files["proc/device-tree/model"]
    assert files["sys/devices/system/cpu/online"] == f"0-{profile.cores - 1}\n"
    register = int(files["sys/devices/system/cpu/cpu0/regs/identification/midr_el1"], 16)
    assert (register >> 24, register >> 4 & 0xFFF) == (0x41, int(profile.part, 16))


def test_only_the_newer_cores_have_fp16_and_dot_products():
    capable = {name for name, profile in PROFILES.items() if {"asimdhp", "asimddp"} <= {*profile.features.split()}}
    assert capable == {"pi5", "orin"}


# --- what can go wrong ------------------------------------------------------------------------------------------------


@linux
def test_an_unknown_board_names_the_known_ones():
    with pytest.raises(BoardError, match=r"no board 'pi7'.*pi4, pi5"):
        emulator.create("pi7")


@linux
def test_a_board_that_was_not_made_says_how_to_make_it(empty_cache):
    with pytest.raises(BoardError, match="deploylab boards create pi4"):
        emulator.find("pi4")
    assert emulator.boards() == []


@linux
def test_without_apt_nothing_is_left_behind(empty_cache, monkeypatch):
    monkeypatch.setattr(userland.shutil, "which", lambda name: None)
    with pytest.raises(BoardError, match=r"apt-get.*use Debian or Ubuntu"):
        emulator.create("pi4")
    assert [path.name for path in (empty_cache / "boards").iterdir()] == []


@linux
def test_a_cache_folder_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEPLOYLAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(BoardError, match="DEPLOYLAB_CACHE"):
        emulator.create("pi4")


@linux
@pytest.mark.skipif(not shutil.which("apt-get"), reason="there is no apt-get")
def test_a_package_that_does_not_exist_is_told_in_apts_words(tmp_path, monkeypatch):
    monkeypatch.setattr(userland, "_apt", _only_install(userland._apt))
    with pytest.raises(BoardError, match="Unable to locate package no-such-package-at-all"):
        userland.fetch(["no-such-package-at-all"], tmp_path, "arm64")


def _only_install(apt):
    """apt without the update of its lists, which needs a network."""
    return lambda arguments, *rest: apt(arguments, *rest) if arguments[0] == "install" else ""


def test_pip_says_why_wheels_cannot_be_had(tmp_path):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("numpy==2.4.6\n")  # no hash
    with pytest.raises(BoardError, match="hash"):
        index.install(requirements, tmp_path / "packages", machine="aarch64", python="3.11")


def test_a_making_that_fails_leaves_the_old_folder(empty_cache):
    def fail(folder, progress):
        (folder / "half").touch()
        raise BoardError("no")

    good = emulator.made("thing", lambda folder, _: (folder / "whole").touch(), "1", print)
    with pytest.raises(BoardError):
        emulator.made("thing", fail, "2", print)
    assert sorted(path.name for path in good.parent.iterdir()) == ["thing"]
    assert (good / "whole").exists()


def test_what_is_up_to_date_is_not_made_again(empty_cache):
    made = []
    for _ in range(2):
        emulator.made("thing", lambda folder, _: made.append(folder), "same", print)
    assert len(made) == 1


# --- on a board -------------------------------------------------------------------------------------------------------


def test_a_program_sees_the_boards_cpu_and_the_engines():
    board = require("pi4")
    program = "import json, onnxruntime; from deploylab import machine; print(json.dumps(machine.describe()))"
    facts = json.loads(emulator.run(board, "-c", program))
    assert facts["architecture"] == "aarch64"
    assert facts["board"] == "Raspberry Pi 4 Model B (emulated)"
    assert facts["features"] == ["asimd"]
    assert facts["python"] != ""


def test_a_board_leaves_this_machines_python_alone():
    board = require("pi4")
    where = emulator.run(board, "-c", "import numpy, sys; print(numpy.__file__); print(sys.prefix)").split()
    assert where[0].startswith(str(board.packages))
    assert where[1].startswith(str(board.folder))


def test_an_error_on_the_board_comes_back_with_its_last_words():
    with pytest.raises(BoardError, match=r"exit code 1:(?s:.*)ZeroDivisionError"):
        emulator.run(require("pi4"), "-c", "1 / 0")


def test_a_board_keeps_compiled_modules_whatever_is_set_here(monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    board = require("pi4")
    program = "import sys; print(sys.dont_write_bytecode, sys.pycache_prefix)"
    assert emulator.run(board, "-c", program).split() == ["False", str(board.folder / "var/cache/python")]
    done = subprocess.run(board.shell("python3", "-c", program), capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "/var/cache/python"], done.stderr


def test_the_shell_starts_programs_of_the_board():
    board = require("pi5")
    script = "import platform, subprocess; print(subprocess.check_output(['uname', '-m'], text=True), end='')"
    done = subprocess.run(board.shell("python3", "-c", script), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "aarch64\n"), done.stderr
    model = subprocess.run(board.shell("cat", "/proc/device-tree/model"), capture_output=True, text=True, timeout=60)
    assert model.stdout == "Raspberry Pi 5 Model B (emulated)\0"


def test_boards_share_their_files_but_not_their_description():
    pi4, pi5 = require("pi4"), require("pi5")
    python = emulator._PYTHON
    assert (pi4.folder / python).resolve().stat().st_ino == (pi5.folder / python).resolve().stat().st_ino
    described = {board.name: (board.folder / "proc/cpuinfo").read_text() for board in (pi4, pi5)}
    assert described["pi4"] != described["pi5"]


def test_a_second_creation_changes_nothing():
    before = require("pi4").folder.stat().st_ino
    assert emulator.create("pi4").folder.stat().st_ino == before


def test_the_boards_versions_are_those_of_the_lock():
    pin = re.compile(r"^([\w.-]+)==([^\s;]+)", re.M)
    locked, boards_own = (
        {(name.lower(), version) for name, version in pin.findall((paths.root() / file).read_text(encoding="utf-8"))}
        for file in ("constraints.txt", "hardware/requirements.txt")
    )
    assert boards_own
    assert boards_own <= locked


@linux
def test_removing_a_board_keeps_the_others(empty_cache):
    source = require_made_in(empty_cache)
    emulator.remove("pi4")
    assert [board.name for board in emulator.boards()] == ["pi5"]
    emulator.remove("pi5")
    assert not source.exists()


def require_made_in(cache):
    """Two boards that look made: removing needs no more."""
    kinds = {"tools": emulator._kind_of_tools(), "base": emulator._kind_of_base()}
    kinds |= {name: emulator._kind(PROFILES[name]) for name in ("pi4", "pi5")}
    for name, kind in kinds.items():
        emulator.made(name, lambda folder, _: (folder / "file").touch(), kind, print)
    return cache / "boards"


def test_a_board_whose_description_has_changed_is_made_again(monkeypatch):
    before = emulator._kind(PROFILES["pi4"])
    files = [*PROFILES["pi4"].files(), ("sys/devices/system/cpu/new", "1\n")]
    monkeypatch.setattr(Profile, "files", lambda self: iter(files))
    assert emulator._kind(PROFILES["pi4"]) != before
