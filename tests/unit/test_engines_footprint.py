"""What a board must carry: packages, their dependencies, and the part of them that a process has loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from deploylab import engines, packages
from deploylab.engines import footprint

INSTALLED = [name for name in engines.names() if engines.get(name).available().ok]
LINUX = sys.platform == "linux"


def fake_package(folder: Path, name: str, files: dict[str, bytes], requires: tuple[str, ...] = ()) -> None:
    """A distribution as an installer leaves it."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "\n".join(
            ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *(f"Requires-Dist: {r}" for r in requires)]
        )
        + "\n"
    )
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in [*files, "gone.py"]))


@pytest.fixture
def fakes(tmp_path, monkeypatch) -> Path:
    """``Fake.Top`` needs ``fake-low`` here and ``fake-other`` elsewhere; ``fake-low`` needs ``fake_top`` back."""
    fake_package(
        tmp_path,
        "Fake.Top",
        {"fake_top/__init__.py": b"x = 1\n" * 10, "fake_top/unused.py": b"#" * 1000, "fake_top/a.pyc": b"#" * 9},
        ("fake-low>=1", "fake-other; sys_platform == 'nowhere'", "fake-more; extra == 'more'", "fake-missing"),
    )
    fake_package(tmp_path, "fake-low", {"fake_low.py": b"y = 2\n"}, ("fake_top",))
    fake_package(tmp_path, "fake-more", {"fake_more.py": b"z = 33\n"})
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_what_is_required_is_followed_to_the_end(fakes):
    assert list(packages.required(["fake_top"])) == ["fake-top", "fake-low"]
    assert list(packages.required(["Fake-Top[more]"])) == ["fake-top", "fake-low", "fake-more"]
    assert packages.required(["fake-missing"]) == {}


def test_bytes_are_those_of_the_files_without_bytecode(fakes):
    found = packages.required(["fake-top", "fake-low"])
    assert packages.installed_bytes(found["fake-top"]) == 60 + 1000
    assert packages.installed_bytes(found["fake-low"]) == 6


@pytest.mark.skipif(not LINUX, reason="only Linux lists a process's libraries")
def test_in_use_is_what_the_process_has_opened(fakes, monkeypatch):
    def used() -> int:
        return packages.bytes_in_use(packages.required(["fake-top"])["fake-top"], packages.opened_files())

    assert used() == 0
    import fake_top

    assert used() == 60
    monkeypatch.delitem(sys.modules, "fake_top")
    assert fake_top.x == 1


def test_a_footprint_tells_own_packages_from_dependencies(fakes):
    class Fake:
        runtime_packages = ("fake_top",)

    found = footprint.measure(Fake())
    assert found.own == {"fake-top": 1060}
    assert found.dependencies == {"fake-low": 6}
    assert found.bytes == 1066
    assert found.in_use == (0 if LINUX else None)


@pytest.mark.parametrize("name", engines.names())
def test_every_engine_names_what_a_board_needs(name):
    assert engines.get(name).runtime_packages


@pytest.mark.parametrize("name", INSTALLED)
def test_every_engine_that_is_installed_can_be_weighed(name):
    engine = engines.get(name)
    found = footprint.measure(engine)
    assert set(found.own) == {packages.plain(package) for package in engine.runtime_packages}
    assert all(size > 0 for size in found.own.values())
    assert not set(found.own) & set(found.dependencies)
    for package in found.own:
        assert metadata.version(package)


@pytest.mark.skipif(not LINUX, reason="only Linux lists a process's libraries")
def test_a_loaded_engine_uses_a_part_of_its_files():
    code = (
        "import json, onnxruntime; from deploylab import engines; from deploylab.engines import footprint;"
        "found = footprint.measure(engines.get('onnxruntime')); print(json.dumps([found.in_use, found.bytes]))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    in_use, everything = json.loads(told.stdout)
    assert 1_000_000 < in_use < everything
