"""The packages of a bundle: pinned with their hashes, and fetched from the index that pip is set up for here."""

from __future__ import annotations

import functools
import os
import re
import runpy
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploylab import packages, paths
from deploylab.bench.progress import Progress
from deploylab.boards import index
from deploylab.boards.index import NoWheel, Pin
from deploylab.bundle.manifest import sha256
from deploylab.bundle.targets import Target
from deploylab.errors import BundleError

_AT_ONCE = 8
_OLDEST_OF_UV = 28


def pinned(target: Target, python: str, engines: Sequence[str], extras: Sequence[str]) -> list[Pin]:
    """The packages that a target with this version of Python needs, and pip to install them with.

    A course gets the core and ``extras``, resolved as ``make setup`` does it, so for each release of this Python: two
    pins of one package have markers that tell them apart. Else the board's requirements without the packages of other
    engines than ``engines``. Raises :class:`BundleError`.
    """
    installer = index.pins(paths.root() / "hardware" / "bundle" / "requirements.txt")
    if target.course:
        return _resolved(target, _releases(python), extras)
    brought = index.runtimes()
    unused = set().union(*brought.values()) - set().union(*(brought[name] for name in engines))
    return [*installer, *(pin for pin in index.pins() if pin.holds(python) and pin.name not in unused)]


def fetch(
    pins: Sequence[Pin], folder: Path, target: Target, python: str, progress: Progress = lambda done, total, text: None
) -> list[Path]:
    """Put the wheel of every pin into ``folder``; what is there already is not fetched again. Returns the wheels.

    Raises :class:`BundleError` naming a package that has no wheel for the target, :class:`BoardError` without an index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = _present(pins, folder, target, python)
    missing = [pin for pin in pins if pin not in found]
    while missing:
        release = _release(missing[0], python)
        group = [pin for pin in missing if _release(pin, python) == release][:_AT_ONCE]
        progress(len(pins) - len(missing), len(pins), f"fetching {', '.join(pin.name for pin in group)}")
        _download(group, folder, target, release)
        missing = [pin for pin in missing if pin not in group]
    found = _present(pins, folder, target, python)
    lost = [pin.name for pin in pins if pin not in found]
    if lost:
        raise BundleError(f"pip said nothing, but there is no wheel of {', '.join(lost)} in {folder}")
    return [found[pin] for pin in pins]


def _release(pin: Pin, python: str) -> str:
    """The first release of a version of Python that needs a package; an earlier one may be too old for it."""
    bound = re.search(r"python_full_version >= '([\d.]+)'", pin.marker)
    return bound[1] if bound and bound[1].startswith(f"{python}.") else python


def lock(pins: Sequence[Pin], wheels: Sequence[Path]) -> str:
    """A requirements file with the one hash of the one wheel that the bundle has of each package."""
    lines = []
    for pin, wheel in zip(pins, wheels, strict=True):
        needed = f"{pin.name}=={pin.version} ; {pin.marker}" if pin.marker else f"{pin.name}=={pin.version}"
        lines.append(f"{needed} --hash=sha256:{sha256(wheel)}\n")
    return "".join(lines)


def unpacked_bytes(wheels: Sequence[Path]) -> int:
    """Bytes of what installing them writes."""
    total = 0
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            total += sum(each.file_size for each in archive.infolist())
    return total


def _present(pins: Sequence[Pin], folder: Path, target: Target, python: str) -> dict[Pin, Path]:
    """The wheels in a folder that fit a pin, its hashes and the target."""
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename
    from packaging.version import Version

    wanted = {(pin.name, Version(pin.version)): pin for pin in pins}
    found = {}
    for path in sorted(folder.glob("*.whl")):
        try:
            name, version, _, tags = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        pin = wanted.get((packages.plain(name), version))
        if pin and tags & _tags(target, python) and sha256(path) in pin.text:
            found[pin] = path
    return found


@functools.cache
def _tags(target: Target, python: str) -> frozenset[Any]:
    from packaging import tags

    version = tuple(int(part) for part in python.split("."))
    platforms = [*index.platforms(target.machine, target.glibc), f"linux_{target.machine}"]
    interpreter = f"cp{python.replace('.', '')}"
    return frozenset(
        [*tags.cpython_tags(version, platforms=platforms), *tags.compatible_tags(version, interpreter, platforms)]
    )


def _download(pins: Sequence[Pin], folder: Path, target: Target, python: str) -> None:
    with tempfile.TemporaryDirectory(prefix="deploylab-") as scratch:
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text("".join(f"{pin.text}\n" for pin in pins), encoding="utf-8")
        try:
            index.download(wanted, folder, machine=target.machine, python=python, glibc=target.glibc)
        except NoWheel as error:
            what = (
                "another --python" if target.course else "another --python, or --engines without the one that needs it"
            )
            raise BundleError(
                f"there is no wheel of {error.requirement} for Python {python} on {target.machine} with glibc "
                f"2.{target.glibc}; choose {what}. What was fetched is kept.\n  {error}"
            ) from error


def _releases(python: str) -> list[str]:
    """The first release of a version of Python, and those from which on constraints.txt has other packages."""
    text = (paths.root() / "constraints.txt").read_text(encoding="utf-8")
    named = re.findall(rf"""['"]({re.escape(python)}\.\d+)['"]""", text)
    return sorted({f"{python}.0", *named}, key=lambda release: int(release.rpartition(".")[2]))


