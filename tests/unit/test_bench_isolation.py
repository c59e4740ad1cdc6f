"""One engine that crashes, hangs or crawls costs its own row only: engines made for that join the registry here."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from test_bench_compare import classifier
from typer.testing import CliRunner

from deploylab import cli, engines
from deploylab.bench import client
from deploylab.bench import compare as bench
from deploylab.bench.compare import compare
from deploylab.bench.results import Row
from deploylab.errors import InputError

# Each is ONNX Runtime that goes wrong at one point.
ENGINES = """
import ctypes, os, subprocess, sys, time
from pathlib import Path
from deploylab.engines.onnxruntime import OnnxRuntime

def crash():
    ctypes.string_at(0)

class Slow(OnnxRuntime):
    name = "slow"
    def _load(self, artifact, threads):
        session = super()._load(artifact, threads)
        run = session._run
        def slowly(arrays):
            time.sleep(0.4)
            return run(arrays)
        session._run = slowly
        return session

class CrashesInConversion(OnnxRuntime):
    name = "crash-convert"
    def _convert(self, *args, **options):
        crash()

class HangsInConversion(OnnxRuntime):
    name = "hang-convert"
    def _convert(self, source, example, folder, precision, **options):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        try:
            Path(folder.parent / "converter.pid").write_text(str(child.pid))
            child.wait()
        finally:
            child.kill()

class CrashesInRun(OnnxRuntime):
    name = "crash-run"
    def _load(self, artifact, threads):
        session = super()._load(artifact, threads)
        session._run = lambda arrays: crash()
        return session

class Variants(OnnxRuntime):
    name = "variants"
    precisions = ("fp32", "fp16")
    def _convert(self, source, example, folder, precision, kernels="fast", level=1, **options):
        (folder / "chosen.txt").write_text(f"{kernels} {level} {precision}")
        return super()._convert(source, example, folder, precision)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return classifier(tmp_path_factory.mktemp("isolation") / "classifier.onnx")


@pytest.fixture(autouse=True)
def _registry(tmp_path_factory, monkeypatch):
    """The registry with the engines above, here and in every worker."""
    folder = tmp_path_factory.mktemp("engines")
    (folder / "misbehaving.py").write_text(ENGINES)
    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(folder)])
    engines._registry.cache_clear()
    code = f"import deploylab.engines as e; e.__path__.append({str(folder)!r})\n"
    code += "from deploylab.bench import worker; worker.main()"
    monkeypatch.setattr(client, "COMMAND", (sys.executable, "-c", code))
    yield
    engines._registry.cache_clear()
    sys.modules.pop("deploylab.engines.misbehaving", None)


@pytest.fixture
def quick(model, tmp_path):
    def run(names, **options):
        settings = {"samples": 30, "rounds": 3, "max_seconds": 3.0, "memory": False, "timeout_s": 60.0, **options}
        return compare(
            model, engines=names, out_dir=tmp_path / "artifacts", ledger_path=tmp_path / "ledger", **settings
        )

    return run


def test_a_crash_ends_its_own_row_only(quick):
    found = quick(["crash-convert", "crash-run", "onnxruntime"])
    assert [row.status for row in found.rows] == ["crashed", "crashed", "ok"]
    assert "crash-convert: crashed with SIGSEGV (signal 11) during 'convert'" in found.rows[0].reason
    assert "crash-run: crashed with SIGSEGV (signal 11) during 'check'" in found.rows[1].reason
    assert found.rows[2].latency.n >= 30


def test_a_conversion_that_hangs_is_ended_with_its_children(quick, tmp_path):
    found = quick(["hang-convert", "onnxruntime"], timeout_s=15.0)
    assert [row.status for row in found.rows] == ["crashed", "ok"]
    assert "hang-convert: did not answer 'convert' within 15 s" in found.rows[0].reason
    assert not _alive(int((tmp_path / "artifacts" / "converter.pid").read_text()))
    assert not list((tmp_path / "artifacts").glob(".unfinished-*"))


def test_a_slow_engine_gets_fewer_rounds_and_says_so(quick):
    found = quick(["onnxruntime", "slow"], samples=60, rounds=6, max_seconds=1.0)
    quick_row, slow_row = found.rows
    assert [row.status for row in found.rows] == ["ok", "ok"]
    assert quick_row.latency.n >= 60
    assert len(quick_row.round_p50) == 6
    assert slow_row.latency.n < 60
    assert len(slow_row.round_p50) < 6
    assert any("of 6 rounds took all its time" in note for note in slow_row.notes)
    assert slow_row.ratio.median < 1
    assert slow_row.latency.p90 is None


