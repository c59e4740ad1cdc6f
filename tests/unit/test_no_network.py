"""The tour through every installed engine, in a network namespace without any interface, with few folders writable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import setup_env
from deploylab import engines

TOOLS = Path(setup_env.__file__).parent
# Everything is read-only but the folders named; `/` is a mount point of its own in the new namespace.
READ_ONLY = """
mount --make-rprivate /
for folder in "$BUILD" "$HOME" "$TMPDIR"; do mount --bind "$folder" "$folder"; done
mount -o remount,bind,ro /
"""
TOUR = """
import socket, sys, setup_env
assert [name for _, name in socket.if_nameindex()] == ["lo"], "this is no empty network namespace"
environment = setup_env.Environment()
environment.ensure, environment.python = lambda extras=(): None, sys.executable  # set up already: this runs in it
# Of each step a little: what it touches is looked at here, not what it measures.
sys.exit(setup_env.tour(environment, None, "--samples", "30", "--rounds", "2", "--no-accuracy"))
"""


def files_in(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every file but Python's own bytecode."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


@pytest.mark.timeout(1300)
def test_the_tour_needs_no_network_and_writes_only_to_build_and_its_temporary_folder(tmp_path: Path):
    unshare = ["unshare", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("this machine does not permit `unshare --map-root-user --net --mount --pid`")
    home, temporary, build = tmp_path / "home", tmp_path / "tmp", setup_env.ROOT / "build"
    for folder in (home, temporary, build):
        folder.mkdir(exist_ok=True)
    page = build / "tour.html"
    page.unlink(missing_ok=True)
    packages = Path(pytest.__file__).parents[1]
    before = files_in(packages)

    environ = {**os.environ, "HOME": str(home), "TMPDIR": str(temporary), "BUILD": str(build)}
    script = [*unshare, "sh", "-ec", READ_ONLY + 'exec "$0" "$@"', sys.executable, "-c", TOUR]
    done = subprocess.run(script, cwd=TOOLS, env=environ, capture_output=True, text=True, timeout=1200)

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    shown = page.read_text(encoding="utf-8")
    installed = [name for name in engines.names() if engines.get(name).available().ok]
    assert [name for name in installed if f"<tr><th>{name}</th>" not in shown] == []
    assert [name for name in installed if f"<tr class=failed><th>{name}</th>" in shown] == []
    assert list(home.rglob("*")) == []
    assert files_in(packages) == before
