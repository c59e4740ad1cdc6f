"""Solutions of lab 03: one function per exercise."""

from __future__ import annotations

import math
import queue
from collections import Counter

from prometheus_client.parser import text_string_to_metric_families


def thread_plan(cores, memory_mib, process_mib):
    processes = max(1, min(cores, memory_mib // process_mib))
    return processes, cores // processes


def collect(get, now, max_batch, max_wait_s):
    batch, deadline = [get()], now() + max_wait_s
    while len(batch) < max_batch and (left := deadline - now()) > 0:
        try:
            batch.append(get(timeout=left))
        except queue.Empty:
            break
    return batch


def queue_bound(budget_s, service_s, processes):
    wait_s = budget_s - service_s
    return max(0, math.floor(wait_s * processes / service_s))


def p95_bound(text, metric):
    buckets = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"{metric}_bucket":
                buckets[float(sample.labels["le"])] += sample.value
    return min(edge for edge, count in buckets.items() if count >= 0.95 * buckets[math.inf])
