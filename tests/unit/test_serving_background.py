"""Servers in the background: ready when they say so, and gone whatever happens to the program that started them."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from deploylab.errors import InputError, ServerError
from deploylab.serving import background

WITHIN_S = 30  # against hanging only

# Answers every path; /slow is ready from the third call on. Options: leave a child of its own session, ignore SIGTERM.
SERVER = """
import http.server, os, signal, subprocess, sys, threading, time
port, options = int(sys.argv[1]), sys.argv[2:]
print("hello from the server", os.environ.get("GREETING", ""))
if "child" in options:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print("child", child.pid)
if "orphan" in options:
    script = (
        "import subprocess as s, sys;"
        "print(s.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], stdout=s.DEVNULL, stderr=s.DEVNULL).pid)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, start_new_session=True).stdout
    print("orphan", said)
if "stubborn" in options:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
if "busy" in options:
    while time.process_time() < 0.3: pass
calls = 0
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global calls
        calls += self.path == "/slow"
        self.send_response(503 if self.path == "/slow" and calls < 3 else 200)
        self.end_headers()
        self.wfile.write(str(calls).encode())
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "server.log"


def start(log: Path, *options: str, ready: str = "/", port: int | None = None, **settings) -> background.Server:
    port = port or background.free_port()
    command = [sys.executable, "-c", SERVER, str(port), *options]
    return background.start(command, ready, port=port, log=log, **settings)


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=WITHIN_S) as answer:
        return answer.read().decode()


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def eventually(condition) -> bool:
    deadline = time.monotonic() + WITHIN_S
    while not (held := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return held


def port_is_free(port: int) -> bool:
    try:
        background._require_free(port)
    except ServerError:
        return False
    return True


def test_it_is_ready_answers_and_tells_its_facts(log):
    with start(log, "busy", ready="/slow", env={"GREETING": "from env"}) as server:
        assert int(get(server.url + "/slow")) > 3  # two refusals, one good answer, and this one
        assert server.ready_s > 0
        assert server.processes() == [server.pid]
        assert server.memory_mib() > 1
        assert server.cpu_s() >= 0.2  # of 0.3; the system counts in ticks
        assert server.exit_code is None
        assert f"pid {server.pid}" in repr(server)
        assert "hello from the server from env" in server.log_tail()
    assert server.exit_code == 7
    assert gone(server.pid)
    assert port_is_free(server.port)
    assert "ended with 7" in repr(server)


def test_stop_asks_first_and_may_be_called_twice(log):
    server = start(log)
    assert server.stop() == 7
    assert server.stop() == 7
    assert server.kill() == 7
    assert server.memory_mib() == server.cpu_s() == 0
    assert server.processes() == []


def test_stop_kills_what_does_not_end(log):
    server = start(log, "stubborn")
    assert server.stop(timeout_s=0.2) == -signal.SIGKILL
    assert gone(server.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="finding orphans needs Linux")
@pytest.mark.parametrize("kind", ["child", "orphan"])
def test_descendants_in_sessions_of_their_own_end_too(log, kind):
    with start(log, kind) as server:
        assert eventually(lambda: kind in server.log_tail())
        pid = int(server.log_tail().split(kind)[1].split()[0])
        assert pid in server.processes()
    assert gone(pid)


def test_leaving_the_block_by_an_error_ends_it(log):
    def failing_cell():
        with start(log, "stubborn") as server:
            pids.append(server.pid)
            raise KeyboardInterrupt

    pids: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        failing_cell()
    assert gone(pids[0])


def test_a_forgotten_server_ends(log):
    server = start(log)
    pid = server.pid
    del server
    gc.collect()
    assert gone(pid)


PARENT = """
import os, sys, time
from pathlib import Path
from deploylab.serving import background
port, log, server, ending = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
server = background.start([sys.executable, "-c", server, str(port), "child", "orphan"], "/", port=port, log=log)
if ending == "fork" and os.fork() == 0:
    time.sleep(600)  # holds the pipe to the guard open after its parent
print(server.pid, *server.processes(), server._guard.pid, flush=True)
if ending == "error":
    raise RuntimeError("a cell failed")
if ending != "exit":
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="signals and orphans as on Linux")
@pytest.mark.parametrize("ending", ["exit", "error", "SIGKILL", "SIGTERM", "SIGINT", "fork"])
def test_nothing_survives_the_end_of_the_program(tmp_path, log, ending):
    port = background.free_port()
    script = [sys.executable, "-c", PARENT, str(port), str(log), SERVER, ending]
    with subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as parent:
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(set(pids)) >= 4  # server, its child, an orphan, the guard
        forked = [child.pid for child in psutil.Process(parent.pid).children() if child.pid not in pids]
        if ending not in ("exit", "error"):
            parent.send_signal(getattr(signal, ending, signal.SIGKILL))
        parent.wait(WITHIN_S)
        for pid in forked if ending == "fork" else ():
            assert eventually(lambda: all(map(gone, pids)))  # while the fork still holds the pipe
            os.kill(pid, signal.SIGKILL)
    assert len(forked) == (ending == "fork")
    assert eventually(lambda: all(map(gone, pids)))
    assert port_is_free(port)
    assert list(tmp_path.iterdir()) == [log.parent]
    assert list(log.parent.iterdir()) == [log]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_the_server_ends_even_with_its_guard(log):
    server = start(log)
    os.kill(server._guard.pid, signal.SIGKILL)
    assert eventually(lambda: gone(server.pid))
    assert server.stop() == -signal.SIGKILL


def test_a_server_that_ends_early_is_reported_with_its_last_words(log):
    script = "print('no model here'); raise SystemExit(3)"
    with pytest.raises(ServerError, match=r"ended with exit code 3 before(?s:.*)no model here"):
        background.start([sys.executable, "-c", script], "/", port=background.free_port(), log=log)


def test_a_server_that_is_never_ready_is_ended(log):
    script = "import os, time; print('pid', os.getpid(), flush=True); time.sleep(600)"
    with pytest.raises(ServerError, match="was not ready after 1 s"):
        background.start([sys.executable, "-c", script], "/", port=background.free_port(), log=log, timeout_s=1)
    assert gone(int(log.read_text().split()[1]))


def test_a_port_in_use_a_wrong_port_and_a_missing_program_are_clear_errors(log, tmp_path):
    with start(log) as server:
        with pytest.raises(ServerError, match=f"port {server.port} cannot be used"):
            start(tmp_path / "other.log", port=server.port)
        assert get(server.url + "/")
    with pytest.raises(InputError, match="from 1 to 65535, got 0"):
        background.start(["true"], "/", port=0, log=log)
    with pytest.raises(InputError, match="empty command"):
        background.start([], "/", port=background.free_port(), log=log)
    with pytest.raises(ServerError, match="cannot start no-such-program: No such file"):
        background.start(["no-such-program"], "/", port=background.free_port(), log=log)


def test_free_ports_are_free_and_not_those_of_outgoing_connections():
    ports = {background.free_port() for _ in range(20)}
    assert len(ports) > 10
    assert max(ports) < 32768
    assert all(map(port_is_free, ports))


def test_the_guard_needs_the_standard_library_only(tmp_path):
    """It runs isolated and without site-packages; a slip would show only as slow starts."""
    guard = Path(background.__file__).with_name("_guard.py")
    probe = textwrap.dedent(f"""
        import runpy, sys
        runpy.run_path({str(guard)!r}, run_name="probe")
        print([name for name in ("deploylab", "psutil", "numpy", "asyncio") if name in sys.modules])
    """)
    done = subprocess.run([sys.executable, "-I", "-S", "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
