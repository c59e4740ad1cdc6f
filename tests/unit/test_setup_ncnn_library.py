"""The set-up of lab 22's C++ library, with a tiny source: nothing to do twice, nothing lost by a failure."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import ncnn_library
import setup_env
from ncnn_library import Library
from setup_env import ROOT, SetupError

missing = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
needs_cmake = pytest.mark.skipif(bool(missing), reason=f"needs {' and '.join(missing)}")

CMAKE = """\
cmake_minimum_required(VERSION 3.10)
project(tiny LANGUAGES NONE)
file(WRITE ${CMAKE_BINARY_DIR}/tiny.txt "${NCNN_VERSION} ${SETTING}")
install(FILES ${CMAKE_BINARY_DIR}/tiny.txt DESTINATION include)
"""
SOURCE = {
    "PKG-INFO": "Metadata-Version: 2.2\nName: ncnn\nVersion: 1.0.20010101\n",
    # Names another version than the archive, as ncnn's does.
    "setup.py": 'from setuptools import setup\nsetup(name="ncnn", version="1.0.20020202", py_modules=[])\n',
    "CMakeLists.txt": CMAKE,
}


def pack(index: Path, cmake: str = CMAKE) -> str:
    """A source archive in the folder ``index``; its SHA-256."""
    archive = index / "ncnn-1.0.20010101.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        for name, text in {**SOURCE, "CMakeLists.txt": cmake}.items():
            entry = tarfile.TarInfo(f"ncnn-1.0.20010101/{name}")
            entry.size = len(text.encode())
            file.addfile(entry, io.BytesIO(text.encode()))
    return hashlib.sha256(archive.read_bytes()).hexdigest()


def pin(library: Library, sha256: str) -> None:
    library.pin.write_text(f"# A comment.\nncnn==1.0.20010101 --hash=sha256:{sha256}\n")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of the package index there is."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def library(tmp_path: Path, index: Path) -> Library:
    source = tmp_path / "source"
    source.mkdir()
    (source / "cut_down.cmake").write_text('set(SETTING one CACHE STRING "")\n')
    library = Library(source, tmp_path / "envs" / "ncnn")
    pin(library, pack(index))
    return library


def built(library: Library) -> str:
    return (library.folder / "include" / "tiny.txt").read_text()


@needs_cmake
def test_it_is_built_once_and_again_when_a_setting_changes_and_a_failure_leaves_it(library, index, capsys):
    library.ensure()
    assert built(library) == "20010101 one"
    capsys.readouterr()
    library.ensure()
    assert capsys.readouterr().out == ""

    shutil.rmtree(index)  # the source is kept beside the library
    library.settings.write_text('set(SETTING two CACHE STRING "")\n')
    library.ensure()
    assert built(library) == "20010101 two"

    index.mkdir()
    pin(library, pack(index, 'message(FATAL_ERROR "no")'))
    with pytest.raises(SetupError, match="Configuring ncnn failed"):
        library.ensure()
    assert built(library) == "20010101 two"
    assert not library.is_current()
    assert sorted(path.name for path in library.folder.parent.iterdir()) == ["ncnn"]


@needs_cmake
def test_another_source_than_the_pinned_one_is_refused(library, index, monkeypatch, capsys):
    right = library.pinned()[1]
    pin(library, "0" * 64)
    monkeypatch.setattr(ncnn_library, "Library", lambda: library)
    assert ncnn_library.main([]) == 1
    said = capsys.readouterr().err
    assert "is not built: The package index offers another source" in said
    assert f"({right} instead of {'0' * 64})" in said
    assert "`make native` tries again" in said
    assert list(library.folder.parent.iterdir()) == []

    library.folder.mkdir()
    (library.folder / "kept.tar.gz").write_bytes(b"damaged")
    pin(library, right)
    assert ncnn_library.main([]) == 0
    assert library.is_current()


def test_an_index_without_the_source_is_named(library, index):
    for file in index.iterdir():
        file.unlink()
    if missing:
        with pytest.raises(ncnn_library.NoCompilerError):
            library.ensure()
        return
    with pytest.raises(SetupError, match=r"Looking for the source of ncnn==1\.0\.20010101 failed"):
        library.ensure()
    assert not library.folder.exists()


def test_without_a_compiler_it_says_what_to_install_and_that_the_rest_works(library, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(ncnn_library, "Library", lambda: library)
    assert ncnn_library.main([]) == 0
    said = capsys.readouterr().out
    assert "cmake and c++ not found" in said
    assert "sudo apt install g++ cmake" in said
    assert not library.folder.parent.exists()


def test_an_old_processor_gets_kernels_that_it_can_run(monkeypatch, library):
    from deploylab import machine

    monkeypatch.setattr(machine, "architecture", lambda: "x86_64")
    monkeypatch.setattr(machine, "features", lambda: ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f"))
    new = library.fingerprint()
    assert ncnn_library.processor_options() == []
    monkeypatch.setattr(machine, "features", lambda: ("sse4_2", "avx"))
    assert ncnn_library.processor_options() == ["-DNCNN_AVX=OFF"]
    assert library.fingerprint() != new
    monkeypatch.setattr(machine, "architecture", lambda: "aarch64")
    assert ncnn_library.processor_options() == []


def test_the_pinned_source_is_the_version_of_the_lock():
    locked = re.search(r"^ncnn==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]
    assert Library().pinned()[0] == locked, "run python tools/ncnn_library.py --lock"


def test_make_knows_it():
    assert "native" in setup_env.COMMANDS
    listed = subprocess.run([sys.executable, ROOT / "tools" / "setup_env.py", "--help"], capture_output=True, text=True)
    assert "ncnn's C++ library" in listed.stdout
