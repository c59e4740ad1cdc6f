"""The engines, found by looking at the files beside this one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from deploylab.engines._tool import listen
from deploylab.engines.base import Artifact, Availability, Engine, Session, Source, TensorSpec, hash_source
from deploylab.errors import EngineError

__all__ = [
    "Artifact",
    "Availability",
    "Engine",
    "Session",
    "Source",
    "TensorSpec",
    "get",
    "hash_source",
    "listen",
    "names",
]


@cache
def _registry() -> dict[str, Engine]:
    found: dict[str, Engine] = {}
    for info in pkgutil.iter_modules(__path__):
        if info.name == "base" or info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{__name__}.{info.name}")
        for _, kind in inspect.getmembers(module, _is_class):
            if issubclass(kind, Engine) and kind.__module__ == module.__name__ and not inspect.isabstract(kind):
                found[kind.name] = kind()
    return found


def _is_class(value: object) -> bool:
    """As ``inspect.isclass``, which on Python 3.10 takes ``list[int]`` for one."""
    return issubclass(type(value), type)


def names() -> list[str]:
    """Names of all engines, installed or not, the reference ``eager`` first."""
    return sorted(_registry(), key=lambda name: (name != "eager", name))


def get(name: str) -> Engine:
    """The engine called ``name``. Raises :class:`EngineError` naming the ones there are."""
    if name not in _registry():
        raise EngineError(f"unknown engine {name!r}; there are: {', '.join(names())}")
    return _registry()[name]
