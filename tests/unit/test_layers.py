"""The package keeps its floors: a module imports from its own floor or below, and there is no circle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import deploylab

PACKAGE = Path(deploylab.__file__).parent
FLOORS = (
    {"privacy", "errors", "files", "paths", "packages", "machine", "image", "models", "signs"},
    {"engines"},
    {"parity"},
    {"bench"},
    {"boards", "bundle", "checks", "doctor", "drawing", "figures", "report", "serving"},
    {"cli"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}


def imports_of(module: str) -> set[str]:
    """Modules of this package that ``module`` imports anywhere, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found.update(name.removeprefix("deploylab.") for name in names if name.startswith("deploylab."))
    return {name for name in found if name in MODULES} - {module}


def test_every_room_has_a_floor():
    assert {module.split(".")[0] for module in MODULES} == set(FLOOR_OF)


def test_no_module_imports_from_a_floor_above():
    upwards = [
        f"{module} imports {imported}"
        for module in MODULES
        for imported in imports_of(module)
        if FLOOR_OF[imported.split(".")[0]] > FLOOR_OF[module.split(".")[0]]
    ]
    assert not upwards


def test_no_circle():
    TopologicalSorter({module: imports_of(module) for module in MODULES}).prepare()  # raises CycleError naming it
