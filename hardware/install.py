#!/usr/bin/env python3
"""Install what ``requirements.txt`` pins into the Python that runs this, and try every runtime in a process of its own.

Needs nothing but that Python and its pip. Run by the boards' ``setup.sh``; what is installed already is left alone.
A runtime without a wheel for this system is named and left out: the others work without it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUNTIMES = {
    "onnxruntime": "onnxruntime",
    "ncnn": "ncnn",
    "mnn": "MNN",
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "openvino": "openvino",
}
"""Packages that may be missing, each with the module that loads its native code."""
COMMON = "what all need"
_NO_WHEEL = ("No matching distribution found", "from versions: none")


def groups(text: str) -> dict[str, str]:
    """The requirements of each runtime, and of all, as texts for pip. Lines with hashes follow their package."""
    found: dict[str, list[str]] = {COMMON: [], **{name: [] for name in RUNTIMES}}
    current = COMMON
    for line in text.splitlines():
        package = re.match(r"([A-Za-z0-9][\w.-]*)==", line)
        if package:
            name = re.sub(r"[-_.]+", "-", package[1]).lower()
            current = name if name in RUNTIMES else COMMON
        if line.strip() and not line.lstrip().startswith("#"):
            found[current].append(line)
    return {name: "\n".join(lines) + "\n" for name, lines in found.items() if lines}


def install(requirements: Path, wheels: Path | None, runtimes: list[str]) -> bool:
    """Install group by group. False if what all runtimes need cannot be had, or none of them."""
    notes = Path(sys.prefix) / "deploylab-installed.json"
    done = _read(notes)
    installed = []
    for name, text in groups(requirements.read_text(encoding="utf-8")).items():
        if name not in (COMMON, *runtimes):
            continue
        digest = hashlib.sha256(text.encode()).hexdigest()
        if done.get(name) == digest:
            print(f"{name}: installed already")
        else:
            print(f"{name}: installing", flush=True)
            failure = _pip(text, wheels)
            if failure and name == COMMON:
                print(f"error: cannot install {COMMON}:\n{failure}", file=sys.stderr)
                return False
            if failure:
                print(f"{name}: left out; {_reason(failure)}", file=sys.stderr)
                continue
            done[name] = digest
            notes.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
        installed.append(name)
    _make_importable()
    return installed != [COMMON]


def check(runtimes: list[str]) -> bool:
    """Import each runtime in a process of its own, so that one that crashes is named. False if none works."""
    works = 0
    for package in runtimes:
        program = f"import {RUNTIMES[package]}; from importlib import metadata; print(metadata.version({package!r}))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, errors="replace")
        works += done.returncode == 0
        print(f"{package}: {_verdict(done)}", flush=True)
    return works > 0


def _verdict(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode == 0:
        return f"works, version {done.stdout.split()[-1]}"  # MNN greets on stdout
    number = -done.returncode if done.returncode < 0 else done.returncode - 128  # a shell's or an emulator's way
    if number == signal.SIGILL:
        return "CRASHES on import: illegal instruction; this wheel was built for a newer CPU, take another version"
    if number in list(signal.Signals):
        return f"CRASHES on import: {signal.Signals(number).name}"
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return "not installed" if "No module named" in last else f"fails: {last}"


def _pip(text: str, wheels: Path | None) -> str:
    """Run pip on a requirements text; returns what it said if it failed, else an empty text."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
        where = ("--no-index", "--find-links", str(wheels)) if wheels else ()
        # --no-deps: the lock names everything; a stub replaces what openvino's metadata asks for besides.
        checked = ("--no-deps", "--require-hashes", "--only-binary", ":all:")
        command = [sys.executable, "-m", "pip", "install", *quiet, *checked, *where, "-r", file.name]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    return "" if done.returncode == 0 else done.stdout.strip() or f"pip ended with exit code {done.returncode}"


def _reason(failure: str) -> str:
    if any(words in failure for words in _NO_WHEEL):
        return f"the package index has no wheel of it for this Python and C library ({_libc()})"
    return failure.splitlines()[-1]


def _libc() -> str:
    import platform

    return " ".join(platform.libc_ver()).strip() or "unknown"


def _make_importable() -> None:
    """``import deploylab`` finds the checkout; a ``.pth`` file needs no build."""
    path = Path(sysconfig.get_paths()["purelib"]) / "deploylab.pth"
    wanted = f"{HERE.parent / 'utils'}\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != wanted:
        path.write_text(wanted, encoding="utf-8")


def _read(notes: Path) -> dict[str, str]:
    try:
        return json.loads(notes.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def main() -> int:
    parser = argparse.ArgumentParser(description="Install and try the runtimes of a board.")
    parser.add_argument("--requirements", type=Path, default=HERE / "requirements.txt")
    parser.add_argument("--wheels", type=Path, help="install from this folder, without a network")
    parser.add_argument("--check", action="store_true", help="install nothing, only try")
    parser.add_argument("--runtimes", help=f"only these, with commas between: {', '.join(RUNTIMES)}")
    options = parser.parse_args()
    runtimes = [name.strip().lower() for name in options.runtimes.split(",")] if options.runtimes else [*RUNTIMES]
    if unknown := [name for name in runtimes if name not in RUNTIMES]:
        parser.error(f"--runtimes: there is no {', '.join(unknown)}; there are: {', '.join(RUNTIMES)}")
    if options.check:
        return 0 if check(runtimes) else 1
    if sys.prefix == sys.base_prefix:
        print("error: this installs into a virtual environment only; run setup.sh", file=sys.stderr)
        return 1
    return 0 if install(options.requirements, options.wheels, runtimes) else 1


if __name__ == "__main__":
    sys.exit(main())
