"""Comparisons of small ONNX files through real engines, and of workers that crash, hang or compute nonsense."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from deploylab import parity, report
from deploylab.bench import ledger, subject
from deploylab.bench.compare import compare, reduced_tolerance
from deploylab.bench.place import Place
from deploylab.bench.subject import Labelled, Subject
from deploylab.errors import DeployLabError, EngineError, InputError, ModelError

FLOAT = TensorProto.FLOAT
QUICK = {"samples": 66, "rounds": 3, "max_seconds": 5.0, "memory": False}


def classifier(path: Path, batch: str | int = "batch") -> Path:
    """Conv, Relu, mean, Gemm: picture (batch, 3, 16, 16) to 4 logits."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((8, 3, 3, 3)), "v": rng.standard_normal((8, 4))}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    given = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items() if v is not None]
    return save(path, nodes, [("x", FLOAT, [batch, 3, 16, 16])], [("y", FLOAT, [batch, 4])], given)


def save(path: Path, nodes: list, inputs: list, outputs: list, weights: list) -> Path:
    infos = [[helper.make_tensor_value_info(*value) for value in values] for values in (inputs, outputs)]
    graph = helper.make_graph(nodes, "net", *infos, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


class Misbehaving(Place):
    """Workers of one engine run ``code`` first."""

    def __init__(self, code: str, engine: str = "openvino") -> None:
        program = f"import os, time\nfrom deploylab.bench import worker\n{code}\nworker.main()"
        self.engine, self.bad = engine, (sys.executable, "-c", program)

    def command(self, engine: str, threads: int):
        return self.bad if engine == self.engine else super().command(engine, threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def model(folder) -> Path:
    return classifier(folder / "classifier.onnx")


@pytest.fixture(scope="module")
def quick(folder):
    """compare() with little effort, artifacts shared by all tests of this file."""

    def run(model, engines=("onnxruntime", "openvino"), **options):
        settings = {**QUICK, "out_dir": folder / "artifacts", "ledger_path": folder / "ledger.jsonl", **options}
        return compare(model, engines=list(engines), **settings)

    return run


@pytest.fixture(scope="module")
def result(quick, model, folder):
    return quick(model, memory=True, ledger_path=folder / "first.jsonl")


def test_every_engine_is_checked_and_then_measured(result):
    assert [row.engine for row in result.rows] == ["onnxruntime", "openvino"]
    for row in result.rows:
        assert row.ok, row.reason
        assert row.verdict.ok
        assert row.verdict.error <= result.tolerance.value
        assert row.latency.n >= 66
        assert row.latency.p90 is not None
        assert row.latency.p99 is None or row.latency.n >= 662
        assert len(row.round_p50) == 3
        assert row.cores_used > 0
        assert row.bytes > 0
        assert (row.facts["engine"], row.facts["threads"]) == (row.engine, 1)


def test_ratios_are_taken_round_by_round_against_the_named_baseline(result):
    assert result.baselines == {1: "onnxruntime"}
    base, other = result.rows
    assert (base.ratio.low, base.ratio.median, base.ratio.high) == (1, 1, 1)
    quotients = sorted(b / o for b, o in zip(base.round_p50, other.round_p50, strict=True))
    assert (other.ratio.low, other.ratio.median, other.ratio.high) == pytest.approx(tuple(quotients))


def test_cold_start_is_split_and_memory_grows(result):
    for row in result.rows:
        start = row.cold_start
        assert min(start.process, start.imports, start.load, start.first) > 0
        assert start.n == 2
        assert 0 < row.memory.python < row.memory.imported < row.memory.loaded <= row.memory.peak


def test_the_comparison_says_how_it_judged(result):
    assert result.reference == "onnx.reference in float64"
    assert "away from float64" in result.tolerance.reason
    assert result.inputs == "4 random inputs"
    assert result.input_shapes == ["float32 (1, 3, 16, 16)"]
    assert result.row("openvino").engine == "openvino"
    with pytest.raises(InputError, match="no row for 'mnn'; there are: onnxruntime, openvino"):
        result.row("mnn")


def test_the_ledger_has_every_row_with_its_circumstances(result, folder):
    rows = ledger.read(folder / "first.jsonl")
    assert [row["engine"] for row in rows] == ["onnxruntime", "openvino"]
    for row in rows:
        assert len(row["source_hash"]) == 64
        assert row["artifact"].startswith(row["engine"])
        assert row["engine_version"]
        assert row["machine"]["id"]
        assert re.match(r"\d{4}-\d\d-\d\dT", row["date"])
        assert row["latency"]["n"] >= 66


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_table_fits_the_terminal(result, width):
    text = io.StringIO()
    report.print_comparison(result, Console(file=text, width=width))
    assert max(map(len, text.getvalue().splitlines())) <= width
    for expected in ("onnxruntime", "p99 ms", "vs onnxruntime", "MiB", "1 thread", "tolerance"):
        assert expected in text.getvalue()


def test_json_and_page_are_complete(result):
    assert json.loads(report.to_json(result))["rows"][1]["latency"]["p50"] > 0
    page = report.to_html(result)
    assert page.startswith("<!doctype html>")
    assert "<svg" in page
    assert not re.search(r"<script|<link|@import|url\(http|src=", page)
    for row in result.rows:
        assert row.artifact in page


def test_what_a_board_must_carry_is_told_everywhere(result):
    told = json.loads(report.to_json(result))["rows"][0]["footprint"]
    assert told["own"]["onnxruntime"] > 1_000_000
    assert "numpy" in told["dependencies"]
    assert told["in_use"] is None or 1_000_000 < told["in_use"] < sum(
        (*told["own"].values(), *told["dependencies"].values())
    )
    text = io.StringIO()
    report.print_comparison(result, Console(file=text, width=160))
    for shown in (text.getvalue(), report.to_html(result), report.to_markdown(result)):
        assert re.search("what a board must carry", shown, re.IGNORECASE)
        assert re.search(r"openvino \d+ MiB", shown)
    page = report.to_markdown(result)
    tables = [line.count("|") for line in page.splitlines() if line.startswith("|")]
    assert len(tables) == 2 * (2 + len(result.rows))
    assert set(tables) == {tables[0], tables[-1]}
    assert "tolerance" in page


def test_figures_draw_on_axes_of_their_own_or_given_ones(result):
    from matplotlib.figure import Figure

    for plot in (report.plot_latency, report.plot_cold_start, report.plot_rounds):
        assert report.figure_png(plot(result), dpi=40).startswith(b"\x89PNG")
        given = Figure()
        assert plot(result, given.subplots()) is given


def test_a_crash_and_a_hang_cost_their_own_row_only(quick, model):
    crash = Misbehaving("worker.Server.load = lambda *a, **k: os.kill(os.getpid(), 11)")
    crashed = quick(model, place=crash)
    assert [row.status for row in crashed.rows] == ["ok", "crashed"]
    assert "openvino: crashed with SIGSEGV (signal 11) during 'load'" in crashed.rows[1].reason
    assert crashed.rows[1].latency is None
    hang = Misbehaving("worker.Server.measure = lambda *a, **k: time.sleep(600)", "onnxruntime")
    hung = quick(model, place=hang, timeout_s=10, rounds=2, max_seconds=0.2)
    assert [row.status for row in hung.rows] == ["crashed", "ok"]
    assert "did not answer 'measure' within" in hung.rows[0].reason
    assert hung.baselines == {1: "openvino"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("1.001 * y", "beyond the tolerance"),
        ("y * float('nan')", "contains NaN"),
        ("y[:, :3]", r"shape \(4, 3\) instead of \(4, 4\)"),
    ],
)
def test_a_wrong_output_gets_no_latency(quick, model, change, words):
    code = "from deploylab.engines import base\ncall = base.Session.__call__\n"
    code += f"def wrong(self, *a):\n    y = call(self, *a)\n    return {change}\nbase.Session.__call__ = wrong"
    found = quick(model, place=Misbehaving(code))
    right, wrong = found.rows
    assert right.ok
    assert (wrong.status, wrong.latency, wrong.ratio) == ("parity", None, None)
    assert re.search(words, wrong.reason)
    assert "wrong output, not timed" in report.to_html(found)
    assert json.loads(report.to_json(found))["rows"][1]["status"] == "parity"


def test_nothing_passes(quick, model):
    found = quick(model, engines=["openvino"], place=Misbehaving("raise SystemExit(3)"))
    assert "ended with exit code 3" in found.rows[0].reason
    assert found.measured == []
    text = io.StringIO()
    report.print_comparison(found, Console(file=text, width=80))
    assert "openvino: crashed" in text.getvalue()
    assert "<svg" not in report.to_html(found)


def test_several_inputs_integers_and_symbolic_axes(quick, tmp_path):
    table = numpy_helper.from_array(np.random.default_rng(0).random((5, 6), np.float32), "table")
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("Add", ["e", "bias"], ["y"]),
        helper.make_node("ArgMax", ["y"], ["best"], axis=-1),
    ]
    inputs = [("ids", TensorProto.INT64, ["n", "length"]), ("bias", FLOAT, ["n", "length", 6])]
    outputs = [("y", FLOAT, ["n", "length", 6]), ("best", TensorProto.INT64, ["n", "length", 1])]
    path = save(tmp_path / "words.onnx", nodes, inputs, outputs, [table])
    found = quick(path)
    assert [row.status for row in found.rows] == ["ok", "ok"], [row.reason for row in found.rows]
    assert found.input_shapes == ["int64 (1, 8)", "float32 (1, 8, 6)"]
    assert len(found.rows[0].verdict.outputs) == 2


