"""Which connections are ended because their request takes too long, on real sockets of this machine."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from contextlib import closing

import pytest

from deploylab.serving.overdue import Overdue

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's TCP_INFO")


@pytest.fixture
def pair():
    """A client's socket and the server's end of it."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        client = socket.create_connection(listener.getsockname(), timeout=30)
        accepted, _ = listener.accept()
        with closing(client), closing(accepted):
            yield client, accepted


def ask(client: socket.socket, accepted: socket.socket) -> None:
    time.sleep(0.02)  # the kernel notes the time of what it sends and receives in steps of some milliseconds
    client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
    accepted.recv(1000)


def answer(accepted: socket.socket) -> None:
    time.sleep(0.02)
    accepted.sendall(b"HTTP/1.1 200 OK\r\n\r\n")


def watching(accepted: socket.socket, **options: float) -> Overdue:
    return Overdue(accepted.getsockname()[1], patience_s=5.0, **options)


def test_a_request_that_is_never_completed_is_ended_after_its_time(pair):
    client, accepted = pair
    watch = watching(accepted)
    ask(client, accepted)
    assert [watch.look(100.0), watch.look(104.0)] == [0, 0]
    client.sendall(b"a")  # a byte now and then does not help
    assert watch.look(105.5) == 1
    assert client.recv(1) == b""


def test_whoever_waits_for_the_rest_is_woken(pair):
    client, accepted = pair
    watch = watching(accepted)
    ask(client, accepted)
    received = []
    reader = threading.Thread(target=lambda: received.append(accepted.recv(9)))
    reader.start()
    watch.look(100.0)
    assert watch.look(106.0) == 1
    reader.join(30)
    assert received == [b""]


def test_an_answered_client_may_keep_its_connection(pair):
    client, accepted = pair
    watch = watching(accepted)
    ask(client, accepted)
    assert watch.look(100.0) == 0
    answer(accepted)
    assert [watch.look(101.0), watch.look(200.0)] == [0, 0]
    assert client.recv(1000).startswith(b"HTTP")


def test_the_next_request_of_a_connection_has_its_own_time(pair):
    client, accepted = pair
    watch = watching(accepted)
    ask(client, accepted)
    assert watch.look(100.0) == 0
    answer(accepted)
    ask(client, accepted)  # between two looks
    assert [watch.look(104.0), watch.look(108.0)] == [0, 0]
    assert watch.look(109.5) == 1


def test_a_request_behind_another_one_is_ended_with_the_idle_connections(pair):
    client, accepted = pair
    ask(client, accepted)  # and the beginning of a second one, which no answer follows
    answer(accepted)
    time.sleep(0.1)
    assert watching(accepted).look(100.0) == 0
    assert watching(accepted, idle_s=0.05).look(100.0) == 1


def test_connections_of_others_are_left_alone(pair):
    client, accepted = pair
    ask(client, accepted)
    other = Overdue(1, patience_s=5.0, idle_s=0.001)
    assert [other.look(100.0), other.look(200.0)] == [0, 0]
    client.sendall(b"still open")
    assert accepted.recv(100) == b"still open"


def test_looking_leaves_no_descriptor_open(pair):
    _, accepted = pair
    watch = watching(accepted)
    watch.look(100.0)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        watch.look(100.0)
    assert len(os.listdir("/proc/self/fd")) == before
