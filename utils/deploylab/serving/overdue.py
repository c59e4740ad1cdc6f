"""Ends connections whose request is still not answered when it should have been long ago.

A client may announce a body and then send it byte by byte, or not at all. None of the HTTP servers we run on bounds the
time a body may take, and each such client keeps one of the places a process has. The kernel knows when a connection
last received and last sent something (``TCP_INFO``, Linux), and a connection that is shut down wakes whoever waits for
its bytes. Elsewhere nothing is watched; a reverse proxy that collects requests does the same.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Iterator

_DESCRIPTORS = "/proc/self/fd"
# struct tcp_info of <linux/tcp.h>: ms since data was last sent and received, segments with data that were sent
_TCP_INFO = struct.Struct("44xI4xI100xI")
_TCP_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_LOOKS = 10
"""How often it is looked within the patience."""
IDLE_S = 120.0
"""Longer than the servers keep an idle connection. What is open then waits for the rest of a pipelined request."""


class Overdue:
    """Watches the connections that clients have to ``port`` in this process.

    One that received something and sent nothing since is being asked, or is working. It is shut down when that has
    lasted ``patience_s`` seconds. So is one on which nothing at all happened for ``idle_s``.
    """

    def __init__(self, port: int, patience_s: float, idle_s: float = IDLE_S) -> None:
        self._port, self._patience_s, self._idle_s = port, patience_s, idle_s
        self._asked: dict[tuple[int, int], float] = {}  # a socket's inode and what it had sent: when it was seen so

    def watch(self) -> None:
        """Look now and then for as long as this process lives, in a thread of its own. Linux only."""
        if sys.platform == "linux":
            threading.Thread(target=self._watch, name="overdue", daemon=True).start()

    def look(self, now: float) -> int:
        """Shut down what is overdue at ``now``, seconds of any clock. Returns how many that were."""
        ended, asked = 0, {}
        for connection in _connections(self._port):
            known = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            sent_ms, received_ms, sent_segments = _TCP_INFO.unpack(known)
            if received_ms < sent_ms or not sent_segments:
                key = os.fstat(connection.fileno()).st_ino, sent_segments
                asked[key] = self._asked.get(key, now)
                overdue = now - asked[key] > self._patience_s
            else:  # the last word was ours
                overdue = sent_ms > 1000 * self._idle_s
            if overdue:
                connection.shutdown(socket.SHUT_RDWR)
                ended += 1
        self._asked = asked
        return ended

    def _watch(self) -> None:
        while True:
            time.sleep(self._patience_s / _LOOKS)
            self.look(time.monotonic())


def _connections(port: int) -> Iterator[socket.socket]:
    """This process's accepted connections, each as a socket of ours that is closed right after."""
    for name in os.listdir(_DESCRIPTORS):
        with contextlib.suppress(OSError):  # descriptors come and go while we look
            number = int(name)
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with _duplicate(number) as one:
                if one.family in _TCP_FAMILIES and one.getsockname()[1] == port and one.getpeername():
                    yield one


@contextlib.contextmanager
def _duplicate(descriptor: int) -> Iterator[socket.socket]:
    copy = os.dup(descriptor)
    try:
        one = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
    with one:
        yield one
