"""One engine in one process: ``python -m deploylab.bench.worker`` answers JSON lines with JSON lines.

Requests come on stdin, answers go to stdout. The same worker runs here, over SSH on a board and under emulation, so
it needs nothing but NumPy and the engine's adapter, and arrays travel inside the lines (``.npy`` bytes in base64).

Each request is ``{"op": ..., "deadline_s": ...}``; each answer ``{"ok": true, ...}`` or ``{"ok": false, "error": text,
"kind": name of the error class}``. A request that outlives its deadline ends the process, even in native code that
holds Python's lock.

========  ====================================  =================================================================
op        takes                                 answers
========  ====================================  =================================================================
hello     -                                     ``pid``, ``python``, ``cores`` (usable, by affinity), ``memory``
import    ``modules`` (list of names)           ``seconds``
convert   ``engine, source, example, out_dir,   ``artifact`` (path of its folder)
          precision, options``
load      ``engine, artifact, threads``         ``seconds``, ``facts``, ``inputs``, ``cores`` (once loaded)
check     ``inputs`` (one array a model input,  ``outputs`` (one array a model output, same leading axis),
          each with a leading axis of samples)  ``first_s`` (seconds of the first inference)
warm_up   options of latency.warm_up            ``calls, seconds, stable``
measure   options of latency.measure            ``samples`` (ms, one a call), ``cpu_seconds``, ``wall_seconds``,
                                                ``begin`` and ``end`` on the machine's monotonic clock, in seconds
memory    ``reset`` (start a new peak)          ``rss``, ``peak`` (bytes)
footprint ``engine``                            ``own``, ``dependencies`` (bytes by package), ``in_use``
stop      -                                     nothing more; the process ends
========  ====================================  =================================================================

``warm_up`` and ``measure`` run on the first sample of the last ``check``. A source is ``{"model": name}``,
``{"pattern": name}``, ``{"onnx": path}`` or ``{"module": path}``, the artifact folder that the engine eager made of a
torch module.
"""

from __future__ import annotations

import base64
import faulthandler
import importlib
import io
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from deploylab import machine
from deploylab.bench import latency
from deploylab.errors import DeployLabError, InputError, WorkerError

PROTOCOL = 1
RUNS_BEFORE_A_ROUND = 3  # other engines have emptied the caches since the last one


def encode(array: np.ndarray) -> str:
    """An array as text: the bytes of a ``.npy`` file in base64."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return base64.b64encode(buffer.getbuffer()).decode("ascii")


def decode(text: str) -> np.ndarray:
    """The array :func:`encode` wrote. Raises :class:`WorkerError` for anything else."""
    try:
        return np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False)
    except (ValueError, TypeError, EOFError) as error:
        raise WorkerError(f"not an array in .npy format: {error}") from error


class Server:
    """Answers requests; holds the one loaded session."""

    def __init__(self) -> None:
        self.session: Any = None
        self.inputs: tuple[np.ndarray, ...] = ()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request. An error of any kind is an answer too."""
        try:
            handler = self._handlers().get(request.get("op"))
            if handler is None:
                raise WorkerError(f"unknown op {request.get('op')!r}; there are: {', '.join(self._handlers())}, stop")
            options = {key: value for key, value in request.items() if key not in ("op", "deadline_s")}
            return {"ok": True, **handler(**options)}
        except Exception as error:
            text = str(error) if isinstance(error, DeployLabError) else f"{type(error).__name__}: {error}"
            return {"ok": False, "kind": type(error).__name__, "error": text}

    def _handlers(self) -> dict[Any, Callable[..., dict[str, Any]]]:
        return {
            "hello": self.hello,
            "import": self.import_modules,
            "convert": convert,
            "load": self.load,
            "check": self.check,
            "warm_up": self.warm_up,
            "measure": self.measure,
            "memory": memory,
            "footprint": footprint,
        }

    def hello(self) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "pid": os.getpid(),
            "python": platform.python_version(),
            "cores": machine.usable_cores(),
            "memory": memory(),
        }

    def import_modules(self, modules: list[str]) -> dict[str, Any]:
        start = time.perf_counter()
        for name in modules:
            importlib.import_module(name)
        return {"seconds": time.perf_counter() - start}

    def load(self, engine: str, artifact: str, threads: int = 1) -> dict[str, Any]:
        from deploylab import engines

        start = time.perf_counter()
        self.session = engines.get(engine).load(Path(artifact), threads=threads)
        seconds = time.perf_counter() - start
        inputs = [asdict(spec) for spec in self.session.inputs]
        return {"seconds": seconds, "facts": self.session.facts(), "inputs": inputs, "cores": machine.usable_cores()}

    def check(self, inputs: list[str]) -> dict[str, Any]:
        session = self._loaded()
        stacked = [decode(text) for text in inputs]
        if not stacked or len({len(array) for array in stacked}) != 1 or not len(stacked[0]):
            raise InputError("check: every input needs the same, non-zero number of samples on its leading axis")
        samples = [tuple(np.ascontiguousarray(array[i]) for array in stacked) for i in range(len(stacked[0]))]
        self.inputs = samples[0]
        start = time.perf_counter()
        results = [session(*samples[0])]
        first_s = time.perf_counter() - start
        results += [session(*sample) for sample in samples[1:]]
        rows = [result if isinstance(result, tuple) else (result,) for result in results]
        return {"outputs": [encode(np.stack(column)) for column in zip(*rows, strict=True)], "first_s": first_s}

    def warm_up(self, **options: Any) -> dict[str, Any]:
        return asdict(latency.warm_up(self._call(), **options))

    def measure(self, **options: Any) -> dict[str, Any]:
        call = self._call()
        latency.measure(call, RUNS_BEFORE_A_ROUND, max_seconds=options.get("max_seconds", math.inf))
        cpu, wall, begin = time.process_time(), time.perf_counter(), time.monotonic()
        samples = latency.measure(call, **options)
        cpu, wall, end = time.process_time() - cpu, time.perf_counter() - wall, time.monotonic()
        times = {"cpu_seconds": cpu, "wall_seconds": wall, "begin": begin, "end": end}
        return {"samples": [round(t, 6) for t in samples], **times}

    def _call(self) -> Callable[[], Any]:
        session, inputs = self._loaded(), self.inputs
        if not inputs:
            raise WorkerError("no input yet: send a check before warm_up or measure")
        return lambda: session(*inputs)

    def _loaded(self) -> Any:
        if self.session is None:
            raise WorkerError("no session yet: send a load first")
        return self.session


