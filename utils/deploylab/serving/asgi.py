"""A WSGI application, as Flask's, for an ASGI server, as Ray Serve's proxy is.

WSGI (PEP 3333) calls a function and waits; ASGI exchanges messages in an event loop. So each request is collected, run
in a thread, and its answer sent back.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]
Answer = tuple[int, list[tuple[bytes, bytes]], bytes]


class AsgiApp:
    """``wsgi`` as an ASGI application that runs up to ``threads`` requests at once.

    Of a request's body no more than ``max_bytes`` and one message are kept; the application sees then that it is
    longer than it accepts.
    """

    def __init__(self, wsgi: Callable[..., Iterable[bytes]], *, max_bytes: int, threads: int = 64) -> None:
        self._wsgi = wsgi
        self._max_bytes = max_bytes
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="request")

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        body = await self._body(receive)
        if body is None:
            return
        loop = asyncio.get_running_loop()
        status, headers, content = await loop.run_in_executor(self._pool, self._run, scope, body)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _body(self, receive: Receive) -> bytes | None:
        """The request's body; None if the client went away."""
        parts, size, more = [], 0, True
        while more and size <= self._max_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
        return b"".join(parts)

    def _run(self, scope: dict[str, Any], body: bytes) -> Answer:
        head: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], _: Any = None) -> Callable[[bytes], Any]:
            head[:] = [int(status[:3]), [(name.lower().encode(), value.encode("latin1")) for name, value in headers]]
            return written.append

        written: list[bytes] = []
        chunks = self._wsgi(_environ(scope, body), start_response)
        try:
            content = b"".join([*chunks])
        finally:
            if hasattr(chunks, "close"):
                chunks.close()
        return (*head, b"".join(written) + content)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


def _environ(scope: dict[str, Any], body: bytes) -> dict[str, Any]:
    """The WSGI environment of an HTTP connection (PEP 3333) whose body is complete."""
    root = scope.get("root_path", "")
    host, port = scope.get("server") or ("localhost", 80)
    environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": root.encode().decode("latin1"),
        "PATH_INFO": scope["path"].removeprefix(root).encode().decode("latin1"),
        "QUERY_STRING": scope["query_string"].decode("latin1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "REMOTE_ADDR": (scope.get("client") or ("",))[0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": True,
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin1").upper().replace("-", "_"), raw_value.decode("latin1")
        key = name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    return environ
