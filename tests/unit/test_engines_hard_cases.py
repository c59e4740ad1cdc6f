"""Engines with foreign ONNX files, odd modules, no room, interruptions; and what they must not leave or send."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import engine_nets as nets
import numpy as np
import onnx
import onnx.reference
import pytest
import torch

from deploylab import engines
from deploylab.engines import _tool, base, hash_source
from deploylab.engines.base import Artifact, Engine, Session, TensorSpec
from deploylab.errors import ConversionError, EngineError, InputError

ONNX_ENGINES = [name for name in nets.testable_engines() if "onnx" in engines.get(name).accepts]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, which finds the tests' networks."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), **environment}
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One folder for conversions of the same network, which then share its ONNX export."""
    return tmp_path_factory.mktemp("shared")


class TestForeignOnnx:
    @pytest.mark.parametrize("batch", ["n", 2])
    @pytest.mark.parametrize("name", [name for name in ONNX_ENGINES if name != "ncnn"])
    def test_several_inputs_of_several_types(self, name, batch, tmp_path):
        path = nets.two_inputs_onnx(tmp_path / "two.onnx", batch)
        rng = np.random.default_rng(0)

        def given(count: int) -> tuple[np.ndarray, np.ndarray]:
            return rng.standard_normal((count, 3, 8, 8), np.float32), rng.integers(0, 10, (count, 4))

        first = given(2)
        artifact = engines.get(name).convert(path, first, tmp_path / "out")
        assert [spec.name for spec in artifact.inputs] == ["picture", "ids"]
        assert [spec.dtype for spec in artifact.inputs] == ["float32", "int64"]
        assert [spec.shape[0] for spec in artifact.inputs] == [None if batch == "n" else 2] * 2
        with engines.get(name).load(artifact) as session:
            for x in [first, *map(given, (1, 3, 5) if batch == "n" else ())]:
                scores, gates = session(*x)
                expected = onnx.reference.ReferenceEvaluator(str(path)).run(None, {"picture": x[0], "ids": x[1]})
                assert scores.shape == (len(x[0]), 7)
                assert np.abs(scores - expected[0]).max() < 1e-5
                assert np.abs(gates - expected[1]).max() < 1e-5
            with pytest.raises(InputError, match="input 'ids': expected dtype int64, got int32"):
                session(first[0], first[1].astype(np.int32))

    def test_ncnn_says_that_it_misread_an_axis(self, tmp_path):
        """pnnx takes the second axis of this file's Gather for a batch, and says nothing."""
        path = nets.two_inputs_onnx(tmp_path / "two.onnx", 1)
        x = np.zeros((1, 3, 8, 8), np.float32), np.zeros((1, 4), np.int64)
        session = engines.get("ncnn").load(engines.get("ncnn").convert(path, x, tmp_path / "out"))
        with pytest.raises(EngineError, match=r"ncnn computed '\w+' of shape .* the model says"):
            session(*x)

    @pytest.mark.parametrize("name", ONNX_ENGINES)
    def test_an_unknown_operator_is_named(self, name, tmp_path):
        path = nets.one_node_onnx(tmp_path / "odd.onnx", "Frobnicate", "nowhere")
        with pytest.raises(ConversionError, match="Frobnicate"):
            engines.get(name).convert(path, np.zeros((1, 3, 4, 4), np.float32), tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []

    @pytest.mark.parametrize("name", ONNX_ENGINES)
    def test_a_model_without_weights(self, name, tmp_path):
        path = nets.one_node_onnx(tmp_path / "relu.onnx", "Relu")
        x = nets.pictures()[:, :, :4, :4].copy()
        with engines.get(name).load(engines.get(name).convert(path, x, tmp_path / "out")) as session:
            assert np.array_equal(session(x), np.maximum(x, 0))

    @pytest.mark.parametrize("name", ONNX_ENGINES)
    def test_external_data(self, name, tmp_path):
        inside = nets.two_inputs_onnx(tmp_path / "inside.onnx", 1)
        path, data = tmp_path / "outside.onnx", tmp_path / "weights.bin"
        onnx.save(onnx.load(inside), str(path), save_as_external_data=True, location=data.name, size_threshold=100)
        x = np.zeros((1, 3, 8, 8), np.float32), np.zeros((1, 4), np.int64)
        artifact = engines.get(name).convert(path, x, tmp_path / "out")
        if name == "onnxruntime":
            data.rename(tmp_path / "away")  # the artifact has its own copy
            assert len(engines.get(name).load(artifact)(*x)) == 2
            (tmp_path / "away").rename(data)
        first = hash_source(path)
        data.write_bytes(bytes(data.stat().st_size))
        assert hash_source(path) != first
        data.unlink()
        with pytest.raises(ConversionError, match=r"external data file weights.bin is missing"):
            engines.get(name).convert(path, x, tmp_path / "out2")

    @pytest.mark.parametrize("name", ONNX_ENGINES)
    def test_files_and_examples_that_do_not_fit_are_told(self, name, tmp_path):
        path = nets.two_inputs_onnx(tmp_path / "two.onnx", 1)
        junk = tmp_path / "junk.onnx"
        junk.write_bytes(b"\x08 this is no model")
        picture, ids = np.zeros((1, 3, 8, 8), np.float32), np.zeros((1, 4), np.int64)
        for source, example, told in (
            (tmp_path / "missing.onnx", (picture, ids), "no such ONNX file"),
            (junk, (picture, ids), "not a readable ONNX file"),
            (path, (picture,), r"has 2 input\(s\) \(picture, ids\), the example holds 1"),
            (
                path,
                (picture[:, :2].copy(), ids),
                r"'picture' is float32 \(1, 3, 8, 8\), the example is float32 \(1, 2, 8",
            ),
            (path, (picture, ids.astype(np.int32)), "'ids' is int64"),
        ):
            with pytest.raises(ConversionError, match=told):
                engines.get(name).convert(source, example, tmp_path / "out")


@pytest.mark.parametrize("name", ONNX_ENGINES)
def test_a_file_of_another_kind_is_told_at_loading(name, tmp_path):
    path = nets.one_node_onnx(tmp_path / "relu.onnx", "Relu")
    artifact = engines.get(name).convert(path, np.zeros((1, 3, 4, 4), np.float32), tmp_path / "out")
    model = artifact.path / next(f for f in artifact.files if f.endswith((".onnx", ".xml", ".param", ".mnn", ".so")))
    model.write_bytes(b"#" * model.stat().st_size)
    with pytest.raises(EngineError, match=f"(?i){name} could not load"):
        engines.get(name).load(artifact.path)


class Fixed(torch.nn.Module):
    """Works for a batch of one only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(1, 12)[:, :5] * 2


class Scaled(torch.nn.Module):
    """Its behaviour is in a plain attribute, which no parameter and no `repr` shows."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.by


@pytest.mark.parametrize("name", ["eager", "torchscript", "onnxruntime"])
def test_a_module_for_one_batch_size(name, tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
    with engines.get(name).load(engines.get(name).convert(Fixed().eval(), x, tmp_path)) as session:
        assert session.inputs[0].shape == (1, 3, 2, 2)
        assert session(x).tolist() == [[0, 2, 4, 6, 8]]
        with pytest.raises(InputError, match=r"expected shape \(1, 3, 2, 2\), got \(2, 3, 2, 2\)"):
            session(np.concatenate([x, x]))


@pytest.mark.parametrize("name", ["ncnn", "eager"])
def test_a_bare_sequential(name, tmp_path):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten()).eval()
    x = nets.pictures()
    with engines.get(name).load(engines.get(name).convert(net, x, tmp_path)) as session:
        assert np.abs(session(x) - nets.truth(net, x)).max() < 1e-5


class TestHash:
    def test_what_changes_the_result_changes_the_hash(self):
        hashes = {hash_source(net) for net in (nets.tiny(0), nets.tiny(1), Scaled(2.0), Scaled(3.0), Fixed())}
        assert len(hashes) == 5
        assert hash_source(nets.tiny(0)) == hash_source(nets.tiny(0))

    def test_code_and_hooks_and_buffers_count(self):
        first, second = ({}, {})
        head = "import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        return "
        exec(head + "x + 1", first)
        exec(head + "x + 2", second)
        assert hash_source(first["Net"]()) != hash_source(second["Net"]())
        hooked = nets.tiny()
        before = hash_source(hooked)
        hooked.head.register_forward_hook(lambda module, given, result: result * 2)
        assert hash_source(hooked) != before
        moved = nets.tiny()
        moved.norm.running_mean += 1
        assert hash_source(moved) != before

    def test_what_a_function_holds_counts(self):
        def closing(over: object) -> torch.nn.Module:
            net = nets.tiny()
            net.step = lambda x: x * over
            return net

        def holding(step: object) -> torch.nn.Module:
            net = nets.tiny()
            net.step = step
            return net

        made = [closing(2.0), closing(3.0), closing([2.0]), holding(torch.sin), holding(torch.cos)]
        made += [holding(partial(torch.add, other=other)) for other in (1, 2)]
        made += [holding(lambda x, by=by: x * by) for by in (1, 2)]
        made += [holding(torch.float16), holding(torch.float32), holding(torch.nn.ReLU), holding(torch.nn.GELU)]
        made += [holding(dtype) for dtype in (np.float32, np.dtype("float32"), np.dtype("float64"))]
        assert len({hash_source(net) for net in made}) == len(made)
        assert hash_source(closing(2.0)) == hash_source(closing(2.0))

    def test_a_buffer_that_is_not_saved_counts(self):
        def with_buffer(value: float) -> torch.nn.Module:
            net = nets.tiny()
            net.register_buffer("table", torch.tensor([value]), persistent=False)
            return net

        assert hash_source(with_buffer(1)) != hash_source(with_buffer(2))

    def test_a_module_may_hold_itself(self):
        def selfish() -> torch.nn.Module:
            net = nets.tiny()
            object.__setattr__(net, "me", [net])
            net.step = lambda x: net.head(x)
            net.loop = []
            net.loop.append(net.loop)
            return net

        assert hash_source(selfish()) == hash_source(selfish())


def test_a_class_of_the_main_program_runs_as_its_graph(tmp_path):
    """A notebook's class exists in its process only; the worker runs what torch.export made of it."""
    code = f"""
    import numpy as np, torch
    from deploylab import engines
    class Mine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 2)
        def forward(self, x):
            return self.layer(x).relu()
    torch.manual_seed(0)
    net, x = Mine().eval(), np.ones((1, 4), np.float32)
    artifact = engines.get("eager").convert(net, x, {str(tmp_path)!r})
    print(artifact.path, *net(torch.from_numpy(x)).flatten().tolist(), sep="|")
    """
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    path, *expected = done.stdout.strip().split("|")
    with engines.get("eager").load(path) as session:
        assert "class cannot be imported" in session.facts()["runs"]
        assert np.allclose(session(np.ones((1, 4), np.float32))[0], [float(value) for value in expected], atol=1e-6)
        assert session(np.ones((3, 4), np.float32)).shape == (3, 2)


def test_a_class_from_a_file_runs_as_a_module_in_another_process(shared):
    artifact = engines.get("eager").convert(nets.tiny(), nets.pictures(), shared)
    code = f"""
    import sys
    sys.path.remove({str(Path(__file__).parent)!r})
    from deploylab import engines
    print(engines.get("eager").load({str(artifact.path)!r}).facts()["runs"])
    import engine_nets as nets  # found again by loading
    print(engines.hash_source(nets.tiny()))
    """
    done = run_python(code, PYTHONHASHSEED="7")
    assert done.stdout.splitlines() == ["nn.Module", hash_source(nets.tiny())], done.stderr


class TestReducedPrecision:
    def test_openvino_runs_what_was_asked_or_refuses(self, shared):
        reference = nets.truth(nets.tiny(), nets.pictures())
        exact = engines.get("openvino").load(engines.get("openvino").convert(nets.tiny(), nets.pictures(), shared))
        assert set(exact.facts()["executed"]) == {"f32"}
        for precision in ("bf16", "fp16"):
            artifact = engines.get("openvino").convert(nets.tiny(), nets.pictures(), shared, precision)
            try:
                session = engines.get("openvino").load(artifact)
            except EngineError as error:
                assert "instead of" in str(error)  # noqa: PT017 - either outcome is right, depending on the CPU
                continue
            executed = session.facts()["executed"]
            assert executed[{"bf16": "bf16", "fp16": "f16"}[precision]] > sum(executed.values()) / 2
            assert 0 < np.abs(session(nets.pictures()) - reference).max() < 0.1

    @pytest.mark.parametrize("precision", ["fp16", "bf16"])
    def test_ncnn_stores_what_was_asked(self, precision, shared):
        artifact = engines.get("ncnn").convert(nets.tiny(), nets.pictures(), shared, precision)
        with engines.get("ncnn").load(artifact) as session:
            facts, error = session.facts(), np.abs(session(nets.pictures()) - nets.truth(nets.tiny(), nets.pictures()))
        assert facts["storage"] == precision
        assert precision in facts["precision"]
        assert 1e-6 < error.max() < 0.1

    def test_mnn_refuses_fp16_where_it_would_compute_in_fp32(self, shared):
        from deploylab import machine

        artifact = engines.get("mnn").convert(nets.tiny(), nets.pictures(), shared, "fp16")
        if "asimdhp" in machine.features():
            assert engines.get("mnn").load(artifact)(nets.pictures()).shape == (1, 7)
        else:
            with pytest.raises(EngineError, match="would silently compute in fp32"):
                engines.get("mnn").load(artifact)


def test_a_signal_is_survived_after_sessions_ended_in_any_order(shared):
    artifact = engines.get("openvino").convert(nets.tiny(), nets.pictures(), shared)
    program = f"""if 1:
        import gc, signal
        from pathlib import Path
        from deploylab import engines
        heard = []
        signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
        first, second, third = (engines.get("openvino").load(Path({str(artifact.path)!r})) for _ in range(3))
        del third; gc.collect()
        del first; gc.collect()
        del second; gc.collect()
        signal.raise_signal(signal.SIGALRM)
        print(heard)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[1]"), done.stderr


class Slow(Engine):
    """Converts by a program that does not end."""

    name = "slow"
    title = "Slow"
    accepts = frozenset({"torch"})
    distributions = ("numpy",)
    modules = ("numpy",)
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"

    def _convert(self, source, example, folder, precision, **options):
        (folder / "half").write_text("done")
        _tool.run("the slow converter", [sys.executable, "-c", self.code], folder)
        raise AssertionError("it ended")

    def _load(self, artifact: Artifact, threads: int) -> Session:
        raise NotImplementedError


class TestInterruption:
    def test_ctrl_c_ends_the_converter_and_leaves_nothing(self, tmp_path):
        class Interrupted(Slow):
            code = f"""if 1:
                import os, time
                print(os.getpid(), file=open({str(tmp_path / "pid")!r}, 'x'), flush=True)
                time.sleep(100)
            """

        def interrupt(*_: object) -> None:
            if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
                signal.setitimer(signal.ITIMER_REAL, 0)  # a second one would end the tests
                raise KeyboardInterrupt

        previous = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
        try:
            with pytest.raises(KeyboardInterrupt):
                Interrupted().convert(nets.tiny(), nets.pictures(), tmp_path / "out")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        assert list((tmp_path / "out").iterdir()) == []
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)

    def test_a_hung_converter_is_ended(self, tmp_path, monkeypatch):
        monkeypatch.setattr(_tool, "TIME_LIMIT", 0.3)
        with pytest.raises(ConversionError, match="slow converter did not finish within"):
            Slow().convert(nets.tiny(), nets.pictures(), tmp_path)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("code", "told"),
        [
            ("import os; os.kill(os.getpid(), 11)", r"crashed \(SIGSEGV\)"),
            ("print('operator Foo is unknown'); raise SystemExit(3)", r"exit code 3(.|\n)*operator Foo is unknown"),
        ],
    )
    def test_a_failing_converter_is_quoted(self, code, told, tmp_path):
        with pytest.raises(ConversionError, match=told):
            _tool.run("it", [sys.executable, "-c", code], tmp_path)

    def test_a_killed_conversion_is_repeated_and_swept(self, tmp_path):
        abandoned = tmp_path / f"{base._UNFINISHED}eager-x"
        abandoned.mkdir()
        (abandoned / "model.pt").write_text("half")
        engines.get("eager").convert(nets.tiny(), nets.pictures(), tmp_path)
        assert abandoned.exists()  # perhaps another process is at it
        long_ago = time.time() - 2 * base._ABANDONED_AFTER
        os.utime(abandoned, (long_ago, long_ago))
        engines.get("eager").convert(nets.tiny(1), nets.pictures(), tmp_path)
        assert not abandoned.exists()

    def test_a_damaged_artifact_is_converted_again(self, tmp_path):
        first = engines.get("eager").convert(nets.tiny(), nets.pictures(), tmp_path)
        (first.path / "model.pt").write_bytes(b"")
        again = engines.get("eager").convert(nets.tiny(), nets.pictures(), tmp_path)
        assert again.path == first.path
        assert engines.get("eager").load(again)(nets.pictures()).shape == (1, 7)


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path):
    """A limit on file size stands in for a full disk: writes fail half-way, also in the converters."""
    code = f"""
    import resource, shutil, signal, sys
    import numpy as np, torch, engine_nets as nets
    from deploylab import engines
    from deploylab.errors import ConversionError
    path = nets.one_node_onnx({str(tmp_path / "x.onnx")!r}, "Relu")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 20_000)).eval()
    x = np.zeros((1, 3, 4, 4), np.float32)
    made = engines.get("onnxruntime").convert(net, x, {str(tmp_path / "out")!r})
    shutil.rmtree(made.path)  # the ONNX file stays, for all that want it
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    for name in nets.testable_engines():
        try:
            engines.get(name).convert(net, x, {str(tmp_path / "out")!r}, "fp32")
        except ConversionError as error:
            print(name, "failed", str(error).splitlines()[0])
    """
    done = run_python(code)
    failed = [line.split()[0] for line in done.stdout.splitlines()]
    assert failed == nets.testable_engines(), done.stdout + done.stderr
    assert [path for path in (tmp_path / "out").iterdir() if path.is_dir()] == []


def test_nothing_is_written_at_home_and_nobody_is_called(tmp_path):
    """Each engine imports, converts, loads and runs with an empty home and an empty temporary folder."""
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    code = f"""
    import json, sys
    called = []
    calls = ("socket.connect", "socket.getaddrinfo")
    sys.addaudithook(lambda event, args: called.append(event) if event in calls else None)
    import deploylab
    import engine_nets as nets, psutil
    from deploylab import engines
    for name in nets.testable_engines():
        if name != "torch-compile":
            artifact = engines.get(name).convert(nets.tiny(), nets.pictures(), {str(tmp_path / "out")!r})
            engines.get(name).load(artifact)(nets.pictures())
    me = psutil.Process()
    print(json.dumps([called, [str(c) for c in me.net_connections()], [c.name() for c in me.children(recursive=True)],
                      [name for name in sys.modules if "aliyun" in name or name.startswith("MNN.tools")]]))
    """
    cleared = {key: "" for key in os.environ if key.startswith(("XDG_", "MPL", "TORCH", "JUPYTER", "IPYTHON"))}
    done = run_python(code, **cleared, HOME=str(home), TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[], [], [], []]
    assert [str(path) for path in (*home.rglob("*"), *temporary.rglob("*"))] == []


def test_no_engine_needs_torch_or_onnx_to_load(shared):
    """A board has neither: importing them is made to fail."""
    names = [name for name in ("onnxruntime", "openvino", "ncnn", "mnn", "litert") if name in nets.testable_engines()]
    made = {name: engines.get(name).convert(nets.tiny(), nets.pictures(), shared).path for name in names}
    code = f"""
    import sys
    sys.modules["torch"] = sys.modules["onnx"] = sys.modules["pnnx"] = sys.modules["PIL"] = None
    import numpy as np
    from deploylab import engines
    for name, path in { ({name: str(path) for name, path in made.items()})!r}.items():
        print(engines.get(name).load(path)(np.zeros({nets.SHAPE}, np.float32)).shape)
    """
    done = run_python(code)
    assert done.stdout.count("(1, 7)") == len(names), done.stderr


def test_importing_deploylab_imports_no_engine():
    code = """
    import sys, deploylab.engines, deploylab.models, deploylab.machine
    deploylab.engines.names()
    heavy = ("torch", "onnx", "onnxruntime", "openvino", "ncnn", "MNN", "pnnx")
    print([name for name in heavy if sys.modules.get(name)])
    """
    assert run_python(code).stdout.strip() == "[]"


def test_a_missing_package_is_told_with_the_command(monkeypatch):
    class Absent(Slow):
        modules = ("no_such_engine",)
        extra = "mobile"

    state = Absent().available()
    assert (state.ok, state.reason) == (False, "Python package missing: no_such_engine")
    assert state.fix == "pip install -c constraints.txt -e '.[mobile]'"
    with pytest.raises(EngineError, match=r"no_such_engine. Try: pip install"):
        Absent().convert(nets.tiny(), nets.pictures(), Path("nowhere"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    state = engines.get("torch-compile").available()
    assert not state.ok
    assert "no C++ compiler" in state.reason


def test_large_finite_values_are_no_infinity():
    spec = TensorSpec("x", (2,))
    spec.check(np.array([3e38, -3e38], np.float32))
    for bad in (np.inf, -np.inf, np.nan):
        with pytest.raises(InputError, match="NaN or infinity"):
            spec.check(np.array([1, bad], np.float32))
