"""The engine tvm: schedules by rule, tuning that is bounded and goes on, cores that stay ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import engine_nets as nets
import numpy as np
import pytest
import torch

from deploylab import engines, machine
from deploylab.errors import EngineError, InputError

if not engines.get("tvm").available().ok:
    pytest.skip("needs the extra 'compilers'", allow_module_level=True)

from deploylab.engines import _tvm, _tvm_child

TVM = engines.get("tvm")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Where the small network was tuned, the trials of two calls, and the artifacts before and after."""
    folder = tmp_path_factory.mktemp("tuned")
    before = TVM.convert(nets.tiny(), nets.pictures(), folder)
    heard: list[object] = []
    first = TVM.tune(nets.tiny(), nets.pictures(), folder, trials=7, seconds=120, progress=heard.append)
    assert heard == first
    second = TVM.tune(nets.tiny(), nets.pictures(), folder, trials=9, seconds=120)
    return folder, first, second, before, TVM.convert(nets.tiny(), nets.pictures(), folder)


class TestTuning:
    def test_goes_on_from_its_records_and_ends_with_its_budget(self, tuned):
        _, first, second, *_ = tuned
        assert [trial.trials for trial in first] == list(range(1, 8))
        assert [trial.trials for trial in second] == [8, 9]

    def test_tries_the_rule_first_and_then_only_falls(self, tuned):
        _, first, second, *_ = tuned
        programs = len({trial.program for trial in first})
        assert len({trial.program for trial in first[:programs]}) == programs
        totals = [trial.total for trial in (*first, *second) if trial.total is not None]
        assert totals == sorted(totals, reverse=True)
        assert len(totals) == len(first) + len(second) - programs + 1

    def test_nothing_is_left_to_do_within_a_budget_that_is_used_up(self, tuned):
        assert TVM.tune(nets.tiny(), nets.pictures(), tuned[0], trials=9, seconds=60) == []

    def test_convert_finds_the_records(self, tuned):
        folder, *_, before, after = tuned
        assert before.path != after.path
        assert TVM.convert(nets.tiny(), nets.pictures(), folder, tuning="off").path not in (after.path,)
        with TVM.load(before) as plain, TVM.load(after) as session:
            assert "untuned" in plain.facts()["note"]
            assert session.facts()["schedule"].startswith("tuned for (1, 3, 32, 32): 5 of 5")
            assert "note" not in session.facts()
            for count in (1, 3, 1):  # the tuned batch and others
                x = nets.pictures(count, seed=count)
                assert np.abs(session(x) - nets.truth(nets.tiny(), x)).max() < 1e-5

    def test_another_model_is_not_tuned(self, tuned):
        with TVM.load(TVM.convert(nets.tiny(1), nets.pictures(), tuned[0])) as session:
            assert "untuned" in session.facts()["schedule"]

    def test_a_budget_of_nothing_is_told(self, tmp_path):
        for budget in ({"trials": 0}, {"seconds": 0}):
            with pytest.raises(InputError, match="at least one trial"):
                TVM.tune(nets.tiny(), nets.pictures(), tmp_path, **budget)


