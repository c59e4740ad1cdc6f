"""Progress of a long command on standard error."""

from __future__ import annotations

import sys


def tell(done: int, total: int, text: str) -> None:
    """Say which of how many steps begins: in one line that is written over on a terminal, else in a line of its own."""
    line = f"[{done}/{total}] {text}"
    sys.stderr.write(f"\r\033[K{line}" if sys.stderr.isatty() else f"{line}\n")
    sys.stderr.flush()
