"""How much a request may ask for, and how many requests a process takes at once."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, fields

from deploylab.errors import InputError
from deploylab.serving.problems import RETRY_AFTER_S, Problem


@dataclass(frozen=True)
class Limits:
    """Bounds of the service. Raises :class:`InputError` for a value that is not positive.

    ``max_bytes`` of a request's body, ``max_pixels`` of a picture, ``max_images`` in a request, ``max_queue`` requests
    that one process works on or keeps waiting, ``timeout_s`` seconds for a request.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    max_images: int = 16
    max_queue: int = 64
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise InputError(f"the limit {field.name} must be positive, got {value}")


class Gate:
    """Counts the requests inside, keeps further ones out when there are too many, and closes for good.

    Used as ``with gate: ...`` by any number of threads.
    """

    def __init__(self, max_inside: int) -> None:
        self.max_inside = max_inside
        self.inside = 0
        self.open = True
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)

    def __enter__(self) -> None:
        """Raise :class:`Problem` 503 with Retry-After if the gate is closed or ``max_inside`` are inside."""
        with self._lock:
            if not self.open:
                raise Problem(
                    "draining", "The server is shutting down; send the request again.", retry_after_s=RETRY_AFTER_S
                )
            if self.inside >= self.max_inside:
                detail = f"{self.inside} requests are being worked on already, which is the limit; try again later."
                raise Problem("overloaded", detail, retry_after_s=RETRY_AFTER_S)
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.inside -= 1
            if not self.open:
                self._changed.notify_all()

    def close(self) -> None:
        """Let nobody in any more; those inside may finish."""
        with self._changed:
            self.open = False

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Wait for those inside to leave. Returns whether they did."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self.inside:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True
