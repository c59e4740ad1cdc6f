"""Seen by every test run: nbval skips a lab whose metadata asks for an extra or hardware that is not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "tools"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from lab_contract import reasons_to_skip

    for item in items:
        notebook = getattr(item.parent, "nb", None)
        if notebook is not None:
            for reason in reasons_to_skip(notebook.metadata.get("deploylab", {})):
                item.add_marker(pytest.mark.skip(reason=reason))
