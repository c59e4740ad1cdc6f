"""Runs in an emulated board under the plugin: ``python -m deploylab.boards.counted ENGINE ARTIFACT INPUTS RUNS``.

Marks the start and the end of each of ``RUNS`` inferences on the arrays of ``INPUTS`` (a ``.npz`` file, in order), and
prints which code is where in memory: lines of ``/proc/self/maps``.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from pathlib import Path

import numpy as np

MARK = 0x7ACE
"""A number that no system call has; :file:`icount.c` knows it too."""


def main(engine: str, artifact: str, inputs: str, runs: str) -> None:
    from deploylab import engines

    session = engines.get(engine).load(Path(artifact), threads=1)
    with np.load(inputs) as file:
        arrays = [np.ascontiguousarray(file[name]) for name in file.files]
    mark = ctypes.CDLL(None).syscall
    session(*arrays)
    gc.disable()
    for _ in range(int(runs)):
        mark(MARK, 0)
        session(*arrays)
        mark(MARK, 1)
    print(*(line for line in Path("/proc/self/maps").read_text().splitlines() if " r-xp " in line), sep="\n")
    sys.stdout.flush()
    os._exit(0)  # as the worker does: engines' destructors may hang


if __name__ == "__main__":
    main(*sys.argv[1:])
