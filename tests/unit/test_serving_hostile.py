"""More than ten thousand hostile requests at ``deploylab serve`` as it runs in production, valid ones in between."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
import time
from pathlib import Path

import hostile
import psutil
import pytest
import requests
from hostile import SLOW_BODY, SLOW_HEAD, SlowClients, ValidClients

from deploylab.serving import background
from deploylab.signs import dataset

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the production server there is another")

HALF = 5_190
"""A campaign's requests: two of them are fired, so that the second can be compared with the first."""

GROWTH_MIB = 40
"""What the second campaign may add to the memory of all processes.

Nothing that is kept for each request fits: 10,000 times 4 KiB would be as much. It is not zero, because which thread
meets which picture differs from time to time, and each keeps what its allocator once had for the largest.
"""


KEPT_MIB = 100
"""What two processes may keep of pictures of 160 MB each: less than one of them."""


@pytest.fixture(scope="module")
def pictures():
    """What is mutated: small photographs in every format, and one of camera size."""
    images, _ = dataset.test_split()
    return [file for image in images[::200] for file in hostile.encoded(image)] + [("image/jpeg", valid()[0][0])]


def valid() -> list[tuple[bytes, str]]:
    return [(sample.path.read_bytes(), sample.label) for sample in dataset.samples()[:8]]


@contextlib.contextmanager
def serving(folder: Path, *options: str):
    port = background.free_port()
    command = [sys.executable, "-m", "deploylab.cli", "serve", "--port", str(port), "--workers", "2", "--threads", "1"]
    log = folder / "server.log"
    with background.start(
        [*command, "--oversubscribe", *options], "/readyz", port=port, log=log, timeout_s=120
    ) as server:
        yield server


def test_ten_thousand_hostile_requests_leave_the_server_as_it_was(tmp_path, pictures, record_property):
    accesses = tmp_path / "access.log"
    with serving(tmp_path, "--access-log", str(accesses)) as server:
        crew = server.processes()
        with SlowClients(server.url, SLOW_HEAD, 16), SlowClients(server.url, SLOW_BODY, 16):
            first = campaign(server, pictures, seed=1)
            memory, files = server.memory_mib(), open_files(crew)
            second = campaign(server, pictures, seed=2)
            grown = server.memory_mib() - memory
        outcomes = [outcome for outcome, _ in (first, second)]
        asked = sum(outcome.requests for outcome in outcomes)
        answered = sum(count for _, count in (first, second))
        record_property("hostile requests", asked)
        record_property("valid requests in between", answered)
        record_property("memory added by the second half, MiB", round(grown, 1))
        print(f"\n{outcomes[1].table()}\nboth halves: {asked} hostile, {answered} valid; {grown:+.1f} MiB")

        assert asked >= 10_000
        assert answered >= 20
        assert server.processes() == crew, "a process ended and was replaced"
        assert grown < GROWTH_MIB
        assert open_files(crew) <= files
        assert under_way(server.url) == 0
        assert_right_answers(server.url)
    assert server.exit_code == 0
    assert_nothing_is_left(server, crew)
    assert "Traceback" not in server.log.read_text(errors="replace")
    assert all("status" in json.loads(line) for line in accesses.read_text(encoding="utf-8").splitlines())


def test_slow_bodies_give_their_places_back(tmp_path):
    """More than all places of all processes: those who hold them are let go, and others are served again.

    Until then a valid request may be refused, or wait behind them for as long as they may and share their end.
    """
    with (
        serving(tmp_path, "--timeout", "5", "--max-queue", "8") as server,
        SlowClients(server.url, SLOW_BODY, 60) as slow,
    ):
        deadline = time.monotonic() + 120
        while (slow.open() or under_way(server.url)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert slow.open() == 0
        assert_right_answers(server.url)


def test_slow_heads_keep_nobody_out(tmp_path):
    with serving(tmp_path, "--timeout", "5", "--max-queue", "8") as server, SlowClients(server.url, SLOW_HEAD, 200):
        assert_right_answers(server.url)


def test_memory_taken_by_huge_pictures_is_given_back(tmp_path):
    """Each of them is 40 million pixels in a few kilobytes, and takes hundreds of megabytes for a moment."""
    bulky = hostile.Attack("bulky", hostile.request(body=hostile.flat_png(8000, 5000)), frozenset({200}))
    with serving(tmp_path, "--timeout", "60") as server:
        assert_right_answers(server.url)
        before = server.memory_mib()
        with ValidClients(server.url, valid(), clients=1) as neighbours:
            outcome = hostile.fire(server.url, [bulky] * 8)
        assert outcome.wrong == []
        assert neighbours.wrong == []
        assert server.memory_mib() < before + KEPT_MIB


def campaign(server: background.Server, pictures: list[tuple[str, bytes]], seed: int) -> tuple[hostile.Outcome, int]:
    """Half of the attacks; what came back, and how many valid requests were answered meanwhile."""
    attacks = hostile.campaign(seed, pictures, HALF / 10_380)
    with ValidClients(server.url, valid()) as neighbours:
        outcome = hostile.fire(server.url, attacks)
    assert outcome.wrong == []
    assert neighbours.wrong == []
    return outcome, neighbours.answered


def assert_right_answers(url: str) -> None:
    for picture, label in valid():
        answer = requests.post(f"{url}/v1/predict", data=picture, timeout=60).json()
        assert answer["predictions"][0]["top"][0]["label"] == label


def under_way(url: str) -> float:
    """Requests that the server believes to be working on, a while after the last was sent."""
    deadline = time.monotonic() + 30
    while True:
        page = requests.get(f"{url}/metrics", timeout=60).text
        count = sum(float(value) for value in re.findall(r"^deploylab_requests_in_flight(?:{.*})? (\S+)$", page, re.M))
        if count == 0 or time.monotonic() > deadline:
            return count
        time.sleep(0.2)


def open_files(pids: list[int]) -> int:
    """Descriptors of the processes that are not connections: those come and go."""
    total = 0
    for pid in pids:
        process = psutil.Process(pid)
        total += process.num_fds() - len(process.net_connections())
    return total


def assert_nothing_is_left(server: background.Server, crew: list[int]) -> None:
    assert not [pid for pid in crew if psutil.pid_exists(pid)]
    assert not [*Path(tempfile.gettempdir()).glob(f"deploylab-serve-{server.pid}-*")]
