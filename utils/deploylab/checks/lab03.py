"""Checks of lab 03, Production serving."""

from __future__ import annotations

import math
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from deploylab.checks.core import Wrong, exercise, expect, hint

# cores, memory of the machine, memory of one process (MiB), and the plan
_MACHINES = (
    (2, 4000, 200, 2, 1),
    (4, 2000, 500, 4, 1),
    (8, 1200, 250, 4, 2),
    (4, 700, 500, 1, 4),
    (6, 1000, 240, 4, 1),
)


@exercise("Every core has one thread at most, and memory holds every process.")
def thread_plan(attempt: Callable) -> None:
    """``thread_plan(cores, memory_mib, process_mib)``: (processes, intra-op threads of each)."""
    for cores, memory, each, *want in _MACHINES:
        got = attempt(cores, memory, each)
        where = f"{cores} cores, {memory} MiB, {each} MiB a process"
        expect(
            isinstance(got, (tuple, list)) and len(got) == 2,
            f"Return two numbers, (processes, threads), not {got!r}.",
        )
        processes, threads = got
        expect(
            all(isinstance(number, int) and number >= 1 for number in got),
            f"{where}: {tuple(got)} is no plan; both are whole numbers from 1 on.",
        )
        expect(
            processes != 2 * cores + 1,
            f"{where}: {processes} processes is the 2 x cores + 1 of web guides. It is for workers that mostly wait "
            "for a database; an inference computes.",
        )
        fit = max(1, memory // each)
        expect(processes <= fit, f"{where}: {processes} processes need {processes * each} MiB.")
        expect(
            processes * threads <= cores,
            f"{where}: {processes} processes x {threads} threads are {processes * threads} threads on {cores} cores, "
            "the trap of this section.",
        )
        expect(
            processes == want[0],
            f"{where}: {processes} processes, but {want[0]} fit. A core serves more as a process than as a thread.",
        )
        expect(threads == want[1], f"{where}: {cores // processes - threads} cores of each process would idle.")


@dataclass
class _Arrivals:
    """A line of requests in pretended time: ``get`` waits as :meth:`queue.Queue.get` does, without taking any time."""

    times: Sequence[float]
    clock: float = 0.0
    taken: int = 0
    calls: int = field(default=0, repr=False)

    def get(self, timeout: float | None = None) -> int:
        self._count()
        if timeout is not None and timeout < 0:
            raise ValueError("'timeout' must be a non-negative number")  # as queue.Queue says it
        if self.taken == len(self.times):
            if timeout is None:
                hint("You wait without a timeout for a request that never comes, and those you have wait with you.")
            self.clock += timeout
            raise queue.Empty
        until = math.inf if timeout is None else self.clock + timeout
        if self.times[self.taken] > until:
            self.clock = until
            raise queue.Empty
        self.clock = max(self.clock, self.times[self.taken])
        self.taken += 1
        return self.taken - 1

    def now(self) -> float:
        self._count()
        self.clock += 1e-6  # looking at the clock takes time too
        return self.clock

    def _count(self) -> None:
        self.calls += 1
        if self.calls > 10_000:
            hint("After 10000 looks at the clock or the line there was still no batch. Does your loop end?")


@exercise("The first of a batch waits once, not once for every request that joins.")
def collect(attempt: Callable) -> None:
    """``collect(get, now, max_batch, max_wait_s)``: the list of requests of the next batch."""
    got, line = _collected(attempt, [5.0, 5.0], 8, 0.01)
    expect(got, "The batch is empty: wait for the first request as long as it takes.")
    expect(got == [0, 1], f"Requests 0 and 1 come within the time, your batch is {got}.")
    expect(
        abs(line.clock - 5.01) < 1e-3,
        f"The first request came at 5 s and may wait 0.01 s; your batch started at {line.clock:.3f} s.",
    )
    got, line = _collected(attempt, [1.0, 1.0, 1.0, 1.0, 1.0], 4, 0.01)
    expect(len(got) <= 4, f"A batch of {len(got)}, but max_batch is 4.")
    expect(got == [0, 1, 2, 3], f"Four requests wait in the line and max_batch is 4; your batch is {got}.")
    expect(line.taken == 4, "You took a fifth request out of the line and it is in no batch: nobody will answer it.")
    expect(line.clock < 1.005, "The batch was full at once, and you still waited: a full batch starts.")
    trickle = [index * 0.008 for index in range(30)]
    got, line = _collected(attempt, trickle, 16, 0.01)
    expect(
        line.clock < 0.011,
        f"Requests trickle in every 0.008 s, and the first waited {line.clock:.3f} s instead of 0.01 s: "
        "the time runs from the first request, each new one must not start it anew.",
    )
    expect(got == [0, 1], f"Every 0.008 s a request, 0.01 s to wait: the batch is [0, 1], not {got}.")
    got, line = _collected(attempt, [3.0, 3.5], 8, 0.0)
    expect(
        got == [0] and line.clock < 3.1,
        f"With max_wait_s=0 the first request runs alone and at once; yours was {got} at {line.clock:g} s.",
    )
    got, _ = _collected(attempt, [0.0, 0.0, 0.0], 1, 1.0)
    expect(got == [0], f"max_batch=1 is no batching at all; your batch is {got}.")


def _collected(attempt: Callable, times: Sequence[float], max_batch: int, max_wait_s: float) -> tuple[list, _Arrivals]:
    line = _Arrivals(times)
    try:
        got = attempt(line.get, line.now, max_batch, max_wait_s)
    except Wrong as wrong:
        if "Empty" in str(wrong):
            hint("get() raised queue.Empty because its time was up. Catch it: that is when the batch starts.")
        if "non-negative" in str(wrong):
            hint("A timeout below zero: the time was already up. Start the batch then, or wait max(0, ...).")
        raise
    expect(isinstance(got, list), f"Return the list of requests, not {type(got).__name__}.")
    return got, line


# latency budget and service time in seconds, processes, and the bound
_BUDGETS = (
    (0.1, 0.01, 1, 9),
    (0.1, 0.01, 2, 18),
    (0.05, 0.004, 4, 46),
    (0.5, 0.03, 2, 31),
    (0.02, 0.02, 4, 0),
    (0.01, 0.02, 2, 0),
)


@exercise("Little's law, turned round: the line is as long as the budget allows.")
def queue_bound(attempt: Callable) -> None:
    """``queue_bound(budget_s, service_s, processes)``: how many requests may wait at most, in all processes."""
    for budget, service, processes, want in _BUDGETS:
        got = attempt(budget, service, processes)
        where = f"{budget:g} s budget, {service:g} s of service, {processes} processes"
        whole = budget * processes / service
        expect(got >= 0, f"{where}: {got} requests cannot wait. Where the budget is too small, nobody may: 0.")
        expect(
            got == int(got), f"{where}: {got} is no number of requests; round down, so that the last one still fits."
        )
        wrong = {
            "you divided by the processes; with more of them the line moves faster and may be longer": (
                budget - service
            )
            / service
            / processes,
            "one process only: with more of them the line moves that much faster": (budget - service) / service,
            "after waiting, a request is served too; take that out of the budget first": whole,
            "rounded up, so the last one in the line comes too late; round down": want + 1,
        }
        for mistake, value in wrong.items():
            near = got in (math.floor(value + 1e-9), math.ceil(value - 1e-9))
            expect(got == want or not near, f"{where}: {got:g} is not it: {mistake}.")
        expect(got == want, f"{where}: {got:g} requests may wait, you say; it is {want}.")


_METRIC = "request_seconds"


def _exposition(buckets: dict[str, dict[str, int]], metric: str = _METRIC) -> str:
    """A histogram in Prometheus' text format: route to cumulative buckets."""
    lines = [f"# HELP {metric} Seconds from request to answer.", f"# TYPE {metric} histogram"]
    for route, counts in buckets.items():
        lines += [f'{metric}_bucket{{route="{route}",le="{edge}"}} {count}.0' for edge, count in counts.items()]
        lines += [f'{metric}_count{{route="{route}"}} {counts["+Inf"]}.0', f'{metric}_sum{{route="{route}"}} 1.5']
    return "\n".join([*lines, ""])


@exercise("All that buckets can say: the 95th percentile lies at or below this edge.")
def p95_bound(attempt: Callable) -> None:
    """``p95_bound(text, metric)``: upper edge, in seconds, of the bucket that holds the 95th percentile."""
    one = {"/v1/predict": {"0.005": 10, "0.01": 60, "0.025": 94, "0.05": 99, "0.1": 100, "+Inf": 100}}
    got = attempt(_exposition(one), _METRIC)
    expect(
        got != math.inf,
        "Your bound is infinite, but 99 of 100 requests took 0.05 s or less. Either you added the buckets up, though "
        "each counts all below it (le: less or equal), or you compared edges as text, where '+Inf' is before '0.01'.",
    )
    expect(not isinstance(got, str), f"Return a number of seconds, not the text {got!r}.")
    expect(got != 0.025, "0.025 s is too low: only 94 of 100 requests took so long or less.")
    expect(got != 0.1, "0.1 s bounds all 100 requests; 95 of them are within less.")
    expect(got == 0.05, f"95 of 100 requests took 0.05 s or less; your bound is {got} s.")
    exact = {"/v1/predict": {"0.01": 95, "0.1": 100, "+Inf": 100}}
    got = attempt(_exposition(exact), _METRIC)
    expect(
        got == 0.01, f"95 of 100 requests are in the bucket up to 0.01 s, and 95 % is enough; your bound is {got} s."
    )
    tens = {"/v1/predict": {"5.0": 20, "10.0": 96, "25.0": 98, "+Inf": 100}}
    got = attempt(_exposition(tens), _METRIC)
    expect(got == 10.0, f"96 of 100 requests took 10 s or less; your bound is {got} s. Compare edges as numbers.")
    beyond = {"/v1/predict": {"0.01": 10, "0.1": 90, "+Inf": 100}}
    got = attempt(_exposition(beyond), _METRIC)
    expect(
        got == math.inf,
        f"10 of 100 requests took longer than the last edge, so nothing bounds them: math.inf, not {got}.",
    )
    fast = {"0.01": 50, "0.1": 50, "1.0": 50, "+Inf": 50}
    slow = {"0.01": 0, "0.1": 50, "1.0": 50, "+Inf": 50}
    for two in ({"/v1/predict": slow, "/v2/infer": fast}, {"/v1/predict": fast, "/v2/infer": slow}):
        got = attempt(_exposition(two), _METRIC)
        expect(got != 0.01, "There are two routes. Your bound is that of one; add the counts of equal edges first.")
        expect(got == 0.1, f"Both routes together: 100 of 100 requests took 0.1 s or less; your bound is {got} s.")
    strangers = _exposition(one) + _exposition({"/": {"0.01": 0, "+Inf": 900}}, f"other_{_METRIC}")
    got = attempt(strangers, _METRIC)
    expect(
        got == 0.05, f"With the buckets of other_{_METRIC} in the text your bound is {got} s; those are not asked for."
    )
