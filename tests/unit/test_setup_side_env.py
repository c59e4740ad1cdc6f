"""Environments beside .venv: their locks, and a real one of a tiny project, installed from wheels."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_setup_environment import offline, wheelhouse  # noqa: F401 - fixtures

import setup_env
import side_env
from side_env import Recipe, SideEnvironment

CONSTRAINTS = (setup_env.ROOT / "constraints.txt").read_text().splitlines()


def pins(lines: list[str]) -> list[Requirement]:
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("name", side_env.RECIPES)
def test_a_lock_holds_exact_versions_and_nothing_of_the_machine_that_made_it(name):
    text = SideEnvironment(name).lock.read_text()
    assert "://" not in text
    assert not re.search(r"(^|\s)(--|/)", text.replace("python tools/side_env.py --lock", ""))
    for requirement in pins(text.splitlines()):
        assert requirement.url is None
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), f"{requirement} is not an exact public version"


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
@pytest.mark.parametrize("name", side_env.RECIPES)
def test_a_lock_holds_what_its_recipe_asks_for_and_shares_our_versions(name, python):
    recipe = side_env.RECIPES[name]
    if tuple(map(int, python.split("."))) > recipe.newest_python:
        pytest.skip(f"{recipe.title} has no build for Python {python}")
    where = {"python_version": python, "python_full_version": f"{python}.4", "sys_platform": "linux"}

    def locked(lines: list[str]) -> dict[str, str]:
        chosen = [pin for pin in pins(lines) if pin.marker is None or pin.marker.evaluate(where)]
        return {canonicalize_name(pin.name): str(pin.specifier) for pin in chosen}

    here, ours = locked(SideEnvironment(name).lock.read_text().splitlines()), locked(CONSTRAINTS)
    for wanted in map(Requirement, recipe.requirements):
        assert wanted.specifier.contains(here[canonicalize_name(wanted.name)].removeprefix("=="))
    for shared in recipe.shared:
        assert here[shared] == ours[shared]
    assert "torch" not in here


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose only environment is ``tiny``, with a .venv that has uv: this one's."""
    folder = tmp_path / "checkout"
    (folder / "tools" / "environments").mkdir(parents=True)
    (folder / ".venv").symlink_to(sys.prefix)
    monkeypatch.setitem(side_env.RECIPES, "tiny", Recipe("Tiny", ("iniconfig",)))
    return folder


def write_lock(project: Path, *lines: str) -> None:
    (project / "tools" / "environments" / "tiny.txt").write_text("".join(f"{line}\n" for line in lines))


def installed(name: str) -> str:
    from importlib.metadata import version

    return f"{name}=={version(name)}"


def test_first_run_installs_a_second_does_nothing_and_a_new_lock_installs_afresh(project, offline, capsys):  # noqa: F811
    write_lock(project, installed("iniconfig"))
    environment = SideEnvironment("tiny", project)
    python = environment.ensure()
    assert subprocess.run([python, "-c", "import iniconfig"]).returncode == 0
    assert subprocess.run([python, "-c", "import packaging"], stderr=subprocess.DEVNULL).returncode != 0

    capsys.readouterr()
    assert SideEnvironment("tiny", project).ensure() == python
    assert capsys.readouterr().out == ""

    write_lock(project, installed("packaging"))
    SideEnvironment("tiny", project).ensure()
    assert subprocess.run([python, "-c", "import packaging"]).returncode == 0
    assert subprocess.run([python, "-c", "import iniconfig"], stderr=subprocess.DEVNULL).returncode != 0


def test_a_package_that_is_not_to_be_had_is_a_sentence_and_the_next_run_tries_again(project, offline):  # noqa: F811
    write_lock(project, "a-package-that-is-not-there==1.0")
    environment = SideEnvironment("tiny", project)
    with pytest.raises(setup_env.SetupError, match="Installing the packages"):
        environment.ensure()
    assert not environment.is_current()
    write_lock(project, installed("iniconfig"))
    environment.ensure()
    assert environment.is_current()


def test_a_machine_that_a_server_is_not_made_for_is_told_so(project, monkeypatch):
    write_lock(project, "iniconfig==2")
    monkeypatch.setitem(side_env.RECIPES, "tiny", Recipe("Tiny", (), platforms=("Plan9 mips",)))
    with pytest.raises(setup_env.SetupError, match="exists for Plan9 mips; this is"):
        SideEnvironment("tiny", project).ensure()
    monkeypatch.setitem(side_env.RECIPES, "tiny", Recipe("Tiny", (), newest_python=(3, 9)))
    with pytest.raises(setup_env.SetupError, match=r"Python up to 3\.9"):
        SideEnvironment("tiny", project).ensure()


def test_an_unknown_environment_is_a_sentence_and_an_exit_code(capsys):
    assert side_env.main(["unknown"]) == 1
    assert "choose from triton" in capsys.readouterr().err
