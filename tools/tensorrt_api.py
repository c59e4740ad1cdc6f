"""TensorRT's Python API, read from NVIDIA's own bindings of several versions, and source code checked against it.

    python tools/tensorrt_api.py              print every TensorRT name that the adapter and lab 27 use, by version
    python tools/tensorrt_api.py record       write labs/tensorrt/api.json: which version has which name

No GPU and no TensorRT library is needed. The bindings' wheel holds one extension module, which wants three libraries
for about ten functions; empty functions of these names let it load. Its classes, enums and signatures are then all
there to be looked at, and nothing else works. `python tools/side_env.py tests` installs the bindings; a C compiler
makes the stand-ins.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import side_env
from setup_env import ROOT, SetupError
from side_env import SideEnvironment

ADAPTER = ROOT / "utils" / "deploylab" / "engines" / "tensorrt.py"
LAB = ROOT / "labs" / "27_tensorrt.ipynb"
RECORD = ROOT / "labs" / "tensorrt" / "api.json"
VERSIONS = tuple(side_env.TENSORRT)

# ---------------------------------------------------------------------------------------------------------------------
# The bindings, made loadable


def why_not(version: str) -> str:
    """Why the bindings of a version cannot be looked at here, or an empty text."""
    environment = SideEnvironment(f"tensorrt-{version}")
    try:
        if not environment.is_current():
            environment._check_possible()
            return f"TensorRT {version}'s bindings are not installed: python tools/side_env.py tests"
    except SetupError as error:
        return str(error)
    tools = [tool for tool in ("cc", "nm", "ldd") if shutil.which(tool) is None]
    return f"there is no {' and no '.join(tools)}, so no stand-ins can be made" if tools else ""


def site_packages(version: str) -> Path:
    """Where the environment ``tensorrt-VERSION`` keeps its packages."""
    return next(SideEnvironment(f"tensorrt-{version}").folder.glob("lib/python*/site-packages"))


def make_stand_ins(version: str, folder: Path) -> None:
    """Write into ``folder`` the libraries that the bindings want, with every function wanted; each does nothing."""
    module = site_packages(version) / "tensorrt_bindings" / "tensorrt.so"
    listing = subprocess.check_output(["nm", "-D", "--undefined-only", module], text=True)
    wanted = [line.split()[-1] for line in listing.splitlines() if line.split()[0] == "U"]
    ours = [name for name in wanted if "@" not in name and not name.startswith(("Py", "_Py"))]
    source = "".join(
        f'void *stand_in_{i}(void) __asm__("{name}"); void *stand_in_{i}(void) {{ return 0; }}\n'
        for i, name in enumerate(ours)
    )
    needed = subprocess.run(["ldd", module], capture_output=True, text=True).stdout
    libraries = [line.split()[0] for line in needed.splitlines() if "not found" in line and "libnv" in line]
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(folder / libraries[0])]
    subprocess.run(command, input=source, text=True, check=True)
    for library in libraries[1:]:
        (folder / library).symlink_to(libraries[0])


def environment(version: str, folder: Path) -> dict[str, str]:
    """Environment variables for a process of our own Python that imports ``tensorrt_bindings`` of this version."""
    paths = [str(site_packages(version)), os.environ.get("PYTHONPATH", "")]
    libraries = [str(folder), os.environ.get("LD_LIBRARY_PATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
    }


def read(version: str) -> Api:
    """The API of a version. Raises :class:`SetupError` if its bindings cannot be looked at here."""
    if problem := why_not(version):
        raise SetupError(problem)
    with tempfile.TemporaryDirectory() as folder:
        make_stand_ins(version, Path(folder))
        command = [sys.executable, "-W", "ignore", __file__, "dump"]
        text = subprocess.check_output(command, env=environment(version, Path(folder)), text=True)
    return Api(version, json.loads(text))


def dump() -> dict[str, dict[str, dict[str, Any]]]:
    """Every class of the imported bindings with its members, and the module's own names under the class ""."""
    import tensorrt_bindings

    names = [name for name in dir(tensorrt_bindings) if not name.startswith("_") or name == "__version__"]
    found: dict[str, dict[str, dict[str, Any]]] = {"": {}}
    for name in names:
        value = getattr(tensorrt_bindings, name)
        if inspect.ismodule(value) and not value.__name__.startswith("tensorrt"):
            continue  # what the package itself imported
        found[""][name] = _describe(value)
        if inspect.isclass(value):
            found[name] = {member: _describe(getattr(value, member)) for member in _members(value)}
    return found