def test_accuracy_decides_too(quick, model):
    rng = np.random.default_rng(1)
    images = rng.random((40, 1, 3, 16, 16), np.float32)
    reference = parity.onnx_reference(model, [(image,) for image in images[:2]])
    labels = parity.onnx_reference(model, [(image,) for image in images]).outputs[0].argmax(1)
    samples = tuple((image,) for image in images[:2])
    made = Subject("toy", model, "onnx", samples, "toy", reference, Labelled(images, labels, 1.0))
    good = quick(made, engines=["onnxruntime"])
    assert good.rows[0].accuracy == 1.0
    assert good.reference_accuracy == 1.0
    labels = np.where(np.arange(40) < 4, (labels + 1) % 4, labels)
    other = Subject("toy", model, "onnx", samples, "toy", reference, Labelled(images, labels, 1.0))
    bad = quick(other, engines=["onnxruntime"])
    assert bad.rows[0].status == "parity"
    assert "accuracy 90.00%, needed 99.00%" in bad.rows[0].reason
    left_out = quick(other, engines=["onnxruntime"], accuracy=False)
    assert left_out.rows[0].ok
    assert left_out.rows[0].accuracy is None
    assert left_out.reference_accuracy is None


def test_reduced_precision_may_be_off_by_its_own_rounding(model):
    reference = parity.Reference((), parity.Tolerance(1e-5, ""), "")
    assert reduced_tolerance(reference, "fp16").value == pytest.approx(1e-5 * 2**13)
    assert reduced_tolerance(reference, "int8").value == 0.5
    assert "fp16's rounding step" in reduced_tolerance(reference, "fp16").reason


