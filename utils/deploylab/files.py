"""Files that are whole: who reads one sees what was there before or all of the new, never a half-written one."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from deploylab.errors import DeployLabError


@contextlib.contextmanager
def draft(path: Path) -> Iterator[Path]:
    """A new file's path beside ``path``, with the same suffix, to be written in the block.

    It takes the place of ``path`` when the block ends, and is removed when the block fails. Makes the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def write(path: Path | str, content: str | bytes) -> None:
    """Write a file, text as UTF-8. Raises :class:`DeployLabError` naming the file and the reason."""
    path = Path(path)
    try:
        with draft(path) as unfinished:
            unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise DeployLabError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
