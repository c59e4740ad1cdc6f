"""Environments beside ``.venv``, for packages that would not fit into it: ``.envs/NAME``.

    python tools/side_env.py triton litserve     make or complete these; returns at once where nothing is to do
    python tools/side_env.py labs                those that the labs use;  tests: those that the tests use
    python tools/side_env.py --lock triton       compile tools/environments/triton.txt anew
    python tools/side_env.py --list              what there is, and what is installed

There are two kinds. A model server comes with ONNX Runtime, Pillow and, where it may, NumPy in the versions of
constraints.txt, so that two servers differ by the server alone. ``tensorrt-VERSION`` holds NVIDIA's Python bindings of
that version, a few MB without the libraries they bind, for the test that checks our code against them.

Each holds exactly what ``tools/environments/NAME.txt`` pins. DeployLab itself is not there: put ``utils`` on
PYTHONPATH, it imports without torch. ``.venv`` must exist; its uv does the work, with pip's settings.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import setup_env
from setup_env import ROOT, SetupError, run_step, say

SHARED = ("numpy", "onnxruntime", "pillow")  # what our own code needs there
LINUX = ("Linux x86_64", "Linux aarch64")
HEADER = "# Exact versions of the environment {name}. Made by `python tools/side_env.py --lock {name}`; do not edit.\n"


@dataclass(frozen=True)
class Recipe:
    """What an environment is for: its own requirements, besides ``shared``, and the machines they exist for."""

    title: str
    requirements: tuple[str, ...]
    platforms: tuple[str, ...] = ()  # "System machine"; empty: all
    shared: tuple[str, ...] = SHARED
    newest_python: tuple[int, int] = setup_env.NEWEST
    gigabytes: float = 1.0
    finish: Callable[[SideEnvironment], None] | None = None  # a last step of the installation


def give_triton_this_python(environment: SideEnvironment) -> None:
    """Put the shared library of the environment's own Python where Triton's Python backend looks first.

    It embeds an interpreter and takes the system's libpython otherwise, which breaks on another patch release's
    standard library. Python 3.13 comes with the package.
    """
    ask = "import json, sysconfig as s; print(json.dumps([s.get_config_var(n) for n in ('LIBDIR', 'INSTSONAME')]))"
    folder, name = json.loads(subprocess.check_output([str(environment.python), "-c", ask]))
    library = Path(folder or "", name or "")
    beside = next(environment.folder.glob("lib/python*/site-packages/nvidia_pytriton.libs"))
    if any(beside.glob("libpython3-*.13.so*")) and ".13." in name:
        return
    if not library.is_file() or ".so" not in library.name:
        raise SetupError(
            f"Triton needs Python as a shared library, and {library} is not there.\n"
            "Debian/Ubuntu: sudo apt install libpython3-dev, then run the same command again."
        )
    (beside / library.name).unlink(missing_ok=True)
    (beside / library.name).symlink_to(library)


RECIPES = {
    "triton": Recipe(
        "Triton Inference Server (nvidia-pytriton)",
        # Its Python backend reads garbage out of NumPy 2's arrays, as its requirement of NumPy 1 says.
        ("nvidia-pytriton==0.7.0; sys_platform == 'linux' and python_version < '3.13'", "numpy<2"),
        LINUX,
        shared=("onnxruntime", "pillow"),
        newest_python=(3, 12),
        finish=give_triton_this_python,
    ),
    "litserve": Recipe("LitServe", ("litserve==0.2.19",)),
    "bentoml": Recipe("BentoML", ("bentoml==1.4.39",)),
    "mlserver": Recipe("MLServer", ("mlserver==1.7.1",)),
}

# TensorRT version -> its bindings, a CUDA runtime of its time, and the newest Python they were built for.
TENSORRT: dict[str, tuple[tuple[str, ...], tuple[int, int]]] = {
    "8.6": (("tensorrt-bindings==8.6.1", "nvidia-cuda-runtime-cu11==11.8.89"), (3, 11)),
    "10.0": (("tensorrt-cu12-bindings==10.0.1",), (3, 12)),
    "10.3": (("tensorrt-cu12-bindings==10.3.0", "nvidia-cuda-runtime-cu12==12.9.79"), (3, 12)),  # JetPack 6
    "10.16": (("tensorrt-cu12-bindings==10.16.1.11",), setup_env.NEWEST),
    "11.0": (("tensorrt-cu13-bindings==11.0.0.114",), setup_env.NEWEST),
    "11.4": (("tensorrt-cu13-bindings==11.4.0.106", "nvidia-cuda-runtime==13.5.37"), setup_env.NEWEST),
}
RECIPES |= {
    f"tensorrt-{version}": Recipe(
        f"the Python bindings of TensorRT {version}",
        requirements,
        ("Linux x86_64",),
        shared=(),
        newest_python=newest_python,
        gigabytes=0.1,
    )
    for version, (requirements, newest_python) in TENSORRT.items()
}
GROUPS = {"labs": ("triton",), "tests": tuple(f"tensorrt-{version}" for version in TENSORRT)}


class SideEnvironment:
    """``.envs/NAME`` in the checkout ``project``, and the stamp that says it is complete."""

    def __init__(self, name: str, project: Path = ROOT) -> None:
        if name not in RECIPES:
            raise SetupError(f"There is no environment {name!r}; choose from {', '.join(RECIPES)}.")
        self.name, self.project = name, Path(project)
        self.recipe = RECIPES[name]
        self.folder = self.project / ".envs" / name
        self.python = setup_env.venv_python(self.folder)
        self.stamp = self.folder / "deploylab-installed.json"
        self.lock = self.project / "tools" / "environments" / f"{name}.txt"
        self.main = self.project / ".venv"

    def fingerprint(self) -> str:
        """Changes with the lock, the Python of ``.venv`` and the place of the checkout."""
        version = setup_env.probe(str(setup_env.venv_python(self.main)))
        parts = [self.lock.read_text(), str(version and version["version"]), str(self.project.resolve())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def is_current(self) -> bool:
        """Whether everything of the lock was installed, and its Python still runs."""
        try:
            stamp = json.loads(self.stamp.read_text())
        except (OSError, ValueError):
            return False
        return stamp.get("fingerprint") == self.fingerprint() and setup_env.probe(str(self.python)) is not None

    def ensure(self) -> Path:
        """Make the environment, or repair it; its Python. Raises :class:`SetupError` saying what to do."""
        if not self.is_current():
            self._check_possible()
            self.folder.parent.mkdir(exist_ok=True)
            with setup_env.alone_in(self.folder.parent):
                if not self.is_current():
                    self._install()
        return self.python

    def _check_possible(self) -> None:
        here = f"{platform.system()} {platform.machine()}"
        if self.recipe.platforms and here not in self.recipe.platforms:
            raise SetupError(f"{self.recipe.title} exists for {' and '.join(self.recipe.platforms)}; this is {here}.")
        facts = setup_env.probe(str(setup_env.venv_python(self.main))) or {"version": (0, 0)}
        if tuple(facts["version"][:2]) > self.recipe.newest_python:
            newest, found = (".".join(map(str, each)) for each in (self.recipe.newest_python, facts["version"][:2]))
            raise SetupError(f"{self.recipe.title} exists for Python up to {newest}; .venv has {found}.")
        if not Path(setup_env.venv_tool(self.main, "uv")).exists():
            raise SetupError(f"{self.main} has no uv, which installs the other environments: run `make setup` first.")
        free = setup_env.shutil.disk_usage(str(self.project)).free / 1e9
        if free < self.recipe.gigabytes:
            raise SetupError(
                f"Not enough disk: {self.project} has {free:.1f} GB free, {self.recipe.title} needs about "
                f"{self.recipe.gigabytes} GB."
            )

    def _install(self) -> None:
        say(f"Setting up {self.recipe.title} in {self.folder}")
        if self.folder.exists():
            setup_env.remove_folder(self.folder)
        uv, python = setup_env.venv_tool(self.main, "uv"), setup_env.venv_python(self.main)
        settings = setup_env.pip_settings(python)
        env = setup_env.uv_environment(settings, os.environ)
        no_index = ["--no-index"] if setup_env.truthy(settings.get("no-index")) else []
        run_step("Creating the environment", [uv, "venv", "--quiet", "--python", python, self.folder], env=env)
        install = [uv, "pip", "install", "--compile-bytecode", "--no-deps", "--python", self.python, *no_index]
        run_step(
            f"Installing the packages of {self.lock.relative_to(self.project)}",
            [*install, "--requirement", self.lock],
            env=env,
        )
        if self.recipe.finish:
            self.recipe.finish(self)
        content = {"fingerprint": self.fingerprint(), "folder": str(self.folder)}
        self.stamp.write_text(json.dumps(content, indent=2) + "\n")
        say("Ready.")

    def compile(self) -> None:
        """Write the lock: the recipe's requirements for every Python of the course, SHARED as in constraints.txt."""
        python = setup_env.venv_python(self.main)
        settings = setup_env.pip_settings(python)
        for name in ("find-links", "extra-index-url"):  # wheels of one machine must not enter the lock
            settings.pop(name, None)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
        drafts = self.project / "build" / "environments"
        drafts.mkdir(parents=True, exist_ok=True)
        wanted, shared, draft = (drafts / f"{self.name}-{part}.txt" for part in ("wanted", "shared", "lock"))
        wanted.write_text("\n".join([*self.recipe.requirements, *self.recipe.shared]) + "\n")
        shared.write_text("\n".join(self._shared_pins()) + "\n")
        if self.lock.exists():  # versions stay where they may; delete the lock first to take the newest
            draft.write_text(self.lock.read_text())
        everywhere = ["--universal", "--python-version", "3.10"]
        quiet = ["--quiet", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
        command = [setup_env.venv_tool(self.main, "uv"), "pip", "compile", "--no-config"]
        run_step(
            f"Resolving {self.recipe.title}",
            [*command, *everywhere, *quiet, "--override", shared, wanted, "-o", draft],
            env=setup_env.uv_environment(settings, environ),
            cwd=self.project,
        )
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        self.lock.write_text(HEADER.format(name=self.name) + draft.read_text())

    def _shared_pins(self) -> list[str]:
        lines = (self.project / "constraints.txt").read_text().splitlines()
        return [line for line in lines if re.split(r"[=\s;]", line)[0] in self.recipe.shared]


def size_mb(name: str) -> float:
    """What the environment takes on disk, in MB (10^6 bytes)."""
    folder = SideEnvironment(name).folder
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir()) / 1e6


