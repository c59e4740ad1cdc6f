"""What a board must carry besides the model to load it: an engine's packages and what they require.

Measured from the files that are installed here. An installed Python package is an upper bound: it holds the converter,
kernels for every CPU of its family and often other devices' plug-ins. A build from source for one board, without Python
and with the operators of one model only, can be many times smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploylab import packages

if TYPE_CHECKING:
    from deploylab.engines.base import Engine


@dataclass(frozen=True)
class Footprint:
    """Bytes by package: the engine's own, and the third-party packages that these require, in turn.

    ``in_use`` is how many of all these bytes lie in Python modules and shared libraries that the measuring process had
    loaded; None where the system cannot tell.
    """

    own: Mapping[str, int]
    dependencies: Mapping[str, int]
    in_use: int | None = None

    @property
    def bytes(self) -> int:
        """The engine's own packages and their dependencies."""
        return sum(self.own.values()) + sum(self.dependencies.values())


def measure(engine: Engine) -> Footprint:
    """The footprint of an installed engine. Call it where the engine has run, for ``in_use`` to mean something."""
    own = {packages.plain(name) for name in engine.runtime_packages}
    found = packages.required(engine.runtime_packages)
    sizes = {name: packages.installed_bytes(distribution) for name, distribution in sorted(found.items())}
    opened = packages.opened_files()
    in_use = None
    if opened is not None:
        in_use = sum(packages.bytes_in_use(distribution, opened) for distribution in found.values())
    return Footprint(
        {name: size for name, size in sizes.items() if name in own},
        {name: size for name, size in sizes.items() if name not in own},
        in_use,
    )