def _resolved(target: Target, releases: Sequence[str], extras: Sequence[str]) -> list[Pin]:
    """The course's packages for the target, in the versions of constraints.txt."""
    needed: dict[Pin, list[int]] = {}
    for place, release in enumerate(releases):
        for pin in _resolved_for(target, release, extras):
            needed.setdefault(pin, []).append(place)
    return [replace(pin, marker=_marker(releases, min(places), max(places))) for pin, places in needed.items()]


def _marker(releases: Sequence[str], first: int, last: int) -> str:
    """Says: for the releases from the first to before the one after the last."""
    bounds = [f"python_full_version >= '{releases[first]}'"] if first else []
    bounds += [f"python_full_version < '{releases[last + 1]}'"] if last + 1 < len(releases) else []
    return " and ".join(bounds)


def _resolved_for(target: Target, python: str, extras: Sequence[str]) -> list[Pin]:
    root = paths.root()
    with tempfile.TemporaryDirectory(prefix="deploylab-") as scratch:
        tools, draft = Path(scratch) / "tools.in", Path(scratch) / "requirements.txt"
        tools.write_text("pip\nsetuptools\nuv\n", encoding="utf-8")
        platform = f"{target.machine}-manylinux_2_{max(target.glibc, _OLDEST_OF_UV)}"
        command = [
            *(_uv(), "pip", "compile", "pyproject.toml", str(tools), "--constraint", "constraints.txt"),
            *("--constraint", "hardware/bundle/requirements.txt", "--generate-hashes", "--quiet"),
            *("--python-version", python, "--python-platform", platform, "--output-file", str(draft)),
            *("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"),
            *(part for extra in extras for part in ("--extra", extra)),
        ]
        env, no_index = _pips_settings()
        done = subprocess.run(
            [*command, *no_index], cwd=root, env=env, capture_output=True, text=True, errors="replace"
        )
        if done.returncode:
            said = "\n  ".join(done.stderr.strip().splitlines()[-6:])
            raise BundleError(
                f"the packages for Python {python} cannot be resolved; is the package index reachable? uv:\n  {said}"
            )
        return index.pins(draft)


def _uv() -> str:
    found = Path(sys.executable).with_name("uv")
    if not found.is_file():
        raise BundleError("a bundle with the course needs uv beside this Python: pip install -c constraints.txt uv")
    return str(found)


def _pips_settings() -> tuple[dict[str, str], list[str]]:
    """uv's environment and options, so that it looks where pip would, as in ``make setup``."""
    setup = runpy.run_path(str(paths.root() / "tools" / "setup_env.py"))
    settings = setup["pip_settings"](sys.executable)
    no_index = ["--no-index"] if setup["truthy"](settings.get("no-index")) else []
    return setup["uv_environment"](settings, os.environ), no_index
