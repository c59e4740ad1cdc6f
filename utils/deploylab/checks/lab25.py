"""Checks of lab 25, ExecuTorch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from deploylab.checks.core import exercise, expect

ALIGNMENT = 16

Tensor = tuple[int, int, int]


@exercise("Every operator that stays behind between two others costs one more call into the delegate.")
def parts(attempt: Callable) -> None:
    """``parts(taken)``: for a chain of operators, which the delegate takes -> into how many parts it is cut."""
    cases: tuple[tuple[tuple[bool, ...], str], ...] = (
        ((True, True, True, False, True), "SignNet's kind of chain: three operators, one that is kept, one more"),
        ((True, True, True), "a chain that is taken as a whole"),
        ((False, True, True, False), "operators that are kept at both ends"),
        ((True, False, False, True), "two kept operators in a row"),
        ((False, False), "a chain of which nothing is taken"),
        ((), "an empty chain"),
        ((True, False, True, False, True), "every second operator"),
    )
    for taken, what in cases:
        got = attempt(list(taken))
        want = sum(1 for value, _ in itertools.groupby(taken) if value)
        expect(isinstance(got, (int, np.integer)), f"Return a number, not {type(got).__name__}.")
        where = f"{list(taken)} ({what})"
        expect(want or not got, f"{where}: nothing is delegated there, you say {got} part(s).")
        expect(
            got == want or got != sum(taken) or len(taken) < 2,
            f"{where}: you count {got} operators that are taken; neighbours share one part.",
        )
        expect(
            got == want or got != sum(1 for _ in itertools.groupby(taken)),
            f"{where}: you count the parts that are kept as well.",
        )
        expect(
            got == want or got != sum(a != b for a, b in itertools.pairwise(taken)),
            f"{where}: you count the borders between parts, {got} of them.",
        )
        expect(got == want, f"{where}: it is {want} part(s), you say {got}.")


@exercise("A runtime built for your programs carries these kernels and delegates, and no others.")
def needed(attempt: Callable) -> None:
    """``needed(programs)``: programs as lists of (kind, name) -> (set of kernels, set of delegates) to build in."""
    signs = [("delegate", "XnnpackBackend"), ("kernel", "aten::mean.out"), ("delegate", "XnnpackBackend")]
    words = [
        ("kernel", "aten::embedding.out"),
        ("kernel", "aten::mean.out"),
        ("jump", ""),
        ("kernel", "aten::embedding.out"),
    ]
    speech = [("delegate", "CoreMLBackend"), ("free", "")]
    for programs in ([signs], [signs, words], [words, signs, speech], [speech], []):
        got = attempt([list(program) for program in programs])
        expect(
            isinstance(got, tuple) and len(got) == 2,
            f"Return two sets, kernels and delegates, not {_short(repr(got))}.",
        )
        kernels, delegates = got
        expect(
            all(isinstance(part, (set, frozenset)) for part in got),
            "Return sets: however often an operator is called, its kernel is linked once.",
        )
        every = [entry for program in programs for entry in program]
        want = _names(every, "kernel"), _names(every, "delegate")
        first = programs[0] if programs else []
        last = programs[-1] if programs else []
        for one, which in ((first, "first"), (last, "last")):
            alone = _names(one, "kernel"), _names(one, "delegate")
            expect(
                got == want or (kernels, delegates) != alone,
                f"With {len(programs)} programs in one app you list what the {which} needs; the runtime must run all.",
            )
        expect("" not in kernels | delegates, "A jump and a free are the runtime's own; they are no kernels.")
        expect(
            got == want or (delegates, kernels) != want,
            "The kernels come first, then the delegates; yours are the other way round.",
        )
        missing = (want[0] - kernels) | (want[1] - delegates)
        expect(not missing, f"{', '.join(sorted(missing))} is missing: that program would not load.")
        extra = (kernels - want[0]) | (delegates - want[1])
        expect(not extra, f"{', '.join(sorted(map(str, extra)))} is in your lists and no program calls it that way.")


def _names(entries: Iterable[tuple[str, str]], kind: str) -> set[str]:
    return {name for found, name in entries if found == kind}


@exercise("Offsets that never collide, in an arena that is reused: all memory is known before the program runs.")
def plan(attempt: Callable) -> None:
    """``plan(tensors)``: (first step, last step, bytes) of each tensor -> its offset in one arena."""
    for tensors in _PLANS:
        got = attempt(list(tensors))
        expect(
            isinstance(got, Sequence) and not isinstance(got, (str, bytes)) and len(got) == len(tensors),
            f"Return a list with one offset for each of the {len(tensors)} tensors.",
        )
        expect(all(isinstance(offset, (int, np.integer)) for offset in got), "Offsets are whole numbers of bytes.")
        expect(min(got, default=0) >= 0, "An offset is negative: the arena begins at 0.")
        clash = _clash(tensors, got)
        expect(clash is None, _told(tensors, got, clash))
        crooked = [offset for offset in got if offset % ALIGNMENT]
        expect(not crooked, f"Offset {crooked[:1]} is no multiple of {ALIGNMENT}: kernels read vectors, align it.")
        size = max((offset + tensor[2] for offset, tensor in zip(got, tensors, strict=True)), default=0)
        piled = sum(_aligned(tensor[2]) for tensor in tensors)
        greedy = arena(tensors, greedy_by_size(tensors))
        expect(
            size <= greedy or size < piled - ALIGNMENT,
            f"{_short(str(tensors))}: no memory is used twice. A tensor may lie where one lay that is no longer alive.",
        )
        expect(
            size <= greedy,
            f"{_short(str(tensors))}: your arena has {size} bytes, placing the largest first needs {greedy}.",
        )


_PLANS: tuple[tuple[Tensor, ...], ...] = (
    ((0, 1, 64), (1, 2, 64)),
    ((0, 1, 64), (1, 2, 32), (2, 3, 64)),
    ((0, 1, 100), (1, 2, 50), (2, 3, 100), (3, 4, 20)),
    ((0, 1, 160), (1, 4, 32), (2, 3, 128), (3, 5, 64), (5, 6, 160)),
    ((0, 5, 16), (0, 1, 48), (1, 2, 96), (2, 3, 80), (3, 4, 96), (4, 5, 16)),
    ((0, 0, 33), (0, 0, 17)),
)


def greedy_by_size(tensors: Sequence[Tensor]) -> list[int]:
    """Offsets of tensors (first step, last step, bytes): the largest first, each in the lowest gap that is free.

    "Greedy by Size for Offset Calculation", Pisarchyk and Lee, arXiv:2001.03288; ExecuTorch's default works alike.
    """
    offsets: dict[int, int] = {}
    for index in sorted(range(len(tensors)), key=lambda i: -tensors[i][2]):
        alive = [i for i in offsets if _meet(tensors[i], tensors[index])]
        place = 0
        for other in sorted(alive, key=lambda i: offsets[i]):
            if place + tensors[index][2] <= offsets[other]:
                break
            place = max(place, _aligned(offsets[other] + tensors[other][2]))
        offsets[index] = place
    return [offsets[i] for i in range(len(tensors))]


def arena(tensors: Sequence[Tensor], offsets: Sequence[int]) -> int:
    """Bytes of the arena that holds ``tensors`` at ``offsets``."""
    return max((offset + tensor[2] for offset, tensor in zip(offsets, tensors, strict=True)), default=0)


def _meet(a: Tensor, b: Tensor) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _clash(tensors: Sequence[Tensor], offsets: Sequence[int]) -> tuple[int, int] | None:
    for i, j in itertools.combinations(range(len(tensors)), 2):
        apart = offsets[i] + tensors[i][2] <= offsets[j] or offsets[j] + tensors[j][2] <= offsets[i]
        if _meet(tensors[i], tensors[j]) and not apart:
            return i, j
    return None


def _told(tensors: Sequence[Tensor], offsets: Sequence[int], clash: tuple[int, int] | None) -> str:
    if clash is None:
        return ""
    i, j = clash
    step = max(tensors[i][0], tensors[j][0])
    edge = " An operator reads its input while it writes its output." if _touch(tensors[i], tensors[j]) else ""
    return (
        f"Tensors {tensors[i]} at {offsets[i]} and {tensors[j]} at {offsets[j]} overlap, "
        f"and both are alive in step {step}.{edge}"
    )


def _touch(a: Tensor, b: Tensor) -> bool:
    """Whether one ends in the very step in which the other begins."""
    return a[1] == b[0] or b[1] == a[0]


def _short(text: str) -> str:
    return text if len(text) < 70 else text[:67] + "..."
