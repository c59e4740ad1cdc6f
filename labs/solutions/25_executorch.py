"""Solutions of lab 25: one function per exercise."""

from __future__ import annotations

from itertools import groupby


def parts(taken):
    return sum(1 for value, _ in groupby(taken) if value)


def needed(programs):
    calls = {call for program in programs for call in program}
    kernels = {name for kind, name in calls if kind == "kernel"}
    delegates = {name for kind, name in calls if kind == "delegate"}
    return kernels, delegates


def plan(tensors):
    placed = []  # (first, last, begin, end)
    offsets = [0] * len(tensors)
    for index in sorted(range(len(tensors)), key=lambda i: -tensors[i][2]):
        first, last, size = tensors[index]
        place = 0
        for other_first, other_last, begin, end in sorted(placed, key=lambda p: p[2]):
            if other_first > last or first > other_last:
                continue  # never alive together
            if place + size <= begin:
                break  # it fits into the gap
            place = max(place, -(-end // 16) * 16)
        offsets[index] = place
        placed.append((first, last, place, place + size))
    return offsets