class Mixed(torch.nn.Module):
    """Layers whose sizes no vector divides: odd pictures, a grouped and a strided convolution, a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 10, 3, stride=2)
        self.pointwise = torch.nn.Conv2d(10, 14, 1)
        self.grouped = torch.nn.Conv2d(14, 14, 3, padding=1, groups=7)
        self.pool = torch.nn.MaxPool2d(2)
        self.head = torch.nn.Linear(14, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.grouped(self.pointwise(self.first(x)))))
        return torch.softmax(self.head(x.mean((2, 3))), 1)


def test_the_rule_changes_no_answer(tmp_path):
    torch.manual_seed(0)
    net = Mixed().eval()
    x = np.random.default_rng(0).standard_normal((1, 3, 57, 57), np.float32)
    with TVM.load(TVM.convert(net, x, tmp_path)) as session:
        assert np.abs(session(x) - nets.truth(net, x)).max() < 1e-5


def test_the_rule_blocks_wide_pictures_without_overlap():
    """Rows that are no multiple of a tile once made two tiles write the same elements."""
    import tvm
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 8, 56, 56), "float32"))
    w = np.random.default_rng(0).standard_normal((24, 8, 1, 1)).astype(np.float32)
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_output(relax.op.nn.conv2d(x, relax.const(w)))
        builder.emit_func_output(y)
    given = np.random.default_rng(1).standard_normal((1, 8, 56, 56)).astype(np.float32)
    target = _tvm.target()
    with target:
        lowered = _tvm.lowered(builder.get())
        programs = _tvm.scheduled(lowered)
        library = tvm.compile(programs, target, relax_pipeline=relax.get_pipeline("default_build"))
    assert all(f.attrs.get("tirx.is_scheduled") for f in _tvm.tensor_programs(programs).values())
    got = relax.VirtualMachine(library, tvm.cpu())["main"](tvm.runtime.tensor(given)).numpy()
    assert np.abs(got - np.einsum("oi,nihw->nohw", w[:, :, 0, 0], given)).max() < 1e-4


class TestAnotherCpu:
    @pytest.mark.parametrize(
        ("change", "told"),
        [({"architecture": "riscv64"}, "compiled for a riscv64 CPU"), ({"features": ["warp_drive"]}, "warp_drive")],
    )
    def test_is_told_at_loading(self, change, told, tmp_path):
        artifact = TVM.convert(torch.nn.ReLU().eval(), np.ones((1, 3, 4, 4), np.float32), tmp_path)
        path = artifact.path / _tvm_child.BUILT_FOR
        text = json.dumps({**json.loads(path.read_text()), **change})
        path.write_text(text)
        manifest = artifact.path / "manifest.json"
        fields = json.loads(manifest.read_text())
        fields["bytes"] = sum((artifact.path / name).stat().st_size for name in artifact.files)
        manifest.write_text(json.dumps(fields))
        with pytest.raises(EngineError, match=f"{told}.*convert it again here"):
            TVM.load(artifact.path)

    @pytest.mark.skipif(machine.architecture() != "x86_64", reason="what a CPU hides is read on x86-64 only")
    def test_the_target_leaves_out_what_this_cpu_hides(self, monkeypatch):
        from tvm.target import Target, codegen

        model = {"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu()}
        has = set(codegen.llvm_get_cpu_features(Target(model)))
        monkeypatch.setattr(machine, "features", lambda: ("avx",))
        switched_off = {str(name) for name in _tvm.target().attrs.get("mattr", ())}
        assert ("-avx2" in switched_off) == ("avx2" in has)
        assert "-avx" not in switched_off


def test_a_missing_linker_is_told(monkeypatch, tmp_path):
    from tvm.support import cc

    monkeypatch.setattr(cc, "get_cc", lambda: None)
    with pytest.raises(EngineError, match="links what it compiled with a C compiler"):
        TVM.convert(torch.nn.ReLU().eval(), np.ones((1, 3), np.float32), tmp_path)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no core affinity")
def test_our_cores_stay_ours_and_the_process_stays_as_it_was(tmp_path):
    artifact = TVM.convert(torch.nn.ReLU().eval(), np.ones((1, 3, 4, 4), np.float32), tmp_path)
    code = f"""
    import os, sys
    before, hook = os.sched_getaffinity(0), sys.excepthook
    import numpy as np
    from deploylab import engines
    for threads in (2, 1):
        with engines.get("tvm").load({str(artifact.path)!r}, threads=threads) as session:
            session(np.ones((1, 3, 4, 4), np.float32))
            print(session.facts()["threads"], session.facts()["affinity"])
    print(os.sched_getaffinity(0) == before, sys.excepthook is hook, "torch" in sys.modules)
    """
    environment = {key: value for key, value in os.environ.items() if key != "TVM_BIND_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert done.stdout.splitlines() == ["2 unchanged", "1 unchanged", "True True False"], done.stderr
