"""Does our load generator see what wrk sees? Run by hand: ``python benchmarks/load_generators.py``.

``deploylab.serving.load`` and wrk (C, epoll) ask the same server, with the same picture and as many connections, and
take turns, so that what disturbs one disturbs the other; each figure is the median of the rounds. Two servers: one
that reads the upload and answers a constant, so fast that a generator's own cost shows, and SignNet as this package
serves it. wrk can do a closed loop only, so that is what is compared.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploylab import machine
from deploylab.serving import background, load
from deploylab.signs import dataset

HERE = Path(__file__).parent

WRK_SCRIPT = """
local file = io.open("{picture}", "rb")
wrk.method, wrk.body, wrk.headers["Content-Type"] = "POST", file:read("*a"), "image/jpeg"
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("figures %d %d %d %d %d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True)
class Figures:
    """One run: requests a second, latencies in milliseconds, the generator's CPU in cores, failed requests."""

    rps: float
    p50: float
    p99: float
    cores: float
    failed: int


def constant() -> Callable[..., Any]:
    """A WSGI application that reads the body and answers always the same."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", "2")])
        return [b"{}"]

    return app


def signnet() -> Callable[..., Any]:
    from deploylab.serving import Predictor, create_app

    return create_app(Predictor.load("signnet"))


SERVERS = {"a constant": ("constant", "/"), "SignNet": ("signnet", "/v1/predict")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", default="1,4,16", help="connections, with commas between")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="length of a run")
    parser.add_argument("--markdown", type=Path, help="write the table into this file, between its two markers")
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed (Debian: apt install wrk)")
    lines = [*conditions(given), "", HEAD, RULE]
    for name in SERVERS:
        for row in measure(name, given):
            print(row, flush=True)
            lines.append(row)
    if given.markdown:
        insert(given.markdown, lines)


HEAD = (
    "| server | at a time | requests/s: ours | wrk | ratio (lowest to highest round) | p50, ms: ours | wrk "
    "| p99, ms: ours | wrk | generator, cores: ours | wrk | CPU a request, us: ours | wrk |"
)
RULE = "|---|---:" + "|---:" * 11 + "|"


def measure(name: str, given: argparse.Namespace) -> Iterator[str]:
    """One server, all numbers of connections; a table row each."""
    factory, path = SERVERS[name]
    port = background.free_port()
    command = [sys.executable, "-m", "granian", "--interface", "wsgi", "--factory", "--port", str(port)]
    command += ["--workers", "1", "--blocking-threads", "2", "--no-ws", f"load_generators:{factory}"]
    picture = dataset.samples()[0].path
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "post.lua"
        script.write_text(WRK_SCRIPT.format(picture=picture))
        log = Path(folder) / "server.log"
        with background.start(
            command, path if factory == "constant" else "/readyz", port=port, log=log, cwd=HERE
        ) as server:
            url = server.url + path
            ours(url, picture, 4, 1)  # the server warms up
            for concurrency in map(int, given.concurrency.split(",")):
                rounds = [
                    (ours(url, picture, concurrency, given.seconds), wrk(url, script, concurrency, given.seconds))
                    for _ in range(given.rounds)
                ]
                yield row(name, concurrency, rounds)


def ours(url: str, picture: Path, concurrency: int, seconds: int) -> Figures:
    result = load.closed_loop(url, [picture.read_bytes()], concurrency=concurrency, seconds=seconds)
    failed = result.requests - result.ok
    # as wrk does, without asking for how many samples it takes
    times = sorted(result.latencies_ms)
    return Figures(result.rps, times[len(times) // 2], times[int(0.99 * len(times))], result.generator_cores, failed)


def wrk(url: str, script: Path, concurrency: int, seconds: int) -> Figures:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["wrk", "-t1", f"-c{concurrency}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script), url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = re.search(r"figures (\d+) (\d+) (\d+) (\d+) (\d+)", done.stdout)
    if found is None:
        sys.exit(f"wrk said what was not expected:\n{done.stdout}{done.stderr}")
    requests, microseconds, p50, p99, failed = map(int, found.groups())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Figures(1e6 * requests / microseconds, p50 / 1e3, p99 / 1e3, 1e6 * cpu / microseconds, failed)


def row(name: str, concurrency: int, rounds: list[tuple[Figures, Figures]]) -> str:
    failed = sum(ours.failed + wrk.failed for ours, wrk in rounds)
    if failed:
        sys.exit(f"{name} with {concurrency} at a time: {failed} requests failed; no comparison of failures")
    ratios = sorted(ours.rps / wrk.rps for ours, wrk in rounds)
    cells = [f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"]
    for value, digits in ((lambda f: f.p50, 2), (lambda f: f.p99, 2), (lambda f: f.cores, 2), (_cpu_us, 0)):
        cells += [f"{median(rounds, side, value):.{digits}f}" for side in (0, 1)]
    rates = [f"{median(rounds, side, lambda f: f.rps):.0f}" for side in (0, 1)]
    return "| " + " | ".join([name, str(concurrency), *rates, *cells]) + " |"


def median(rounds: list[tuple[Figures, Figures]], side: int, value: Callable[[Figures], float]) -> float:
    return statistics.median(value(pair[side]) for pair in rounds)


def _cpu_us(figures: Figures) -> float:
    return 1e6 * figures.cores / figures.rps


def conditions(given: argparse.Namespace) -> list[str]:
    facts = machine.describe()
    version = subprocess.run(["wrk", "-v"], capture_output=True, text=True).stdout.split("[")[0].strip()
    command = f"python benchmarks/load_generators.py --rounds {given.rounds} --seconds {given.seconds}"
    cpu = f"{facts['cpu']}, {facts['usable_cores']} usable core(s)"
    with_what = f"Python {facts['python']}; {version}; load before the run {os.getloadavg()[0]:.1f}"
    return [f"Command: `{command}`", "", f"Machine: {cpu}; {facts['system']}; {with_what}"]


def insert(path: Path, lines: list[str]) -> None:
    """Replace what stands between the two markers."""
    begin, end = "<!-- load generators -->\n", "<!-- end of load generators -->"
    text = path.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        sys.exit(f"{path} has no {begin.strip()} ... {end}")
    head, _, rest = text.partition(begin)
    path.write_text(head + begin + "\n".join(["", *lines, "", ""]) + end + rest.partition(end)[2], encoding="utf-8")
    print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
