"""What HTTP costs: ``deploylab serve`` beside a bare loop. By hand: ``python benchmarks/serving_overhead.py``.

The bare loop decodes, preprocesses and infers the same JPEGs with the same code, in one process a usable core, and has
neither server nor client. The servers answer wrk, which runs on the same cores. Loop and servers take turns; shares are
taken round by round. A server counts with the most requests a second that it answers with a p99 of at most 50 ms.

Other programs take cores from a turn, and not the same from each. So a round in which they took more than a tenth of a
core is made again, and the table says what they took in the rounds that count. Less touched by them is the share of CPU
time: what the loop needs for a picture, of what server and wrk need together.

``--servers`` compares server processes and their settings: that is how the default was chosen.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "peers")]

import pictures  # noqa: E402
import psutil  # noqa: E402
import wrk  # noqa: E402

from deploylab import engines, machine, paths  # noqa: E402
from deploylab.errors import DeployLabError  # noqa: E402
from deploylab.serving import artifacts, background  # noqa: E402
from deploylab.serving.predictor import Predictor  # noqa: E402

P99_BOUND_MS = 50.0
LADDER = (1, 2, 3, 4, 6, 8, 16, 32)
QUIET_CORES = 0.1
"""What other programs may take of the machine in a turn."""
PATIENCE = 4
"""How often a disturbed turn is made again."""
AS_GOOD = 0.97
"""Of two numbers of connections with so nearly the same throughput the smaller is better."""
SERVERS = {
    "default": [],
    "granian": ["--server", "granian"],
    "granian, 1 process": ["--server", "granian", "--workers", "1", "--threads", "1"],
    "granian, batch 8": ["--server", "granian", "--batch", "8"],
    "gunicorn": ["--server", "gunicorn"],
    "gunicorn, 1 process": ["--server", "gunicorn", "--workers", "1", "--threads", "1"],
    "waitress": ["--server", "waitress", "--threads", "1"],
    "dev": ["--server", "dev", "--threads", "1"],
}
HEADERS = {"Content-Type": "image/jpeg"}
BEGIN, END = "<!-- serving overhead -->", "<!-- end of serving overhead -->"


@dataclass
class Round:
    """A turn: answers a second, CPU microseconds a request of what answers and of wrk, p99 in ms, and how many cores
    other programs kept busy meanwhile."""

    rps: float
    cpu_us: float
    others: float
    wrk_us: float = 0.0
    p99: float = 0.0
    errors: int = 0


@dataclass
class Row:
    name: str
    size: str
    concurrency: int
    bounded: bool = True
    """Whether p99 has to be within the bound."""
    rounds: list[Round] = field(default_factory=list)
    bare: list[Round] = field(default_factory=list)

    @property
    def shares(self) -> list[float]:
        return [mine.rps / loop.rps for mine, loop in zip(self.rounds, self.bare, strict=True)]

    @property
    def cpu_shares(self) -> list[float]:
        pairs = zip(self.rounds, self.bare, strict=True)
        return [loop.cpu_us / (mine.cpu_us + mine.wrk_us) for mine, loop in pairs]

    @property
    def others(self) -> float:
        return max(one.others for one in (*self.rounds, *self.bare))


class Clock:
    """What a turn took: wall time, and the CPU time of all programs together (Linux: ``/proc/stat``)."""

    def __init__(self) -> None:
        self._busy, self._start = self._busy_s(), time.perf_counter()

    def others(self, ours_s: float) -> float:
        """Cores that were busy since the start with other work than ours."""
        seconds = time.perf_counter() - self._start
        return max(0.0, self._busy_s() - self._busy - ours_s) / seconds

    @staticmethod
    def _busy_s() -> float:
        # Without interrupts, part of which is our own traffic, and with what a hypervisor gave to another machine.
        times = psutil.cpu_times()
        return sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "steal"))


class BareLoop:
    """A process a core that does the work of a request without the request."""

    def __init__(self, folder: Path, engine: str) -> None:
        command = [sys.executable, __file__, "--bare", str(folder), "--engine", engine]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(machine.usable_cores())
        ]
        for each in self._processes:
            each.stdout.readline()

    @property
    def pids(self) -> list[int]:
        return [each.pid for each in self._processes]

    def run(self, size: str, seconds: float) -> Round:
        clock = Clock()
        for each in self._processes:
            each.stdin.write(f"{size} {seconds}\n")
            each.stdin.flush()
        said = [json.loads(each.stdout.readline()) for each in self._processes]
        count, cpu = sum(one["count"] for one in said), sum(one["cpu"] for one in said)
        return Round(sum(one["count"] / one["seconds"] for one in said), 1e6 * cpu / count, clock.others(cpu))

    def close(self) -> None:
        for each in self._processes:
            each.stdin.close()
            each.wait()
            each.stdout.close()


def bare(folder: Path, engine: str) -> None:
    """The child: for each line ``SIZE SECONDS`` on stdin, how many pictures it got through."""
    session = engines.get(engine).load(artifacts.prepare("signnet", engine), 1)
    preprocess = Predictor.load("signnet", engine).preprocess
    jpegs = {size: [path.read_bytes() for path in sorted(folder.glob(f"{size}-*.jpg"))] for size in pictures.SIZES}
    print("ready", flush=True)
    for line in sys.stdin:
        size, seconds = line.split()
        count, start, cpu = 0, time.perf_counter(), time.process_time()
        end = start + float(seconds)
        while time.perf_counter() < end:
            jpeg = jpegs[size][count % len(jpegs[size])]
            session(preprocess.normalise(preprocess.resize(preprocess.open(jpeg).load())[None]))
            count += 1
        spent = time.perf_counter() - start
        print(json.dumps({"count": count, "seconds": spent, "cpu": time.process_time() - cpu}), flush=True)


def turn(server: background.Server, files: Sequence[Path], concurrency: int, seconds: float) -> Round:
    """One run of wrk."""
    clock = Clock()
    before, wrk_before = server.cpu_s(), _children_s()
    load = wrk.run(f"{server.url}/v1/predict", HEADERS, files, concurrency, seconds)
    used, wrk_used = server.cpu_s() - before, _children_s() - wrk_before
    done, others = max(1, load.requests), clock.others(used + wrk_used)
    return Round(load.rps, 1e6 * used / done, others, 1e6 * wrk_used / done, load.p99, load.errors)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def best_concurrency(server: background.Server, files: Sequence[Path], seconds: float) -> int:
    """The fewest connections with which nearly the most requests are answered within the bound; 1 if none does."""
    tried = {concurrency: quiet_turn(server, files, concurrency, seconds) for concurrency in LADDER}
    good = {concurrency: one.rps for concurrency, one in tried.items() if one.p99 <= P99_BOUND_MS and not one.errors}
    return min((many for many, rps in good.items() if rps >= AS_GOOD * max(good.values())), default=1)


def quiet_turn(server: background.Server, files: Sequence[Path], concurrency: int, seconds: float) -> Round:
    """The first turn that other programs left alone, or else the one that they disturbed least."""
    tried: list[Round] = []
    while len(tried) < PATIENCE and not (tried and tried[-1].others <= QUIET_CORES):
        tried.append(turn(server, files, concurrency, seconds))
    return min(tried, key=lambda one: one.others)


def rows_of(name: str, size: str, server: background.Server, files: Sequence[Path], seconds: float) -> Iterator[Row]:
    """At the best number of connections within the bound; if that leaves cores idle, also with one for each core."""
    best = best_concurrency(server, files, seconds)
    yield Row(name, size, best)
    if best < machine.usable_cores():
        yield Row(name, size, machine.usable_cores(), bounded=False)


@contextlib.contextmanager
def started(names: Sequence[str], engine: str, folder: Path) -> Iterator[dict[str, background.Server]]:
    with contextlib.ExitStack() as stack:
        servers = {}
        for name in names:
            port = background.free_port()
            command = [sys.executable, "-m", "deploylab.cli", "serve", "--engine", engine, "--port", str(port)]
            log = folder / f"{name.replace(', ', '-').replace(' ', '-')}.log"
            servers[name] = stack.enter_context(
                background.start([*command, *SERVERS[name]], "/readyz", port=port, log=log)
            )
        yield servers


def measure(
    names: Sequence[str], sizes: Sequence[str], engine: str, folder: Path, *, rounds: int, seconds: float, probe: float
) -> list[Row]:
    predictor = Predictor.load("signnet", engine)
    recognised = lambda jpeg: predictor.predict([jpeg]).results[0][0][0]  # noqa: E731
    uploads = {size: [each.path for each in pictures.make(size, folder / "pictures", recognised)] for size in sizes}
    rows = []
    loop = BareLoop(folder / "pictures", engine)
    try:
        with started(names, engine, folder) as servers:
            for size, files in uploads.items():
                loop.run(size, 0.5)
                here = [row for name in names for row in rows_of(name, size, servers[name], files, probe)]
                for turns in quiet_rounds(loop, servers, here, files, rounds=rounds, seconds=seconds):
                    for row, mine in zip(here, turns[1:], strict=True):
                        row.bare.append(turns[0])
                        row.rounds.append(mine)
                for row in here:
                    print(line(row), file=sys.stderr, flush=True)
                rows += here
    finally:
        loop.close()
    return rows


def quiet_rounds(
    loop: BareLoop,
    servers: Mapping[str, background.Server],
    rows: Sequence[Row],
    files: Sequence[Path],
    *,
    rounds: int,
    seconds: float,
) -> list[list[Round]]:
    """``rounds`` rounds, each the loop's turn and one a row. Of at most ``PATIENCE`` times as many those that other
    programs disturbed least."""
    made: list[list[Round]] = []

    def disturbed(turns: list[Round]) -> float:
        return max(one.others for one in turns)

    while len(made) < PATIENCE * rounds and sum(disturbed(turns) <= QUIET_CORES for turns in made) < rounds:
        alone = loop.run(rows[0].size, seconds)
        made.append([alone, *(turn(servers[row.name], files, row.concurrency, seconds) for row in rows)])
    return sorted(made, key=disturbed)[:rounds]


TITLE = (
    "| upload | server | bare loop, 1/s | requests/s | p99, ms | connections | share of the loop | share of CPU time "
    "| CPU a request, us: loop | server | wrk | others, cores |"
)


def line(row: Row) -> str:
    def middle(values: Sequence[float]) -> float:
        return statistics.median(values)

    shares, by_cpu = row.shares, row.cpu_shares
    errors = sum(one.errors for one in row.rounds)
    cells = [
        row.size,
        row.name + ("" if row.bounded else ", p99 not bounded") + (f" ({errors} errors)" if errors else ""),
        f"{middle([one.rps for one in row.bare]):.0f}",
        f"{middle([one.rps for one in row.rounds]):.0f}",
        f"{middle([one.p99 for one in row.rounds]):.1f}",
        str(row.concurrency),
        f"{middle(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})",
        f"{middle(by_cpu):.0%} ({min(by_cpu):.0%} to {max(by_cpu):.0%})",
        f"{middle([one.cpu_us for one in row.bare]):.0f}",
        f"{middle([one.cpu_us for one in row.rounds]):.0f}",
        f"{middle([one.wrk_us for one in row.rounds]):.0f}",
        f"{row.others:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def report(rows: Sequence[Row]) -> str:
    about = (
        f"Command: `python benchmarks/serving_overhead.py {' '.join(sys.argv[1:])}`\n\n"
        f"Machine: {machine.cpu_model()}, {machine.usable_cores()} usable core(s); Python {sys.version.split()[0]}; "
        f"medians of {len(rows[0].rounds)} rounds, in brackets the lowest and the highest"
    )
    return "\n".join([about, "", TITLE, "|---|---|" + "---:|" * 10, *map(line, rows)]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--servers", default="default", help=f"'all', or names with ; between: {'; '.join(SERVERS)}")
    parser.add_argument("--sizes", default=",".join(pictures.SIZES))
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3, help="length of a turn")
    parser.add_argument("--probe", type=int, default=2, help="length of a try, when looking for the concurrency")
    parser.add_argument("--markdown", type=Path, help="write the table into this file, between its marks")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare(options.bare, options.engine)
        return 0
    if not wrk.available():
        print("error: this needs wrk (Debian: apt install wrk)", file=sys.stderr)
        return 1
    names = list(SERVERS) if options.servers == "all" else [name.strip() for name in options.servers.split(";")]
    if unknown := [name for name in names if name not in SERVERS]:
        parser.error(f"unknown server {unknown[0]!r}; there are: {'; '.join(SERVERS)}")
    folder = paths.build() / "serving_overhead"
    times = {"rounds": options.rounds, "seconds": options.seconds, "probe": options.probe}
    try:
        text = report(measure(names, options.sizes.split(","), options.engine, folder, **times))
    except DeployLabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(text)
    if options.markdown:
        before, _, rest = options.markdown.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        options.markdown.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
