"""ExecuTorch: what is delegated, planned batches, one thread pool for all, and models that its exporter trips over."""

import json

import engine_nets as nets
import numpy as np
import pytest
import torch
from torch import nn

from deploylab import engines
from deploylab.engines import executorch
from deploylab.errors import ConversionError, EngineError, InputError

engine = engines.get("executorch")
pytestmark = pytest.mark.skipif(not engine.available().ok, reason=engine.available().reason)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("executorch")


@pytest.fixture(scope="module")
def tiny(folder):
    return engine.convert(nets.tiny(), nets.pictures(), folder)


@pytest.fixture(scope="module")
def portable(folder):
    return engine.convert(nets.tiny(), nets.pictures(), folder, delegate="none")


def test_facts_tell_what_xnnpack_runs_and_what_it_leaves(tiny, portable):
    facts = engine.load(tiny).facts()
    assert facts["delegate"] == "XNNPACK"
    assert facts["not_delegated"] == {"aten::mean.dim": 1}  # XNNPACK's mean keeps its dimensions, this one does not
    assert facts["delegated"].endswith("in 2 part(s)")
    facts = engine.load(portable).facts()
    assert facts["delegate"].startswith("none")
    assert facts["delegated"].startswith("0 of ")
    assert facts["not_delegated"]["aten::convolution"] == 2


def test_own_kernels_give_the_same_numbers(tiny, portable):
    for count in (1, 5):
        x = nets.pictures(count)
        expected = nets.truth(nets.tiny(), x)
        for artifact in (tiny, portable):
            assert np.abs(engine.load(artifact)(x) - expected).max() < TOLERANCE


class Kept(nets.Tiny):
    """Tiny, with a mean that XNNPACK takes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.widen(x)))
        return self.head((x + self.depthwise(x)).mean((2, 3), keepdim=True).flatten(1))


def test_a_whole_network_can_be_one_part():
    program, lowering = executorch.lower(Kept().eval(), [nets.pictures()])
    assert (lowering.parts, lowering.kept, lowering.max_batch) == (1, {}, None)
    assert lowering.coverage == "8 of 8 operators, in 1 part(s)"
    assert b"XnnpackBackend" in program


@pytest.mark.parametrize("artifact", ["tiny", "portable"])
def test_as_many_rows_as_memory_was_planned_for(artifact, request):
    session = engine.load(request.getfixturevalue(artifact))
    assert session.facts()["max_batch"] == 32  # torch's choice of kernels once made it 15
    assert session(nets.pictures(32)).shape == (32, 7)
    with pytest.raises(InputError, match=r"a batch of 33 is more than the 32 rows .* convert with max_batch=33"):
        session(nets.pictures(33))
    assert session(nets.pictures(2)).shape == (2, 7)


def test_the_examples_own_batch_for_the_largest_fixes_it(tmp_path):
    session = engine.load(engine.convert(nets.tiny(), nets.pictures(2), tmp_path, max_batch=2))
    assert session.facts()["batch"] == session.facts()["max_batch"] == 2
    assert session(nets.pictures(2)).shape == (2, 7)
    with pytest.raises(InputError, match=r"expected shape \(2, 3, 32, 32\), got \(1, "):
        session(nets.pictures(1))


def test_options_that_make_no_sense_are_told(tmp_path):
    with pytest.raises(ConversionError, match=r"no delegate 'gpu' here; choose from xnnpack, none"):
        engine.convert(nets.tiny(), nets.pictures(), tmp_path, delegate="gpu")
    with pytest.raises(ConversionError, match="max_batch=1 is smaller than the example's batch of 2"):
        engine.convert(nets.tiny(), nets.pictures(2), tmp_path, max_batch=1)


def test_sessions_with_other_thread_counts_take_turns(tiny):
    """There is one pool in a process; a program must not run on one that is gone."""
    sessions = {threads: engine.load(tiny, threads=threads) for threads in (1, 2, 3)}
    x = nets.pictures(4)
    expected = nets.truth(nets.tiny(), x)
    for _ in range(3):
        for threads, session in sessions.items():
            assert np.abs(session(x) - expected).max() < TOLERANCE
            assert session.facts()["threads"] == threads
    sessions[2].close()
    assert np.abs(sessions[1](x) - expected).max() < TOLERANCE


def test_weights_whose_names_begin_with_a_digit(tmp_path):
    """Batch norm in a bare Sequential has such names, and the exporter did not find them again."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()).eval()
    session = engine.load(engine.convert(net, nets.pictures(), tmp_path))
    assert np.abs(session(nets.pictures(2)) - nets.truth(net, nets.pictures(2))).max() < TOLERANCE


class Fixed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(1, 12)[:, :5] * 2


def test_a_module_for_one_batch_size(tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
    session = engine.load(engine.convert(Fixed().eval(), x, tmp_path))
    assert session.inputs[0].shape == (1, 3, 2, 2)
    assert session.facts()["batch"] == session.facts()["max_batch"] == 1
    assert session(x).tolist() == [[0, 2, 4, 6, 8]]


class Several(nn.Module):
    """Two inputs of two types, three outputs of three kinds, one of them an input."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 6)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": x + self.table(ids).mean(1), "largest": x.argmax(1), "same": x}


def test_several_inputs_and_outputs(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Several().eval()
    rng = np.random.default_rng(0)
    given = rng.standard_normal((2, 6), np.float32), rng.integers(0, 10, (2, 4))
    session = engine.load(engine.convert(net, given, tmp_path, max_batch=5))
    with pytest.raises(InputError, match="a batch of 6 is more than the 5 rows"):
        session(np.zeros((6, 6), np.float32), np.zeros((6, 4), np.int64))
    assert [spec.dtype for spec in session.inputs] == ["float32", "int64"]
    for rows in (1, 2, 5):
        x, ids = rng.standard_normal((rows, 6), np.float32), rng.integers(0, 10, (rows, 4))
        with torch.no_grad():
            expected = net(torch.from_numpy(x), torch.from_numpy(ids)).values()
        for got, want in zip(session(x, ids), expected, strict=True):
            assert got.dtype == want.numpy().dtype
            assert np.abs(got - want.numpy()).max() < TOLERANCE
        kept = session(x, ids)[2]
        x += 1
        assert np.abs(kept - (x - 1)).max() < TOLERANCE  # an output that is the input, is a copy of it


class Spectral(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(x)


def test_what_has_no_kernel_is_refused_with_its_name(tmp_path):
    with pytest.raises(ConversionError, match="svd"):
        engine.convert(Spectral().eval(), np.ones((2, 3, 3), np.float32), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_that_refuses_is_quoted(tmp_path):
    """The portable convolution has no third dimension, which it says when it runs."""
    with pytest.raises(ConversionError, match=r"a program that it cannot run(.|\n)*said last:\n +\[.*convolution"):
        engine.convert(nn.Conv3d(1, 1, 2).eval(), np.ones((1, 1, 3, 3, 3), np.float32), tmp_path)


def test_junk_in_place_of_a_program_is_told(tiny, tmp_path):
    import shutil

    copy = shutil.copytree(tiny.path, tmp_path / "copy")
    program = copy / "model.pte"
    program.write_bytes(b"#" * program.stat().st_size)
    with pytest.raises(EngineError, match=r"executorch could not load .*(.|\n)*It said last"):
        engine.load(copy)


def test_the_manifest_says_how_the_graph_was_divided(tiny):
    written = json.loads(tiny.file("lowering.json").read_text())
    assert written["parts"] == 2
    assert sum(written["delegated"].values()) + sum(written["kept"].values()) == 9
