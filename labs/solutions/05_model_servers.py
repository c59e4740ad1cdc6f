"""Solutions of lab 05, Model servers."""

import json
import math

import numpy as np


def binary_request(name, x):
    """(body, length of its JSON header in bytes) of an Open Inference request."""
    tensor = {
        "name": name,
        "datatype": "FP32",
        "shape": list(x.shape),
        "parameters": {"binary_data_size": x.nbytes},
    }
    header = json.dumps({"inputs": [tensor]}, ensure_ascii=False).encode()
    return header + np.ascontiguousarray(x, "<f4").tobytes(), len(header)


def replicas_needed(rate, service_ms, utilisation):
    """The fewest replicas that are busy at most `utilisation` of the time."""
    return max(1, math.ceil(rate * service_ms / 1000 / utilisation))


def hidden_wait_ms(in_flight, rate, measured_ms):
    """Milliseconds that a request spends where the server's own latency does not look."""
    return 1000 * in_flight / rate - measured_ms


def choose_server(models, frameworks, gpu, machines):
    """The smallest server that does the job."""
    if machines > 1:
        return "Ray Serve"
    return "Triton" if gpu or frameworks > 1 else "deploylab serve"
