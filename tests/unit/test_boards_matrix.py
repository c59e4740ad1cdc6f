"""The compatibility matrix: its cells on emulated boards, its page, and no cell worse than in docs/boards.md."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from deploylab import engines, paths
from deploylab.boards import boards_cli, emulator, matrix, page, wheels
from deploylab.boards.emulator import Board
from deploylab.boards.matrix import OUTCOMES, Cell, Matrix, Trials, WheelCell
from deploylab.boards.profiles import PROFILES
from deploylab.errors import BoardError, InputError

PAGE = paths.root() / "docs" / "boards.md"
REGENERATE = "run: deploylab boards matrix --write docs/boards.md"
# The tool tries all cells; these are one of each engine whose conversion is quick, with and without half precision.
SUBSET = (
    ("onnxruntime", "fp32", "jetson-nano"),
    ("ncnn", "fp16", "pi4"),
    ("ncnn", "fp16", "pi5"),
    ("mnn", "fp16", "pi4"),
    ("openvino", "fp16", "orin"),
)


@pytest.fixture(scope="session")
def trials() -> Trials:
    return Trials(paths.build() / "artifacts")


def require(name: str) -> Board:
    try:
        return emulator.find(name)
    except BoardError as error:
        pytest.skip(str(error))


# --- on emulated boards -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("engine", "precision", "board"), SUBSET)
def test_no_cell_is_worse_than_on_the_page(engine, precision, board, trials):
    now = trials(engine, precision, require(board))
    known = page.from_markdown(PAGE.read_text(encoding="utf-8"))
    was = known[engine, precision, board]
    assert not now.worse_than(was), f"{now.text}, was {was.text}: {now.reason}"
    if was.worse_than(now):
        warnings.warn(f"{engine} in {precision} on {board} got better: {now.text}; {REGENERATE}", stacklevel=1)


def test_an_illegal_instruction_and_a_hang_are_cells(trials):
    board = require("pi4")
    try:
        folder = wheels.find()
    except BoardError as error:
        pytest.skip(str(error))
    crashed = trials("onnxruntime", "fp32", board, first=folder)
    assert (crashed.outcome, crashed.text) == ("illegal instruction", "illegal instruction")
    assert "SIGILL" in crashed.reason
    hung = Trials(trials.out_dir, timeout_s=0.1)("onnxruntime", "fp32", board)
    assert hung.outcome == "hangs"


def test_a_wrong_output_is_told_apart(trials):
    exact = trials.subject.reference.outputs
    samples = [np.asarray(output, np.float32)[:, None] for output in exact]
    assert trials._judged("fp32", samples).ok
    wrong = [sample * np.float32(1.01) for sample in samples]
    assert not trials._judged("fp32", wrong).ok
    assert trials._judged("fp16", [sample * np.float32(1.001) for sample in samples]).ok


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_has_every_board_and_every_precision_of_every_engine_of_a_board():
    there = {engine for engine, _, _ in page.from_markdown(PAGE.read_text(encoding="utf-8"))}
    assert len(there) >= 5
    wanted = {
        (name, precision, board) for name in there for precision in engines.get(name).precisions for board in PROFILES
    }
    assert set(page.from_markdown(PAGE.read_text(encoding="utf-8"))) == wanted


def test_the_page_says_which_wheel_crashes_where():
    row = next(
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {wheels.CRASHING}")
    )
    cells = [part.strip() for part in row.split("|")[2 : 2 + len(PROFILES)]]
    capable = ["asimdhp" in profile.features.split() for profile in PROFILES.values()]
    assert cells == [matrix.IMPORTS if able else "illegal instruction" for able in capable]
    assert "`asimdhp`" in row


texts = st.text("abcdefghij 0123456789-", min_size=1, max_size=30).map(str.strip).filter(bool)
cells = st.builds(
    Cell,
    st.just("ncnn"),
    st.just("fp16"),
    st.just("pi4"),
    st.sampled_from(OUTCOMES),
    st.sampled_from(["fp16", "fp32, stored as fp16", "bf16 or fp32"]),
    st.just("1.0"),
    st.none() | st.floats(1e-9, 1e3),
    st.just("") | texts,
    st.none() | st.integers(1, 10**10),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=5))
def test_the_page_can_be_read_back(rows):
    made = Matrix()
    for number, pair in enumerate(rows):
        for board, cell in zip(("pi4", "pi5"), pair, strict=True):
            ran = cell.ran if cell.outcome in ("runs", "wrong") else ""
            error = cell.error if ran else None
            made.cells.append(replace(cell, engine=f"engine{number}", board=board, ran=ran, error=error))
    read = page.from_markdown(page.to_markdown(made))
    assert len(read) == len(made.cells)
    for cell in made.cells:
        again = read[cell.engine, cell.precision, cell.board]
        assert (again.outcome, again.ran) == (cell.outcome, cell.ran)
        assert again.error == (pytest.approx(cell.error, rel=0.5) if cell.error else None)


@pytest.mark.parametrize(
    "text",
    ["", "# nothing", "| other |\n|---|", "| engine | precision | pi4 |\n|---|---|---|\n| ncnn | fp32 | so so |"],
)
def test_what_is_no_matrix_is_refused(text):
    with pytest.raises(InputError):
        page.from_markdown(text)


def test_worse_is_a_worse_outcome_another_precision_or_a_much_larger_error():
    cells = [Cell("e", "fp16", "pi4", outcome) for outcome in OUTCOMES]
    for position, cell in enumerate(cells):
        assert [cell.worse_than(other) for other in cells] == [other < position for other in range(len(cells))]
    asked = Cell("e", "fp16", "pi5", "runs", "fp16", error=1e-3)
    silent = replace(asked, ran="fp32")
    assert silent.worse_than(asked)
    assert not asked.worse_than(silent)
    assert not silent.worse_than(silent)
    assert replace(asked, error=2e-2).worse_than(asked)
    assert not replace(asked, error=5e-3).worse_than(asked)


def test_counts_name_the_numbers_they_are_on():
    counts = {"all": 5_000, "memory": 0, "vector": 1_000, "fmadd": 0, "fmla_fp32": 0, "fmla_fp16": 500, "dot_int8": 0}
    cell = Cell("ncnn", "fp16", "pi5", "runs", "fp16", instructions=counts)
    few = replace(cell, instructions={**counts, "fmla_fp16": 1})
    made = Matrix([cell, replace(few, board="pi4")])
    table = next(table for table in page.tables(made) if table.title == page.INSTRUCTIONS)
    assert list(table.rows[0]) == ["ncnn", "fp16", "5,000 fp16", "5,000 other"]


# --- the commands -----------------------------------------------------------------------------------------------------


def run(*arguments: str):
    return CliRunner().invoke(boards_cli.app, list(arguments))


def made_up(**changes) -> Matrix:
    counts = dict.fromkeys(("all", "memory", "vector", "fmadd", "fmla_fp32", "fmla_fp16", "dot_int8"), 7)
    cell = Cell("ncnn", "fp32", "pi4", "runs", "fp32", "1.0", 1e-7, memory=10**7, instructions=counts)
    return Matrix([replace(cell, **changes)], [WheelCell(str(wheels.CRASHING), "pi4", matrix.IMPORTS)])


def test_the_tables_are_shown_and_written(monkeypatch, tmp_path):
    monkeypatch.setattr(matrix, "measure", lambda *_, **__: made_up())
    done = run("matrix", "--write", str(tmp_path / "new" / "page.md"), "--json", str(tmp_path / "all.json"))
    assert done.exit_code == 0, done.output
    assert "runs, error 1e-07" in done.output
    assert "](" not in done.output
    assert page.from_markdown((tmp_path / "new" / "page.md").read_text())["ncnn", "fp32", "pi4"].outcome == "runs"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["all.json", "new", "page.md"]


@pytest.mark.parametrize("outcome", OUTCOMES[2:])
def test_what_is_wrong_or_crashes_is_an_exit_code(monkeypatch, outcome):
    monkeypatch.setattr(matrix, "measure", lambda *_, **__: made_up(outcome=outcome, reason="it said so"))
    done = run("matrix", "pi4")
    assert done.exit_code == 1
    assert "(1) it said so" in done.output


def test_a_part_of_the_matrix_is_no_page(tmp_path):
    done = run("matrix", "pi4", "--write", str(tmp_path / "page.md"))
    assert isinstance(done.exception, InputError)
    assert "leave out" in str(done.exception)


def test_counts_that_differ_are_told(monkeypatch):
    found = made_up()
    other = {**found.cells[0].instructions, "all": 1_234}
    monkeypatch.setattr(matrix, "measure", lambda *_, **__: found)
    monkeypatch.setattr(matrix, "count_again", lambda *_, **__: found.cells)
    same = run("instructions")
    assert (same.exit_code, "1 agree in every vector" in same.output) == (0, True)
    monkeypatch.setattr(matrix, "count_again", lambda *_, **__: [replace(found.cells[0], instructions=other)])
    differs = run("instructions")
    assert differs.exit_code == 1
    assert "ncnn in fp32 on pi4: 7, then 1,234" in differs.output


def test_an_engine_that_boards_do_not_have_is_told(tmp_path):
    require("pi4")
    with pytest.raises(InputError, match=r"have no tvm; they have: .*ncnn"):
        matrix.measure(["pi4"], ["tvm"], out_dir=tmp_path)
