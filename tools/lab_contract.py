"""The contract of a lab, as code: what every notebook under ``labs/`` must be.

``broken_rules(lab)`` returns one sentence per broken rule; an empty list means the lab keeps the contract.
The rules come from the project's design: anatomy, honest outputs, nothing of the author's machine, runs anywhere.
"""

from __future__ import annotations

import ast
import json
import platform
import re
import socket
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import util
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parents[1]
LABS = ROOT / "labs"
README = ROOT / "README.md"

METADATA = {"title": str, "minutes": int, "needs": list, "hardware": list, "objectives": list, "after": list}
EXTRAS = {"mobile", "compilers", "serving", "quantize"}
HARDWARE = {"nvidia-gpu", "jetson", "raspberry-pi", "camera", "linux-x86-64"}
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
ENGINES_WITH_TELEMETRY = {"onnxruntime", "openvino", "MNN", "_tools"}

CHECKED = "nbval-check-output"
SKIPPED = "nbval-skip"
MAX_BYTES = 300_000
MAX_LINE = 96

INSTALLS = re.compile(r"\b(?:pip3?|conda|mamba|apt|apt-get|uv|npm)\b\W+(?:pip\W+)?(?:install|add)\b")
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:home|root|Users|work|tmp|opt|mnt|var|usr)/|\b[A-Z]:\\\\?(?:Users|Windows)")
MEASURED = re.compile(
    r"\d[\d.,]*\s*(?:ns|µs|us|ms|milliseconds?|seconds?|GB/s|[GMT]FLOPS?(?:/s)?|[MG]i?B|FPS)\b|\d\s*(?:x|times)\s+(?:faster|slower)"
)


@dataclass(frozen=True)
class Lab:
    """One notebook of the course: where it lies and what is in it."""

    path: Path
    notebook: nbformat.NotebookNode

    @classmethod
    def read(cls, path: Path) -> Lab:
        return cls(path, nbformat.read(path, as_version=4))

    @property
    def name(self) -> str:
        """``NN_slug``, as in the file name."""
        return self.path.stem

    @property
    def number(self) -> str:
        return self.name[:2]

    @property
    def meta(self) -> dict[str, Any]:
        return self.notebook.metadata.get("deploylab", {})

    @property
    def code(self) -> list[nbformat.NotebookNode]:
        return [cell for cell in self.notebook.cells if cell.cell_type == "code"]

    @property
    def prose(self) -> str:
        return "\n\n".join(cell.source for cell in self.notebook.cells if cell.cell_type == "markdown")

    @cached_property
    def headings(self) -> list[str]:
        without_code = re.sub(r"```.*?```", "", self.prose, flags=re.DOTALL)
        return re.findall(r"^#{1,6} .+", without_code, flags=re.MULTILINE)

    @property
    def header(self) -> str:
        """Everything before the first code cell: promise, objectives, time, the question."""
        first_code = next((i for i, cell in enumerate(self.notebook.cells) if cell.cell_type == "code"), None)
        return "\n\n".join(cell.source for cell in self.notebook.cells[:first_code])

    @cached_property
    def exercises(self) -> list[str]:
        """Names of the functions a learner writes: a stub that returns ``...`` followed by ``check.name(name)``."""
        return [name for cell in self.code for name in _stubs(cell.source)]


def labs(folder: Path = LABS) -> list[Lab]:
    """The labs in the order of their numbers."""
    return [Lab.read(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))]


def broken_rules(lab: Lab, readme: str | None = None) -> list[str]:
    """One sentence for each rule that ``lab`` breaks. ``readme`` is the text that holds the course table."""
    broken = [sentence for rule in RULES for sentence in rule(lab)]
    if readme is not None and table_row(lab) not in readme.splitlines():
        broken.append("README's course table has no row that agrees with the metadata; run `tools/notebooks.py table`")
    return broken


# ---------------------------------------------------------------------------------------------------------------------
# The rules. Each yields a sentence for what is wrong.


