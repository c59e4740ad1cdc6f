"""A server's address: taken once, shared by its worker processes, and given up without losing a client."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import struct
import sys
import time

from deploylab.errors import InputError, ServerError

BACKLOG = 1024
"""Connections that the kernel keeps while all workers are busy."""
KEEP_ALIVE_S = 75
"""How long an idle connection stays open: longer than clients and proxies keep theirs, so that it is they who close
it, and never a request that meets a closing connection. Requests that do not come to an end are :mod:`.overdue`'s."""

# <linux/filter.h>, <asm-generic/socket.h>, struct tcp_info of <linux/tcp.h>
_SO_ATTACH_FILTER = 26
_LOAD_BYTE, _JUMP_IF_SET, _RETURN = 0x30, 0x45, 0x06
_TCP_FLAGS, _SYN = 13, 0x02
_TCPI_UNACKED = 24


class Listener:
    """A TCP address that belongs to this process and to those it forks. ``port`` 0 takes a free one.

    Nobody is let in before :meth:`listen`. Raises :class:`ServerError` if the address cannot be had.
    """

    def __init__(self, host: str, port: int) -> None:
        if not 0 <= port <= 65535:
            raise InputError(f"a port is a number from 0 (any free one) to 65535, got {port}")
        self.host = host
        self.socket = _bound(host, port)
        self.port: int = self.socket.getsockname()[1]

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def fileno(self) -> int:
        return self.socket.fileno()

    def listen(self) -> None:
        """Let clients in; they wait until a worker accepts them."""
        try:
            self.socket.listen(BACKLOG)
        except OSError as error:  # another one bound the port too, and began to listen before us
            raise _refused(self.host, self.port, error) from None

    def stop_admitting(self) -> None:
        """Let no new client in. Those whose connection the kernel has completed already can still be accepted.

        Closing the socket would reset them, whatever they have sent. Instead a filter drops the first segment of
        every new connection; the client repeats it after a second, and is refused because the server is gone by then.
        Does nothing where there is no such filter (it is Linux's).
        """
        if sys.platform != "linux":
            return
        program = b"".join(
            struct.pack("HBBI", *instruction)
            for instruction in (
                (_LOAD_BYTE, 0, 0, _TCP_FLAGS),
                (_JUMP_IF_SET, 0, 1, _SYN),
                (_RETURN, 0, 0, 0),  # a SYN: drop
                (_RETURN, 0, 0, 0xFFFFFFFF),  # anything else: keep
            )
        )
        code = ctypes.create_string_buffer(program, len(program))
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            self.socket.setsockopt(
                socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program) // 8, ctypes.addressof(code))
            )

    def waiting(self) -> int:
        """Connections that no worker has accepted yet; 0 where the system does not tell."""
        with contextlib.suppress(OSError, AttributeError, struct.error):
            info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            return struct.unpack_from("I", info, _TCPI_UNACKED)[0]
        return 0

    def wait_until_accepted(self, timeout_s: float) -> None:
        """Wait until the workers have accepted all who wait, also those whose connection is about to be complete."""
        deadline = time.monotonic() + timeout_s
        empty = 0
        while empty < 3 and time.monotonic() < deadline:
            empty = 0 if self.waiting() else empty + 1
            time.sleep(0.01)

    def close(self) -> None:
        self.socket.close()


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ServerError(f"the host {host!r} is unknown ({error}); 127.0.0.1 is this machine alone") from None
    taken = socket.socket(family, kind, protocol)
    try:
        if sys.platform == "win32":
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or a restart would have to wait a minute
        taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        taken.bind(address)
    except OSError as error:
        taken.close()
        raise _refused(host, port, error) from None
    return taken


def _refused(host: str, port: int, error: OSError) -> ServerError:
    if error.errno == errno.EADDRINUSE:
        return ServerError(
            f"port {port} of {host} is taken by another program: end it, or choose another port (0 takes a free one)"
        )
    if error.errno == errno.EACCES:
        return ServerError(f"port {port} needs privileges that you do not have; choose one from 1024 on")
    if error.errno == errno.EADDRNOTAVAIL:
        return ServerError(
            f"this machine has no address {host}; 127.0.0.1 is this machine alone, 0.0.0.0 all addresses"
        )
    return ServerError(f"cannot use port {port} of {host}: {error.strerror or error}")