def _members(kind: type) -> list[str]:
    return [name for name in dir(kind) if name == "__init__" or not name.startswith("_")]


def _describe(value: Any) -> dict[str, Any]:
    if isinstance(value, property):
        getter = (value.fget.__doc__ or "").strip() if value.fget else ""
        return {"kind": "property", "signatures": _signature_lines(getter), "settable": value.fset is not None}
    if inspect.isclass(value):
        return {"kind": "class"}
    if callable(value):
        return {"kind": "method", "signatures": _signature_lines(value.__doc__ or "")}
    return {"kind": "value", "class": type(value).__name__}


def _signature_lines(text: str) -> list[str]:
    """The lines of a pybind11 docstring that are signatures: the first, or the numbered ones of an overload."""
    lines = [re.sub(r"^\d+\. ", "", line.strip()) for line in text.splitlines()]
    found = [line for line in lines if re.match(r"^\w*\(.*\) -> ", line)]
    return [line for line in found if "*args, **kwargs" not in line]


# ---------------------------------------------------------------------------------------------------------------------
# The API as data


@dataclass(frozen=True)
class Parameter:
    name: str
    type: str
    required: bool


@dataclass(frozen=True)
class Signature:
    """Parameters without ``self``, and the type of the result."""

    parameters: tuple[Parameter, ...]
    result: str

    @classmethod
    def parse(cls, line: str) -> Signature:
        """From a line as pybind11 writes it: ``name(self: pkg.Class, a: int = 1) -> pkg.Other``."""
        opened, closed = line.index("("), line.rindex(") -> ")
        found = []
        for part in filter(None, map(str.strip, _split(line[opened + 1 : closed]))):
            name, _, rest = part.partition(":")
            kind, default, _ = rest.partition(" = ")
            found.append(Parameter(name.strip(), plain(kind), not default))
        if found and found[0].name in ("self", "arg0"):
            found = found[1:]
        return cls(tuple(found), plain(line[closed + 5 :]))


def _split(text: str) -> Iterator[str]:
    """At the commas that are in no bracket."""
    depth, begin = 0, 0
    for position, letter in enumerate(text):
        depth += (letter in "([{<") - (letter in ")]}>")
        if letter == "," and not depth:
            yield text[begin:position]
            begin = position + 1
    yield text[begin:]


def plain(kind: str) -> str:
    """A type without packages and namespaces, the same for all versions: ``ICudaEngine``, ``int``, ``list[Dims]``."""
    kind = kind.strip().replace("tensorrt_bindings.tensorrt.", "")
    for long, short in {
        "typing.SupportsInt": "int",
        "typing.SupportsFloat": "float",
        "typing_extensions.Buffer": "buffer",
        "collections.abc.Sequence": "list",
        "List[": "list[",
        "nvonnxparser::IParserError": "ParserError",
        "nvinfer1::IEngineInspector": "EngineInspector",
    }.items():
        kind = kind.replace(long, short)
    return re.sub(r"\b(?:\w+::)+", "", kind).strip()


@dataclass(frozen=True)
class Api:
    """One version: class name to member name to what it is. The class "" is the module."""

    version: str
    classes: dict[str, dict[str, dict[str, Any]]]

    def member(self, kind: str, name: str) -> dict[str, Any] | None:
        return self.classes.get(kind, {}).get(name)

    def signatures(self, kind: str, name: str) -> list[Signature]:
        return [Signature.parse(line) for line in (self.member(kind, name) or {}).get("signatures", ())]

    @cached_property
    def member_names(self) -> frozenset[str]:
        return frozenset(name for kind, members in self.classes.items() if kind for name in members)

    def names(self) -> set[str]:
        """``Class`` and ``Class.member`` of everything."""
        return {".".join(filter(None, (kind, name))) for kind, members in self.classes.items() for name in members}


