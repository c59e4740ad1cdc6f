"""Which machines a bundle is made for, and what it brings them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from deploylab.errors import BundleError

PYTHONS = ("3.10", "3.11", "3.12", "3.13")


@dataclass(frozen=True)
class Target:
    """A kind of machine: ``machine`` as ``uname -m`` says it, ``glibc`` the minor version of its oldest C library.

    ``course`` says whether it gets PyTorch, the converters and the notebooks' packages, or only what runs converted
    models (:file:`hardware/requirements.txt`). Without ``pythons`` it is the version that runs this.
    """

    name: str
    title: str
    machine: str
    glibc: int
    pythons: tuple[str, ...] = ()
    course: bool = False

    @property
    def kind(self) -> str:
        return "course" if self.course else "runtimes"


TARGETS = {
    target.name: target
    for target in (
        Target("aarch64-jetpack6", "NVIDIA Jetson, JetPack 6 (Ubuntu 22.04)", "aarch64", 35, ("3.10",)),
        Target("aarch64-pi", "Raspberry Pi OS 64-bit, bookworm or trixie", "aarch64", 36, ("3.11", "3.13")),
        Target("x86_64", "PC with 64-bit Linux, such as Ubuntu 22.04 or Debian 12", "x86_64", 35, course=True),
    )
}


def find(name: str, pythons: Sequence[str] = (), light: bool = False) -> Target:
    """The target of that name for these versions of Python; ``light`` leaves PyTorch and the converters out.

    Raises :class:`BundleError` naming what there is.
    """
    if name not in TARGETS:
        known = "; ".join(f"{target.name} ({target.title})" for target in TARGETS.values())
        raise BundleError(f"there is no target {name!r}; there are: {known}")
    unknown = [version for version in pythons if version not in PYTHONS]
    if unknown:
        raise BundleError(f"--python {', '.join(unknown)}: there are packages for {', '.join(PYTHONS)}")
    target = TARGETS[name]
    chosen = tuple(dict.fromkeys(pythons)) or target.pythons or ("{}.{}".format(*sys.version_info),)
    return replace(target, pythons=chosen, course=target.course and not light)
