"""Private folders that servers name after their process, and those that killed servers left behind."""

from __future__ import annotations

import shutil
from pathlib import Path


def sweep(parent: Path, prefix: str) -> None:
    """Remove the folders ``<prefix><process id>-...`` in ``parent`` whose processes have ended."""
    import psutil

    for folder in parent.glob(f"{prefix}*"):
        pid = folder.name.removeprefix(prefix).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
