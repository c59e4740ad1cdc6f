"""Memory that large pictures took goes back to the system; in a process of its own, as the setting is for good."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys, threading
import psutil
from hostile import flat_png
from deploylab.serving import Predictor
from deploylab.serving.memory import unmap_large_blocks

if sys.argv[1] == "set" and not unmap_large_blocks():
    sys.exit("no glibc")
predictor, picture = Predictor.load(), flat_png(8000, 5000)
resident = psutil.Process().memory_info
before = resident().rss
threads = [threading.Thread(target=predictor.predict, args=([picture],)) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print((resident().rss - before) >> 20)
"""


def kept_mib(how: str) -> int:
    """Memory that a process has more after four pictures of 40 million pixels than before."""
    command = [sys.executable, "-c", PROGRAM, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parent)
    if done.stderr.strip() == "no glibc":
        pytest.skip("only glibc has this setting")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_large_pictures_leave_nothing_behind():
    """Left to itself glibc keeps hundreds of MiB here."""
    assert kept_mib("set") < 60
