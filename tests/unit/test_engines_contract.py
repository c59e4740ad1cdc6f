"""What every engine promises, asked of every engine with the same small network."""

import gc
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import engine_nets as nets
import numpy as np
import pytest

from deploylab import engines
from deploylab.engines import Artifact
from deploylab.errors import ConversionError, EngineError, InputError

ENGINES = nets.testable_engines()
ONNX_ENGINES = [name for name in ENGINES if "onnx" in engines.get(name).accepts]
TOLERANCE = 1e-5  # outputs are of order one


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def artifacts(folder):
    """Engine name to artifact, each converted once."""
    made = {}

    def make(name: str) -> Artifact:
        if name not in made:
            made[name] = engines.get(name).convert(nets.tiny(), nets.pictures(), folder)
        return made[name]

    return make


@pytest.fixture(scope="module")
def sessions(artifacts):
    """Engine name to a session with one thread, each loaded once."""
    loaded = {}

    def load(name: str) -> engines.Session:
        if name not in loaded:
            loaded[name] = engines.get(name).load(artifacts(name))
        return loaded[name]

    yield load
    for session in loaded.values():
        session.close()
        session.close()


def test_the_seven_engines_are_found():
    expected = {"eager", "mnn", "ncnn", "onnxruntime", "openvino", "torch-compile", "torchscript"}
    assert expected <= set(ENGINES)
    assert ENGINES[0] == "eager"
    with pytest.raises(EngineError, match=r"unknown engine 'tensorflow'; there are: eager"):
        engines.get("tensorflow")


def test_an_alias_in_an_engines_file_is_no_engine(tmp_path, monkeypatch):
    """On Python 3.10 ``list[int]`` says that it is a class, as this object does everywhere."""
    (tmp_path / "aliased.py").write_text(
        "from deploylab.engines.eager import Eager\n"
        "class Aliased(Eager):\n    name = 'aliased'\n"
        "class Pretends:\n    __class__ = property(lambda self: type)\n"
        "Sizes, Odd = list[int], Pretends()\n"
    )
    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(tmp_path)])
    engines._registry.cache_clear()
    try:
        assert engines.get("aliased").name == "aliased"
    finally:
        engines._registry.cache_clear()
        sys.modules.pop("deploylab.engines.aliased", None)


