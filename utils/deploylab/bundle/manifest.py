"""What is in a bundle: ``manifest.json`` with the size and the SHA-256 of every file, ``SHA256SUMS`` for coreutils.

The manifest is written last, and a bundle without one is none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploylab.bench.progress import Progress
from deploylab.errors import BundleError

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
FORMAT = 1


def write(folder: Path, facts: Mapping[str, Any], progress: Progress = lambda done, total, text: None) -> None:
    """Write down every file of a folder. ``facts`` go before the list of files."""
    (folder / SUMS).unlink(missing_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    files = []
    for number, name in enumerate(names):
        progress(number, len(names), f"hashing {name}")
        files.append({"path": name, "bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)})
    text = json.dumps({"format": FORMAT, **facts, "files": files}, indent=1) + "\n"
    sums = [f"{each['sha256']}  {each['path']}" for each in files]
    sums.append(f"{hashlib.sha256(text.encode()).hexdigest()}  {MANIFEST}")
    (folder / SUMS).write_text("".join(f"{line}\n" for line in sums), encoding="utf-8")
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """The manifest. Raises :class:`BundleError` if there is none that can be read."""
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder")
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        whole = all(isinstance(each["path"], str) and each["sha256"] and each["bytes"] >= 0 for each in found["files"])
    except FileNotFoundError:
        raise BundleError(f"{folder} is no bundle: it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder / MANIFEST} cannot be read ({error}); copy or make the bundle again") from error
    if found.get("format") != FORMAT or not whole:
        raise BundleError(f"{folder} was made by another version of DeployLab; make the bundle again")
    return found


def verify(folder: Path, progress: Progress = lambda done, total, text: None) -> list[str]:
    """What is wrong with a bundle, a line a file; nothing if it is whole. Raises :class:`BundleError` if it is none."""
    listed = {each["path"]: each for each in read(folder)["files"]}
    problems = []
    for number, (name, each) in enumerate(listed.items()):
        progress(number, len(listed), f"checking {name}")
        problem = _problem(folder / name, each)
        if problem:
            problems.append(f"{name}: {problem}")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    problems += [f"{name}: not in the manifest" for name in sorted(there - {*listed, MANIFEST, SUMS})]
    sums = {name: each["sha256"] for name, each in listed.items()} | {MANIFEST: sha256(folder / MANIFEST)}
    if _sums(folder) != sums:
        problems.append(f"{SUMS}: does not agree with {MANIFEST}")
    return problems


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _problem(path: Path, listed: Mapping[str, Any]) -> str:
    try:
        size = path.stat().st_size
        if size != listed["bytes"]:
            return f"has {size} bytes instead of {listed['bytes']}"
        return "" if sha256(path) == listed["sha256"] else "its SHA-256 differs"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def _sums(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return {}
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
