"""A line of JSON for every request."""

from __future__ import annotations

import contextlib
import json
import os
from datetime import datetime, timezone
from pathlib import Path

from deploylab.errors import InputError

STANDARD_ERROR = "-"
_STDERR = 2  # the descriptor, whatever became of sys.stderr


class AccessLog:
    """Appends to a file, or to standard error if ``target`` is ``-``.

    A line is one write to a file opened for appending, so lines of several processes do not mix. Raises
    :class:`InputError` if the file cannot be opened.
    """

    def __init__(self, target: Path | str) -> None:
        if str(target) == STANDARD_ERROR:
            self._file = _STDERR
            return
        try:
            self._file = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        except OSError as error:
            raise InputError(f"cannot write the access log {target}: {error.strerror or error}") from error

    def write(self, **fields: object) -> None:
        """Write one request. The time is that of its end, in UTC."""
        time = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"time": time, **{key: value for key, value in fields.items() if value is not None}})
        with contextlib.suppress(OSError):  # a full disk must not cost the client its answer
            os.write(self._file, line.encode() + b"\n")
