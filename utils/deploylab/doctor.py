"""What works on this machine: the engines, the task's files, the CPU, and the tools that some labs want.

``deploylab doctor`` prints it; its exit code is 0 if the core works, whatever is missing besides.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploylab import __version__, engines, machine
from deploylab.engines import Engine

_IMPORT_SECONDS = 180
_TOOL_SECONDS = 15

# name -> programs to look for, and how to ask for the version
_TOOLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "gcc": (("gcc",), ("--version",)),
    "g++": (("g++",), ("--version",)),
    "clang": (("clang",), ("--version",)),
    "cmake": (("cmake",), ("--version",)),
    "nvcc": (("nvcc",), ("--version",)),
    "java": (("java",), ("-XX:-UsePerfData", "-version")),
    "node": (("node",), ("--version",)),
    "npm": (("npm",), ("--version",)),
    "arm64 emulator": (("qemu-aarch64-static", "qemu-aarch64"), ("--version",)),
    "chromium": (("chromium", "chromium-browser"), ("--version",)),
    "chrome": (("google-chrome", "google-chrome-stable", "chrome"), ("--version",)),
    "firefox": (("firefox",), ("--version",)),
}


@dataclass(frozen=True)
class Finding:
    """One thing looked for. ``detail`` is its version, or why it does not work; ``fix`` the command that helps."""

    name: str
    ok: bool
    detail: str = ""
    fix: str = ""
    core: bool = False


@dataclass(frozen=True)
class Report:
    """Everything :func:`examine` found."""

    version: str
    machine: dict[str, Any]
    engines: tuple[Finding, ...]
    task: tuple[Finding, ...]
    tools: tuple[Finding, ...]

    @property
    def core_ok(self) -> bool:
        """Whether the course's core works: its engines and the files of the task."""
        return all(finding.ok for finding in (*self.engines, *self.task) if finding.core)

    def to_dict(self) -> dict[str, Any]:
        return {"core_ok": self.core_ok, **asdict(self)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)


def examine() -> Report:
    """Look at everything. Imports each engine in a process of its own: only that shows that it really starts."""
    with ThreadPoolExecutor(max_workers=max(1, min(4, machine.usable_cores()))) as pool:
        found_engines = _examine_engines(pool)
        found_tools = [pool.submit(look) for look in _tool_examinations()]
        task = _examine_task()
        return Report(
            __version__,
            machine.describe(),
            tuple(future() for future in found_engines),
            task,
            tuple(future.result() for future in found_tools),
        )


def run(as_json: bool = False) -> int:
    """Print the report; return the exit code: 0 if the core works, 1 if not."""
    report = examine()
    if as_json:
        print(report.to_json())
    else:
        show(report)
    return 0 if report.core_ok else 1


def show(report: Report) -> None:
    """Print the report for a person."""
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    facts = report.machine
    console.print(f"[bold]DeployLab {report.version}[/] on Python {facts['python']}, {escape(facts['system'])}")
    console.print(f"{escape(facts['cpu'])}, {facts['usable_cores']} usable core(s), {_gib(facts['memory_bytes'])}")
    console.print(f"{facts['architecture']}: {' '.join(facts['features']) or 'CPU features unknown'}")
    if facts["board"]:
        console.print(f"Board: {escape(facts['board'])}")
    for title, findings in (("Engines", report.engines), ("Task", report.task), ("Tools of some labs", report.tools)):
        console.print(_table(title, findings))
    if report.core_ok:
        console.print("[green]The core works.[/]")
    else:
        broken = [finding.name for finding in (*report.engines, *report.task) if finding.core and not finding.ok]
        console.print(f"[red]The core does not work: {escape(', '.join(broken))}.[/] Try the commands above.")


