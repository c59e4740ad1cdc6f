"""Build ncnn's C++ library for the program of lab 22, from the source that the package index carries: ``.envs/ncnn``.

    python tools/ncnn_library.py            fetch and build; returns at once where nothing is to do
    python tools/ncnn_library.py --lock     pin the source of the version in constraints.txt

The wheel in ``.venv`` holds ncnn for Python only: no headers, and no library to link with. The source is fetched by
uv and pip with pip's own settings, and checked against the hash in ``labs/native/ncnn/source.txt``. What is built is
cut down to what SignNet needs (``labs/native/ncnn/cut_down.cmake``). Without a compiler and CMake the course works all
the same: lab 22 says what it cannot show. Exit code 0 also then; 1 if fetching or building fails, which leaves what was
there before.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import setup_env
from setup_env import ROOT, SetupError, run_step, say

AVX2 = {"avx2", "fma", "f16c"}
PIN_HEADER = """\
# The source that tools/ncnn_library.py builds, in the version of constraints.txt. Made by its option --lock.
"""


class NoCompilerError(SetupError):
    """There is nothing to build C++ with."""


class Library:
    """ncnn as headers and a static library in ``folder``, and the stamp that says what it was built from.

    ``source`` is a folder with ``source.txt`` and ``cut_down.cmake`` (a small one in the tests of this tool).
    """

    def __init__(
        self, source: Path = ROOT / "labs" / "native" / "ncnn", folder: Path = ROOT / ".envs" / "ncnn"
    ) -> None:
        self.pin, self.settings = source / "source.txt", source / "cut_down.cmake"
        self.folder = folder
        self.stamp = folder / "deploylab-built"
        self.drafts = folder.with_name(folder.name + "-unfinished")

    def ensure(self) -> None:
        """Fetch and build what is not up to date. Raises :class:`SetupError` saying what to do."""
        if self.is_current():
            return
        require_compiler()
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with setup_env.alone_in(self.folder.parent):
            if not self.is_current():
                try:
                    self._make()
                finally:
                    shutil.rmtree(self.drafts, ignore_errors=True)

    def is_current(self) -> bool:
        try:
            return self.stamp.read_text() == self.fingerprint()
        except OSError:
            return False

    def fingerprint(self) -> str:
        """What the library depends on. Its kernels are for one kind of processor."""
        digest = hashlib.sha256(self.pin.read_bytes() + self.settings.read_bytes())
        return f"{digest.hexdigest()} {platform.system()} {platform.machine()} {' '.join(processor_options())}\n"

    def pinned(self) -> tuple[str, str]:
        """The requirement (``ncnn==1.0``) and the SHA-256 of its source archive."""
        return re.search(r"^(\S+==\S+) --hash=sha256:(\w+)$", self.pin.read_text(), re.MULTILINE).groups()

    def lock(self) -> None:
        """Pin the source of the version in constraints.txt, with the hash that the package index gives."""
        locked = re.search(r"^ncnn==[^\s;]+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]
        try:
            link = self._link_of(locked)
        finally:
            shutil.rmtree(self.drafts, ignore_errors=True)
        self.pin.write_text(f"{PIN_HEADER}{locked} --hash=sha256:{link.rpartition('=')[2]}\n")

    def _make(self) -> None:
        say(f"Setting up the C++ library of ncnn in {self.folder} (lab 22)")
        shutil.rmtree(self.drafts, ignore_errors=True)
        archive = self._archive()
        unpacked, ready = self.drafts / "source", self.drafts / "ready"
        with tarfile.open(archive) as file:
            file.extractall(unpacked, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        self._build(next(unpacked.iterdir()), ready)
        shutil.copyfile(archive, ready / archive.name)  # so that another build needs no network
        (ready / self.stamp.name).write_text(self.fingerprint())
        if self.folder.exists():
            setup_env.remove_folder(self.folder)
        ready.rename(self.folder)
        say("Ready.")

    def _build(self, source: Path, prefix: Path) -> None:
        build, version = self.drafts / "build", self.pinned()[0].rpartition(".")[2]
        configure = [
            *("cmake", "--log-level=ERROR", "-Wno-dev", f"-DNCNN_SOURCE={source.as_posix()}"),
            *("-C", self.settings, "-S", source, "-B", build),
            *(f"-DNCNN_VERSION={version}", f"-DCMAKE_INSTALL_PREFIX={prefix.as_posix()}", *processor_options()),
        ]
        run_step("Configuring ncnn", configure)
        run_step(
            "Building ncnn, about a minute",
            ["cmake", "--build", build, "--config", "Release", "--parallel", str(os.cpu_count() or 1)],
        )
        run_step("Installing ncnn", ["cmake", "--install", build, "--config", "Release"])

    def _archive(self) -> Path:
        """The source archive with the pinned hash: the one kept beside the library, else a new one."""
        requirement, sha256 = self.pinned()
        for kept in self.folder.glob("*.tar.gz"):
            if hashlib.sha256(kept.read_bytes()).hexdigest() == sha256:
                return kept
        link = self._link_of(requirement)
        if not link.endswith(sha256):
            raise SetupError(
                f"The package index offers another source of {requirement} than {self.pin.name} pins\n"
                f"({link.rpartition('=')[2]} instead of {sha256}). It is not used."
            )
        target = self.drafts / "archive"
        download = ["download", "--no-deps", "--no-build-isolation", "--dest", target, link]
        run_step("Fetching the source of ncnn", [sys.executable, "-m", "pip", "--disable-pip-version-check", *download])
        return next(target.iterdir())

    def _link_of(self, requirement: str) -> str:
        """Where the package index has the source of a requirement, with its hash.

        pip alone cannot fetch it: ncnn names the version of its source after the day of the build, so pip finds
        another version inside than outside and refuses. By its URL it takes it.
        """
        self.drafts.mkdir(parents=True, exist_ok=True)
        wanted, found = self.drafts / "wanted.txt", self.drafts / "pylock.toml"
        wanted.write_text(requirement + "\n")
        settings = setup_env.pip_settings(sys.executable)
        no_index = ["--no-index"] if setup_env.truthy(settings.get("no-index")) else []
        uv = [setup_env.venv_tool(Path(sys.prefix), "uv"), "pip", "compile", "--quiet", "--no-config", "--no-header"]
        run_step(
            f"Looking for the source of {requirement}",
            [*uv, "--no-deps", *no_index, "--format", "pylock.toml", wanted, "-o", found],
            env=setup_env.uv_environment(settings, os.environ),
        )
        source = re.search(r'^sdist = \{.*?url = "([^"]+)".*?sha256 = "(\w+)"', found.read_text(), re.MULTILINE)
        if not source:
            raise SetupError(f"Your package index has no source of {requirement}, only what is already built.")
        return f"{source[1]}#sha256={source[2]}"


def processor_options() -> list[str]:
    """Options for CMake where this processor lacks what ``cut_down.cmake`` takes for granted."""
    from deploylab import machine

    if machine.architecture() != "x86_64" or set(machine.features()) >= AVX2:
        return []
    return ["-DNCNN_AVX=OFF"]


def require_compiler() -> None:
    """Raises :class:`NoCompilerError`."""
    missing = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
    if missing:
        raise NoCompilerError(f"{' and '.join(missing)} not found")


NO_COMPILER = """\
The C++ program of lab 22 is not built: {error}. The rest of the lab works without it.
For the program install a C++ compiler and CMake (Debian/Ubuntu: sudo apt install g++ cmake), then: make native"""
FAILED = """
The C++ library of ncnn is not built: {error}
The rest of lab 22 works without it; `make native` tries again."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build ncnn's C++ library for lab 22.")
    parser.add_argument("--lock", action="store_true", help="pin the source of the version in constraints.txt")
    options = parser.parse_args(arguments)
    library = Library()
    try:
        library.lock() if options.lock else library.ensure()
    except NoCompilerError as error:
        say(NO_COMPILER.format(error=error))
    except (SetupError, subprocess.SubprocessError, OSError) as error:
        print(FAILED.format(error=error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again; it starts afresh.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
