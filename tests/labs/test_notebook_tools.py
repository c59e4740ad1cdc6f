"""The command that executes labs in place: normal form, failures that leave the file alone, scaffolding."""

from __future__ import annotations

import nbformat
import pytest
from typer.testing import CliRunner

import lab_contract as contract
import notebooks
from lab_contract import Lab


@pytest.fixture
def course(tmp_path, monkeypatch):
    """An empty folder of labs in place of the real one."""
    monkeypatch.setattr(contract, "LABS", tmp_path)
    monkeypatch.setattr(contract.labs, "__defaults__", (tmp_path,))
    return tmp_path


def lab_with(folder, *sources, name="90_trial") -> Lab:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    lab = Lab(
        folder / f"{name}.ipynb", nbformat.v4.new_notebook(cells=cells, metadata={"deploylab": {"title": "Trial"}})
    )
    notebooks.write(lab)
    return lab


def invoke(*words):
    return CliRunner().invoke(notebooks.app, list(words))


def test_executing_twice_writes_the_same_bytes(course):
    lab = lab_with(course, "print('one')", "import sys\n1 + 1  \n")
    invoke("execute", "90")
    once = lab.path.read_bytes()
    invoke("execute", "90")
    assert lab.path.read_bytes() == once
    written = Lab.read(lab.path).notebook
    assert [cell.execution_count for cell in written.cells] == [1, 2]
    assert written.cells[0].outputs[0].text == "one\n"
    assert set(written.metadata) == {"deploylab", "kernelspec", "language_info"}


def test_a_lab_that_fails_is_not_written(course):
    lab = lab_with(course, "print('before')", "raise ValueError('planted')")
    before = lab.path.read_bytes()
    result = invoke("execute", "90")
    assert result.exit_code == 1
    assert "planted" in result.output
    assert "the file is unchanged" in result.output
    assert lab.path.read_bytes() == before
    assert list(course.iterdir()) == [lab.path]


def test_an_unknown_lab_is_an_error(course):
    lab_with(course, "1")
    result = invoke("check", "77")
    assert result.exit_code == 1
    assert "no such lab: 77; there are: 90_trial" in str(result.exception) or "no such lab: 77" in result.output


def test_cell_ids_depend_on_the_source_only():
    cells = [nbformat.v4.new_code_cell(source) for source in ("a = 1", "b = 2", "a = 1")]
    first = notebooks.normalise(nbformat.v4.new_notebook(cells=cells))
    ids = [cell.id for cell in first.cells]
    assert len(set(ids)) == 3
    cells.insert(1, nbformat.v4.new_markdown_cell("in between"))
    second = notebooks.normalise(nbformat.v4.new_notebook(cells=cells))
    assert [cell.id for cell in second.cells if cell.cell_type == "code"] == ids


def test_a_scaffold_has_the_anatomy(tmp_path):
    lab = Lab(tmp_path / "91_trial.ipynb", notebooks.normalise(notebooks.scaffold("91", "Trial")))
    broken = contract.broken_rules(lab)
    assert not any(
        "there is no section" in sentence or "heading" in sentence or "objective" in sentence for sentence in broken
    ), broken
