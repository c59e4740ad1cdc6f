"""Where the CPU time of an upload goes: bare loop and servers. By hand: ``python benchmarks/serving_profile.py``.

perf (Linux) looks thousands of times a second at which library a process is in. Its share of the looks, times the CPU
time a picture, is that part's time. Loop and servers are those of ``serving_overhead.py``. To be looked at costs
time too, so the sums are larger than there.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import serving_overhead as overhead
from serving_overhead import pictures, wrk

from deploylab import machine, paths
from deploylab.errors import DeployLabError

LOOKS_A_SECOND = 4000
SECONDS = 3
PARTS = {
    "onnxruntime": "inference (ONNX Runtime)",
    "libjpeg": "decoding, resizing (libjpeg, Pillow, NumPy)",
    "_imaging": "decoding, resizing (libjpeg, Pillow, NumPy)",
    "_multiarray": "decoding, resizing (libjpeg, Pillow, NumPy)",
    "libpython": "Python's interpreter, of Pillow, ONNX Runtime's binding and ours",
    "python": "Python's interpreter, of Pillow, ONNX Runtime's binding and ours",
    "libc.": "C library: memory, locks",
    "[kernel": "kernel: network, switches between threads",
    "_granian": "HTTP (granian, llhttp)",
    "parser.": "HTTP (granian, llhttp)",
}
REST = "all else"


def profile(pids: Sequence[int], work: Callable[[], tuple[int, float]], file: Path) -> dict[str, float]:
    """Microseconds a picture by part, of processes while they do ``work``: how many pictures, and CPU seconds."""
    command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(LOOKS_A_SECOND), "-o", str(file)]
    recorder = subprocess.Popen([*command, "-p", ",".join(map(str, pids))], stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    count, cpu_s = work()
    recorder.send_signal(signal.SIGINT)
    recorder.wait()
    said = subprocess.run(["perf", "script", "-i", str(file), "-F", "ip,dso"], capture_output=True, text=True)
    file.unlink(missing_ok=True)
    seen = collections.Counter(part(line) for line in said.stdout.splitlines() if line.strip())
    if not seen:
        raise DeployLabError(f"perf saw nothing: {said.stderr.strip()[-300:]}")
    return {name: 1e6 * cpu_s / count * looks / seen.total() for name, looks in seen.items()}


def part(line: str) -> str:
    """Which of :data:`PARTS` a line of ``perf script`` is about: an address, and a file in parentheses."""
    library = line.rpartition("(")[2].rstrip(")\n").rpartition("/")[2]
    return next((name for start, name in PARTS.items() if library.startswith(start)), REST)


def columns(
    size: str, connections: int, servers: Sequence[str], folder: Path
) -> Iterator[tuple[str, dict[str, float]]]:
    files = sorted((folder / "pictures").glob(f"{size}-*.jpg"))
    loop = overhead.BareLoop(folder / "pictures", "onnxruntime")

    def alone() -> tuple[int, float]:
        done = loop.run(size, SECONDS)
        return round(done.rps * SECONDS), done.cpu_us * round(done.rps * SECONDS) / 1e6

    try:
        loop.run(size, 0.5)
        yield "bare loop", profile(loop.pids, alone, folder / "perf.data")
    finally:
        loop.close()
    for name in servers:
        with overhead.started([name], "onnxruntime", folder) as running:
            server = running[name]
            url = f"{server.url}/v1/predict"
            wrk.run(url, overhead.HEADERS, files, connections, 1)

            def answering(server: overhead.background.Server = server, url: str = url) -> tuple[int, float]:
                before = server.cpu_s()
                return wrk.run(url, overhead.HEADERS, files, connections, SECONDS).requests, server.cpu_s() - before

            yield name, profile(server.processes(), answering, folder / "perf.data")


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    names = list(dict.fromkeys([*PARTS.values(), REST]))
    lines = [f"| CPU time, us a picture | {' | '.join(found)} |", "|---|" + "---:|" * len(found)]
    for name in names:
        lines.append(f"| {name} | {' | '.join(f'{column.get(name, 0.0):.0f}' for column in found.values())} |")
    return "\n".join([*lines, f"| sum | {' | '.join(f'{sum(column.values()):.0f}' for column in found.values())} |"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", default="small", choices=pictures.SIZES)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--servers", default="default;granian", help=f"with ; between: {'; '.join(overhead.SERVERS)}")
    options = parser.parse_args()
    if missing := [tool for tool in ("perf", "wrk") if not shutil.which(tool)]:
        print(f"error: this needs {missing[0]} (Debian: apt install linux-perf wrk)", file=sys.stderr)
        return 1
    names = options.servers.split(";")
    if unknown := [name for name in names if name not in overhead.SERVERS]:
        parser.error(f"unknown server {unknown[0]!r}; there are: {'; '.join(overhead.SERVERS)}")
    folder = paths.build() / "serving_overhead"
    predictor = overhead.Predictor.load("signnet", "onnxruntime")
    recognised = lambda jpeg: predictor.predict([jpeg]).results[0][0][0]  # noqa: E731
    try:
        with contextlib.suppress(KeyboardInterrupt):
            pictures.make(options.size, folder / "pictures", recognised)
            found = dict(columns(options.size, options.connections, names, folder))
            print(f"{machine.cpu_model()}, {machine.usable_cores()} usable core(s); {options.size}\n\n{table(found)}")
    except DeployLabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
