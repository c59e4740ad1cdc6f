"""Checks of lab 41, Jetson."""

from __future__ import annotations

from collections.abc import Callable

from deploylab.checks.core import exercise, expect, hint


@exercise("A mode is judged by what it draws on average, and only if it keeps up.")
def cheapest(attempt: Callable) -> None:
    """``cheapest(modes, idle_w, fps)``: the mode with the least average power that keeps up with a camera."""
    modes = {"low": (40.0, 7.0), "middle": (16.0, 13.0), "high": (10.0, 20.0)}
    got = attempt(dict(modes), 5.0, 30)
    expect(isinstance(got, str), f"Return the name of a mode, not {type(got).__name__}.")
    expect(got != "low", "At 40 ms a picture, low manages 25 pictures a second; the camera gives 30.")
    expect(
        got == "middle",
        "You chose high: it computes for less time, but compare the average power. While it does not compute, a board "
        "still draws idle_w, in every mode: middle needs 5 + (13 - 5) x 0.48 W, high 5 + (20 - 5) x 0.3 W.",
    )
    got = attempt(dict(modes), 5.0, 10)
    expect(got == "low", f"At 10 pictures a second low keeps up, and draws 5.8 W on average: less than {got!r}.")
    got = attempt({"high": (10.0, 20.0), "slow": (20.0, 11.0)}, 5.0, 50)
    expect(got == "slow", f"20 ms x 50 = 1 s: slow just keeps up, and draws 11 W. You say {got!r}.")
    got = attempt({"wasteful": (20.0, 12.0), "high": (10.0, 18.0)}, 5.0, 30)
    expect(
        got == "high",
        "The smaller number of watts is not the cheaper mode: 12 W for 20 ms is more than 18 W for 10 ms.",
    )
    got = attempt(dict(modes), 5.0, 120)
    expect(got == "", f"At 120 pictures a second no mode keeps up: return an empty text, not {got!r}.")


@exercise("Energy is the area under the power, and the board would have drawn a part of it anyway.")
def energy(attempt: Callable) -> None:
    """``energy(seconds, watts, idle_w, inferences)``: millijoules an inference, in all and above idle."""
    seconds, watts = [0.0, 1.0, 1.5, 4.0], [4.0, 4.0, 10.0, 10.0]
    got = attempt(list(seconds), list(watts), 4.0, 100)
    expect(isinstance(got, tuple) and len(got) == 2, f"Return two numbers (in all, above idle), not {got!r}.")
    whole, above = got
    if _near(whole, 0.325):
        hint("These are joules; a joule is 1000 millijoules.")
    if _near(whole, 32500.0):
        hint("This is the energy of all inferences: divide by their number.")
    if _near(whole, 280.0):
        hint("You took the mean of the readings times the duration; the readings are not equally far apart.")
    if _near(whole, 310.0) or _near(whole, 340.0):
        hint("Between two readings the power is a straight line: take the mean of both ends, not one of them.")
    expect(_near(whole, 325.0), f"In all: 4 J + 3.5 J + 25 J for 100 inferences are 325 mJ each, you say {whole:g}.")
    expect(not _near(above, whole), "Above idle: take off what the board draws when it does nothing, 4 W for 4 s.")
    expect(not _near(above, 321.0), "Idle power is in watts: take it off times the duration, 4 W x 4 s.")
    expect(_near(above, 165.0), f"Above idle: (32.5 J - 16 J) / 100 are 165 mJ, you say {above:g}.")
    whole, above = attempt([10.0, 12.0], [5.0, 5.0], 5.0, 10)
    expect(_near(whole, 1000.0), f"From second 10 to 12 at 5 W: 10 J for 10 inferences, you say {whole:g} mJ each.")
    expect(abs(above) < 1e-9, f"A board that draws its idle power spends nothing above it; you say {above:g}.")