# ---------------------------------------------------------------------------------------------------------------------
# Source code against the API


@dataclass(frozen=True)
class Type:
    """What an expression is: the ``module``, a ``class``, an ``object`` of one, a bound ``method``, a ``list``, ``own``
    (of a class defined in the source, not TensorRT's) or ``unknown``."""

    kind: str
    name: str = ""
    member: str = ""


UNKNOWN, MODULE, OWN = Type("unknown"), Type("module"), Type("own")
LITERALS = {bool: "bool", int: "int", str: "str", bytes: "buffer", float: "float"}
# What these types have is not taken for a member of TensorRT's, whatever it is called.
EVERYDAY = (str, bytes, list, dict, tuple, set, int, type(None), Path, ast.AST, re.Pattern, BaseException)


@dataclass
class Findings:
    """``names``: all TensorRT names met in code that this version reaches; ``dead``: in code that it does not reach."""

    names: set[str] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def check(source: str, api: Api, everyday: Iterable[type] = ()) -> Findings:
    """Follow the types through a module's source and look every TensorRT name up in ``api``.

    Understood: the module under the name ``trt``, annotations, results as the bindings' signatures state them,
    attributes of ``self``, comprehensions. ``hasattr`` conditions are decided for this version: the branch that it
    takes is checked against it, the other only noted. A name that looks like TensorRT's on a value whose type is not
    known is a problem too, so that nothing escapes unseen. ``everyday`` are further types whose members are no concern.
    """
    return _Checker(ast.parse(source), api, everyday).run()


def _fields(kind: type) -> Iterable[str]:
    """Names that ``dir`` of a class does not show: fields of dataclasses and of protobuf messages."""
    if hasattr(kind, "DESCRIPTOR"):
        return kind.DESCRIPTOR.fields_by_name
    return getattr(kind, "__dataclass_fields__", ())


