"""Solutions of lab 41: one function per exercise."""

from __future__ import annotations

import re
from itertools import groupby, pairwise


def cheapest(modes, idle_w, fps):
    average = {
        name: idle_w + (watts - idle_w) * ms * fps / 1000
        for name, (ms, watts) in modes.items()
        if ms * fps <= 1000
    }
    return min(average, key=average.get, default="")


def energy(seconds, watts, idle_w, inferences):
    readings = list(zip(seconds, watts, strict=True))
    joules = sum((t2 - t1) * (w1 + w2) / 2 for (t1, w1), (t2, w2) in pairwise(readings))
    idle = idle_w * (seconds[-1] - seconds[0])
    return 1000 * joules / inferences, 1000 * (joules - idle) / inferences


def handover(places, sizes):
    runs = sum(place == "DLA" for place, _ in groupby(places))
    changes = [size for (a, b), size in zip(pairwise(places), sizes, strict=False) if a != b]
    return runs, sum(changes)


def bound(log):
    total = {name: float(s) for name, s in re.findall(r"Total (.+?): ([\d.]+) s", log)}
    mean = {
        name: float(ms) for name, ms in re.findall(r"\] (\w[\w ]+): .*mean = ([\d.]+)", log)
    }
    limit = "CPU" if mean["Enqueue Time"] >= 0.9 * mean["GPU Compute Time"] else "GPU"
    return total["GPU Compute Time"] / total["Host Walltime"], limit
