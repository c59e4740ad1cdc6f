"""The ledger survives what killed processes and full disks do to it."""

from __future__ import annotations

import multiprocessing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploylab.bench import ledger
from deploylab.errors import DeployLabError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=4))
def test_rows_come_back_as_they_went_in(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    ledger.append(rows, path)
    ledger.append(rows, path)
    assert ledger.read(path) == rows * 2


def test_there_is_no_ledger_yet(tmp_path):
    assert ledger.read(tmp_path / "none.jsonl") == []


@given(cut=st.integers(1, 15))
def test_a_line_cut_by_a_killed_process_costs_only_itself(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    ledger.append([{"n": 1}, {"name": "x" * 5}], path)
    path.write_bytes(path.read_bytes()[:-cut])
    kept = ledger.read(path)
    assert kept[0] == {"n": 1}
    ledger.append([{"n": 3}], path)
    assert ledger.read(path) == [*kept, {"n": 3}]


def test_lines_that_are_no_rows_are_left_out(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'{"n": 1}\n\xff\xfe\n[1, 2]\n\nnull\n{"n": 2}\n')
    assert ledger.read(path) == [{"n": 1}, {"n": 2}]


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DeployLabError, match=r"cannot write the ledger .*ledger\.jsonl: .*free some disk space"):
        ledger.append([{}], tmp_path / "file" / "ledger.jsonl")
    with pytest.raises(DeployLabError, match="cannot read the ledger"):
        ledger.read(tmp_path)


def test_a_full_disk_is_a_clear_error():
    try:
        open("/dev/full", "wb").close()
    except OSError:
        pytest.skip("/dev/full, a device that is always full, exists on Linux only")
    with pytest.raises(DeployLabError, match="No space left on device"):
        ledger.append([{"n": 1}], "/dev/full")


def _append_many(path, name):
    for n in range(40):
        ledger.append([{"name": name, "n": n, "padding": "x" * 3000}], path)


def test_processes_that_append_together_do_not_mix(tmp_path):
    path = tmp_path / "ledger.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append_many, args=(path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    rows = ledger.read(path)
    assert [row["n"] for row in rows if row["name"] == "a"] == list(range(40))
    assert [row["n"] for row in rows if row["name"] == "b"] == list(range(40))
