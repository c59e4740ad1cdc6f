"""Do DeployLab's latencies agree with the vendors' own tools? Run by hand: ``python benchmarks/vendor_tools.py``.

Same file, same input, same thread count, same machine. DeployLab's worker and the vendor's tool take turns, so that
what disturbs one disturbs the other; the difference is taken round by round. The vendor's tool is a loop over the
engine's own Python API (``raw_loops.py``), and for OpenVINO also its ``benchmark_app``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploylab import engines, machine, paths
from deploylab.bench import subject
from deploylab.bench.client import Worker, environment
from deploylab.bench.worker import RUNS_BEFORE_A_ROUND
from deploylab.engines import Artifact
from deploylab.errors import DeployLabError

ENGINES = ("onnxruntime", "openvino", "ncnn", "mnn")
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Agreement:
    """One engine: median latencies in milliseconds, our excess in percent (median, lowest, highest round), overhead."""

    engine: str
    version: str
    tool: str
    ours: float
    theirs: float
    excess: tuple[float, float, float]
    overhead_us: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="signnet,mobilenet_v2", help="models of the course with commas between")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--samples", type=int, default=200, help="calls in a round")
    parser.add_argument("--markdown", type=Path, help="write the table into this file, between its two markers")
    given = parser.parse_args()
    try:
        chosen = [engines.get(name) for name in given.engines.split(",")]
        lines = conditions(given)
        for model in given.models.split(","):
            what = subject.named(model)
            lines += table(model, [row for engine in chosen for row in compare(engine.name, what, given)])
    except DeployLabError as error:
        sys.exit(f"error: {error}")
    print("\n".join(lines))
    if given.markdown:
        insert(given.markdown, lines)


def compare(engine: str, what: subject.Subject, given: argparse.Namespace) -> Iterator[Agreement]:
    """Measure one engine against each of its vendor's tools."""
    x = what.samples[0][0]
    artifact = engines.get(engine).convert(what.source, x, paths.build() / "artifacts")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as processes:
        stored = Path(folder) / "input.npy"
        np.save(stored, x)
        ask = processes.enter_context(raw_loop(engine, artifact, stored, given.threads))
        worker = processes.enter_context(our_worker(engine, artifact, x, given.threads))
        loops = [(lambda: ask(f"time {given.samples}"), "its Python API in a loop")]
        if engine == "openvino":
            loops.append((lambda: benchmark_app(artifact, stored, x, given), "benchmark_app"))
        for number, (theirs, tool) in enumerate(loops):
            pairs = []
            for _ in range(given.rounds):
                pairs.append((our_median(worker, given.samples), theirs()))
            ours, other = (statistics.median(column) for column in zip(*pairs, strict=True))
            excess = [100 * (mine / its - 1) for mine, its in pairs]
            spread = statistics.median(excess), min(excess), max(excess)
            overhead = ask(f"overhead {given.samples * given.rounds}") if number == 0 else None
            yield Agreement(engine, artifact.engine_version, tool, ours, other, spread, overhead)


@contextmanager
def our_worker(engine: str, artifact: Artifact, x: np.ndarray, threads: int) -> Iterator[Worker]:
    """A worker as ``deploylab compare`` uses it, loaded and warm."""
    with Worker(engine, threads=threads) as worker:
        worker.request("import", PATIENCE_S, modules=list(engines.get(engine).modules))
        worker.request("load", PATIENCE_S, engine=engine, artifact=str(artifact.path), threads=threads)
        worker.run([x[None]], PATIENCE_S)
        worker.request("warm_up", PATIENCE_S)
        yield worker


def our_median(worker: Worker, samples: int) -> float:
    return statistics.median(worker.request("measure", PATIENCE_S, samples=samples)["samples"])


