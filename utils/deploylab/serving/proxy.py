"""What stands before the application in a cluster's HTTP proxy: retries when a replica dies, and a gate to close.

To answer a picture twice costs nothing but time, so a request whose replica died is simply asked again. What the proxy
says on its own (no replica is free, none is left) goes out as a problem document, as everything else does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploylab.serving.asgi import App, Message, Receive, Send
from deploylab.serving.problems import MEDIA_TYPE, RETRY_AFTER_S, Problem

ATTEMPTS = 3
_PROXYS_OWN = b"text/plain"  # which the application never answers with an error


class RetryOnDeath:
    """ASGI middleware before ``app``, which is Ray Serve's proxy. Requests above ``max_bytes`` are asked once."""

    def __init__(self, app: App, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(receive, self._max_bytes)
        for _ in range(ATTEMPTS):
            answer = _Answer(send)
            try:
                await self._app(_copy(scope), request.receive, answer.send)
            except Exception:
                if answer.passed_on:  # the client has half of it: let the server cut the connection
                    raise
            if answer.passed_on:
                return
            if answer.refused or not request.rewind():
                break
        await _send_problem(answer.problem(), send)


class Gate:
    """ASGI middleware before ``app``: once ``folder/closing`` exists, requests are refused.

    When the last one that was let in has left, ``folder/drained`` is made. Files, because Ray has no word for this.
    """

    def __init__(self, app: App, *, folder: Path) -> None:
        self._app = app
        self._closing, self._drained = closing_files(folder)
        self._inside = 0

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._closing.exists():
            headers = {"Connection": "close"}
            detail = "The cluster is shutting down; send the request again."
            await _send_problem(Problem("draining", detail, retry_after_s=RETRY_AFTER_S, headers=headers), send)
            self._note()
        else:
            await self._through(scope, receive, send)

    async def _through(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self._inside += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._inside -= 1
            if self._closing.exists():
                self._note()

    def _note(self) -> None:
        if not self._inside:
            self._drained.touch()


def closing_files(folder: Path) -> tuple[Path, Path]:
    """The file that closes a :class:`Gate`, and the one that says that nobody is inside any more."""
    return folder / "closing", folder / "drained"


class _Request:
    """The messages of a request's body, which can be received again."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive = receive
        self._left = max_bytes
        self._kept: list[Message] | None = []
        self._next = 0

    async def receive(self) -> Message:
        if self._kept is not None and self._next < len(self._kept):
            self._next += 1
            return self._kept[self._next - 1]
        message = await self._receive()
        if self._kept is not None and message["type"] == "http.request":
            self._kept.append(message)
            self._next += 1
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                self._kept = None
        return message

    def rewind(self) -> bool:
        """Start again; False if the body was too long to be kept."""
        self._next = 0
        return self._kept is not None


class _Answer:
    """Passes an answer on, but keeps back what the proxy says when it has none."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._own: Message | None = None
        self._words = b""
        self.passed_on = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_proxys_own(message):
            self._own = message
        elif self._own is not None:
            self._words += message.get("body", b"")
        else:
            self.passed_on = True
            await self._send(message)

    @property
    def refused(self) -> bool:
        """Whether the proxy meant it; it answers 500 when a replica died, which is worth another attempt."""
        return self._own is not None and self._own["status"] != 500

    def problem(self) -> Problem:
        status = self._own["status"] if self._own else 500
        if status == 404:
            return Problem("not-found", "The cluster has nothing at this address.")
        if status == 408:
            return Problem("timeout", "No replica answered in time.")
        detail = "The replica that had the request died." if status == 500 else "No replica is free for the request."
        return Problem("overloaded", detail, retry_after_s=RETRY_AFTER_S)


def _is_proxys_own(start: Message) -> bool:
    kinds = [value for name, value in start.get("headers", ()) if name.lower() == b"content-type"]
    return start["status"] >= 400 and any(kind.startswith(_PROXYS_OWN) for kind in kinds)


def _copy(scope: dict[str, Any]) -> dict[str, Any]:
    """For each attempt its own: Ray adds headers."""
    return {**scope, "headers": list(scope["headers"])}


async def _send_problem(problem: Problem, send: Send) -> None:
    headers = {"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store", **problem.headers}
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": encoded})
    await send({"type": "http.response.body", "body": json.dumps(problem.document()).encode() + b"\n"})
