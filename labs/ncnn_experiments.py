"""What lab 22 needs besides ncnn: graphs drawn, dangerous experiments, latencies in turns."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploylab import drawing
from deploylab.bench import latency

SHOWN = {
    "Convolution": {0: "channels", 1: "kernel", 9: "activation"},
    "ConvolutionDepthWise": {1: "kernel", 7: "groups", 9: "activation"},
}
ACTIVATIONS = {1: "ReLU", 2: "leaky ReLU", 3: "clip", 4: "sigmoid", 5: "mish", 6: "hard swish"}
PREAMBLE = """
import contextlib, sys, ncnn, numpy as np
from pathlib import Path
with contextlib.suppress(ImportError):  # Windows
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves no file behind
folder = Path(sys.argv[1])
photos, top1 = np.load(folder / "photos.npy"), np.load(folder / "top1.npy")
param = folder / "signnet.ncnn.param"
net = ncnn.Net()
net.opt.num_threads = 1
net.load_param(str(param)), net.load_model(str(param.with_suffix(".bin")))

def infer(mat):
    with net.create_extractor() as extractor:
        extractor.input("in0", mat)
        return np.array(extractor.extract("out0")[1])

def right(mats):
    found = [int(infer(mat).argmax()) for mat in mats]
    print(int(np.sum(found == top1)), "of", len(top1), "answers as in PyTorch")

"""


def drawn(
    layers: Sequence[Any],
    shapes: Mapping[str, Sequence[int]],
    between: tuple[str, str],
    title: str,
) -> drawing.Drawing:
    """Draw the part of an ncnn graph between two blobs, as operators that ONNX does not know.

    ``layers`` have a type, a name, inputs, outputs, params; ``shapes`` are those of all blobs.
    """
    import onnx
    from onnx import helper

    nodes = []
    for layer in layers:
        if layer.inputs:
            keys = SHOWN.get(layer.type, {})
            named = {keys[key]: layer.params[key] for key in keys if key in layer.params}
            if "activation" in named:
                named["activation"] = ACTIVATIONS[named["activation"]]
            nodes.append(
                helper.make_node(
                    layer.type, layer.inputs, layer.outputs, layer.name, domain="ncnn", **named
                )
            )
    infos = {
        name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    }
    ends = [infos.pop("in0")], [infos.pop("out0")]
    graph = helper.make_graph(nodes, "ncnn", *ends, value_info=list(infos.values()))
    return drawing.graph(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("ncnn", 1)]), between, title
    )


def elsewhere(script: str, folder: Path) -> str:
    """Run Python in a process of its own, without PyTorch: what it printed, or how it died.

    The script finds ``net``, ``photos``, ``infer(mat)`` and ``right(mats)`` (see PREAMBLE).
    """
    command = [sys.executable, "-c", PREAMBLE + script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode < 0:
        return f"the process died: {signal.Signals(-done.returncode).name}"
    return done.stdout.strip() if done.returncode == 0 else f"exit code {done.returncode}"


def medians(calls: Mapping[str, Callable[[], object]], rounds: int = 4) -> dict[str, float]:
    """Median latency in ms of each call, measured in turns."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    gc.freeze()  # so that measure() need not search all of torch for garbage
    try:
        for call in calls.values():
            latency.warm_up(call, max_seconds=0.15)
        for _ in range(rounds):
            for name, call in calls.items():
                taken[name].extend(latency.measure(call, samples=3, min_seconds=0.03))
    finally:
        gc.unfreeze()
    return {name: float(np.median(times)) for name, times in taken.items()}
