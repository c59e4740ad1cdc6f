"""What is LiteRT's own: kernels and delegates, integers, files that take one batch only, converters that talk."""

import contextlib
import logging
import os
import shutil
from importlib.util import find_spec

import engine_nets as nets
import numpy as np
import pytest
import torch

from deploylab import engines
from deploylab.engines.base import Artifact
from deploylab.errors import ConversionError, EngineError, InputError

if find_spec("litert_torch") is None:
    pytest.skip("the extra 'mobile' is not installed, or has no converter here", allow_module_level=True)
litert = engines.get("litert")


class Lonely(torch.nn.Module):
    """A running sum, which XNNPACK has no kernel for, between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(torch.cumsum(self.before(x), 1))


class Flattened(torch.nn.Module):
    """Its shape is written into the graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x).transpose(2, 3).reshape(x.shape[0], -1)


class Many(torch.nn.Module):
    """More than ten outputs, so that names sort differently from numbers, and 64-bit integers in and out."""

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (*(x * i for i in range(12)), ids + 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def calibration():
    return [nets.pictures(seed=seed) for seed in range(16)]


@pytest.fixture(scope="module")
def made(folder, calibration):
    """Options to artifact, each converted once."""
    known: dict[tuple, Artifact] = {}

    def make(precision: str = "fp32", **options) -> Artifact:
        key = (precision, *sorted(options.items()))
        if key not in known:
            if precision == "int8":
                options["calibration"] = calibration
            known[key] = litert.convert(nets.tiny(), nets.pictures(), folder, precision, **options)
        return known[key]

    return make


def given(count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    x = nets.pictures(count, seed=40)
    return x, nets.truth(nets.tiny(), x)


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin", "reference"])
def test_the_kernels_that_were_asked_for_run(kernels, made):
    x, expected = given()
    with litert.load(made(kernels=kernels)) as session:
        facts = session.facts()
        assert np.abs(session(x) - expected).max() < 1e-5
    inside, total = (int(word) for word in facts["delegated"].split() if word.isdigit())
    assert facts["kernels"] == kernels
    assert inside == (total if kernels == "xnnpack" else 0)
    assert facts["executed"] == {"float32": total}
    with pytest.raises(ConversionError, match="no kernels 'fast'; choose from xnnpack, builtin, reference"):
        litert.convert(nets.tiny(), x, made(kernels=kernels).path.parent, kernels="fast")


def test_what_a_delegate_leaves_is_counted(tmp_path):
    net, x = Lonely().eval(), nets.pictures()
    with litert.load(litert.convert(net, x, tmp_path)) as session:
        inside, _, total, _ = session.facts()["delegated"].split()
        assert np.abs(session(x) - nets.truth(net, x)).max() < 1e-5
    assert 0 < int(inside) == int(total) - 1


@pytest.mark.parametrize("integer_io", [True, False])
def test_int8_computes_in_integers_and_takes_floats(integer_io, made):
    x, expected = given(3)
    with litert.load(made("int8", integer_io=integer_io)) as session:
        facts, got = session.facts(), session(x)
    step = np.ptp(expected) / 255
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    assert 0 < np.abs(got - expected).max() < 12 * step
    assert facts["precision"] == "int8"
    assert facts["io"] == ("int8" if integer_io else "float32")
    assert facts["executed"]["int8"] > 0.8 * sum(facts["executed"].values())
    assert made("int8", integer_io=integer_io).bytes < made().bytes


def test_values_out_of_the_calibrated_range_are_cut_off_and_not_wrapped_round(made):
    with litert.load(made("int8")) as session:
        largest = session(np.full(nets.SHAPE, 5, np.float32))  # ReLU6 comes first
        assert np.array_equal(session(np.full(nets.SHAPE, 1e6, np.float32)), largest)


def test_int8_wants_data(folder, calibration):
    def convert(samples):
        litert.convert(nets.tiny(), nets.pictures(), folder, "int8", calibration=samples)

    for missing in (None, []):
        with pytest.raises(ConversionError, match=r"ranges of int8 from data: give calibration=\[...\]"):
            convert(missing)
    for wrong, told in (
        ([calibration[0][:, :2].copy()], r"expected shape \(any, 3, 32, 32\), got \(1, 2, 32, 32\)"),
        ([calibration[0].astype(np.float64)], "expected dtype float32, got float64"),
        ([(calibration[0], calibration[0])], r"holds 2 array\(s\), the model has 1 input\(s\)"),
    ):
        with pytest.raises(InputError, match=told):
            convert(wrong)


def test_a_file_of_calibration_data_is_the_same_as_its_arrays(made, folder, calibration, tmp_path):
    first = made("int8")
    np.savez(tmp_path / "data.npz", np.stack(calibration))
    found = litert.find(nets.tiny(), nets.pictures(), folder, "int8", calibration=str(tmp_path / "data.npz"))
    assert found == first
    (tmp_path / "junk.npz").write_bytes(b"no archive")
    np.save(tmp_path / "array.npy", calibration[0])
    for name in ("junk.npz", "array.npy", "missing.npz"):
        with pytest.raises(ConversionError, match=f"{name}: not an .npz file with calibration data"):
            litert.convert(nets.tiny(), nets.pictures(), folder, "int8", calibration=tmp_path / name)


def test_one_conversion_serves_all_variants(made, folder):
    made()
    made(kernels="reference")
    made("int8")
    assert len(list(folder.glob("*.tflite"))) == 1


def test_artifacts_of_other_data_are_others(made, folder, calibration):
    first = made("int8")
    same = litert.find(nets.tiny(), nets.pictures(), folder, "int8", calibration=[a.copy() for a in calibration])
    assert same == first
    other = [array + 1 for array in calibration]
    assert litert.find(nets.tiny(), nets.pictures(), folder, "int8", calibration=other) is None
    assert "sha256" in first.options["calibration"]


def test_a_shape_in_the_graph_is_declared_dynamic_or_told(tmp_path):
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 5), np.float32)
    with litert.load(litert.convert(Flattened().eval(), x, tmp_path)) as session:
        batch = session.facts()["batch"]
        assert np.array_equal(session(x), nets.truth(Flattened(), x).astype(np.float32))
        if batch == 1:
            assert session.outputs[0].shape == (1, 60)
            with pytest.raises(InputError, match=r"expected shape \(1, 3, 4, 5\), got \(2, 3, 4, 5\)"):
                session(np.concatenate([x, x]))
        else:
            three = np.concatenate([x, -x, x + 1])
            assert np.array_equal(session(three), nets.truth(Flattened(), three).astype(np.float32))