@exercise("Every change between DLA and GPU costs a hand-over, so long runs are what counts.")
def handover(attempt: Callable) -> None:
    """``handover(places, sizes)``: how many runs of layers the DLA gets, and how many bytes change hands."""
    places = ["DLA", "DLA", "DLA", "DLA", "GPU", "GPU", "DLA", "GPU", "DLA"]
    sizes = [10, 20, 30, 40, 50, 60, 70, 80, 90]
    got = attempt(list(places), list(sizes))
    expect(isinstance(got, tuple) and len(got) == 2, f"Return two numbers (runs, bytes), not {got!r}.")
    runs, moved = got
    if runs == places.count("DLA"):
        hint("6 layers are on the DLA, but neighbours form one run: there are 3.")
    if runs == 5:
        hint("You count the runs of the GPU too; the DLA has 3.")
    if runs == 4:
        hint("There are 4 changes of place; the DLA has 3 runs.")
    expect(runs == 3, f"The DLA has 3 runs (4 layers, 1, 1), you say {runs}.")
    if moved == 50 + 70 + 80 + 90:
        hint("sizes[i] is what layer i gives: it is the layer before a change whose tensor is handed over.")
    if moved == 250 + 90:
        hint("The last tensor goes to the caller, not to another unit.")
    expect(moved == 40 + 60 + 70 + 80, f"40 + 60 + 70 + 80 = 250 bytes change hands, you say {moved}.")
    got = attempt(["GPU", "DLA", "DLA"], [5, 6, 7])
    expect(got == (1, 5), f"GPU, DLA, DLA: one run, and the first tensor is handed over: (1, 5), not {got}.")
    got = attempt(["GPU", "GPU"], [5, 6])
    expect(got == (0, 0), f"Without the DLA nothing is handed over: (0, 0), not {got}.")
    got = attempt(["DLA"], [5])
    expect(got == (1, 0), f"One layer on the DLA is one run: (1, 0), not {got}.")


def summary(enqueue_ms: float, gpu_ms: float, wall_s: float, busy_s: float) -> str:
    """The summary of trtexec for these means and totals, in the form of TensorRT 8 to 10."""
    stamp = "[01/01/2026-00:00:00] [I]"

    def row(name: str, mean: float) -> str:
        spread = (
            f"min = {mean * 0.9:.6g} ms, max = {mean * 3:.6g} ms, mean = {mean:.6g} ms, median = {mean * 0.99:.6g} ms"
        )
        return f"{stamp} {name}: {spread}, percentile(90%) = {mean * 1.1:.6g} ms, percentile(99%) = {mean * 2:.6g} ms"

    lines = [
        f"{stamp} === Performance summary ===",
        f"{stamp} Throughput: {1000 / gpu_ms:.6g} qps",
        row("Latency", gpu_ms * 1.5),
        row("End-to-End Host Latency", gpu_ms * 1.9),
        row("Enqueue Time", enqueue_ms),
        row("H2D Latency", 0.01),
        row("GPU Compute Time", gpu_ms),
        row("D2H Latency", 0.004),
        f"{stamp} Total Host Walltime: {wall_s:g} s",
        f"{stamp} Total GPU Compute Time: {busy_s:g} s",
    ]
    return "\n".join(lines) + "\n"


@exercise("The log itself says what to work on: the GPU's kernels, or the CPU that cannot launch them fast enough.")
def bound(attempt: Callable) -> None:
    """``bound(log)``: the share of the wall time in which the GPU computed, and what limits, "GPU" or "CPU"."""
    got = attempt(summary(0.2, 4.0, 3.0, 2.7))
    expect(isinstance(got, tuple) and len(got) == 2, f"Return two values (share, name), not {got!r}.")
    share, limit = got
    expect(isinstance(share, (int, float)), f"The share is a number, not {type(share).__name__}.")
    expect(not _near(share, 90.0), "Return the share as a fraction, 0.9, not in percent.")
    expect(not _near(share, 3.0 / 2.7), "You divided the wall time by the GPU's time.")
    expect(_near(share, 0.9), f"Total GPU Compute Time / Total Host Walltime = 2.7 / 3.0 = 0.9, you say {share:g}.")
    expect(limit == "GPU", f"Queuing takes 0.2 ms and computing 4 ms: the GPU limits, you say {limit!r}.")
    share, limit = attempt(summary(5.0, 5.2, 3.0, 2.9))
    expect(limit == "CPU", f"Queuing takes 5.0 ms of 5.2 ms: more than nine tenths, so the CPU limits, not {limit!r}.")
    share, limit = attempt(summary(4.0, 5.2, 3.0, 1.5))
    expect(limit == "GPU", "4.0 ms of 5.2 ms is less than nine tenths: the GPU. Compare the means, not other figures.")
    expect(_near(share, 0.5), f"1.5 s of 3 s: a share of 0.5, you say {share:g}.")


def _near(value: float, wanted: float) -> bool:
    return abs(value - wanted) <= 1e-6 * max(1.0, abs(wanted))
