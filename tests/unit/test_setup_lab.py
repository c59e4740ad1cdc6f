"""What `make lab` starts: JupyterLab on the first lab, beside a taken port, with nothing left outside the checkout."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import setup_env


@pytest.fixture
def busy_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def printed_url(process: subprocess.Popen, seconds: float) -> str:
    """The first URL of the output; a server that never prints one is ended after ``seconds``."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        output = []
        for line in process.stdout:
            output.append(line)
            if found := re.search(r"http://localhost:\S+", line):
                return found.group()
        pytest.fail("no URL was printed:\n" + "".join(output))
    finally:
        timer.cancel()


def fetch(url: str, seconds: float = 60) -> bytes:
    """The page at ``url``, past any proxy. JupyterLab prints its URL shortly before it listens, so wait for it."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + seconds
    while True:
        try:
            with direct.open(url, timeout=seconds) as page:
                return page.read()
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionRefusedError) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_the_first_lab_is_served_on_the_next_port_and_home_stays_empty(busy_port: int, tmp_path: Path):
    command = setup_env.lab_command(sys.executable, browser=False, port=busy_port)
    environ = {**setup_env.contained(os.environ), "HOME": str(tmp_path), "JUPYTER_PREFER_ENV_PATH": "1"}
    process = subprocess.Popen(
        command, env=environ, cwd=setup_env.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        url = printed_url(process, seconds=90)
        assert re.fullmatch(r"http://localhost:\d+/lab/tree/labs/00_start_here\.ipynb\?token=\w+", url)
        assert f":{busy_port}/" not in url
        assert b"jupyter-config-data" in fetch(url)
        contents = url.replace("/lab/tree/", "/api/contents/").replace("?", "?content=0&")
        assert b'"type": "notebook"' in fetch(contents)
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environ", "system", "expected"),
    [
        ({}, "Linux", False),
        ({"DISPLAY": ":0"}, "Linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "Linux", True),
        ({"DISPLAY": ":10", "SSH_CONNECTION": "a b c d"}, "Linux", False),
        ({}, "Darwin", True),
        ({}, "Windows", True),
        ({"SSH_TTY": "/dev/ttys000"}, "Darwin", False),
    ],
)
def test_a_browser_is_opened_only_where_one_can_be_seen(environ, system, expected):
    assert setup_env.has_display(environ, system) is expected
    command = setup_env.lab_command("python3", browser=expected)
    assert ("--no-browser" in command) is not expected


def test_caches_and_settings_go_into_the_checkout():
    contained = setup_env.contained({"HOME": "/home/someone", "PATH": "/bin"})
    kept = ("HOME", "PATH", "VIRTUAL_ENV", "DEPLOYLAB_CACHE")
    changed = {name: value for name, value in contained.items() if name not in kept}
    folders = {name for name, value in changed.items() if str(setup_env.ROOT / "build") in value}
    assert {"IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "MPLCONFIGDIR", "XDG_CACHE_HOME"} <= folders
    assert contained["ORT_DISABLE_TELEMETRY"] == "1"