def show() -> None:
    for name, recipe in RECIPES.items():
        environment = SideEnvironment(name)
        state = f"installed, {size_mb(name):.0f} MB" if environment.is_current() else "not installed"
        say(f"{name:14} {state:22} {recipe.title}")


def main(arguments: list[str] | None = None) -> int:
    """Each environment by itself: one that fails does not keep the others from being made."""
    parser = argparse.ArgumentParser(description="Environments beside .venv, for packages that would not fit into it.")
    groups = "; ".join(f"`{group}`: what the {group} use" for group in GROUPS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"from {', '.join(RECIPES)}; {groups}")
    parser.add_argument("--lock", action="store_true", help="compile the list of exact versions instead of installing")
    parser.add_argument("--list", action="store_true", help="show what there is")
    options = parser.parse_args(arguments)
    failed = False
    for name in [each for given in options.names for each in GROUPS.get(given, (given,))]:
        try:
            environment = SideEnvironment(name)
            environment.compile() if options.lock else environment.ensure()
        except (SetupError, subprocess.SubprocessError) as error:
            print(f"\nSet-up of {name} stopped: {error}", file=sys.stderr)
            failed = True
        except KeyboardInterrupt:
            print("\nInterrupted. Run the same command again; it starts afresh.", file=sys.stderr)
            return 130
    if options.list or not options.names:
        show()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