def test_outputs_keep_their_order_and_types(tmp_path):
    x, ids = np.ones((1, 2, 3), np.float32), np.array([[5, 6, 7, 8]])
    with litert.load(litert.convert(Many().eval(), (x, ids), tmp_path)) as session:
        *scaled, numbers = session(x, ids)
        assert [int(array[0, 0, 0]) for array in scaled] == list(range(12))
        assert numbers.dtype == np.int64
        assert numbers.tolist() == [[6, 7, 8, 9]]


def test_what_cannot_be_converted_is_named(tmp_path):
    class Complex(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.fft(x).real

    with pytest.raises(ConversionError, match=r"litert-torch cannot convert Complex: (.|\n)*fft"):
        litert.convert(Complex().eval(), np.ones((1, 8), np.float32), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_kind_is_told_at_loading(made, tmp_path):
    artifact = Artifact.read(shutil.copytree(made().path, tmp_path / "copy"))
    path = artifact.file(".tflite")
    path.write_bytes(b"#" * path.stat().st_size)
    with pytest.raises(EngineError, match="litert could not load"):
        litert.load(artifact.path)


def test_converter_and_runtime_keep_quiet(tmp_path, capfd, calibration):
    net = torch.nn.ReLU().eval()
    litert.load(litert.convert(net, nets.pictures(), tmp_path))(nets.pictures(2))
    litert.load(litert.convert(net, nets.pictures(), tmp_path, "int8", calibration=calibration))(nets.pictures(2))
    assert capfd.readouterr() == ("", "")


def test_quiet_leaves_the_settings_as_they_were(monkeypatch):
    from deploylab.engines.litert import quiet

    name = "LITERT_TORCH_SHOW_PROGRESS"
    for before in (None, "y"):
        if before is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, before)
        level = logging.root.manager.disable
        with contextlib.suppress(KeyError), quiet() as heard:
            import litert_torch

            assert not litert_torch.config.show_progress
            os.write(2, b"native words")
            raise KeyError
        assert heard.text.endswith("native words")
        assert os.environ.get(name) == before
        assert logging.root.manager.disable == level


def test_compare_hands_the_photos_over_as_calibration_data(tmp_path):
    from deploylab.bench import compare, subject

    photos = subject.Subject("signnet", None, "torch", (), "", None)
    path = compare.Prepared(photos, tmp_path, timeout_s=60.0)._calibration()
    with np.load(path) as file:
        assert file.files == ["arr_0"]
        assert file["arr_0"].shape == (32, 1, 3, 64, 64)
    own = ((nets.pictures(), np.array([[3]])), (nets.pictures(seed=1), np.array([[4]])))
    foreign = subject.Subject("Tiny", None, "torch", own, "", None)
    with np.load(compare.Prepared(foreign, tmp_path, timeout_s=60.0)._calibration()) as file:
        assert file["arr_1"].tolist() == [[[3]], [[4]]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibration-Tiny.npz", "calibration-signnet.npz"]