def _table(title: str, findings: Sequence[Finding]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("", "", "version, or what is wrong", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else "[red]broken[/]" if finding.core else "[yellow]no[/]"
        table.add_row(finding.name, mark, escape(finding.detail), escape(finding.fix))
    return table


def _gib(size: int | None) -> str:
    return "memory unknown" if size is None else f"{size / 2**30:.1f} GiB memory"


def _examine_engines(pool: ThreadPoolExecutor) -> list[Callable[[], Finding]]:
    kinds = [engines.get(name) for name in engines.names()]
    # Several engines live in one package; import each package once.
    imports = {kind.modules: None for kind in kinds if kind.available().ok}
    trials = {modules: pool.submit(_trial_import, modules) for modules in imports}
    return [lambda kind=kind: _engine_finding(kind, trials) for kind in kinds]


def _engine_finding(kind: Engine, trials: dict[tuple[str, ...], Any]) -> Finding:
    state = kind.available()
    if not state.ok:
        return Finding(kind.name, False, state.reason, state.fix, core=kind.core)
    problem = trials[kind.modules].result()
    if problem:
        return Finding(kind.name, False, f"{state.version} does not start: {problem}", kind.install, core=kind.core)
    return Finding(kind.name, True, state.version, core=kind.core)


def _trial_import(modules: tuple[str, ...]) -> str:
    """Import in another process; return what went wrong, or an empty text."""
    code = "import deploylab, importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *modules], capture_output=True, text=True, timeout=_IMPORT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"importing it took longer than {_IMPORT_SECONDS} s"
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def _examine_task() -> tuple[Finding, ...]:
    from deploylab import models
    from deploylab.signs import dataset

    looks: dict[str, Callable[[], str]] = {
        "SignNet weights": lambda: str(models.verify("signnet").name),
        "test split": lambda: f"{len(dataset.test_split()[1])} images",
        "sample photographs": lambda: f"{len(dataset.samples())} files",
    }
    return tuple(_task_finding(name, look) for name, look in looks.items())


def _task_finding(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, look(), core=True)
    except Exception as error:  # a damaged checkout must not break the one command that examines it
        return Finding(name, False, str(error), "git checkout -- datasets", core=True)


def _tool_examinations() -> list[Callable[[], Finding]]:
    plain = [
        lambda name=name, programs=programs, ask=ask: _program(name, programs, ask)
        for name, (programs, ask) in _TOOLS.items()
    ]
    return [*plain, _docker, _gpu]


def _program(name: str, programs: Sequence[str], ask: Sequence[str]) -> Finding:
    found = next((program for program in programs if shutil.which(program)), None)
    if found is None:
        return Finding(name, False, "not found")
    code, text = _ask([found, *ask])
    if code != 0:
        return Finding(name, False, f"{found} does not run: {text}")
    return Finding(name, True, text)


def _docker() -> Finding:
    if not shutil.which("docker"):
        return Finding("docker", False, "not found")
    code, text = _ask(["docker", "version", "--format", "{{.Server.Version}}"])
    if code != 0:
        return Finding("docker", False, f"the client is there, its engine is not reachable: {text}", "start Docker")
    return Finding("docker", True, f"engine {text}")


def _gpu() -> Finding:
    if shutil.which("nvidia-smi"):
        code, text = _ask(["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"])
        if code == 0 and text:
            return Finding("NVIDIA GPU", True, text)
        return Finding("NVIDIA GPU", False, f"nvidia-smi does not answer: {text}")
    jetson = Path("/etc/nv_tegra_release")
    if jetson.is_file():
        return Finding("NVIDIA GPU", True, jetson.read_text(encoding="utf-8").splitlines()[0].lstrip("# "))
    return Finding("NVIDIA GPU", False, "not found (no nvidia-smi)")


def _ask(command: Sequence[str]) -> tuple[int, str]:
    """Exit code, and the first line of the answer that holds a version number (else the first line at all)."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TOOL_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    with_version = [line for line in lines if re.search(r"\d+\.\d+", line)]
    return done.returncode, (with_version or lines or [""])[0]
