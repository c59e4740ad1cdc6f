"""Checks of lab 27, TensorRT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deploylab.checks.core import exercise, expect, hint


@exercise("Graphs inside nodes count too.")
def refused(attempt: Callable) -> None:
    """``refused(graph, supported)``: operators that are not supported and how many nodes use each, at any depth."""
    graph = nested_graph()
    got = attempt(graph, {"Conv", "If", "Relu"})
    expect(isinstance(got, dict), f"Return a dictionary, not {type(got).__name__}.")
    if set(got) & {"Conv", "If", "Relu"}:
        hint("You list operators that are supported.")
    expect(
        "Unique" in got, "There are nodes inside the branches of If: look into node.attribute, where a graph is `g`."
    )
    expect("Det" in got, "There is an If inside an If: the function must call itself.")
    expect(got.get("Gelu") == 2, f"Gelu is used by 2 nodes at the top, you say {got.get('Gelu')}: count the nodes.")
    expect(got == {"Gelu": 2, "Unique": 2, "Det": 1}, f"Expected Gelu 2, Unique 2, Det 1, got {got}.")
    rest = attempt(graph, {"Conv", "If", "Relu", "Gelu", "Unique", "Det"})
    expect(rest == {}, f"Nothing is refused here, so the dictionary is empty; got {rest}.")


def nested_graph() -> Any:
    """Conv, Relu, two Gelu; an If with Unique in both branches, one of which has an If with Det in one branch."""
    from onnx import helper

    def graph(name: str, *nodes: Any) -> Any:
        return helper.make_graph(list(nodes), name, [], [])

    def node(op: str, **attributes: Any) -> Any:
        return helper.make_node(op, ["x"], ["y"], **attributes)

    inner = node("If", then_branch=graph("a", node("Det")), else_branch=graph("b", node("Relu")))
    outer = node("If", then_branch=graph("c", node("Unique"), inner), else_branch=graph("d", node("Unique")))
    return graph("top", node("Conv"), node("Relu"), node("Gelu"), node("Gelu"), outer)


@exercise("Every batch fits, and the kernels are chosen for the one that comes most often.")
def profile(attempt: Callable) -> None:
    """``profile(sizes)``: smallest, usual and largest batch of a log of batch sizes."""
    sizes = [1, 8, 8, 3, 8, 1, 32, 8, 2]
    got = attempt(list(sizes))
    expect(isinstance(got, tuple) and len(got) == 3, f"Return three numbers (smallest, usual, largest), not {got!r}.")
    least, usual, most = got
    expect(most == 32, f"A batch of 32 came once, and the engine would refuse it: the largest is 32, not {most}.")
    expect(least == 1, f"The smallest batch is 1, not {least}.")
    mean = sum(sizes) / len(sizes)
    expect(
        usual in sizes, f"A batch of {usual} never came; the mean is {mean:.1f}. Take the one that comes most often."
    )
    expect(usual == 8, f"8 came most often, you say {usual}.")
    skewed = [1, 1, 1, 1, 4, 5, 6, 7, 8]
    got = attempt(list(skewed))
    expect(got[1] != sorted(skewed)[len(skewed) // 2], "You took the median. A batch of 1 comes most often here.")
    expect(got == (1, 1, 8), f"For {skewed} the profile is (1, 1, 8), not {got}.")
    got = attempt([2, 2, 4, 4])
    expect(got == (2, 4, 4), f"2 and 4 come equally often: take the larger, which has more work to lose. Got {got}.")


@exercise("Read as a program, not as text.")
def vanished(attempt: Callable) -> None:
    """``vanished(source, old, new)``: names after a dot that old has as members and new has not, sorted."""
    old = {"Builder", "Builder.build_engine", "IBuilderConfig.max_workspace_size", "BuilderFlag.FP16", "Dims.shape"}
    old |= {"ICudaEngine.num_bindings", "IExecutionContext.execute_v2", "ITensor.name", "OnnxParser.parse"}
    new = {"Builder", "IExecutionContext.execute_v2", "Dims.shape", "ITensor.name", "OnnxParser.parse"}
    source = (
        "import numpy as np\n"
        "# engine.num_bindings is old\n"
        "config.max_workspace_size = 1 << 28\n"
        "config.set_flag(trt.BuilderFlag.FP16)\n"
        "print('max_batch_size', x.shape, np.linalg.norm(x))\n"
        "engine = builder.build_engine(network, config)\n"
        "context.execute_v2([1, 2])\n"
    )
    got = attempt(source, old, new)
    expect(isinstance(got, list), f"Return a list, not {type(got).__name__}.")
    expect(
        "num_bindings" not in got, "num_bindings stands in a comment only: parse the source with ast, do not search it."
    )
    expect(
        "set_flag" not in got, "set_flag is in neither version as given here: only what `old` has can have vanished."
    )
    expect("norm" not in got and "linalg" not in got, "norm is NumPy's: only what `old` has can have vanished.")
    expect("execute_v2" not in got, "execute_v2 is in the new version too.")
    whole = [name for name in got if "." in name]
    expect(not whole, f"You return {whole}; the part after the last dot is wanted.")
    expect("build_engine" in got, "build_engine is called on a variable: the name before the dot need not be a class.")
    expect("max_workspace_size" in got, "An attribute that is assigned to is used as well: max_workspace_size.")
    expect("FP16" in got, "FP16 is missing: trt.BuilderFlag.FP16 is an attribute of an attribute.")
    expect(got == sorted(got), "Sort the names.")
    expect(
        got == ["FP16", "build_engine", "max_workspace_size"],
        f"Expected FP16, build_engine, max_workspace_size; got {got}.",
    )


@exercise("The clock ran while the work was done, no longer and no shorter.")
def timed(attempt: Callable) -> None:
    """``timed(launch, synchronize, clock, runs)``: seconds a run, on a stream that works behind our back."""
    busy, fresh = _Stream(first=50.0, work=10.0), _Stream(first=50.0, work=10.0)
    busy.launch()  # something is still going on when the measurement begins
    got = attempt(busy.launch, busy.synchronize, busy.clock, 8)
    expect(isinstance(got, (int, float)), f"Return a number, not {type(got).__name__}.")
    expect(busy.waited, "You never wait. A launch only puts work into a queue: this is the time of queueing.")
    expect(got > 1.0, "You stop the clock before the work is done: synchronize() first, then look at the clock.")
    expect(got < 60.0, f"Divide by the number of runs: {got:.1f} is the time of all of them.")
    expect(got < 12.0, "The clock counts work from before: synchronize() before you start it.")
    expect(abs(got - 10.0) < 1.0, f"Expected about 10 a run, got {got:.2f}.")
    got = attempt(fresh.launch, fresh.synchronize, fresh.clock, 8)
    expect(got < 12.0, "The first run does work that no later one does: launch once before the clock starts.")


class _Stream:
    """A GPU with a clock of its own: a launch takes 0.1, the first run ``first``, each other ``work``."""

    LAUNCH = 0.1

    def __init__(self, first: float, work: float) -> None:
        self._first, self._work = first, work
        self._now, self._free_at = 0.0, 0.0
        self.launched, self.waited = 0, False

    def launch(self) -> None:
        self._now += self.LAUNCH
        self._free_at = max(self._free_at, self._now) + (self._work if self.launched else self._first)
        self.launched += 1

    def synchronize(self) -> None:
        self._now = max(self._now, self._free_at)
        self.waited = True

    def clock(self) -> float:
        return self._now
