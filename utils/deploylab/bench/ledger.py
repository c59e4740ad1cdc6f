"""The ledger: every measured row, append-only, one JSON object a line in ``build/ledger.jsonl``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deploylab import paths
from deploylab.errors import DeployLabError


def default_path() -> Path:
    """Where the ledger lies unless a caller says otherwise."""
    return paths.build() / "ledger.jsonl"


def append(rows: Iterable[Mapping[str, Any]], path: Path | str | None = None) -> Path:
    """Add rows at the end, all of them in one write, and return the ledger's path.

    A line that a killed process left unfinished is closed first. Raises :class:`DeployLabError` if the ledger cannot be
    written, saying why; what was in it stays.
    """
    text = "".join(json.dumps(row, default=str) + "\n" for row in rows)
    try:
        path = Path(path) if path else default_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        payload = (("\n" if _unfinished(path) else "") + text).encode()
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            written = os.write(handle, payload)
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise DeployLabError(
            f"cannot write the ledger {path or 'build/ledger.jsonl'}: {error.strerror or error}; "
            "free some disk space or make the folder writable, then measure again"
        ) from error
    if written < len(payload):
        raise DeployLabError(f"the disk is full: only a part of the new rows fits into {path}; free some space")
    return path


def read(path: Path | str | None = None) -> list[dict[str, Any]]:
    """All rows, oldest first. Lines that are no JSON object (a process was killed while writing) are left out."""
    path = Path(path) if path else default_path()
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DeployLabError(f"cannot read the ledger {path}: {error.strerror or error}") from error
    return [row for row in map(_parsed, lines) if row is not None]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _unfinished(path: Path) -> bool:
    try:
        with path.open("rb") as ledger:
            ledger.seek(-1, os.SEEK_END)
            return ledger.read(1) != b"\n"
    except OSError:  # no ledger yet, or an empty one
        return False