def convert(
    engine: str,
    source: dict[str, str],
    example: list[str],
    out_dir: str,
    precision: str = "fp32",
    options: dict[str, Any] | None = None,
) -> dict[str, str]:
    """Convert a model, where a crash of the converter hurts nobody else."""
    from deploylab import engines

    arrays = [decode(text) for text in example]
    artifact = engines.get(engine).convert(_source(source), arrays, Path(out_dir), precision, **(options or {}))
    return {"artifact": str(artifact.path)}


def _source(told: dict[str, str]) -> Any:
    """The model that a convert request names."""
    if "onnx" in told:
        return Path(told["onnx"])
    if "pattern" in told:
        from deploylab.models import patterns

        return patterns.get(told["pattern"]).module()
    if "model" in told:
        from deploylab import models

        return models.load(told["model"])
    from deploylab.engines import Artifact
    from deploylab.engines.eager import Eager

    return Eager.module(Artifact.read(told["module"]))


def footprint(engine: str) -> dict[str, Any]:
    """What a board must carry to load this engine's models."""
    from deploylab import engines
    from deploylab.engines import footprint

    return asdict(footprint.measure(engines.get(engine)))


def memory(reset: bool = False) -> dict[str, int | None]:
    """Resident memory of this process and its peak since the start or the last reset, in bytes.

    Read from ``/proc/self/status`` (VmRSS, VmHWM) because ``ru_maxrss`` starts at the size of the parent process.
    Elsewhere the current size comes from psutil and the peak is not known.
    """
    if reset:
        _reset_peak()
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            fields = dict(line.split(":", 1) for line in status)
        return {key: int(fields[name].split()[0]) * 1024 for key, name in (("rss", "VmRSS"), ("peak", "VmHWM"))}
    except (OSError, KeyError, ValueError):
        return {"rss": _rss_elsewhere(), "peak": None}


def _reset_peak() -> None:
    """Let VmHWM start again from the present size (``man 5 proc``: the value 5 in ``clear_refs``)."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as switch:
            switch.write("5")
    except OSError:
        pass  # not Linux, or not allowed: the peak then also covers the load


def _rss_elsewhere() -> int | None:
    try:
        import psutil

        return psutil.Process().memory_info().rss
    except Exception:
        return None


def _private_stdout() -> BinaryIO:
    """The real stdout for the protocol alone; whatever engines print to descriptor 1 lands on stderr from now on."""
    sys.stdout.flush()
    private = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return private


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until ``stop`` or the end of ``requests``, which is also what a parent that died leaves behind."""
    server = Server()
    for line in requests:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError("not a JSON object")
        except ValueError as error:
            request, answer = {}, {"ok": False, "kind": "WorkerError", "error": f"not a request: {error}"}
        else:
            if request.get("op") == "stop":
                return
            if request.get("deadline_s"):
                faulthandler.dump_traceback_later(request["deadline_s"], exit=True)
            answer = server.answer(request)
            faulthandler.cancel_dump_traceback_later()
        answers.write(json.dumps(answer, default=str).encode() + b"\n")
        answers.flush()


def main() -> None:
    """Run the worker on this process's stdin and stdout."""
    answers = _private_stdout()
    faulthandler.enable()
    try:
        serve(sys.stdin.buffer, answers)
    except (BrokenPipeError, KeyboardInterrupt):
        pass  # the parent is gone
    finally:
        sys.stderr.flush()
        # Engines' static destructors may hang or crash; every answer has been flushed.
        os._exit(0)


if __name__ == "__main__":
    main()
