"""The conversion-coverage table: its cells, its page, and no cell worse than in docs/coverage.md."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploylab import engines, paths
from deploylab.bench import client, coverage
from deploylab.bench.coverage import OUTCOMES, Cell, Coverage
from deploylab.errors import InputError, ModelError
from deploylab.models import patterns

PAGE = paths.root() / "docs" / "coverage.md"
REGENERATE = "run: deploylab coverage --markdown docs/coverage.md"
TRIED = [name for name in engines.names() if engines.get(name).available().ok]
MISBEHAVING = """
import ctypes, time
from deploylab.engines.eager import Eager

class Misbehaving(Eager):
    name = "misbehaving"
    def _convert(self, source, example, folder, precision, **options):
        if type(source).__name__ == "Hardswish":
            ctypes.string_at(0)
        if type(source).__name__ == "GELU":
            time.sleep(600)
        return super()._convert(source, example, folder, precision)
    def _load(self, artifact, threads):
        session = super()._load(artifact, threads)
        run = session._run
        session._run = lambda arrays: [y * 1.001 for y in run(arrays)]
        return session
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """One for all processes of a parallel run, whose engines share exported ONNX files."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "coverage"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("engine", TRIED)
def test_no_cell_is_worse_than_in_the_table(engine, folder):
    found = coverage.measure([engine], out_dir=folder, jobs=1)
    known = coverage.from_markdown(PAGE.read_text(encoding="utf-8"))
    missing = [cell.pattern for cell in found.cells if (engine, cell.pattern) not in known]
    assert not missing, f"not in {PAGE.name}: {engine} with {', '.join(missing)}; {REGENERATE}"
    pairs = [(cell, known[engine, cell.pattern]) for cell in found.cells]
    worse = [f"{now.pattern}: {now.text}, was {was.text}: {now.reason}" for now, was in pairs if now.worse_than(was)]
    assert not worse, f"{engine} got worse:\n" + "\n".join(worse)
    better = [f"{now.pattern}: {now.text}, was {was.text}" for now, was in pairs if was.worse_than(now)]
    if better:
        warnings.warn(f"{engine} got better ({'; '.join(better)}); {REGENERATE}", stacklevel=1)


def test_the_table_has_every_pattern_and_every_engine_that_works_here():
    known = coverage.from_markdown(PAGE.read_text(encoding="utf-8"))
    assert {pattern for _, pattern in known} == set(patterns.names())
    assert set(TRIED) <= {engine for engine, _ in known}
    assert len(patterns.names()) >= 25


def test_crashes_hangs_and_wrong_numbers_are_cells(tmp_path, monkeypatch):
    (tmp_path / "misbehaving.py").write_text(MISBEHAVING)
    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(tmp_path)])
    engines._registry.cache_clear()
    code = f"import deploylab.engines as e; e.__path__.append({str(tmp_path)!r})\n"
    code += "from deploylab.bench import worker; worker.main()"
    monkeypatch.setattr(client, "COMMAND", (sys.executable, "-c", code))
    told = []
    try:
        names = ["hard_swish", "pixel_shuffle", "embedding"]
        found = coverage.measure(
            ["misbehaving"], names, out_dir=tmp_path / "out", progress=lambda *step: told.append(step)
        )
        hung = coverage.measure(["misbehaving"], ["gelu"], out_dir=tmp_path / "out", timeout_s=5)
    finally:
        engines._registry.cache_clear()
        sys.modules.pop("deploylab.engines.misbehaving", None)
    assert [cell.outcome for cell in found.cells] == ["crashes", "differs", "differs"]
    assert "SIGSEGV" in found.cells[0].reason
    assert found.cells[1].error == pytest.approx(1e-3, rel=0.1)
    assert found.totals() == {"misbehaving": dict(zip(OUTCOMES, (0, 2, 0, 1, 0), strict=True))}
    assert [done for done, _, _ in told] == [0, 1, 2, 3]
    assert [cell.outcome for cell in hung.cells] == ["hangs"]
    assert "within 5 s" in hung.cells[0].reason


def test_unknown_names_are_told(tmp_path):
    with pytest.raises(ModelError, match="unknown pattern 'yoga'; there are: conv_grouped"):
        coverage.measure(["eager"], ["yoga"], out_dir=tmp_path)


def test_worse_is_a_worse_outcome_or_a_much_larger_difference():
    cells = [Cell("a", "p", outcome) for outcome in OUTCOMES]
    for position, cell in enumerate(cells):
        assert [cell.worse_than(other) for other in cells] == [other < position for other in range(len(cells))]
    small, large = Cell("a", "p", "differs", 1e-4), Cell("a", "p", "differs", 2e-3)
    assert large.worse_than(small)
    assert not small.worse_than(large)
    assert not Cell("a", "p", "differs", 5e-4).worse_than(small)
    assert not Cell("a", "p", "works", 1e-6).worse_than(Cell("a", "p", "works", 1e-9))


cells = st.builds(
    Cell,
    st.just("engine"),
    st.just("pattern"),
    st.sampled_from(OUTCOMES),
    st.none() | st.floats(1e-9, 1e3),
    st.text(max_size=300).map(coverage.short),
)


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=len(patterns.names())))
def test_the_page_can_be_read_back(rows):
    made = Coverage(versions={"one": "1.0", "two": "2.0"}, left_out={"three": "no GPU"})
    for name, pair in zip(patterns.names(), rows, strict=False):
        for engine, cell in zip(made.versions, pair, strict=True):
            made.cells.append(Cell(engine, name, cell.outcome, cell.error, cell.reason))
    read = coverage.from_markdown(coverage.to_markdown(made))
    assert len(read) == len(made.cells)
    for cell in made.cells:
        again = read[cell.engine, cell.pattern]
        assert again.outcome == cell.outcome
        if cell.outcome == "differs" and cell.error is not None:
            assert again.error == pytest.approx(cell.error, rel=0.5)


@pytest.mark.parametrize("text", ["", "# nothing", "| other |\n|---|", "| pattern | a |\n|---|---|\n| `x` y | so so |"])
def test_what_is_no_table_is_refused(text):
    with pytest.raises(InputError):
        coverage.from_markdown(text)


def test_reasons_are_one_line_without_folders():
    assert coverage.short("ncnn: said\n  /a/b-c/d.py:3: error | no", "ncnn") == "said d.py:3: error / no"
    assert coverage.short("C:\\Users\\me\\x.py failed") == "x.py failed"
    assert coverage.short("word " * 100).endswith("word ...")


@pytest.mark.parametrize("name", patterns.names())
def test_a_pattern_is_the_same_every_time_and_says_something(name):
    pattern = patterns.get(name)
    first, again = pattern.module().state_dict(), pattern.module().state_dict()
    assert all(np.array_equal(first[key].numpy(), again[key].numpy()) for key in first)
    assert not pattern.module().training
    (a, *_), (b, *_) = pattern.sample(1), pattern.sample(2)
    assert not np.array_equal(a, b)
    outputs = coverage._reference(name, len(a)).outputs
    assert all(output.std() > 0 for output in outputs)
    assert pattern.sample(1, 3)[0].shape[0] == 3