class _Checker:
    def __init__(self, tree: ast.Module, api: Api, everyday: Iterable[type]) -> None:
        self.tree, self.api, self.findings = tree, api, Findings()
        self.live = True
        self.functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        self.own_classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        self.attributes: dict[tuple[str, str], Type] = {}  # of self, by class
        self.made: dict[str, bool] = {}  # own class -> whether code that this version reaches makes one
        common = {name for kind in (*EVERYDAY, *everyday) for name in dir(kind)}
        fields = {name for kind in everyday for name in _fields(kind)}
        own = {
            node.name
            for kind in self.own_classes.values()
            for node in ast.walk(kind)
            if isinstance(node, ast.FunctionDef)
        }
        self.suspicious = api.member_names - common - fields - own

    def run(self) -> Findings:
        names = {"trt": MODULE}
        for _ in range(2):  # the second time with all attributes of self known, and which classes are made
            self.findings = Findings()
            self.block(self.tree.body, dict(names), "")
        return self.findings

    # -- statements ---------------------------------------------------------------------------------------------------

    def block(self, statements: list[ast.stmt], names: dict[str, Type], owner: str) -> bool:
        """Walk statements; whether they end the function (return, raise)."""
        before = self.live
        try:
            for statement in statements:
                if self.statement(statement, names, owner):
                    self.live = False  # what follows is not reached, but looked at all the same
            return self.live != before
        finally:
            self.live = before

    def statement(self, node: ast.stmt, names: dict[str, Type], owner: str) -> bool:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            self.definition(node, names, owner)
            return False
        if isinstance(node, ast.If):
            return self.condition(node, names, owner)
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            self.assignment(node, names, owner)
            return False
        if isinstance(node, (ast.Return, ast.Raise)):
            for child in ast.iter_child_nodes(node):
                self.expression(child, names, owner)
            return True
        if isinstance(node, ast.For):
            self.bind(node.target, self.element(self.expression(node.iter, names, owner)), names, owner)
        if isinstance(node, ast.With):
            for item in node.items:
                kind = self.expression(item.context_expr, names, owner)
                if item.optional_vars is not None:
                    self.bind(item.optional_vars, kind, names, owner)
        for name, value in ast.iter_fields(node):
            if name in ("target", "iter", "items") and isinstance(node, (ast.For, ast.With)):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.stmt):
                    self.statement(child, names, owner)
                elif isinstance(child, ast.ExceptHandler):
                    self.block(child.body, names, owner)
                elif isinstance(child, ast.expr):
                    self.expression(child, names, owner)
        return False

    def condition(self, node: ast.If, names: dict[str, Type], owner: str) -> bool:
        self.expression(node.test, names, owner)
        truth = self.truth(node.test, names, owner)
        ends = []
        for taken, statements in ((truth is not False, node.body), (truth is not True, node.orelse)):
            before = self.live
            self.live = self.live and taken
            ended = self.block(statements, names, owner) if statements else False
            self.live = before
            ends.append((taken, ended))
        return all(ended for taken, ended in ends if taken)

    def definition(self, node: ast.FunctionDef | ast.ClassDef, names: dict[str, Type], owner: str) -> None:
        inside = dict(names)
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                self.expression(base, names, owner)
            before = self.live
            self.live = before and self.made.get(node.name, True)
            self.block(node.body, inside, node.name)
            self.live = before
            return
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            inside[argument.arg] = MODULE if argument.arg == "trt" else self.annotation(argument.annotation, names)
        if owner and node.args.args and node.args.args[0].arg == "self":
            inside["self"] = Type("own", owner)
        if node.returns is not None:
            self.annotation(node.returns, names)
        self.block(node.body, inside, owner)

    def assignment(self, node: ast.Assign | ast.AnnAssign, names: dict[str, Type], owner: str) -> None:
        kind = self.expression(node.value, names, owner) if node.value is not None else UNKNOWN
        if isinstance(node, ast.AnnAssign):
            stated = self.annotation(node.annotation, names)
            kind = stated if stated != UNKNOWN else kind
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            values = getattr(node.value, "elts", None)
            if isinstance(target, ast.Tuple) and values is not None and len(values) == len(target.elts):
                for each, value in zip(target.elts, values, strict=True):
                    self.bind(each, self.expression(value, names, owner), names, owner)
            else:
                self.bind(target, kind, names, owner)

    def bind(self, target: ast.expr, kind: Type, names: dict[str, Type], owner: str) -> None:
        if isinstance(target, ast.Name):
            names[target.id] = kind
        elif isinstance(target, (ast.Tuple, ast.List)):
            for each in target.elts:
                self.bind(each, UNKNOWN, names, owner)
        elif isinstance(target, ast.Attribute):
            holder = self.expression(target.value, names, owner)
            if holder.kind == "own" and holder.name and kind != UNKNOWN:
                self.attributes[holder.name, target.attr] = kind
            elif holder.kind == "object":
                found = self.look_up(holder.name, target.attr, target)
                if self.live and found and not found.get("settable"):
                    self.problem(target, f"{holder.name}.{target.attr} cannot be set")
            elif holder.kind == "unknown":
                self.suspect(target)

    # -- expressions --------------------------------------------------------------------------------------------------

    def expression(self, node: ast.AST, names: dict[str, Type], owner: str) -> Type:
        if isinstance(node, ast.Name):
            if node.id in self.own_classes and node.id not in names:
                return OWN
            return names.get(node.id, UNKNOWN)
        if isinstance(node, ast.Attribute):
            return self.attribute(node, names, owner)
        if isinstance(node, ast.Call):
            return self.call(node, names, owner)
        if isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp)):
            return self.comprehension(node, names, owner)
        if isinstance(node, ast.IfExp):
            self.expression(node.test, names, owner)
            return self.expression(node.body, names, owner) if self.both(node, names, owner) else UNKNOWN
        if isinstance(node, ast.Subscript):
            self.expression(node.slice, names, owner)
            return self.element(self.expression(node.value, names, owner))
        if isinstance(node, ast.Constant):
            return Type("object", LITERALS[type(node.value)]) if type(node.value) in LITERALS else UNKNOWN
        if isinstance(node, ast.NamedExpr):
            kind = self.expression(node.value, names, owner)
            self.bind(node.target, kind, names, owner)
            return kind
        inside = dict(names) if isinstance(node, ast.Lambda) else names
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.expr, ast.comprehension, ast.keyword)):
                self.expression(child, inside, owner)
        return UNKNOWN

    def both(self, node: ast.IfExp, names: dict[str, Type], owner: str) -> bool:
        truth = self.truth(node.test, names, owner)
        before = self.live
        self.live = before and truth is not True
        self.expression(node.orelse, names, owner)
        self.live = before and truth is not False
        self.expression(node.body, names, owner)
        self.live = before
        return truth is not False

    def comprehension(self, node: Any, names: dict[str, Type], owner: str) -> Type:
        inside = dict(names)
        for generator in node.generators:
            kind = self.expression(generator.iter, inside, owner)
            self.bind(generator.target, self.element(kind), inside, owner)
            for condition in generator.ifs:
                self.expression(condition, inside, owner)
        if isinstance(node, ast.DictComp):
            self.expression(node.key, inside, owner)
            self.expression(node.value, inside, owner)
            return UNKNOWN
        kind = self.expression(node.elt, inside, owner)
        return Type("list", kind.name) if kind.kind == "object" else UNKNOWN

    def attribute(self, node: ast.Attribute, names: dict[str, Type], owner: str) -> Type:
        holder = self.expression(node.value, names, owner)
        if holder.kind == "module":
            found = self.look_up("", node.attr, node)
            return Type("class", node.attr) if found and found["kind"] == "class" else UNKNOWN
        if holder.kind in ("class", "object"):
            if holder.name not in self.api.classes:
                return UNKNOWN  # a str, an int, ...
            found = self.look_up(holder.name, node.attr, node)
            return self.member_type(holder, node.attr, found)
        if holder.kind == "own":
            return self.attributes.get((holder.name, node.attr), UNKNOWN)
        if holder.kind == "unknown":
            self.suspect(node)
        return UNKNOWN

    def member_type(self, holder: Type, name: str, found: dict[str, Any] | None) -> Type:
        if found is None:
            return UNKNOWN
        if found["kind"] == "method":
            return Type("method", holder.name, name)
        if found["kind"] == "class":
            return Type("class", name)
        if found["kind"] == "value":
            return Type("object", found["class"])
        results = self.api.signatures(holder.name, name)
        return self.stated(results[0].result) if results and holder.kind == "object" else UNKNOWN

    def call(self, node: ast.Call, names: dict[str, Type], owner: str) -> Type:
        called = self.expression(node.func, names, owner)
        given = [self.expression(each, names, owner) for each in node.args]
        keywords = {each.arg: self.expression(each.value, names, owner) for each in node.keywords}
        if called.kind == "class":
            self.fits(node, called.name, "__init__", given, keywords)
            return Type("object", called.name)
        if called.kind == "method":
            if isinstance(node.func, ast.Attribute) and called.member == "__init__":
                given = given[1:]  # Base.__init__(self, ...)
            return self.fits(node, called.name, called.member, given, keywords)
        if isinstance(node.func, ast.Name) and node.func.id in self.functions:
            return self.annotation(self.functions[node.func.id].returns, names)
        if isinstance(node.func, ast.Name) and node.func.id in self.own_classes:
            self.made[node.func.id] = self.live or self.made.get(node.func.id, False)
            return Type("own", node.func.id)
        return UNKNOWN

    def fits(self, node: ast.Call, kind: str, name: str, given: list[Type], keywords: dict[str | None, Type]) -> Type:
        """Arguments against the overloads; the result of the first that takes them."""
        signatures = self.api.signatures(kind, name)
        if not self.live or not signatures or any(isinstance(each, ast.Starred) for each in node.args):
            return self.stated(signatures[0].result) if signatures else UNKNOWN
        for signature in signatures:
            if self.accepts(signature, given, keywords):
                return self.stated(signature.result)
        shown = ", ".join(f"{each.name}: {each.type}" for each in signatures[0].parameters)
        self.problem(node, f"{kind}.{name} takes ({shown})")
        return UNKNOWN

    def accepts(self, signature: Signature, given: list[Type], keywords: dict[str | None, Type]) -> bool:
        parameters = {each.name: each for each in signature.parameters}
        if len(given) > len(parameters) or None in keywords:
            return False
        arguments = dict(zip(parameters, given, strict=False))
        if set(keywords) - set(parameters) or set(keywords) & set(arguments):
            return False
        arguments.update(keywords)
        missing = [each.name for each in signature.parameters if each.required and each.name not in arguments]
        return not missing and all(self.suits(arguments[name], parameters[name].type) for name in arguments)

    def suits(self, given: Type, wanted: str) -> bool:
        """Whether a value may be of the wanted type; what is not known may be anything."""
        if given.kind in ("unknown", "own"):
            return True
        if given.kind != "object":
            return given.kind == "list" and wanted.startswith("list")
        if wanted not in self.api.classes and wanted not in LITERALS.values():
            return True
        return given.name == wanted or (given.name, wanted) in {
            ("Logger", "ILogger"),
            ("Profiler", "IProfiler"),
            ("bool", "int"),
            ("int", "float"),
            ("IHostMemory", "buffer"),
        }

    def truth(self, node: ast.expr, names: dict[str, Type], owner: str) -> bool | None:
        """What a condition on the API is in this version; None for any other."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self.truth(node.operand, names, owner)
            return None if inner is None else not inner
        if isinstance(node, ast.BoolOp):
            return self.combined(node, names, owner)
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            return None
        if node.func.id == "hasattr" and isinstance(node.args[1], ast.Constant):
            holder = self.expression(node.args[0], names, owner)
            if holder.kind not in ("module", "class", "object"):
                return None
            return self.api.member(holder.name, node.args[1].value) is not None
        function = self.functions.get(node.func.id)
        last = function.body[-1] if function else None
        return self.truth(last.value, {"trt": MODULE}, "") if isinstance(last, ast.Return) and last.value else None

    def combined(self, node: ast.BoolOp, names: dict[str, Type], owner: str) -> bool | None:
        parts = [self.truth(value, names, owner) for value in node.values]
        decisive = isinstance(node.op, ast.Or)
        if decisive in parts:
            return decisive
        return None if None in parts else not decisive

    # -- types --------------------------------------------------------------------------------------------------------

    def annotation(self, node: ast.expr | None, names: dict[str, Type]) -> Type:
        if node is None:
            return UNKNOWN
        parts = [each for each in ast.walk(node) if isinstance(each, (ast.Attribute, ast.Name))]
        for part in parts:
            if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "trt":
                found = self.look_up("", part.attr, part)
                return Type("object", part.attr) if found else UNKNOWN
            if isinstance(part, ast.Name) and part.id in self.own_classes:
                return Type("own", part.id)
        return UNKNOWN

    def stated(self, kind: str) -> Type:
        if kind.startswith("list["):
            return Type("list", kind[5:-1])
        return Type("object", kind) if kind in self.api.classes or kind in LITERALS.values() else UNKNOWN

    def element(self, kind: Type) -> Type:
        return self.stated(kind.name) if kind.kind == "list" else UNKNOWN

    # -- findings -----------------------------------------------------------------------------------------------------

    def look_up(self, kind: str, name: str, node: ast.AST) -> dict[str, Any] | None:
        full = ".".join(filter(None, (kind, name)))
        found = self.api.member(kind, name)
        (self.findings.names if self.live else self.findings.dead).add(full)
        if found is None and self.live:
            self.problem(node, f"TensorRT {self.api.version} has no {full}")
        return found

    def suspect(self, node: ast.Attribute) -> None:
        if node.attr in self.suspicious:
            text = ast.unparse(node)
            self.problem(node, f"{text}: {node.attr} looks like TensorRT's, but the type before it is not known")

    def problem(self, node: ast.AST, text: str) -> None:
        told = f"line {node.lineno}: {text}"
        if told not in self.findings.problems:
            self.findings.problems.append(told)


# ---------------------------------------------------------------------------------------------------------------------
# The sources, and what is printed and recorded


def notebook_sources(path: Path) -> tuple[str, list[tuple[str, str]]]:
    """A notebook's code cells as one module, and its Markdown's Python blocks, each with its first comment line."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    blocks = [block for text in prose for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)]
    plain_code = re.sub(r"^\s*[%!].*$", "pass", "\n".join(code), flags=re.MULTILINE)
    return plain_code, [(block.splitlines()[0], block) for block in blocks if "trt." in block]


