"""Installed packages: what they require in turn, how many bytes they take, how many of those a process has in use."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path


def plain(name: str) -> str:
    """A package's name as indexes compare it (PEP 503): ``Ruamel.Yaml`` is ``ruamel-yaml``."""
    return re.sub(r"[-_.]+", "-", name).lower()


def required(packages: Iterable[str]) -> dict[str, metadata.Distribution]:
    """The installed distributions of ``packages`` (``name`` or ``name[extra]``) and all that they require, by name.

    What a package requires is what it declares for this platform and Python. What is not installed is left out.
    """
    from packaging.requirements import Requirement

    waiting, done, found = [Requirement(each) for each in packages], set(), {}
    while waiting:
        need = waiting.pop(0)
        key = (plain(need.name), frozenset(need.extras))
        if key in done:
            continue
        done.add(key)
        try:
            distribution = metadata.distribution(need.name)
        except metadata.PackageNotFoundError:
            continue
        found[key[0]] = distribution
        for line in distribution.requires or ():
            other = Requirement(line)
            if other.marker is None or any(other.marker.evaluate({"extra": extra}) for extra in ("", *need.extras)):
                waiting.append(other)
    return found


def installed_bytes(distribution: metadata.Distribution) -> int:
    """Bytes of the files that installing it wrote. Compiled bytecode is left out: Python makes it when it likes."""
    return sum(file.stat().st_size for file in _files(distribution) if file.is_file())


def bytes_in_use(distribution: metadata.Distribution, opened: dict[str, set[str]]) -> int:
    """Bytes of those of its files that :func:`opened_files` lists."""
    candidates = (file for file in _files(distribution) if file.name in opened)
    used = {os.path.realpath(file): file for file in candidates if os.path.realpath(file) in opened[file.name]}
    return sum(file.stat().st_size for file in used.values())


def opened_files() -> dict[str, set[str]] | None:
    """Python modules and shared libraries that this process has loaded: file name to real paths.

    None where the system does not list a process's libraries (only Linux does, in ``/proc/self/maps``).
    """
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
            mapped = [line.rstrip("\n").split(maxsplit=5)[5] for line in lines if "/" in line]
    except OSError:
        return None
    modules = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    found: dict[str, set[str]] = {}
    for path in {*mapped, *filter(None, modules)}:
        real = os.path.realpath(path)
        for name in {os.path.basename(path), os.path.basename(real)}:
            found.setdefault(name, set()).add(real)
    return found


def _files(distribution: metadata.Distribution) -> Iterable[Path]:
    return (Path(file.locate()) for file in distribution.files or () if file.suffix != ".pyc")
