"""A busy neighbour on purpose: to see what other work on the machine does to a measurement."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

_BURN = """
import sys, time
end = time.monotonic() + float(sys.argv[1])
print(flush=True)
while time.monotonic() < end:
    pass
"""


@contextlib.contextmanager
def busy_neighbour(processes: int, at_most_seconds: float = 30.0) -> Iterator[None]:
    """Keep ``processes`` cores busy while the block runs.

    The processes end with the block, and by themselves after ``at_most_seconds`` in case this process is killed.
    """
    burners = []
    try:
        for _ in range(processes):
            command = [sys.executable, "-S", "-c", _BURN, str(at_most_seconds)]
            burners.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE))
        for burner in burners:
            burner.stdout.readline()  # it is at work
        time.sleep(0.05)
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
            burner.stdout.close()