def versions_of(comment: str) -> list[str]:
    """The versions that a block's first line names: ``# TensorRT 10 and 11: ...`` means all of 10.x and 11.x."""
    stated = re.findall(r"\b\d+(?:\.\d+)?\b", comment.split(":")[0])
    return [version for version in VERSIONS if any(version == each or version.split(".")[0] == each for each in stated)]


def everyday_types() -> list[type]:
    """Types of ours and NumPy's whose members the adapter uses."""
    import contextlib
    import ctypes
    import io

    import numpy as np
    import onnx

    from deploylab.engines.base import Artifact, Availability, Engine, Session, TensorSpec

    ours = [Artifact, Availability, Engine, Session, TensorSpec]
    protos = [onnx.ModelProto, onnx.GraphProto, onnx.NodeProto, onnx.TensorProto]
    return [*ours, *protos, np.ndarray, np.dtype, contextlib.ExitStack, ctypes.c_void_p, io.BufferedWriter]


def used_names(apis: Iterable[Api]) -> dict[str, dict[str, Findings]]:
    """Findings of each source (adapter, lab, each block of the lab) in each version that it is for."""
    apis, kinds = list(apis), everyday_types()
    found = {"adapter": {api.version: check(ADAPTER.read_text(), api, kinds) for api in apis}}
    if LAB.is_file():
        code, blocks = notebook_sources(LAB)
        found["lab 27"] = {api.version: check(code, api, kinds) for api in apis}
        for title, block in blocks:
            wanted = versions_of(title)
            found[f"lab 27, {title}"] = {api.version: check(block, api, kinds) for api in apis if api.version in wanted}
    return found


