"""A file is whole: the old content or all of the new one, and no draft is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploylab import files
from deploylab.errors import DeployLabError


def test_content_takes_the_place_of_what_was_there(tmp_path: Path):
    path = tmp_path / "new" / "page.md"
    files.write(path, "Grüße\n")
    files.write(str(path), b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_can_be_read_by_others_as_any_new_file_can(tmp_path: Path):
    (tmp_path / "usual").write_text("")
    files.write(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_half_way_leaves_the_old_content_and_nothing_else(tmp_path: Path, error: type[BaseException]):
    path = tmp_path / "table.json"
    path.write_text("old")

    def fail() -> None:
        with files.draft(path) as unfinished:
            unfinished.write_text("ne")
            assert unfinished.suffix == ".json"
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named_with_the_reason(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DeployLabError, match=r"cannot write .*page\.md: (Not a directory|File exists); choose another"):
        files.write(tmp_path / "file" / "page.md", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DeployLabError, match=r"cannot write .*folder: Is a directory; choose another place"):
        files.write(tmp_path / "folder", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
