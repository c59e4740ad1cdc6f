"""The engines called directly, without DeployLab: what a user of each engine's own Python API would write.

Started by ``vendor_tools.py`` with an artifact folder, an input and a thread count. To ``time N`` on stdin it answers
the median latency of N calls in milliseconds, to ``overhead N`` what the adapter costs a call in microseconds: blocks
of direct calls and of calls through DeployLab take turns in this one process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Call = Callable[[], np.ndarray]
BLOCK = 50


def onnxruntime(folder: Path, x: np.ndarray, threads: int) -> Call:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x}
    return lambda: session.run(None, feed)[0]


def openvino(folder: Path, x: np.ndarray, threads: int) -> Call:
    import openvino as ov

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    request = ov.Core().compile_model(str(folder / "model.xml"), "CPU", settings).create_infer_request()
    request.set_input_tensor(ov.Tensor(x, shared_memory=True))

    def call() -> np.ndarray:
        request.infer()
        return request.get_output_tensor().data

    return call


def ncnn(folder: Path, x: np.ndarray, threads: int) -> Call:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_packed = net.opt.use_bf16_storage = False
    net.load_param(str(folder / "model.ncnn.param"))
    net.load_model(str(folder / "model.ncnn.bin"))
    picture = np.ascontiguousarray(x[0])

    def call() -> np.ndarray:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(picture))
        return np.array(extractor.extract("out0")[1])

    return call


def mnn(folder: Path, x: np.ndarray, threads: int) -> Call:
    from MNN import expr, nn

    names = json.loads((folder / "manifest.json").read_text())
    inputs, outputs = ([spec["name"] for spec in names[key]] for key in ("inputs", "outputs"))
    runtime = nn.create_runtime_manager(({"backend": "CPU", "numThread": threads, "precision": "high"},))
    net = nn.load_module_from_file(
        str(folder / "model.mnn"), inputs, outputs, runtime_manager=runtime, thread_num=threads
    )
    variable = expr.placeholder(list(x.shape), expr.NCHW, expr.float)

    def call() -> np.ndarray:
        variable.write(x)
        return net.forward([variable])[0].read().copy()

    return call


RAW = {"onnxruntime": onnxruntime, "openvino": openvino, "ncnn": ncnn, "mnn": mnn}


def block(call: Call, count: int) -> list[float]:
    """Microseconds of ``count`` calls."""
    times = []
    for _ in range(count):
        start = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start) / 1e3)
    return times


def overhead(raw: Call, adapted: Call, count: int) -> float:
    """Median over blocks of the difference of the medians, in microseconds."""
    block(adapted, BLOCK)
    differences = []
    for turn in range(max(3, count // BLOCK)):
        first, second = (raw, adapted) if turn % 2 else (adapted, raw)
        medians = {first: statistics.median(block(first, BLOCK)), second: statistics.median(block(second, BLOCK))}
        differences.append(medians[adapted] - medians[raw])
    return statistics.median(differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=RAW)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("input", type=Path)
    parser.add_argument("threads", type=int)
    given = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # engines print to stdout
    x = np.load(given.input)
    raw = RAW[given.engine](given.artifact, x, given.threads)
    block(raw, 200)
    print(json.dumps({"sum": float(np.asarray(raw(), np.float64).sum())}), file=answers, flush=True)
    for line in sys.stdin:
        task, count = line.split()
        if task == "overhead":
            from deploylab import engines

            session = engines.get(given.engine).load(given.artifact, threads=given.threads)
            result = overhead(raw, lambda session=session: session(x), int(count))
        else:
            result = statistics.median(block(raw, int(count))) / 1e3
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