def metadata_is_valid(lab: Lab) -> Iterator[str]:
    if lab.notebook.metadata.get("kernelspec") != KERNELSPEC:
        yield f"kernelspec must be {json.dumps(KERNELSPEC)}"
    extra = set(lab.notebook.metadata) - {"deploylab", "kernelspec", "language_info"}
    if extra:
        yield f"notebook metadata holds more than the contract: {sorted(extra)}"
    for key, kind in METADATA.items():
        if not isinstance(lab.meta.get(key), kind):
            yield f"metadata deploylab.{key} must be a {kind.__name__}, found {lab.meta.get(key)!r}"
    if set(lab.meta) - set(METADATA):
        yield f"metadata deploylab has unknown keys {sorted(set(lab.meta) - set(METADATA))}"
    for key, allowed in (("needs", EXTRAS), ("hardware", HARDWARE)):
        unknown = set(lab.meta.get(key) or ()) - allowed
        if unknown:
            yield f"metadata deploylab.{key}: {sorted(unknown)} is not among {sorted(allowed)}"
    for other in lab.meta.get("after") or ():
        if not (lab.path.parent / f"{other}.ipynb").is_file():
            yield f"metadata deploylab.after names {other!r}, which is not a lab"


def header_agrees_with_metadata(lab: Lab) -> Iterator[str]:
    if not re.fullmatch(r"\d\d_[a-z0-9_]+", lab.name):
        yield f"file name {lab.path.name} is not NN_slug.ipynb"
    title = lab.meta.get("title", "")
    if lab.headings[:1] != [f"# {lab.number} {title}"]:
        yield f"the first heading must be '# {lab.number} {title}' (number of the file, title of the metadata)"
    if not lab.meta.get("objectives"):
        yield "metadata deploylab.objectives is empty"
    for objective in lab.meta.get("objectives") or ():
        if f"- {objective}" not in lab.header:
            yield f"objective {objective!r} of the metadata is not listed in the header"
    if f"{lab.meta.get('minutes')} minutes" not in lab.header:
        yield f"the header does not say '{lab.meta.get('minutes')} minutes' as the metadata does"


def has_the_anatomy(lab: Lab) -> Iterator[str]:
    for word in ("Objectives", "The question", "Trap", "Recap", "Read on"):
        if not any(re.match(rf"#+ {word}\b", heading) for heading in lab.headings):
            yield f"there is no section '{word}'"
    if not any(_is_figure(output) for cell in lab.code for output in cell.outputs):
        yield "there is no figure among the outputs"


def has_the_size(lab: Lab) -> Iterator[str]:
    if not 25 <= len(lab.notebook.cells) <= 45:
        yield f"{len(lab.notebook.cells)} cells; a lab has 25 to 45"
    lengths = [_lines(cell.source) for cell in lab.code]
    tallest = max((len(cell.source.splitlines()) for cell in lab.code), default=0)
    if tallest > 40:
        yield f"a code cell of {tallest} lines; 40 at most"
    if lengths and statistics.median(lengths) > 8:
        yield f"code cells have {statistics.median(lengths):g} lines in the median; 8 at most"
    longest = max((len(line) for cell in lab.code for line in cell.source.splitlines()), default=0)
    if longest > MAX_LINE:
        yield f"a line of code of {longest} characters; {MAX_LINE} at most, so that pages show it whole"
    if any(not cell.source.strip() for cell in lab.notebook.cells):
        yield "an empty cell"
    size = len(nbformat.writes(lab.notebook).encode())
    if size > MAX_BYTES:
        yield f"{size / 1000:.0f} kB; {MAX_BYTES / 1000:.0f} kB at most"


def was_run_in_order(lab: Lab) -> Iterator[str]:
    counts = [cell.execution_count for cell in lab.code]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}, not 1 to {len(counts)} in order; run `tools/notebooks.py execute`"
    ids = [cell.get("id") for cell in lab.notebook.cells]
    if None in ids or len(set(ids)) != len(ids):
        yield "cell ids are missing or not unique"


def outputs_are_clean(lab: Lab) -> Iterator[str]:
    for cell in lab.code:
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"a stored error: {output.ename}: {output.evalue}"
            if output.get("name") == "stderr":
                yield f"a message on stderr: {output.text.strip().splitlines()[0]!r}"
            if any("widget" in mime for mime in output.get("data", {})):
                yield "a widget among the outputs; it shows nothing without a kernel"
        if set(cell.metadata) - {"tags", "reason"}:
            yield f"cell metadata holds more than tags and reason: {sorted(cell.metadata)}"