@pytest.mark.parametrize("name", ENGINES)
class TestEachEngine:
    def test_is_available_with_its_version(self, name):
        state = engines.get(name).available()
        assert state.ok, state
        assert state.version

    def test_gives_what_the_module_gives_in_float64(self, name, sessions):
        x = nets.pictures()
        y = sessions(name)(x)
        assert y.dtype == np.float32
        assert y.shape == (1, 7)
        assert np.abs(y - nets.truth(nets.tiny(), x)).max() < TOLERANCE

    def test_outputs_belong_to_the_caller(self, name, sessions):
        session = sessions(name)
        first = session(nets.pictures(seed=1))
        kept = first.copy()
        for seed in range(2, 6):
            session(nets.pictures(seed=seed))
        gc.collect()
        assert np.array_equal(first, kept)
        first += 1  # writeable, and nobody minds
        assert np.array_equal(session(nets.pictures(seed=1)), kept)

    def test_inputs_stay_as_they_are(self, name, sessions):
        x = nets.pictures(seed=3)  # has values below zero, which the network's first layer would cut off in place
        before = x.copy()
        y = sessions(name)(x)
        assert np.array_equal(x, before)
        x.flags.writeable = False
        assert np.array_equal(sessions(name)(x), y)

    def test_temporary_inputs_are_kept_alive(self, name, sessions):
        expected = [nets.truth(nets.tiny(), nets.pictures(seed=seed)) for seed in range(8)]
        got = [sessions(name)(nets.pictures(seed=seed)) for seed in range(8)]
        assert max(np.abs(a - b).max() for a, b in zip(got, expected, strict=True)) < TOLERANCE

    def test_any_batch_size_where_it_says_so(self, name, sessions):
        session = sessions(name)
        assert session.inputs[0].shape == (None, 3, 32, 32)
        assert session.facts()["batch"] == "dynamic"
        for count in (3, 2, 5, 1):
            x = nets.pictures(count, seed=count)
            y = session(x)
            assert y.shape == (count, 7)
            assert np.abs(y - nets.truth(nets.tiny(), x)).max() < TOLERANCE

    def test_wrong_input_is_told_with_what_was_expected(self, name, sessions):
        session, x = sessions(name), nets.pictures()
        wrong = {
            r"expected dtype float32, got float64.*astype\(np.float32\)": x.astype(np.float64),
            r"expected shape \(any, 3, 32, 32\), got \(1, 32, 32, 3\)": np.ascontiguousarray(x.transpose(0, 2, 3, 1)),
            r"expected shape \(any, 3, 32, 32\), got \(3, 32, 32\)": x[0],
            "not C-contiguous.*ascontiguousarray": np.asfortranarray(nets.pictures(2)),
            "expected a NumPy array, got list": x.tolist(),
            "NaN or infinity": np.where(np.arange(x.size).reshape(x.shape) == 7, np.float32("nan"), x),
        }
        for told, given in wrong.items():
            with pytest.raises(InputError, match=told):
                session(given)
        with pytest.raises(InputError, match=r"expected 1 input\(s\).*got 2"):
            session(x, x)
        assert np.abs(session(x) - nets.truth(nets.tiny(), x)).max() < TOLERANCE  # and it still works

    @pytest.mark.parametrize("threads", [1, 2])
    def test_facts_tell_what_runs(self, name, threads, artifacts):
        with engines.get(name).load(artifacts(name), threads=threads) as session:
            session(nets.pictures())
            facts = session.facts()
        assert facts["engine"] == name
        assert facts["threads"] == threads
        assert facts["precision"] == "fp32"
        assert facts["affinity"] == "unchanged"
        assert facts["gil"] == ("held" if name in ("mnn", "executorch") else "released")
        assert facts["version"]
        json.dumps(facts)  # a worker sends them

    def test_two_sessions_do_not_disturb_each_other(self, name, artifacts, sessions):
        x = nets.pictures(seed=4)
        alone = sessions(name)(x)
        with engines.get(name).load(artifacts(name)) as other:
            for seed in range(5, 8):
                other(nets.pictures(seed=seed))
                assert np.array_equal(sessions(name)(x), alone)
        assert np.array_equal(sessions(name)(x), alone)

    def test_any_thread_may_call(self, name, sessions):
        session = sessions(name)
        inputs = [nets.pictures(seed=seed) for seed in range(12)]
        expected = [session(x) for x in inputs]
        with ThreadPoolExecutor(3) as pool:
            got = list(pool.map(session, inputs))
        assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))

    def test_a_conversion_is_found_again(self, name, artifacts, folder):
        made = artifacts(name)
        stamp = (made.path / "manifest.json").stat().st_mtime_ns
        again = engines.get(name).convert(nets.tiny(), nets.pictures(), folder)
        assert again == made
        assert (made.path / "manifest.json").stat().st_mtime_ns == stamp
        assert Artifact.read(made.path) == made
        assert made.bytes == sum((made.path / file).stat().st_size for file in made.files)
        assert made.engine_version == engines.get(name).available().version

    def test_a_damaged_artifact_is_told(self, name, artifacts, tmp_path):
        import shutil

        copy = shutil.copytree(artifacts(name).path, tmp_path / "copy", ignore=shutil.ignore_patterns("inductor"))
        largest = max(artifacts(name).files, key=lambda file: (copy / file).stat().st_size)
        (copy / largest).write_bytes((copy / largest).read_bytes()[:-10])
        with pytest.raises(EngineError, match=r"incomplete .*delete the folder and convert again"):
            engines.get(name).load(copy)
        (copy / largest).unlink()
        with pytest.raises(EngineError, match=f"incomplete .*{largest}"):
            engines.get(name).load(copy)
        (copy / "manifest.json").write_text("{")
        with pytest.raises(EngineError, match="not a readable artifact"):
            engines.get(name).load(copy)
        with pytest.raises(EngineError, match="not a readable artifact"):
            engines.get(name).load(tmp_path / "nowhere")

    def test_mistakes_in_asking_are_told(self, name, artifacts, folder):
        engine = engines.get(name)
        with pytest.raises(ConversionError, match="has no precision 'int3'; choose from fp32"):
            engine.convert(nets.tiny(), nets.pictures(), folder, "int3")
        with pytest.raises(ConversionError, match=r"training mode.*model.eval\(\)"):
            engine.convert(nets.tiny().train(), nets.pictures(), folder)
        with pytest.raises(ConversionError, match="expected a torch module or the path of an ONNX file, got int"):
            engine.convert(3, nets.pictures(), folder)
        with pytest.raises(InputError, match="NaN"):
            engine.convert(nets.tiny(), np.full(nets.SHAPE, np.nan, np.float32), folder)
        with pytest.raises(EngineError, match="threads must be at least 1"):
            engine.load(artifacts(name), threads=0)
        other = "onnxruntime" if name != "onnxruntime" else "openvino"
        with pytest.raises(EngineError, match=f"made by {name}, it cannot be loaded by {other}"):
            engines.get(other).load(artifacts(name))

    def test_an_output_folder_that_cannot_be_written_is_told(self, name, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(ConversionError, match="choose another output folder"):
            engines.get(name).convert(nets.tiny(), nets.pictures(), tmp_path / "file" / "out")


@pytest.mark.parametrize("name", [name for name in ENGINES if name not in ONNX_ENGINES])
def test_torch_engines_refuse_onnx(name, tmp_path):
    with pytest.raises(ConversionError, match=f"{name} cannot convert from onnx; it accepts torch"):
        engines.get(name).convert(tmp_path / "model.onnx", nets.pictures(), tmp_path)


def test_nothing_half_done_is_left(artifacts, folder):
    for name in ONNX_ENGINES:
        artifacts(name)
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_loading_from_another_thread(artifacts):
    results = []

    def work() -> None:
        for name in ENGINES:
            if name != "torch-compile":
                with engines.get(name).load(artifacts(name)) as session:
                    results.append(session(nets.pictures()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(results) == len(ENGINES) - 1
