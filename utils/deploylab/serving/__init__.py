"""A model behind HTTP: Flask application, micro-batching, server processes, load generator, scale-out."""

from __future__ import annotations

import importlib
from typing import Any

_FOUND_IN = {"create_app": "app", "Predictor": "predictor", "Limits": "limits", "MicroBatcher": "batcher"}

__all__ = ["Limits", "MicroBatcher", "Predictor", "create_app"]


def __getattr__(name: str) -> Any:
    """Import on first use: the load generator and the server's parent process need neither Flask nor an engine."""
    if name not in _FOUND_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FOUND_IN[name]}"), name)