def test_rows_for_every_thread_count_and_precision(quick, model):
    found = quick(model, engines=["onnxruntime"], threads=(1, 2), precision=("fp32", "int1"), samples=9, rounds=1)
    assert [(row.threads, row.precision) for row in found.rows] == [(1, "fp32"), (1, "int1"), (2, "fp32"), (2, "int1")]
    assert [row.status for row in found.rows] == ["ok", "failed", "ok", "failed"]
    assert "no precision 'int1'" in found.rows[1].reason
    assert found.baselines == {1: "onnxruntime", 2: "onnxruntime, 2 threads"}


def test_progress_is_told_every_step(quick, model):
    heard = []
    quick(model, engines=["onnxruntime"], rounds=2, progress=lambda *step: heard.append(step))
    assert [done for done, _, _ in heard] == list(range(len(heard)))
    assert heard[-1] == (5, 5, "done")
    assert heard[1][2] == "converting for onnxruntime"


def test_results_survive_a_ledger_that_cannot_be_written(quick, model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    found = quick(model, engines=["onnxruntime"], ledger_path=tmp_path / "file" / "ledger.jsonl")
    assert found.rows[0].latency is not None
    assert "cannot write the ledger" in found.ledger_error


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"model": "vgg"}, InputError, "unknown model 'vgg'; give one of signnet"),
        ({"model": Path("weights.pth")}, InputError, "not an ONNX file"),
        ({"model": "no/such.onnx"}, DeployLabError, "no such ONNX file"),
        ({"engines": ["tensorrt9"]}, EngineError, "unknown engine 'tensorrt9'"),
        ({"threads": (0,)}, InputError, "at least 1, got 0"),
        ({"threads": ()}, InputError, "got none"),
        ({"precision": ()}, InputError, "at least one precision"),
        ({"model": "signnet", "shapes": {"x": (1,)}}, InputError, "for the symbolic axes of an ONNX file"),
        ({"shapes": {"z": (1,)}}, InputError, "has no input 'z'; its inputs are: x"),
        ({"shapes": {"x": (1, 3, 17, 16)}}, InputError, r"has shape \(any, 3, 16, 16\), it cannot be"),
        ({"image": "no/such.jpg"}, InputError, "cannot read the picture"),
    ],
)
def test_what_cannot_be_compared_is_refused(quick, model, arguments, error, words):
    with pytest.raises(error, match=words):
        quick(**{"model": model, "engines": ["onnxruntime"], **arguments})


