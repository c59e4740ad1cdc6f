"""Helpers for testing the graders: the solutions of a lab, and what a check prints."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import ModuleType

from lab_contract import LABS


def solutions(name: str) -> ModuleType:
    """The module ``labs/solutions/<name>.py``."""
    spec = importlib.util.spec_from_file_location(f"solutions_{name}", LABS / "solutions" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def verdict(capsys, check: Callable, attempt: Callable) -> str:
    """The one line that ``check`` prints about ``attempt``."""
    capsys.readouterr()
    check(attempt)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1, lines
    return lines[0]
