"""Load from wrk (https://github.com/wg/wrk) for every server alike; ``rotate.lua`` tells it what to send."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploylab.errors import DeployLabError

SCRIPT = Path(__file__).with_name("rotate.lua")
TIMEOUT_S = 10


@dataclass(frozen=True)
class Load:
    """What one run of wrk saw: requests per second, latencies in ms, and how many requests went wrong."""

    concurrency: int
    rps: float
    p50: float
    p99: float
    requests: int
    errors: int


def available() -> bool:
    return shutil.which("wrk") is not None


def run(url: str, headers: dict[str, str], bodies: Sequence[Path], concurrency: int, seconds: float) -> Load:
    """Keep ``concurrency`` connections busy for ``seconds``. Raises :class:`DeployLabError` if wrk fails."""
    command = ["wrk", "-t1", f"-c{concurrency}", f"-d{seconds:g}s", "--timeout", f"{TIMEOUT_S}s", "-s", str(SCRIPT)]
    command += [url, "--", *(f"{name}: {value}" for name, value in headers.items()), *map(str, bodies)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 3 * TIMEOUT_S)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise DeployLabError(f"wrk failed ({done.returncode}): {(done.stdout + done.stderr)[-800:]}")
    said: dict[str, Any] = json.loads(lines[-1])
    errors = sum(said[kind] for kind in ("connect", "read", "write", "status", "timeout"))
    rps = (said["requests"] - said["status"]) / said["seconds"]
    return Load(concurrency, rps, said["p50"], said["p99"], said["requests"], errors)
