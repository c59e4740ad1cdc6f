"""Checks of lab 20, ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from deploylab.checks.core import exercise, expect

if TYPE_CHECKING:
    import onnx

_WHERE = ("any engine", "ONNX Runtime", "this processor")
_HEAD = '<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1, "com.microsoft.nchwc" : 1]>'
_PLAIN = "y = Relu(x)"
_FUSED = "y = com.microsoft.FastGelu(x)"
_BLOCKS = "a = com.microsoft.nchwc.ReorderInput(x) b = com.microsoft.FastGelu(a) y = Relu(b)"
_INSIDE = (
    "yes = Constant<value = bool {1}>() "
    "y = If (yes) <then_branch = g () => (float[n] t) { t = com.microsoft.FastGelu(x) }, "
    "else_branch = h () => (float[n] e) { e = Relu(x) }>"
)


@exercise("A file is as portable as its least portable node.")
def where_it_runs(attempt: Callable) -> None:
    """``where_it_runs(model)``: an onnx.ModelProto -> "any engine", "ONNX Runtime" or "this processor"."""
    cases = (
        (_PLAIN, 0, "whose nodes are all standard"),
        (_FUSED, 1, "with one node of com.microsoft"),
        (_BLOCKS, 2, "with a node of com.microsoft.nchwc, and one of com.microsoft after it"),
    )
    for body, want, what in cases:
        got = attempt(_model(body))
        expect(got in _WHERE, f"Return one of {', '.join(map(repr, _WHERE))}, not {got!r}.")
        expect(
            want or got == _WHERE[0],
            f"A file {what} runs on {_WHERE[0]}; you say {got!r}. Every model that ONNX Runtime saved imports its "
            "domains: look at the nodes, not at opset_import.",
        )
        expect(
            want != 1 or got == _WHERE[1],
            f"A file {what} runs on {_WHERE[1]}; you say {got!r}. Compare domains as a whole: "
            "com.microsoft is not com.microsoft.nchwc.",
        )
        expect(got == _WHERE[want], f"A file {what} runs on {_WHERE[want]!r} only, you say {got!r}.")
    spelled = _model(_PLAIN)
    spelled.graph.node[0].domain = "ai.onnx"
    expect(attempt(spelled) == _WHERE[0], "The domain 'ai.onnx' is the standard one too, spelled out.")
    expect(
        attempt(_model(_INSIDE)) == _WHERE[1],
        "A file with a node of com.microsoft inside a branch of an If passed: look into attribute.g, and into the "
        "graphs of its nodes.",
    )


def _model(body: str) -> onnx.ModelProto:
    from onnx import parser

    return parser.parse_model(f"{_HEAD} g (float[n] x) => (float[n] y) {{ {body} }}")


def _events(nodes: dict[int, str], runs: int) -> list[dict]:
    """A profile as ONNX Runtime writes it: ``nodes`` gives the provider of each node index."""
    events = [_event("Session", "session_initialization", {})]
    for _ in range(runs):
        for index, provider in nodes.items():
            args = {"op_name": "Conv", "node_index": str(index), "provider": provider}
            events.append(_event("Node", f"conv_{index % 2}_kernel_time", args))
        events += [_event("Session", "SequentialExecutor::Execute", {}), _event("Session", "model_run", {})]
    return events


def _event(category: str, name: str, args: dict) -> dict:
    return {"cat": category, "pid": 1, "tid": 1, "dur": 7, "ts": 3, "ph": "X", "name": name, "args": args}


@exercise("You know who ran what, whatever the list of providers says.")
def nodes_by_provider(attempt: Callable) -> None:
    """``nodes_by_provider(events)``: the events of a profile -> {provider: number of different nodes}."""
    nodes = {
        80: "CPUExecutionProvider",
        3: "CUDAExecutionProvider",
        4: "CUDAExecutionProvider",
        9: "CUDAExecutionProvider",
    }
    want = {"CPUExecutionProvider": 1, "CUDAExecutionProvider": 3}
    for runs in (1, 3):
        got = attempt(_events(nodes, runs))
        expect(hasattr(got, "items"), f"Return a dictionary, not {type(got).__name__}.")
        expect(None not in got, "There is a provider None among your keys: events of the session have none, skip them.")
        expect(set(got) == set(want), f"Your providers are {sorted(map(str, got))}, the profile has {sorted(want)}.")
        got = {name: count if isinstance(count, int) else len(count) for name, count in got.items()}
        expect(
            runs == 1 or got != {name: runs * count for name, count in want.items()},
            f"You count {got} in {runs} runs: that are events. The same node comes back in each run.",
        )
        expect(
            got["CUDAExecutionProvider"] != 2,
            "Three different nodes count as two: names repeat, and many nodes are a Conv. node_index tells them apart.",
        )
        expect(
            got["CUDAExecutionProvider"] != 1,
            "Three different nodes count as one: the operator is the same, node_index tells them apart.",
        )
        expect(got == want, f"After {runs} runs you count {got}, it is {want}.")


@exercise("That is all a build for this model needs.")
def required_operators(attempt: Callable) -> None:
    """``required_operators(model)``: an onnx.ModelProto -> sorted lines "domain;version;Op,Op"."""
    body = (
        "a = Clip(x) b = com.microsoft.FastGelu(a) c = Add(b, a) d = Clip(c) e = Relu(d) "
        "f = com.microsoft.BiasGelu(e, a) y = Softmax(f)"
    )
    want = ["ai.onnx;13;Clip,Softmax", "ai.onnx;14;Add,Relu", "com.microsoft;1;BiasGelu,FastGelu"]
    got = attempt(_model(body))
    expect(isinstance(got, (list, tuple)), f"Return a list of lines, not {type(got).__name__}.")
    got = list(got)
    expect(all(isinstance(line, str) for line in got), "Each line is a text: 'domain;version;Op,Op'.")
    text = "\n".join(got)
    expect(
        not any(line.startswith(";") for line in got),
        "The domain '' is written ai.onnx in such a list: 'ai.onnx;13;...'.",
    )
    expect(
        "ai.onnx;18;" not in text,
        "18 is the opset of the file. The build wants the edition of each operator: "
        "onnx.defs.get_schema(op, opset, domain).since_version.",
    )
    expect(text.count("Clip") <= 1, "Clip occurs twice in the model, and once in the list.")
    expect(
        len(got) <= len(want), f"You have {len(got)} lines where {len(want)} will do: one for each domain and version."
    )
    expect(
        "FastGelu,BiasGelu" not in text and "Relu,Add" not in text,
        "Operators of a line come in alphabetical order.",
    )
    expect(got == want or sorted(got) != want, "The lines are right, their order is not: by domain, then by version.")
    expect("microsoft" in text, "The operators of com.microsoft are missing; a domain of its own is a line of its own.")
    expect(got == want, f"For Clip, Add, Relu, Softmax at opset 18 and two of com.microsoft you list {got}.")
    old = _model("y = ReduceMean<axes = [0], keepdims = 0>(x)")
    old.opset_import[0].version = 13
    expect(
        list(attempt(old)) == ["ai.onnx;13;ReduceMean"],
        "ReduceMean in a file of opset 13 is edition 13: ask get_schema for the file's own opset.",
    )
    old.opset_import[0].version, old.graph.node[0].op_type = 18, "Relu"
    del old.graph.node[0].attribute[:]
    old.graph.node.add(op_type="Conv", input=["y", "y"], output=["z"])
    expect(
        list(attempt(old)) == ["ai.onnx;11;Conv", "ai.onnx;14;Relu"],
        "Conv and Relu at opset 18 are editions 11 and 14.",
    )
    del old.graph.node[0]
    old.graph.node.add(op_type="Sin", input=["z"], output=["v"])
    expect(
        list(attempt(old)) == ["ai.onnx;7;Sin", "ai.onnx;11;Conv"],
        "Versions are numbers: 7 comes before 11. Sorted as text it does not.",
    )