def test_accuracy_is_left_out_where_it_would_take_too_long(quick, model, monkeypatch):
    from deploylab import parity
    from deploylab.bench.subject import Labelled, Subject

    rng = np.random.default_rng(0)
    samples = tuple((rng.random((1, 3, 16, 16), np.float32),) for _ in range(2))
    test = Labelled(rng.random((50, 1, 3, 16, 16), np.float32), np.zeros(50, int), 1.0)
    made = Subject("toy", model, "onnx", samples, "toy", parity.onnx_reference(model, samples), test)
    monkeypatch.setattr(bench, "LONGEST_ACCURACY_S", 12.0)  # 40 calls of 0.4 s take longer
    found = compare(
        made, engines=["slow"], samples=3, rounds=1, max_seconds=0.5, memory=True, record=False, out_dir=model.parent
    )
    (row,) = found.rows
    assert row.ok
    assert row.accuracy is None
    assert "accuracy not judged, the engine is too slow" in row.verdict.text
    assert any("accuracy left out: 40 more pictures at" in note for note in row.notes)


def test_a_conversion_is_found_again_without_a_process(quick, monkeypatch):
    first = quick(["onnxruntime"])
    monkeypatch.setattr(client.Worker, "convert", lambda *a, **k: pytest.fail("converted again"))
    again = quick(["onnxruntime"])
    assert again.rows[0].ok
    assert again.rows[0].artifact == first.rows[0].artifact


def test_options_of_a_conversion_make_a_row_of_their_own(quick, tmp_path):
    found = quick(["variants", "variants:kernels=plain:level=2", "onnxruntime"], samples=6, rounds=1)
    assert [row.label for row in found.rows] == ["variants", "variants, kernels=plain, level=2", "onnxruntime"]
    assert [row.status for row in found.rows] == ["ok"] * 3
    assert len({row.artifact for row in found.rows}) == 3
    assert (tmp_path / "artifacts" / found.rows[1].artifact / "chosen.txt").read_text() == "plain 2 fp32"
    with pytest.raises(InputError, match="options like :key=value, got 'fast'"):
        quick(["variants:fast"])


def test_a_label_tells_rows_apart():
    assert Row("ncnn", 1, "fp32").label == "ncnn"
    assert Row("ncnn", 2, "fp16").label == "ncnn, 2 threads, fp16"
    assert Row("litert", 2, "int8", options={"io": "int8"}).label == "litert, 2 threads, int8, io=int8"
    assert Row("litert", 2, "int8", options={"io": "int8"}).variant == "litert, int8, io=int8"


def test_a_torch_module_is_converted_elsewhere_too(tmp_path):
    import engine_nets as nets

    options = {"samples": 6, "rounds": 1, "memory": False, "record": False, "out_dir": tmp_path}
    found = compare(nets.tiny(), engines=["crash-convert", "onnxruntime"], example=nets.pictures(), **options)
    assert [row.status for row in found.rows] == ["crashed", "ok"]

    class Local(nets.Tiny):
        """Another process cannot import it."""

    local = Local().eval()
    found = compare(local, engines=["onnxruntime"], example=nets.pictures(), **options)
    assert [row.status for row in found.rows] == ["ok"]


def test_the_command_fails_if_an_engine_crashes_even_one_that_was_not_named(model, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "names", lambda: ["onnxruntime", "crash-run"])
    monkeypatch.setenv("DEPLOYLAB_HOME", str(tmp_path))
    arguments = ["compare", str(model), "--samples", "6", "--rounds", "1", "--no-memory"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 1, done.output
    assert "crash-run: crashed" in done.output
    monkeypatch.setattr(engines, "names", lambda: ["onnxruntime"])
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0


def test_an_interrupted_conversion_cleans_up(model, tmp_path):
    code = f"""
import sys
from deploylab import engines
from deploylab.bench import client
engines.__path__.append({engines.__path__[-1]!r})
client.COMMAND = {client.COMMAND!r}
from deploylab.bench.compare import compare
compare({str(model)!r}, engines=["hang-convert"], out_dir={str(tmp_path)!r}, record=False)
"""
    pid_file = tmp_path / "converter.pid"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        try:
            end = time.monotonic() + 120
            while not (pid_file.is_file() and pid_file.read_text()) and time.monotonic() < end:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert not _alive(int(pid_file.read_text()))
    assert not list(tmp_path.glob(".unfinished-*"))


def _alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
