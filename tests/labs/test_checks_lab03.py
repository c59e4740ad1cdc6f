"""The graders of lab 03, graded: they name each planted mistake."""

from __future__ import annotations

import contextlib
import math
import os
import queue
import time

import pytest

from deploylab.checks import lab03 as check
from graders import solutions, verdict

right = solutions("03_production_serving")


def most_used(cores, memory, each):
    """Fewer processes with more threads, though more processes would fit."""
    processes, _ = right.thread_plan(cores, memory, each)
    return (processes // 2, cores // (processes // 2)) if processes > 1 else (1, cores)


def one_thread_each(cores, memory, each):
    return right.thread_plan(cores, memory, each)[0], 1


WRONG_THREAD_PLAN = [
    (lambda cores, memory, each: (2 * cores + 1, 1), "2 x cores + 1 of web guides"),
    (lambda cores, memory, each: (cores, cores), "2 processes x 2 threads are 4 threads on 2 cores"),
    (lambda cores, memory, each: (cores, 1), "8 processes need 2000 MiB"),
    (lambda cores, memory, each: (os.cpu_count() + 64, 1), "MiB"),
    (lambda cores, memory, each: (1, cores), "1 processes, but 2 fit"),
    (most_used, "1 processes, but 2 fit"),
    (one_thread_each, "1 cores of each process would idle"),
    (lambda cores, memory, each: (cores / 2, 2), "is no plan"),
    (lambda cores, memory, each: (memory // (each * 99), 1), "is no plan"),
    (lambda cores, memory, each: cores, "Return two numbers"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_THREAD_PLAN)
def test_thread_plan_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.thread_plan, wrong)


def anew_each_time(get, now, max_batch, max_wait_s):
    batch = [get()]
    while len(batch) < max_batch:
        try:
            batch.append(get(timeout=max_wait_s))
        except queue.Empty:
            break
    return batch


def until_full(get, now, max_batch, max_wait_s):
    return [get() for _ in range(max_batch)]


def takes_what_is_there(get, now, max_batch, max_wait_s):
    batch = [get()]
    while len(batch) < max_batch:
        try:
            batch.append(get(timeout=0))
        except queue.Empty:
            break
    return batch


def one_too_many(get, now, max_batch, max_wait_s):
    return right.collect(get, now, max_batch + 1, max_wait_s)


def drops_the_surplus(get, now, max_batch, max_wait_s):
    return right.collect(get, now, max_batch + 1, max_wait_s)[:max_batch]


def never_full(get, now, max_batch, max_wait_s):
    batch = right.collect(get, now, max_batch, max_wait_s)
    if max_batch == 4:
        get_nothing(get, 0.01)
    return batch


def get_nothing(get, seconds):
    arrivals = get.__self__
    arrivals.clock += seconds


def forgets_empty(get, now, max_batch, max_wait_s):
    batch, end = [get()], now() + max_wait_s
    while len(batch) < max_batch and now() < end:
        batch.append(get(timeout=end - now()))
    return batch


def negative_wait(get, now, max_batch, max_wait_s):
    batch, end = [get()], now() + max_wait_s
    while len(batch) < max_batch:
        with contextlib.suppress(queue.Empty):
            batch.append(get(timeout=end - now()))
    return batch


def first_in_a_hurry(get, now, max_batch, max_wait_s):
    try:
        return [get(timeout=max_wait_s)]
    except queue.Empty:
        return []


def for_ever(get, now, max_batch, max_wait_s):
    while True:
        now()


WRONG_COLLECT = [
    (anew_each_time, "must not start it anew"),
    (until_full, "a request that never comes"),
    (takes_what_is_there, "may wait 0.01 s; your batch started at 5.000 s"),
    (one_too_many, "A batch of 5, but max_batch is 4"),
    (drops_the_surplus, "nobody will answer it"),
    (never_full, "a full batch starts"),
    (forgets_empty, "Catch it"),
    (negative_wait, "A timeout below zero"),
    (first_in_a_hurry, "The batch is empty"),
    (for_ever, "Does your loop end?"),
    (lambda get, now, max_batch, max_wait_s: get(), "Return the list of requests, not int"),
    (lambda get, now, max_batch, max_wait_s: [get()], "your batch is [0]"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_COLLECT)
def test_collect_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.collect, wrong)


@pytest.mark.parametrize("max_wait_s", [0.0, 0.5])
def test_collect_works_on_a_real_queue(max_wait_s):
    line = queue.Queue()
    for number in range(5):
        line.put(number)
    assert right.collect(line.get, time.monotonic, 4, 30.0) == [0, 1, 2, 3]
    assert right.collect(line.get, time.monotonic, 4, max_wait_s) == [4]
    assert line.empty()


WRONG_QUEUE_BOUND = [
    (lambda budget, service, processes: budget / service, "take that out of the budget first"),
    (lambda budget, service, processes: int(budget / service * processes), "take that out of the budget first"),
    (lambda budget, service, processes: max(0, int((budget - service) / service)), "one process only"),
    (lambda budget, service, processes: max(0, int((budget - service) / service / processes)), "you divided by"),
    (lambda budget, service, processes: max(0, math.ceil((budget - service) * processes / service)), "round down"),
    (lambda budget, service, processes: int((budget - service) * processes / service), "nobody may: 0"),
    (lambda budget, service, processes: 64, "it is 9"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_QUEUE_BOUND)
def test_queue_bound_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.queue_bound, wrong)


def edges(text, metric, route=None):
    """(edge, count) of every bucket line of the metric, in the order of the text."""
    found = []
    for line in text.splitlines():
        if line.startswith(f"{metric}_bucket") and (route is None or route in line):
            found.append((line.split('le="')[1].split('"')[0], float(line.split()[-1])))
    return found


def added_up(text, metric):
    total, seen = sum(count for _, count in edges(text, metric)), 0
    for edge, count in edges(text, metric):
        seen += count
        if seen >= 0.95 * total:
            return float(edge)


def edge_below(text, metric):
    found = edges(text, metric)
    total = found[-1][1]
    return float([edge for edge, count in found if count < 0.95 * total][-1])


def as_text(text, metric):
    total = edges(text, metric)[-1][1]
    return float(min(edge for edge, count in edges(text, metric) if count >= 0.95 * total))


def strictly_more(text, metric):
    total = edges(text, metric)[-1][1]
    return min(float(edge) for edge, count in edges(text, metric) if count > 0.95 * total)


def last_finite(text, metric):
    total = edges(text, metric)[-1][1]
    finite = [float(edge) for edge, count in edges(text, metric) if edge != "+Inf"]
    return min((float(e) for e, c in edges(text, metric) if c >= 0.95 * total and e != "+Inf"), default=max(finite))


def one_route(text, metric):
    return right.p95_bound("\n".join(line for line in text.splitlines() if "/v1/" in line or "#" in line), metric)


def other_route(text, metric):
    keep = "/v2/" if "/v2/" in text else "/v1/"
    return right.p95_bound("\n".join(line for line in text.splitlines() if keep in line or "#" in line), metric)


def any_metric(text, metric):
    found = [
        (line.split('le="')[1].split('"')[0], float(line.split()[-1])) for line in text.splitlines() if "le=" in line
    ]
    totals = {}
    for edge, count in found:
        totals[float(edge)] = totals.get(float(edge), 0) + count
    return min(edge for edge, count in totals.items() if count >= 0.95 * totals[math.inf])


WRONG_P95 = [
    (added_up, "Either you added the buckets up"),
    (edge_below, "only 94 of 100"),
    (as_text, "or you compared edges as text"),
    (strictly_more, "95 % is enough"),
    (last_finite, "nothing bounds them"),
    (one_route, "that of one"),
    (other_route, "that of one"),
    (any_metric, "those are not asked for"),
    (lambda text, metric: "0.05", "not the text '0.05'"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_P95)
def test_p95_bound_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.p95_bound, wrong)