def enough_cells_are_checked(lab: Lab) -> Iterator[str]:
    checked = [cell for cell in lab.code if CHECKED in cell.metadata.get("tags", ())]
    if len(checked) < 3:
        yield f"{len(checked)} cells are tagged {CHECKED}; a lab has 3 or more"
    for cell in checked:
        if not cell.outputs or not cell.execution_count:
            yield f"a checked cell has no stored output, so nothing is compared: {_first_line(cell.source)!r}"
        if any(_is_figure(output) for output in cell.outputs):
            yield f"a checked cell draws a figure, which nbval never compares: {_first_line(cell.source)!r}"
    for cell in lab.code:
        if SKIPPED in cell.metadata.get("tags", ()) and not cell.metadata.get("reason"):
            yield f"a cell is tagged {SKIPPED} without a 'reason' in its metadata: {_first_line(cell.source)!r}"
        if re.search(r"^#\s*(NBVAL_|PYTEST_VALIDATE)", cell.source, flags=re.MULTILINE):
            yield f"use tags, not comments, for nbval: {_first_line(cell.source)!r}"


def installs_nothing(lab: Lab) -> Iterator[str]:
    for cell in lab.code:
        words = re.sub(r"[\"',\[\]]+", " ", cell.source)  # so that ["pip", "install"] reads like `pip install`
        if INSTALLS.search(words) or re.search(r"^\s*[!%]\s*(pip|conda|mamba|apt)", cell.source, flags=re.MULTILINE):
            yield f"a cell installs something: {_first_line(cell.source)!r}"


def names_no_machine(lab: Lab) -> Iterator[str]:
    host = socket.gethostname()
    for text in _texts(lab):
        found = MACHINE_PATHS.search(text)
        if found:
            yield f"a path of a machine: {text[found.start() : found.start() + 40]!r}"
        elif host != "localhost" and len(host) > 3 and re.search(rf"\b{re.escape(host)}\b", text):
            yield "the name of this machine"
        elif str(ROOT) in text:
            yield "the path of this checkout"


def switches_telemetry_off_first(lab: Lab) -> Iterator[str]:
    if not lab.code or "deploylab" not in _imports(lab.code[0].source):
        yield "the first code cell does not import deploylab, which switches telemetry off"
    order = [module for cell in lab.code for module in _imports(cell.source)]
    before = order[: order.index("deploylab")] if "deploylab" in order else order
    for engine in sorted(ENGINES_WITH_TELEMETRY.intersection(before)):
        yield f"{engine} is imported before deploylab, with its telemetry on"


def exercises_are_complete(lab: Lab) -> Iterator[str]:
    headings = [heading for heading in lab.headings if re.match(r"#+ Exercise \d", heading)]
    if not 2 <= len(headings) <= 4:
        yield f"{len(headings)} sections 'Exercise N'; a lab has 2 to 4"
    if len(lab.exercises) != len(headings):
        yield f"{len(headings)} exercises, but {len(lab.exercises)} stubs `return ...` with `check.name(name)`"
    solutions = _functions(lab.path.parent / "solutions" / f"{lab.name}.py")
    checks = _functions(_checks_file(lab.number))
    for name in lab.exercises:
        if name not in solutions:
            yield f"labs/solutions/{lab.name}.py has no function {name}"
        if name not in checks:
            yield f"deploylab/checks/lab{lab.number}.py has no check {name}"


def prose_states_no_measurement(lab: Lab) -> Iterator[str]:
    for found in MEASURED.finditer(lab.prose):
        yield f"a measured number in prose, {found.group(0)!r}; let a cell show it"


RULES = (
    metadata_is_valid,
    header_agrees_with_metadata,
    has_the_anatomy,
    has_the_size,
    was_run_in_order,
    outputs_are_clean,
    enough_cells_are_checked,
    installs_nothing,
    names_no_machine,
    switches_telemetry_off_first,
    exercises_are_complete,
    prose_states_no_measurement,
)


# ---------------------------------------------------------------------------------------------------------------------
# The course table

TABLE_BEGIN = "<!-- course table: begin (made by `python tools/notebooks.py table`) -->"
TABLE_END = "<!-- course table: end -->"


def table_row(lab: Lab) -> str:
    """The lab's row in README's course table."""
    needs = ", ".join((*lab.meta.get("needs", ()), *lab.meta.get("hardware", ()))) or "core"
    objectives = "; ".join(lab.meta.get("objectives", ()))
    link = f"[{lab.number} {lab.meta.get('title')}](labs/{lab.path.name})"
    return f"| {link} | {objectives} | {lab.meta.get('minutes')} | {needs} |"