def record(apis: Iterable[Api]) -> dict[str, Any]:
    """Which version has which name: one digit a version."""
    apis = list(apis)
    have = {api.version: api.names() for api in apis}
    names = sorted(name for name in set().union(*have.values()) if not name.endswith(".__init__"))
    return {
        "source": "NVIDIA's Python bindings, looked at by tools/tensorrt_api.py",
        "versions": [api.version for api in apis],
        "names": {name: "".join(str(int(name in have[api.version])) for api in apis) for name in names},
    }


def readable() -> list[Api]:
    """The APIs of all versions that can be looked at here; says which cannot, and why."""
    found = []
    for version in VERSIONS:
        problem = why_not(version)
        if problem:
            print(f"TensorRT {version}: {problem}", file=sys.stderr)
        else:
            found.append(read(version))
    return found


def main() -> int:
    if sys.argv[1:] == ["dump"]:
        json.dump(dump(), sys.stdout)
        return 0
    apis = readable()
    if sys.argv[1:] == ["record"]:
        if len(apis) != len(VERSIONS):
            sys.exit("the record needs all versions; see above")
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(record(apis), indent=0) + "\n", encoding="utf-8")
        print(f"wrote {RECORD.relative_to(ROOT)}")
        return 0
    problems = 0
    for source, by_version in used_names(apis).items():
        names = sorted(set().union(*(found.names for found in by_version.values())))
        print(f"\n{source}: {len(names)} names, checked against TensorRT {', '.join(by_version)}")
        for name in names:
            print(f"  {name:50} {' '.join(v for v, found in by_version.items() if name in found.names)}")
        older = set().union(*(found.dead for found in by_version.values())) - set(names)
        for name in sorted(older):
            have = [api.version for api in apis if name in api.names()]
            print(f"  {name:50} not reached in these versions; found in {' '.join(have) or 'none'}")
            problems += not have
        for version, found in by_version.items():
            problems += len(found.problems)
            print("".join(f"  {version}: {problem}\n" for problem in found.problems), end="")
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main())