@contextmanager
def raw_loop(engine: str, artifact: Artifact, stored: Path, threads: int) -> Iterator[Callable[[str], Any]]:
    """A process that calls the engine directly; yields a function that asks it."""
    script = Path(__file__).with_name("raw_loops.py")
    command = [sys.executable, str(script), engine, str(artifact.path), str(stored), str(threads)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(threads),
    )

    def ask(question: str | None) -> Any:
        if question:
            process.stdin.write(f"{question}\n")
            process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise DeployLabError(f"the direct loop of {engine} failed; run it by hand: {' '.join(command)}")
        return json.loads(answer)

    try:
        ask(None)  # it is warm
        yield ask
    finally:
        process.kill()
        process.communicate()


def benchmark_app(artifact: Artifact, stored: Path, x: np.ndarray, given: argparse.Namespace) -> float:
    """Median latency in milliseconds, in steps of 0.01, that OpenVINO's own tool reports for synchronous requests."""
    model = artifact.file(".xml")
    shape = ",".join(map(str, x.shape))
    program = Path(sys.executable).with_name("benchmark_app")
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "-m", model, "-i", stored, "-data_shape", f"[{shape}]", "-d", "CPU", "-api", "sync"]
        command += ["-hint", "none", "-nstreams", "1", "-nthreads", str(given.threads), "-pin", "NO"]
        command += [
            "-ip",
            "f32",
            "-infer_precision",
            "f32",
            "-niter",
            str(max(500, given.samples + RUNS_BEFORE_A_ROUND)),
        ]
        command += ["-json_stats", "-report_type", "no_counters", "-report_folder", folder]
        # CI=true keeps the openvino package from reporting its use.
        done = subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            env={**os.environ, "CI": "true"},
            timeout=PATIENCE_S,
        )
        reports = sorted(Path(folder).glob("*.json"))
        if done.returncode or not reports:
            raise DeployLabError(f"benchmark_app failed:\n{(done.stdout + done.stderr)[-1500:]}")
        text = reports[0].read_text()
    found = re.search(r'"latency \(ms\)"\s*:\s*"?([0-9.]+)', text)
    if not found:
        raise DeployLabError(f"benchmark_app reported no median latency:\n{text[:1500]}")
    return float(found[1])


def conditions(given: argparse.Namespace) -> list[str]:
    """The command and the machine, as it is before the run."""
    facts = machine.describe()
    return [
        f"Command: `python benchmarks/vendor_tools.py --models {given.models} --threads {given.threads} "
        f"--rounds {given.rounds} --samples {given.samples}`",
        "",
        f"Machine: {facts.get('board') or facts['cpu']}, {facts['usable_cores']} usable core(s), "
        f"{', '.join(facts['features'])}; {facts['system']}; Python {facts['python']}; "
        f"load before the run {os.getloadavg()[0]:.1f}",
    ]


def table(model: str, found: list[Agreement]) -> list[str]:
    """The result for one model as a Markdown table."""
    lines = [
        "",
        f"### {model}",
        "",
        "| engine | vendor's tool | DeployLab p50, ms | vendor's p50, ms | difference, % (lowest to highest round) "
        "| adapter overhead, us a call |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in found:
        middle, low, high = row.excess
        overhead = "" if row.overhead_us is None else f"{row.overhead_us:.1f}"
        lines.append(
            f"| {row.engine} {row.version} | {row.tool} | {row.ours:.3f} | {row.theirs:.3f} "
            f"| {middle:+.1f} ({low:+.1f} to {high:+.1f}) | {overhead} |"
        )
    return lines


def insert(path: Path, lines: list[str]) -> None:
    """Replace what stands between ``<!-- results -->`` and ``<!-- end of results -->``."""
    text = path.read_text(encoding="utf-8")
    changed, count = re.subn(
        r"(<!-- results -->\n).*?(<!-- end of results -->)",
        lambda match: match[1] + "\n".join(["", *lines, "", ""]) + match[2],
        text,
        flags=re.DOTALL,
    )
    if not count:
        sys.exit(f"{path} has no <!-- results --> ... <!-- end of results -->")
    path.write_text(changed, encoding="utf-8")
    print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
