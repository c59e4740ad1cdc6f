"""Checks of lab 10, TorchScript."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from deploylab.checks.core import exercise, expect, hint


@exercise("Traced on a bright picture, right for a dark one.")
def invert_bright(attempt: Callable) -> None:
    """``invert_bright(x)``: 1 - x if the mean of x is above 0.5, else x; tensor operations only."""
    import torch

    bright, dark = torch.tensor([[0.9, 0.8], [0.7, 0.6]]), torch.tensor([[0.1, 0.2], [0.9, 0.4]])
    answers = []
    for name, x in (("bright", bright), ("dark", dark)):
        got, want = attempt(x.clone()), _inverted(x)
        expect(isinstance(got, torch.Tensor), f"Return a tensor, not {type(got).__name__}.")
        expect(got.shape == x.shape, f"The {name} picture {list(x.shape)} became {list(got.shape)}.")
        each = torch.where(x > 0.5, 1 - x, x)
        expect(
            torch.equal(want, each) or not torch.allclose(got, each),
            "You decide pixel by pixel. It is the mean of the whole picture that decides.",
        )
        answers.append((name, got, want))
    swapped = all(torch.allclose(got, 1 - want) for _, got, want in answers)
    expect(not swapped, "Bright and dark are swapped: invert where the mean is *above* 0.5.")
    for name, got, want in answers:
        expect(torch.allclose(got, want), f"The answer for a {name} picture is wrong.")
    for example, other in ((bright, dark), (dark, bright)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(attempt.__wrapped__, (example,), check_trace=False)
        expect(
            torch.allclose(traced(other), _inverted(other)),
            "Untraced it is right, but the trace kept one branch only. Use torch.where, and no if, float() or item().",
        )


def _inverted(x: Any) -> Any:
    return 1 - x if x.mean() > 0.5 else x


@exercise("All inputs, shapes too, and an exception is a no.")
def agrees(attempt: Callable) -> None:
    """``agrees(model, caught, inputs)``: whether caught(x) equals model(x) for every x."""
    import torch

    inputs = [torch.full((2, 3), 0.9), torch.full((2, 3), 0.1), torch.full((2, 3), 0.4)]
    first_only = _Program(lambda x: 1 - x)
    got = attempt(_Program(_inverted), _Program(_inverted), inputs)
    expect(isinstance(got, bool), f"Return True or False, not {type(got).__name__}.")
    expect(got, "A program that agrees was refused.")
    expect(
        attempt(_Program(_inverted), _Program(lambda x: _inverted(x) + 1e-7), inputs),
        "A program that differs by rounding was refused; use torch.allclose.",
    )
    expect(
        not attempt(_Program(_inverted), first_only, inputs),
        "A program passed that is right for the first input only: compare all of them.",
    )
    expect(
        not attempt(_Program(_inverted), _Program(lambda x: x if x.mean() < 0.2 else 1 - x), inputs),
        "A program passed that is wrong for the last input: compare all of them.",
    )
    expect(
        not attempt(_Program(_inverted), _Program(lambda x: _inverted(x)[:1]), inputs),
        "A program passed that loses a row; torch.allclose broadcasts. Compare shapes as well.",
    )
    try:
        raised = attempt.__wrapped__(_Program(_inverted), _Program(_raises), inputs)
    except RuntimeError:
        hint("Your guard was stopped by the program's own exception; catch it and return False.")
    expect(not raised, "A program passed that raises an exception.")


class _Program:
    def __init__(self, answer: Callable) -> None:
        self._answer = answer

    def __call__(self, x: Any) -> Any:
        return self._answer(x)


def _raises(x: Any) -> Any:
    raise RuntimeError("Sizes of tensors must match")


@exercise("A graph is a tree of blocks.")
def count_nodes(attempt: Callable) -> None:
    """``count_nodes(graph, kind)``: nodes of a kind in a TorchScript graph and in all blocks inside."""
    graph = nested_graph()
    got = attempt(graph, "aten::tanh")
    expect(isinstance(got, int), f"Return a whole number, not {type(got).__name__}.")
    top = sum(node.kind() == "aten::tanh" for node in graph.nodes())
    expect(got != top, f"You found {got}, those at the top. There are more in the blocks of the If.")
    expect(got != 3, "You found 3. There is a block inside a block: the function must call itself.")
    expect(got == 4, f"You found {got} nodes aten::tanh, there are 4.")
    expect(attempt(graph, "prim::If") == 2, "There are two prim::If, one inside the other.")
    expect(
        attempt(graph, "aten::conv2d") == 0, "There is no aten::conv2d in the graph; count the kind that is asked for."
    )


def nested_graph() -> Any:
    """A graph with one aten::tanh at the top, two one block deep and one two blocks deep."""
    import torch

    return torch._C.parse_ir(
        """graph(%x : Tensor, %yes : bool):
  %a : Tensor = aten::tanh(%x)
  %b : Tensor = prim::If(%yes)
    block0():
      %c : Tensor = aten::tanh(%a)
      %d : Tensor = prim::If(%yes)
        block0():
          %e : Tensor = aten::tanh(%c)
          -> (%e)
        block1():
          -> (%c)
      -> (%d)
    block1():
      %f : Tensor = aten::tanh(%x)
      -> (%f)
  return (%b)
"""
    )
