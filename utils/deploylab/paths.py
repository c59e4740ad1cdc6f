"""Where things are. Every room asks here, so that nothing depends on the current directory."""

from __future__ import annotations

import os
from pathlib import Path


def root() -> Path:
    """The checkout: ``$DEPLOYLAB_HOME`` where set (a board, a bundle), else the folder two above this package."""
    home = os.environ.get("DEPLOYLAB_HOME")
    return Path(home).resolve() if home else Path(__file__).resolve().parents[2]


def datasets() -> Path:
    """What the course ships: sample photos, frozen test split, checkpoints."""
    return root() / "datasets"


def build() -> Path:
    """What the course makes: artifacts, ledger, figures. Git-ignored; created at first use."""
    folder = root() / "build"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cache() -> Path:
    """What is kept for all checkouts of this user, such as emulated boards: ``$DEPLOYLAB_CACHE`` where set."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("DEPLOYLAB_CACHE") or Path(home) / "deploylab").resolve()