def table(all_labs: list[Lab]) -> str:
    """The course table as Markdown, one row a lab."""
    head = ["| Lab | After it you can | Minutes | Needs |", "|---|---|---:|---|"]
    return "\n".join([*head, *(table_row(lab) for lab in all_labs)])


def with_table(readme: str, all_labs: list[Lab]) -> str:
    """``readme`` with the text between the two markers replaced. Raises ValueError if the markers are not there."""
    begin, end = readme.find("<!-- course table: begin"), readme.find(TABLE_END)
    if begin < 0 or end < begin:
        raise ValueError(f"README.md lacks the markers {TABLE_BEGIN} and {TABLE_END}")
    return f"{readme[:begin]}{TABLE_BEGIN}\n{table(all_labs)}\n{readme[end:]}"


# ---------------------------------------------------------------------------------------------------------------------
# Skips


def reasons_to_skip(meta: dict[str, Any]) -> list[str]:
    """Why a lab with this metadata cannot run here: an extra that is not installed, hardware that is not there."""
    reasons = [
        f"needs the extra '{extra}': missing {', '.join(missing)}"
        for extra in meta.get("needs", ())
        if (missing := _missing_packages(extra))
    ]
    return reasons + [f"needs hardware: {name}" for name in meta.get("hardware", ()) if not _hardware_is_there(name)]


def _missing_packages(extra: str) -> list[str]:
    from importlib import metadata

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    installed = {canonicalize_name(dist.metadata["Name"]) for dist in metadata.distributions()}
    wanted = (Requirement(text) for text in metadata.requires("deploylab") or ())
    return [
        need.name
        for need in wanted
        if need.marker and not need.marker.evaluate({"extra": ""}) and need.marker.evaluate({"extra": extra})
        if canonicalize_name(need.name) not in installed
    ]


def _hardware_is_there(name: str) -> bool:
    model = Path("/proc/device-tree/model")
    board = model.read_text(errors="replace").lower() if model.is_file() else ""
    return {
        "nvidia-gpu": Path("/dev/nvidia0").exists(),
        "jetson": "jetson" in board or Path("/etc/nv_tegra_release").exists(),
        "raspberry-pi": "raspberry" in board,
        "camera": Path("/dev/video0").exists(),
        "linux-x86-64": sys.platform == "linux" and platform.machine() == "x86_64",
    }[name]


# ---------------------------------------------------------------------------------------------------------------------
# Reading source


def _parse(source: str) -> ast.Module:
    plain = re.sub(r"^\s*[%!].*$", "pass", source, flags=re.MULTILINE)
    return ast.parse(plain)


def _imports(source: str) -> list[str]:
    """Top-level names of imported packages in the order of the source."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(_parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name.split(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.lineno, node.module.split(".")[0]))
    return [name for _, name in sorted(found, key=lambda item: item[0])]


def _stubs(source: str) -> list[str]:
    """Functions of a cell that end in ``return ...`` and are handed to a check of the same name."""
    return [
        node.name
        for node in _parse(source).body
        if isinstance(node, ast.FunctionDef)
        if isinstance(node.body[-1], ast.Return) and ast.unparse(node.body[-1]) == "return ..."
        if re.search(rf"^check\.{node.name}\({node.name}\)", source, flags=re.MULTILINE)
    ]


def _functions(path: Path) -> set[str]:
    if not path.is_file():
        return set()
    return {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


def _checks_file(number: str) -> Path:
    package = util.find_spec("deploylab")
    return Path(package.origin).parent / "checks" / f"lab{number}.py"


def _texts(lab: Lab) -> Iterator[str]:
    """Every text a reader can see: sources, and outputs other than pictures."""
    for cell in lab.notebook.cells:
        yield cell.source
        for output in cell.get("outputs", ()):
            yield str(output.get("text", ""))
            yield from (str(data) for mime, data in output.get("data", {}).items() if not mime.startswith("image/"))


def _is_figure(output: nbformat.NotebookNode) -> bool:
    return bool({"image/png", "image/jpeg"} & set(output.get("data", {})))


def _lines(source: str) -> int:
    return sum(bool(line.strip()) for line in source.splitlines())


def _first_line(source: str) -> str:
    return source.strip().splitlines()[0] if source.strip() else ""
