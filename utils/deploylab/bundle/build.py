"""Put a bundle together: in a folder beside its place, which an interrupted run leaves to the next; then move it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deploylab
from deploylab import engines as registry
from deploylab import paths
from deploylab.bench.progress import Progress
from deploylab.boards import index
from deploylab.boards.index import Pin
from deploylab.bundle import manifest, wheels
from deploylab.bundle.targets import Target
from deploylab.errors import BundleError, DeployLabError
from deploylab.serving import artifacts

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MODEL, PRECISION = "signnet", "fp32"
INSTALLER = ("install.sh", "README.md")
EXTRAS = ("dev",)
_BUILT = ("build/web/site", "build/web/stamp")
"""What git does not track but a course without a network cannot make: the page of lab 04, if it was built here."""
_BYTES_A_PYTHON = {"runtimes": 200e6, "course": 900e6, "cuda": 4.5e9}
_BYTES_OF_THE_COURSE = 100e6
_UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class Plan:
    """What to put into a bundle, and where. ``engines`` empty: all that the target can run and that convert here."""

    target: Target
    folder: Path
    engines: tuple[str, ...] = ()
    extras: tuple[str, ...] = EXTRAS


def build(plan: Plan, progress: Progress = lambda done, total, text: None) -> dict[str, Any]:
    """Make the bundle and return its manifest. Interrupted, it keeps what was fetched for the next time.

    Raises :class:`BundleError`, or :class:`BoardError` where the package index is not reached.
    """
    tracked = _tracked()
    _require_place(plan.folder)
    _require_engines(plan)
    try:
        with _unfinished(plan.folder) as draft:
            facts = _fill(draft, plan, tracked, progress)
            manifest.write(draft, facts, progress)
            _put_in_place(draft, plan.folder)
    except OSError as error:
        hint = "free some space" if error.errno == errno.ENOSPC else "choose another folder with --to"
        raise BundleError(f"cannot write the bundle {plan.folder}: {error.strerror or error}; {hint}") from error
    return manifest.read(plan.folder)


def _fill(draft: Path, plan: Plan, tracked: Sequence[str], progress: Progress) -> dict[str, Any]:
    target = plan.target
    pinned = {}
    for python in target.pythons:
        progress(0, 1, f"resolving the packages for Python {python}")
        pinned[python] = wheels.pinned(target, python, plan.engines or tuple(index.runtimes()), plan.extras)
    _require_space(draft, target, pinned)
    made, left_out = _artifacts(draft, _engines(plan, pinned), plan.engines, progress)
    installed = 0
    kept: set[Path] = set()
    for python, pins in pinned.items():
        found = wheels.fetch(pins, draft / "wheels", target, python, lambda *said, python=python: progress(*said))
        _write(draft / "requirements" / f"{python}.txt", wheels.lock(pins, found))
        installed = max(installed, wheels.unpacked_bytes(found))
        kept |= set(found)
    for path in set((draft / "wheels").iterdir()) - kept:
        path.unlink()
    progress(0, 1, "copying the course")
    _copy_course(draft, tracked, target)
    needed = installed + _size(draft / "course") + _size(draft / "artifacts")
    _write(draft / "target.sh", _target_file(target, plan.extras, needed))
    for name in INSTALLER:
        shutil.copyfile(paths.root() / "hardware" / "bundle" / name, draft / name)
    return {
        "target": target.name,
        "title": target.title,
        "machine": target.machine,
        "glibc": f"2.{target.glibc}",
        "pythons": list(target.pythons),
        "contents": target.kind,
        "extras": list(plan.extras) if target.course else [],
        "artifacts": made,
        "left_out": left_out,
        "installed_bytes": needed,
        "version": deploylab.__version__,
        **_revision(),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _require_place(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        try:
            manifest.read(folder)
        except BundleError as error:
            raise BundleError(f"{error}; nothing there was touched: choose another folder with --to") from error


def _require_engines(plan: Plan) -> None:
    known = index.runtimes()
    unknown = [name for name in plan.engines if name not in known]
    if unknown:
        raise BundleError(f"--engines {', '.join(unknown)}: a bundle has models for {', '.join(known)}")
    for name in plan.engines:
        registry.get(name).require()


def _require_space(draft: Path, target: Target, pinned: dict[str, list[Pin]]) -> None:
    needed = _BYTES_OF_THE_COURSE
    for pins in pinned.values():
        cuda = any(pin.name.startswith("nvidia-") for pin in pins)
        needed += _BYTES_A_PYTHON["cuda" if cuda else target.kind]
    needed -= _size(draft)
    free = shutil.disk_usage(draft).free
    if free < needed:
        raise BundleError(
            f"{draft.parent} has {free / 1e9:.1f} GB free, the bundle needs about {needed / 1e9:.1f} GB more; "
            "free some space or choose another folder with --to"
        )


def _engines(plan: Plan, pinned: dict[str, list[Pin]]) -> list[str]:
    """The engines to convert for: those that were named, else all whose packages every Python of the target gets."""
    brought = set.intersection(*({pin.name for pin in pins} for pins in pinned.values()))
    runnable = [name for name, needed in index.runtimes().items() if needed <= brought]
    lacking = [name for name in plan.engines if name not in runnable]
    if lacking:
        raise BundleError(
            f"--engines {', '.join(lacking)}: their packages are not in this bundle; add the extra that has them, "
            "such as --extras dev,mobile"
        )
    return list(plan.engines) or runnable


def _artifacts(
    draft: Path, engines: Sequence[str], required: Sequence[str], progress: Progress
) -> tuple[list[str], list[str]]:
    """Copies of the converted models, and a line for each that cannot be had here."""
    folder = draft / "artifacts"
    shutil.rmtree(folder, ignore_errors=True)
    made, left_out = [], []
    for number, name in enumerate(engines):
        progress(number, len(engines), f"converting {MODEL} for {name}")
        try:
            source = artifacts.prepare(MODEL, name, PRECISION)
        except DeployLabError as error:
            if name in required:
                raise
            left_out.append(f"the model for {name}: {error}")
            continue
        shutil.copytree(source, folder / f"{MODEL}-{name}-{PRECISION}")
        made.append(f"{MODEL}-{name}-{PRECISION}")
    return made, left_out


def _tracked() -> list[str]:
    """The files of the course: those that git tracks."""
    listed = _git("ls-files", "-z")
    if listed is None:
        raise BundleError(
            f"{paths.root()} is no git checkout, and what git tracks is what goes into a bundle; clone the course"
        )
    return [name for name in listed.split("\0") if (paths.root() / name).is_file()]


def _revision() -> dict[str, Any]:
    return {
        "commit": (_git("rev-parse", "HEAD") or "").strip(),
        "modified": bool((_git("status", "--porcelain", "--untracked-files=no") or "").strip()),
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(paths.root()), *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _copy_course(draft: Path, tracked: Sequence[str], target: Target) -> None:
    root, folder = paths.root(), draft / "course"
    shutil.rmtree(folder, ignore_errors=True)
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, folder / name)
    for name in _BUILT if target.course else ():
        if (root / name).is_dir():
            shutil.copytree(root / name, folder / name)
        elif (root / name).is_file():
            shutil.copy2(root / name, folder / name)


def _target_file(target: Target, extras: Sequence[str], needed: int) -> str:
    """What ``install.sh`` must know, as assignments of the shell."""
    settings = {
        "target": target.name,
        "title": target.title,
        "machine": target.machine,
        "glibc": target.glibc,
        "pythons": " ".join(target.pythons),
        "contents": target.kind,
        "extras": ",".join(extras) if target.course else "",
        "needed_mb": round(needed / 1e6) + 50,
    }
    return "# Written by `deploylab bundle`, read by install.sh.\n" + "".join(
        f"{name}='{value}'\n" for name, value in settings.items()
    )


@contextlib.contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """The folder to fill, with what an interrupted run or the bundle that stands there can give it. Kept on failure."""
    draft = folder.with_name(f"{folder.name}{_UNFINISHED}")
    draft.mkdir(parents=True, exist_ok=True)
    with _alone(draft):
        (draft / "wheels").mkdir(exist_ok=True)
        for wheel in (folder / "wheels").glob("*.whl"):
            if not (draft / "wheels" / wheel.name).exists():
                _link(wheel, draft / "wheels" / wheel.name)
        yield draft


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let nobody else fill the folder. The system drops the lock when this process ends, however it ends."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise BundleError(
            f"another `deploylab bundle` is filling {folder}; wait for it, or choose another --to"
        ) from error
    finally:
        os.close(handle)


def _put_in_place(draft: Path, folder: Path) -> None:
    old = folder.with_name(f"{folder.name}{_UNFINISHED}-old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    draft.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
