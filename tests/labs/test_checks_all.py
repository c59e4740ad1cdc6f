"""The graders of all labs, graded on what they share: each accepts the solution and reports the stub."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType

import pytest

from graders import solutions, verdict
from lab_contract import LABS


def checks(lab: str) -> ModuleType:
    return importlib.import_module(f"deploylab.checks.lab{lab[:2]}")


def exercises(lab: str) -> list[str]:
    """The checks of a lab: what ``@exercise`` made there out of a function."""
    module = checks(lab)
    return [
        name
        for name, check in vars(module).items()
        if inspect.isfunction(check) and hasattr(check, "__wrapped__") and check.__module__ == module.__name__
        if not name.startswith("_")
    ]


EXERCISES = [(path.stem, name) for path in sorted((LABS / "solutions").glob("*.py")) for name in exercises(path.stem)]


def test_every_lab_has_two_exercises_or_more():
    labs = [lab for lab, _ in EXERCISES]
    assert {"00_start_here", "01_measure_honestly"} <= set(labs)
    assert all(labs.count(lab) >= 2 for lab in labs)


@pytest.mark.parametrize(("lab", "name"), EXERCISES)
def test_the_solution_passes(capsys, lab, name):
    assert verdict(capsys, getattr(checks(lab), name), getattr(solutions(lab), name)).startswith(f"{name}: passed. ")


@pytest.mark.parametrize(("lab", "name"), EXERCISES)
def test_the_stub_is_not_attempted(capsys, lab, name):
    assert verdict(capsys, getattr(checks(lab), name), lambda *_, **__: ...) == f"{name}: not attempted yet"
