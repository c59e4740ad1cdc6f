"""Other people's model servers, for lab 05: which of them can run here, and how much they install."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib import util
from pathlib import Path

from deploylab import packages as installed
from deploylab import paths
from deploylab.errors import InputError

JAVA = 17


def missing(server: str) -> str | None:
    """Why ``server`` (torchserve, triton, ray, tensorflow-serving) cannot run here, for a person; None if it can."""
    if server not in _LOOKED_FOR:
        raise InputError(f"there is no server {server!r}; choose from {', '.join(_LOOKED_FOR)}")
    return _LOOKED_FOR[server]()


def triton_python() -> Path:
    """The interpreter of the environment that ``make servers`` makes for Triton; it may not exist."""
    return paths.root() / ".envs" / "triton" / "bin" / "python"


def beside_python(environ: dict[str, str] | None = None) -> dict[str, str]:
    """Environment in which ``python`` and our package are found, also from another environment's Python."""
    found = dict(os.environ if environ is None else environ)
    programs = str(Path(sys.executable).parent)
    package = str(Path(__file__).parents[2])
    return {
        "PATH": os.pathsep.join([programs, found.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(filter(None, [package, found.get("PYTHONPATH")])),
    }


def install_size(packages: Iterable[str], python: Path | str | None = None) -> tuple[float, int]:
    """MB (10^6 bytes) and number of ``packages`` (``name`` or ``name[extra]``) with all that they require.

    Measured over the files that are installed, in this environment or in that of another interpreter ``python``.
    """
    if python is not None:
        code = "import sys; from deploylab.serving import model_servers as m; print(*m.install_size(sys.argv[1:]))"
        told = subprocess.run(
            [str(python), "-c", code, *packages],
            env={**os.environ, **beside_python()},
            capture_output=True,
            text=True,
            check=True,
        )
        megabytes, count = told.stdout.split()
        return float(megabytes), int(count)
    found = installed.required(packages).values()
    return sum(map(installed.installed_bytes, found)) / 1e6, len(found)


def _torchserve() -> str | None:
    if sys.platform == "win32":
        return "the course starts TorchServe on Linux and macOS only"
    if not util.find_spec("ts"):
        return "the package torchserve is not installed: pip install -c constraints.txt -e '.[serving]'"
    version = _java_version()
    if version is None:
        return f"TorchServe needs Java {JAVA} (Debian: apt install openjdk-17-jre-headless), and there is no java"
    return None if version >= JAVA else f"TorchServe needs Java {JAVA} or newer; java is version {version}"


def _java_version() -> int | None:
    """The feature release of ``java``; None where there is none that runs."""
    if not shutil.which("java"):
        return None
    told = subprocess.run(["java", "-version"], capture_output=True, text=True)
    found = re.search(r'version "(?:1\.)?(\d+)', told.stderr + told.stdout)
    return int(found[1]) if told.returncode == 0 and found else None


def _triton() -> str | None:
    if sys.platform != "linux":
        return "Triton exists for Linux only"
    if not triton_python().is_file():
        return "Triton's environment is not installed: make servers"
    return None


def _ray() -> str | None:
    if util.find_spec("ray"):
        return None
    return "the package ray is not installed: pip install -c constraints.txt -e '.[serving]'"


def _tensorflow_serving() -> str | None:
    if shutil.which("tensorflow_model_server"):
        return None
    engine = next(filter(None, map(shutil.which, ("docker", "podman"))), None)
    if engine is None:
        return "there is no program tensorflow_model_server, and no container engine to run its image"
    listed = subprocess.run([engine, "images", "--quiet", "tensorflow/serving"], capture_output=True, text=True)
    if listed.returncode != 0:
        return f"there is no program tensorflow_model_server, and {Path(engine).name} does not run"
    return None if listed.stdout.strip() else f"{Path(engine).name} runs, but has no image tensorflow/serving"


_LOOKED_FOR: dict[str, Callable[[], str | None]] = {
    "torchserve": _torchserve,
    "triton": _triton,
    "ray": _ray,
    "tensorflow-serving": _tensorflow_serving,
}