def test_damaged_onnx_files_are_refused(quick, model, tmp_path):
    (tmp_path / "cut.onnx").write_bytes(model.read_bytes()[:-50])
    (tmp_path / "text.onnx").write_text("this is no model")
    for name in ("cut.onnx", "text.onnx"):
        with pytest.raises(DeployLabError, match=name):
            quick(tmp_path / name)
    big = onnx.load(str(model))
    onnx.save(big, tmp_path / "apart.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(DeployLabError, match=r"external data file weights\.bin is missing"):
        quick(tmp_path / "apart.onnx")


def test_a_picture_becomes_the_timed_input(folder, tmp_path):
    from PIL import Image

    picture = tmp_path / "grey.png"
    Image.new("RGB", (40, 30), (51, 102, 255)).save(picture)
    static = classifier(folder / "static.onnx", batch=2)
    what = subject.from_onnx(static, picture)
    assert what.about_samples == "grey.png and 2 random inputs"
    assert what.samples[0][0].shape == (2, 3, 16, 16)
    assert what.samples[0][0][1, :, 0, 0] == pytest.approx([0.2, 0.4, 1.0])
    flat = save(
        tmp_path / "flat.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        [("x", FLOAT, [1, 7])],
        [("y", FLOAT, [1, 7])],
        [],
    )
    with pytest.raises(InputError, match=r"flat\.onnx takes no picture"):
        subject.from_onnx(flat, picture)


def test_symbolic_axes_get_a_size(tmp_path):
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    path = save(
        tmp_path / "any.onnx",
        relu,
        [("x", FLOAT, ["n", 3, "h", "w"])],
        [("y", FLOAT, None)],
        [],
    )
    assert subject.onnx_inputs(path, {})["x"] == ((1, 3, 224, 224), np.float32)
    assert subject.onnx_inputs(path, {"x": (2, 3, 5, 6)})["x"][0] == (2, 3, 5, 6)
    words = save(
        tmp_path / "words.onnx", relu, [("x", TensorProto.STRING, ["n"])], [("y", TensorProto.STRING, ["n"])], []
    )
    with pytest.raises(ModelError, match="only numbers and booleans"):
        subject.onnx_inputs(words, {})
