"""Our server beside LitServe, BentoML, Ray Serve, MLServer, Triton and TorchServe.

    python benchmarks/serving_peers.py --tune                                # which setting of each is its best
    python benchmarks/serving_peers.py --markdown benchmarks/README.md       # the comparison, at those settings

Same model on ONNX Runtime, same JPEGs, same generator (wrk), all on loopback. A server counts with the most requests a
second that it answers with a p99 of at most 50 ms. Ours and a peer take turns, so that what disturbs one disturbs the
other; the ratio is taken round by round. Every picture's label is checked before and after it is timed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "peers"), str(HERE.parent / "tools")]

import contenders  # noqa: E402
import pictures  # noqa: E402
import tables  # noqa: E402
import wrk  # noqa: E402
from common import DOCUMENTED, SAME_CODE  # noqa: E402
from contenders import DEPLOYLAB, PEERS, Contender, Settings, described  # noqa: E402

import side_env  # noqa: E402
from deploylab import models, paths  # noqa: E402
from deploylab.errors import DeployLabError  # noqa: E402
from deploylab.serving import artifacts, background  # noqa: E402
from deploylab.serving.predictor import REDUCING_GAP, Predictor  # noqa: E402

P99_BOUND_MS = 50.0
START_WITHIN_S = 90.0
PROBLEMS = (DeployLabError, side_env.SetupError, OSError, ValueError, LookupError, TypeError, StopIteration)


@dataclass(frozen=True)
class Effort:
    """How much is measured: seconds of a probe, seconds of a round, rounds, and connections at once to try.

    More connections than these only lengthen the queue: two cores are busy with four.
    """

    probe_s: int
    round_s: int
    rounds: int
    ladder: tuple[int, ...]
    max_minutes: float


FULL = Effort(probe_s=2, round_s=3, rounds=3, ladder=(2, 4, 8, 16), max_minutes=25)
QUICK = Effort(probe_s=1, round_s=1, rounds=2, ladder=(4, 12), max_minutes=6)
SWEEP = Effort(probe_s=1, round_s=0, rounds=0, ladder=(4, 12), max_minutes=10)


@dataclass
class Cell:
    """Ours and a peer on one size: a load a round, at the concurrency that each is best at."""

    size: str
    ours: list[wrk.Load] = field(default_factory=list)
    theirs: list[wrk.Load] = field(default_factory=list)


@dataclass
class Result:
    """One server in one variant, or the reason why there is nothing."""

    name: str
    variant: str
    setting: str
    failure: str = ""
    cells: list[Cell] = field(default_factory=list)
    start_s: float | None = None
    memory_mib: float | None = None


class Bench:
    """What all servers share: the model's file, the labels, the uploads, a folder for logs and what servers write."""

    def __init__(self, folder: Path, sizes: Sequence[str]) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob("peer-*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        self.model = next(artifacts.prepare("signnet", "onnxruntime").glob("*.onnx"))
        self.labels = self.folder / "labels.json"
        self.labels.write_text(json.dumps(models.info("signnet").labels))
        predictor = Predictor.load("signnet", "onnxruntime")

        def recognised(jpeg: bytes) -> str:
            return predictor.predict([jpeg]).results[0][0][0]

        self.uploads = {size: pictures.make(size, self.folder / "pictures", recognised) for size in sizes}
        predictor.close()

    @contextmanager
    def running(self, contender: Contender, chosen: Settings, variant: str) -> Iterator[Running]:
        """The server, started and answering rightly; ended with the block."""
        with (
            tempfile.TemporaryDirectory(prefix="peer-", dir=self.folder, ignore_cleanup_errors=True) as folder,
            # What it leaves there goes too. Not in our folder: sockets need a short path.
            tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as temporary,
        ):
            port, *spare = [background.free_port() for _ in range(1 + contenders.SPARE_PORTS)]
            given = {"model": str(self.model), "labels": str(self.labels), "reducing_gap": REDUCING_GAP}
            given |= {"variant": variant, "folder": folder, "port": port, "spare_ports": spare}
            command, variables = contender.start(chosen, given)
            log = self.folder / f"{contender.name}-{variant}.log"
            began = time.perf_counter()
            server = background.start(
                command,
                contender.ready,
                port=port,
                log=log,
                env={"TMPDIR": temporary, **variables},
                timeout_s=START_WITHIN_S,
            )
            try:
                found = Running(contender, chosen, server, self)
                found.wait_for_right_answer(began)
                yield found
            finally:
                server.stop(15)


class Running:
    """A started server, addressed by its route."""

    def __init__(self, contender: Contender, chosen: Settings, server: background.Server, bench: Bench) -> None:
        self.contender, self.server, self.bench = contender, server, bench
        self.route = contender.route(chosen)
        self.url = server.url + self.route.path
        self.start_s = float("nan")

    def wait_for_right_answer(self, began: float) -> None:
        """Some call themselves ready before they are. Raises :class:`DeployLabError` with what came back instead."""
        upload = next(iter(self.bench.uploads.values()))[0]
        problem = ""
        while time.perf_counter() < began + START_WITHIN_S:
            try:
                answered = self.label(upload.path.read_bytes())
                if answered == upload.label:
                    self.start_s = time.perf_counter() - began
                    return
                problem = f"the label {answered!r}, not {upload.label!r}"
            except PROBLEMS as error:
                problem = repr(error)
            time.sleep(0.05)
        raise DeployLabError(f"no right answer within {START_WITHIN_S:g} s, but {problem}; {self.server.log_tail(5)}")

    def label(self, picture: bytes) -> str:
        request = urllib.request.Request(self.url, self.route.body(picture), self.route.headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return self.route.label(answer.read())

    def check(self, size: str) -> None:
        """Every upload of a size gets the right label, else :class:`DeployLabError`."""
        for upload in self.bench.uploads[size]:
            got = self.label(upload.path.read_bytes())
            if got != upload.label:
                raise DeployLabError(f"{self.contender.title} calls {upload.path.name} {got!r}")

    def load(self, size: str, concurrency: int, seconds: int) -> wrk.Load:
        return wrk.run(self.url, self.route.headers, self.bodies(size), concurrency, seconds)

    def bodies(self, size: str) -> list[Path]:
        """What is sent, as files for wrk: the JPEGs themselves unless the protocol wants them wrapped."""
        files = [upload.path for upload in self.bench.uploads[size]]
        if self.route.body is bytes:
            return files
        folder = self.bench.folder / "bodies" / self.contender.name / self.route.path.strip("/").replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        for path in files:
            (folder / path.name).write_bytes(self.route.body(path.read_bytes()))
        return [folder / path.name for path in files]


def search(running: Running, size: str, effort: Effort) -> wrk.Load:
    """The best of loads with more and more connections, until p99 is over the bound or throughput falls."""
    found: list[wrk.Load] = []
    for concurrency in effort.ladder:
        found.append(running.load(size, concurrency, effort.probe_s))
        if found[-1].p99 > P99_BOUND_MS or found[-1].rps < 0.95 * max(load.rps for load in found):
            break
    if len(found) == 1:  # over the bound at once: is it within with one connection?
        found.append(running.load(size, 1, effort.probe_s))
    return best(found)


def best(loads: Sequence[wrk.Load]) -> wrk.Load:
    """The most requests a second within the bound; where none is within, the one with the lowest p99."""
    within = [load for load in loads if load.p99 <= P99_BOUND_MS and not load.errors]
    return max(within, key=lambda load: load.rps) if within else min(loads, key=lambda load: load.p99)


def compare(ours: Running, theirs: Running, size: str, our_best: int, effort: Effort) -> Cell:
    """Search the peer's best concurrency, then take turns; who begins alternates."""
    theirs.check(size)
    their_best = search(theirs, size, effort).concurrency
    cell = Cell(size)
    turns = [(ours, our_best, cell.ours), (theirs, their_best, cell.theirs)]
    for number in range(effort.rounds):
        for running, concurrency, loads in turns if number % 2 == 0 else turns[::-1]:
            loads.append(running.load(size, concurrency, effort.round_s))
    theirs.check(size)
    return cell


def measure(
    bench: Bench, ours: Running, contender: Contender, variant: str, bests: dict[str, int], effort: Effort
) -> Result:
    """One peer in one variant on all sizes. A failure is kept as the result's reason."""
    chosen = tuned(bench, contender)
    result = Result(contender.name, variant, described(chosen))
    try:
        with bench.running(contender, chosen, variant) as theirs:
            result.start_s = theirs.start_s
            for size in bench.uploads:
                result.cells.append(compare(ours, theirs, size, bests[size], effort))
            result.memory_mib = theirs.server.memory_mib()
    except PROBLEMS as error:
        result.failure = in_a_line(error)
    return result


def run(bench: Bench, chosen: Sequence[Contender], variants: Sequence[str], given: argparse.Namespace) -> list[Result]:
    """The comparison with each peer; first ours alone. What a stopped run has finished is read with ``--resume``."""
    effort = QUICK if given.quick else FULL
    ends = time.monotonic() + 60 * (given.max_minutes or effort.max_minutes)
    with bench.running(DEPLOYLAB, DEPLOYLAB.settings[0], SAME_CODE) as ours:
        bests = {}
        for size in bench.uploads:
            ours.check(size)
            bests[size] = search(ours, size, effort).concurrency
        alone = Result(DEPLOYLAB.name, SAME_CODE, described(DEPLOYLAB.settings[0]), start_s=ours.start_s)
        results = [alone]
        for variant in variants:
            for contender in chosen:
                kept = bench.folder / f"result-{contender.name}-{variant}.json"
                stamp = f"{effort} {list(bench.uploads)} {tuned(bench, contender)}"
                if given.resume and (earlier := stored(kept, stamp)):
                    results.append(earlier)
                    continue
                say(f"{contender.title}, {variant}: {(ends - time.monotonic()) / 60:.1f} minutes left")
                if time.monotonic() > ends:
                    results.append(Result(contender.name, variant, "", "not measured: the time was over"))
                    continue
                results.append(measure(bench, ours, contender, variant, bests, effort))
                kept.write_text(json.dumps({"stamp": stamp, "result": asdict(results[-1])}))
                say(f"  {results[-1].failure or tables.in_a_line(results[-1])}")
        for size in bench.uploads:
            ours.check(size)
        alone.memory_mib = ours.server.memory_mib()
    return results


def stored(path: Path, stamp: str) -> Result | None:
    """What an earlier run found out under the same conditions, unless it failed."""
    if not path.is_file():
        return None
    kept = json.loads(path.read_text())
    if kept["stamp"] != stamp or kept["result"]["failure"]:
        return None
    cells = [
        Cell(cell["size"], *([wrk.Load(**load) for load in cell[side]] for side in ("ours", "theirs")))
        for cell in kept["result"].pop("cells")
    ]
    return Result(**kept["result"], cells=cells)


# --- the sweep over settings ------------------------------------------------------------------------------------------


def tune(bench: Bench, contender: Contender) -> None:
    """Try each setting on each size; keep the figures in a file that the comparison reads."""
    rows = []
    for chosen in contender.settings:
        row: dict[str, Any] = {"settings": chosen, "setting": described(chosen), "loads": {}, "failure": ""}
        rows.append(row)
        try:
            with bench.running(contender, chosen, SAME_CODE) as running:
                for size in bench.uploads:
                    running.check(size)
                    row["loads"][size] = asdict(search(running, size, SWEEP))
        except PROBLEMS as error:
            row["failure"] = in_a_line(error)
        told = [f"{size} {load['rps']:.0f}/s, p99 {load['p99']:.0f} ms" for size, load in row["loads"].items()]
        say(f"  {row['setting']}: {row['failure'] or '; '.join(told)}")
    tuned_file(bench, contender).write_text(json.dumps(rows, indent=1))


def tuned(bench: Bench, contender: Contender) -> Settings:
    """The setting with the highest geometric mean over the sizes in the last sweep; the first where there was none."""
    rows = [row for row in sweep(bench, contender) if row["settings"] in contender.settings and not row["failure"]]
    return max(rows, key=lambda row: score(row["loads"]))["settings"] if rows else contender.settings[0]


def score(loads: dict[str, dict[str, Any]]) -> float:
    """Geometric mean of the requests a second; what misses the bound on p99 counts half."""
    points = [load["rps"] * (1.0 if load["p99"] <= P99_BOUND_MS else 0.5) for load in loads.values()]
    return statistics.geometric_mean([max(point, 1e-3) for point in points])


def sweep(bench: Bench, contender: Contender) -> list[dict[str, Any]]:
    path = tuned_file(bench, contender)
    return json.loads(path.read_text()) if path.is_file() else []


def tuned_file(bench: Bench, contender: Contender) -> Path:
    return bench.folder / f"tuned-{contender.name}.json"


# --- the command ------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=",".join(peer.name for peer in PEERS), help="names with commas between")
    parser.add_argument("--sizes", default=",".join(pictures.SIZES))
    parser.add_argument("--variants", default=f"{SAME_CODE},{DOCUMENTED}")
    parser.add_argument("--tune", action="store_true", help="sweep over each peer's settings instead")
    parser.add_argument("--quick", action="store_true", help="a few minutes, for a look")
    parser.add_argument("--resume", action="store_true", help="keep what a run before has finished")
    parser.add_argument("--max-minutes", type=float, help="what is not measured by then keeps its row, and says so")
    parser.add_argument("--markdown", type=Path, help="write the tables into this file, between their two markers")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end as with Ctrl-C: servers first
    try:
        if not wrk.available():
            raise DeployLabError("the load generator wrk is not installed (Debian: apt install wrk)")
        chosen = [named(name, PEERS) for name in given.peers.split(",")]
        bench = Bench(paths.build() / "serving_peers", [size_named(size) for size in given.sizes.split(",")])
        conditions = tables.conditions(sys.argv[1:])
        if given.tune:
            for contender in (DEPLOYLAB, *chosen):
                say(contender.title)
                tune(bench, contender)
            return
        results = run(bench, chosen, given.variants.split(","), given)
    except (DeployLabError, side_env.SetupError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; --resume goes on from here")
    sweeps = {contender.title: sweep(bench, contender) for contender in chosen}
    everything = {"conditions": conditions, "results": [asdict(result) for result in results], "sweeps": sweeps}
    (bench.folder / "results.json").write_text(json.dumps(everything, indent=1))
    lines = [*conditions, *tables.markdown(results, (DEPLOYLAB, *chosen), sweeps, P99_BOUND_MS)]
    print("\n".join(lines))
    if given.markdown:
        tables.insert(given.markdown, lines)


def named(name: str, among: Sequence[Contender]) -> Contender:
    for contender in among:
        if contender.name == name:
            return contender
    raise DeployLabError(f"no peer {name!r}; there are: {', '.join(each.name for each in among)}")


def size_named(name: str) -> str:
    if name not in pictures.SIZES:
        raise DeployLabError(f"no size {name!r}; there are: {', '.join(pictures.SIZES)}")
    return name


def in_a_line(error: Exception) -> str:
    text = " ".join(f"{error or repr(error)}".split())
    return text if len(text) <= 300 else f"{text[:140]} ... {text[-150:]}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
