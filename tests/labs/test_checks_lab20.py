"""The graders of lab 20, graded: they name each planted mistake."""

from __future__ import annotations

from collections import Counter, defaultdict

import onnx
import pytest

from deploylab.checks import lab20 as check
from graders import solutions, verdict

right = solutions("20_onnxruntime")


def ranked(found):
    return "this processor" if "com.microsoft.nchwc" in found else "ONNX Runtime" if "com.microsoft" in found else None


def from_imports(model):
    return ranked({entry.domain for entry in model.opset_import}) or "any engine"


def top_level_only(model):
    return ranked({node.domain for node in model.graph.node}) or "any engine"


def by_prefix(model):
    found = any(domain.startswith("com.microsoft") for domain in right.domains(model.graph))
    return "this processor" if found else "any engine"


def last_wins(model):
    found = [node.domain for node in model.graph.node if node.domain]
    return (
        {"com.microsoft": "ONNX Runtime", "com.microsoft.nchwc": "this processor"}[found[-1]] if found else "any engine"
    )


def foreign_unless_empty(model):
    if any(node.domain == "ai.onnx" for node in model.graph.node):
        return "ONNX Runtime"
    return right.where_it_runs(model)


WRONG_WHERE = [
    (from_imports, "look at the nodes, not at opset_import"),
    (by_prefix, "com.microsoft is not com.microsoft.nchwc"),
    (last_wins, "runs on 'this processor' only, you say 'ONNX Runtime'"),
    (top_level_only, "inside a branch of an If"),
    (foreign_unless_empty, "spelled out"),
    (lambda model: right.domains(model.graph), "Return one of 'any engine'"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_WHERE)
def test_where_it_runs_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.where_it_runs, wrong)


def nodes(events):
    return [event["args"] for event in events if event["cat"] == "Node"]


def distinct(events, key):
    found = defaultdict(set)
    for event in events:
        if event["cat"] == "Node":
            found[event["args"]["provider"]].add(key(event))
    return {provider: len(keys) for provider, keys in found.items()}


WRONG_NODES = [
    (lambda events: Counter(args["provider"] for args in nodes(events)), "that are events"),
    (lambda events: Counter(event["args"].get("provider") for event in events), "provider None among your keys"),
    (lambda events: distinct(events, lambda event: event["name"]), "count as two"),
    (lambda events: distinct(events, lambda event: event["args"]["op_name"]), "count as one"),
    (lambda events: {"CPUExecutionProvider": 4}, "Your providers are ['CPUExecutionProvider']"),
    (lambda events: len({args["node_index"] for args in nodes(events)}), "Return a dictionary, not int"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_NODES)
def test_nodes_by_provider_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.nodes_by_provider, wrong)


def test_nodes_may_be_counted_without_a_set_as_well(capsys):
    def attempt(events):
        return Counter(provider for provider, _ in {(args["provider"], args["node_index"]) for args in nodes(events)})

    assert "passed" in verdict(capsys, check.nodes_by_provider, attempt)


def listed(edition=right.edition, name="ai.onnx", group=True, sort=sorted, order=sorted, keep=set, foreign=True):
    """The solution with one part exchanged."""

    def attempt(model):
        opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
        lines = defaultdict(list)
        for node in model.graph.node:
            domain = node.domain or "ai.onnx"
            if domain == "ai.onnx" or foreign:
                lines[node.domain or name, edition(node, opsets[domain])].append(node.op_type)
        if not group:
            pairs = order((key, op) for key, ops in lines.items() for op in set(ops))
            return [f"{domain};{version};{op}" for (domain, version), op in pairs]
        return [f"{key[0]};{key[1]};{','.join(sort(keep(lines[key])))}" for key in order(lines)]

    return attempt


def newest(node, opset):
    try:
        return onnx.defs.get_schema(node.op_type, node.domain).since_version
    except onnx.defs.SchemaError:
        return opset


def for_opset_18(node, opset):
    return right.edition(node, 18 if not node.domain else opset)


def by_text(lines):
    return sorted(lines, key=lambda key: f"{key[0]};{key[1]}")


WRONG_OPERATORS = [
    (listed(edition=lambda node, opset: opset), "18 is the opset of the file"),
    (listed(name=""), "written ai.onnx"),
    (listed(keep=list), "Clip occurs twice"),
    (listed(group=False), "one for each domain and version"),
    (listed(sort=lambda ops: sorted(ops, reverse=True)), "alphabetical order"),
    (listed(order=lambda lines: sorted(lines, reverse=True)), "their order is not"),
    (listed(foreign=False), "operators of com.microsoft are missing"),
    (listed(order=by_text), "Sorted as text it does not"),
    (listed(edition=for_opset_18), "the file's own opset"),
    (lambda model: "\n".join(right.required_operators(model)), "Return a list of lines, not str"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_OPERATORS)
def test_required_operators_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.required_operators, wrong)


def test_the_solution_agrees_with_the_converter_of_onnxruntime(tmp_path):
    """The list it writes for a real model, saved at the level up to which nothing depends on the processor."""
    import subprocess
    import sys

    import onnxruntime

    source = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> g (float[1,3,8,8] x) => (float[1,4,8,8] y) '
        "<float[4,3,1,1] w = {1,2,3,4,5,6,7,8,9,1,2,3}> { a = Conv(x, w) b = Relu(a) y = Softmax(b) }"
    )
    onnx.save(source, tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "saved.onnx")
    onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    tool = [sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort", str(tmp_path / "model.onnx")]
    tool += ["--optimization_style", "Fixed", "--target_platform", "arm"]
    subprocess.run(tool, check=True, capture_output=True, timeout=120)
    lines = (tmp_path / "model.required_operators.config").read_text().splitlines()
    expected = [line for line in lines if line and not line.startswith("#")]
    assert right.required_operators(onnx.load(tmp_path / "saved.onnx")) == expected
    assert len(expected) == 2
