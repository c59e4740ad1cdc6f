"""Make load on a server and say what came back::

    result = load.closed_loop(url, [jpeg], concurrency=4, seconds=5)
    result = load.open_loop(url, [jpeg], rate=50, seconds=5, seed=1)
    print(result)                       # requests/s, percentiles where samples support them, errors by kind

A *closed loop* keeps a fixed number of requests under way: each client waits for its answer before it asks again. If
the server stalls, so do the clients, and the many requests that real users would have sent meanwhile are missing from
the latencies ("coordinated omission", Gil Tene). It answers "how much can this server do?". An *open loop* sends at the
arrival times of a Poisson process, whatever the server does, and counts each latency from the time the request was
*due*. It answers "how long do users wait at this rate?".

The load is made by a process of its own (``_load_worker.py``), so it neither shares a lock with a notebook's kernel nor
waits for its imports. Its CPU time is part of the result: where it nears a whole core, the generator was measured.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import math
import socket
import subprocess
import sys
import threading
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

import numpy as np

from deploylab.bench.latency import Summary
from deploylab.errors import InputError, ServerError
from deploylab.serving import _load_worker

MAX_CONNECTIONS = 500  # select() takes file descriptors below 1024
BUCKETS_PER_DECADE = 10
TOP_LABEL = r'"label"\s*:\s*"([^"]*)"'
"""Where the first label of an answer stands: our own format, and any that lists the best class first."""

ERRORS = {
    "refused": "nothing listens there",
    "closed": "hung up before a word of the answer",
    "cut": "hung up in the middle of the answer",
    "timeout": "no answer in time",
    "not_http": "answered something that is not HTTP",
}


@dataclass(frozen=True)
class LoadResult:
    """What one run of load saw. Times of single requests in milliseconds, other times in seconds.

    ``ok`` counts the answers with a status below 400 and, where labels were expected, the right one; ``rps`` is how
    many of them arrived per second of the measured ``seconds``; ``latencies_ms`` are theirs, and ``due_s`` says when
    each was due, from the start. ``statuses`` counts every answer by HTTP status, ``errors`` what gave no answer, by
    kind, ``wrong`` the good answers with another label. ``examples`` holds one bad answer a status: its beginning, or
    the wrong label. ``connections`` were opened. ``generator_cpu_s`` of CPU went into making the load; ``lag_ms`` is
    how late, at most, it sent a request that could go out at once.
    """

    mode: str
    url: str
    concurrency: int | None
    rate: float | None
    seed: int | None
    seconds: float
    requests: int
    ok: int
    rps: float
    latency: Summary | None
    statuses: dict[int, int]
    errors: dict[str, int]
    wrong: int
    examples: dict[int, str]
    connections: int
    generator_cpu_s: float
    lag_ms: float
    interrupted: bool
    due_s: np.ndarray = field(repr=False, compare=False)
    latencies_ms: np.ndarray = field(repr=False, compare=False)

    @property
    def generator_cores(self) -> float:
        """How much of one core the generator took."""
        return self.generator_cpu_s / self.seconds if self.seconds else 0.0

    def histogram(self) -> list[tuple[float, float, int]]:
        """``(from_ms, to_ms, count)`` over equal steps of the logarithm, ten a decade; the counts add up to ``ok``."""
        return histogram(self.latencies_ms)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single latencies, ready for JSON."""
        fields = {name: value for name, value in vars(self).items() if name not in ("due_s", "latencies_ms", "latency")}
        return {
            **fields,
            "latency_ms": self.latency.to_dict() if self.latency else None,
            "generator_cores": self.generator_cores,
            "histogram_ms": self.histogram(),
        }

    def __str__(self) -> str:
        load = f"{self.concurrency} at a time" if self.rate is None else f"{self.rate:g}/s asked for"
        parts = [f"{load}: {self.rps:.1f} requests/s", str(self.latency) if self.latency else "no good answer"]
        return "; ".join([*parts, *self.complaints()])

    def complaints(self) -> list[str]:
        """What went wrong, in words; empty if nothing did."""
        found = [f"{count} x status {status}" for status, count in self.statuses.items() if status >= 400]
        found += [f"{count} x {kind} ({ERRORS[kind]})" for kind, count in self.errors.items()]
        found += [f"{self.wrong} wrong answer(s)"] if self.wrong else []
        found += ["interrupted"] if self.interrupted else []
        return found


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run. ``result`` is what was measured until then."""

    def __init__(self, result: LoadResult) -> None:
        super().__init__("interrupted")
        self.result = result


def closed_loop(
    url: str,
    bodies: Sequence[bytes] = (),
    *,
    concurrency: int = 1,
    seconds: float | None = None,
    requests: int | None = None,
    warm_up_s: float = 0.0,
    content_type: str = "image/jpeg",
    headers: Mapping[str, str] | None = None,
    expect: Sequence[str] | None = None,
    label_pattern: str = TOP_LABEL,
    timeout_s: float = 30.0,
    allow_remote: bool = False,
) -> LoadResult:
    """Keep ``concurrency`` requests under way for ``seconds``, or until ``requests`` were sent, whichever comes first.

    ``bodies`` are POSTed in turn; without any, the URL is fetched with GET. ``expect`` names, for each body, the label
    that ``label_pattern`` (a regular expression with one group) must find first in a good answer. Requests due in the
    first ``warm_up_s`` seconds are not counted. A request that is not answered ``timeout_s`` after it was due is an
    error. Requests still under way at the end are waited for and counted, so that slow answers are not lost.

    Raises :class:`InputError` for a wrong argument and for a URL that is not this machine, unless ``allow_remote``;
    :class:`Interrupted` (a KeyboardInterrupt) with the result so far on Ctrl-C.
    """
    if not 1 <= concurrency <= MAX_CONNECTIONS:
        raise InputError(f"concurrency must lie between 1 and {MAX_CONNECTIONS}, got {concurrency}")
    if seconds is None and requests is None:
        raise InputError("say when to end: seconds=... or requests=...")
    if requests is not None and requests < 1:
        raise InputError(f"requests must be at least 1, got {requests}")
    target = _Target.of(url, bodies, content_type, headers, allow_remote)
    plan = {"connections": concurrency, "seconds": _duration(seconds, warm_up_s), "requests": requests}
    facts = {"mode": "closed", "concurrency": concurrency, "rate": None, "seed": None}
    return _run(target, plan, facts, warm_up_s, timeout_s, expect, label_pattern)


def open_loop(
    url: str,
    bodies: Sequence[bytes] = (),
    *,
    rate: float,
    seconds: float,
    seed: int = 0,
    max_connections: int = 256,
    warm_up_s: float = 0.0,
    content_type: str = "image/jpeg",
    headers: Mapping[str, str] | None = None,
    expect: Sequence[str] | None = None,
    label_pattern: str = TOP_LABEL,
    timeout_s: float = 30.0,
    allow_remote: bool = False,
) -> LoadResult:
    """Send requests for ``seconds`` at the times of a Poisson process of ``rate`` a second, drawn with ``seed``.

    A latency runs from the time a request was due, also while all ``max_connections`` are busy and it has to wait to
    be sent. Everything else as in :func:`closed_loop`.
    """
    if not 0 < rate < math.inf:
        raise InputError(f"rate must be above 0 requests a second, got {rate}")
    if not 1 <= max_connections <= MAX_CONNECTIONS:
        raise InputError(f"max_connections must lie between 1 and {MAX_CONNECTIONS}, got {max_connections}")
    target = _Target.of(url, bodies, content_type, headers, allow_remote)
    plan = {"connections": max_connections, "seconds": _duration(seconds, warm_up_s), "rate": rate, "seed": seed}
    facts = {"mode": "open", "concurrency": None, "rate": rate, "seed": seed}
    return _run(target, plan, facts, warm_up_s, timeout_s, expect, label_pattern)


def multipart(files: Sequence[bytes], field_name: str = "image") -> tuple[list[bytes], str]:
    """Each file as the body of an upload form (RFC 7578), and the content type that goes with all of them."""
    from urllib3 import encode_multipart_formdata

    boundary = "deploylab-7f1c"
    forms = [encode_multipart_formdata({field_name: ("upload.jpg", data)}, boundary) for data in files]
    return [body for body, _ in forms], f"multipart/form-data; boundary={boundary}"


def histogram(latencies_ms: np.ndarray) -> list[tuple[float, float, int]]:
    """``(from_ms, to_ms, count)`` in logarithmic steps from the smallest to the largest value; none left out."""
    if not len(latencies_ms):
        return []
    # below a microsecond nothing is measured, and log(0) would be no step
    steps = np.floor(np.log10(np.maximum(latencies_ms, 1e-3)) * BUCKETS_PER_DECADE).astype(int)
    first = int(steps.min())
    counts = np.bincount(steps - first)
    edges = [10 ** ((first + i) / BUCKETS_PER_DECADE) for i in range(len(counts) + 1)]
    return [(edges[i], edges[i + 1], int(count)) for i, count in enumerate(counts)]


def histogram_text(result: LoadResult, width: int = 50) -> str:
    """The histogram as text, one line a step."""
    steps = result.histogram()
    most = max((count for *_, count in steps), default=1)
    lines = [
        f"{low:9.2f} to {high:9.2f} ms {count:8d} {'#' * math.ceil(width * count / most)}" for low, high, count in steps
    ]
    return "\n".join(lines) or "no good answer, no histogram"


# --- the request ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Target:
    """Where to send what: the socket's address and whole requests, heads included."""

    url: str
    family: int
    address: tuple
    payloads: list[bytes]

    @classmethod
    def of(
        cls, url: str, bodies: Sequence[bytes], content_type: str, headers: Mapping[str, str] | None, allow_remote: bool
    ) -> _Target:
        parts = urlsplit(url)
        family, address = _resolve(url, parts, allow_remote)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = {"Host": parts.netloc.rpartition("@")[2], "User-Agent": "deploylab-load", "Accept": "*/*"}
        if bodies:
            lines["Content-Type"] = content_type
        lines.update(headers or {})
        head = "".join(f"{name}: {_one_line(value)}\r\n" for name, value in lines.items())
        if not bodies:
            return cls(url, family, address, [f"GET {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1")])
        payloads = [
            f"POST {path} HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body
            for body in bodies
        ]
        return cls(url, family, address, payloads)


def _one_line(value: str) -> str:
    if "\r" in value or "\n" in value:
        raise InputError(f"a header's value is one line, got {value!r}")
    return value


def _resolve(url: str, parts: SplitResult, allow_remote: bool) -> tuple[int, tuple]:
    if parts.scheme != "http" or not parts.hostname:
        raise InputError(f"give a URL such as http://127.0.0.1:8000/v1/predict, got {url!r} (only http is spoken)")
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        raise InputError(f"{url}: the host or port cannot be used ({error})") from error
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)  # servers that know one family know this one
    family, *_, address = found[0]
    if not allow_remote and not ipaddress.ip_address(address[0].partition("%")[0]).is_loopback:
        raise InputError(
            f"{parts.hostname} is not this machine, and load on other people's servers is an attack. "
            "If it is yours to load, say so: --allow-remote (allow_remote=True)"
        )
    return family, address


def _duration(seconds: float | None, warm_up_s: float) -> float | None:
    if seconds is not None and not 0 < seconds < math.inf:
        raise InputError(f"seconds must be above 0, got {seconds}")
    if not 0 <= warm_up_s < math.inf:
        raise InputError(f"warm_up_s cannot be negative, got {warm_up_s}")
    return None if seconds is None else seconds + warm_up_s


# --- the generator's process ----------------------------------------------------------------------------------------


def _run(
    target: _Target,
    plan: dict[str, Any],
    facts: dict[str, Any],
    warm_up_s: float,
    timeout_s: float,
    expect: Sequence[str] | None,
    label_pattern: str,
) -> LoadResult:
    if expect is not None and len(expect) != len(target.payloads):
        raise InputError(f"{len(expect)} expected labels for {len(target.payloads)} bodies; give one each")
    if not timeout_s > 0:
        raise InputError(f"timeout_s must be above 0, got {timeout_s}")
    whole_plan = _load_worker.Plan(
        family=int(target.family),
        address=list(target.address),
        timeout_s=timeout_s,
        sizes=[len(payload) for payload in target.payloads],
        expect=None if expect is None else list(expect),
        pattern=label_pattern,
        **plan,
    )
    output, interrupted = _work(json.dumps(asdict(whole_plan)).encode() + b"\n", target.payloads)
    result = _result(output, {"url": target.url, **facts}, plan, warm_up_s, interrupted)
    if interrupted:
        raise Interrupted(result)
    return result


def _work(plan: bytes, payloads: list[bytes]) -> tuple[bytes, bool]:
    """What the generator's process wrote, and whether Ctrl-C cut it short."""
    worker = subprocess.Popen(
        [sys.executable, "-I", "-S", _load_worker.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us; we ask the worker for what it has
    )
    streams = {stream: _Reader(stream) for stream in (worker.stdout, worker.stderr)}
    interrupted = False
    try:
        with contextlib.suppress(BrokenPipeError):  # it died early; its last words tell why
            worker.stdin.write(plan)
            for payload in payloads:
                worker.stdin.write(payload)
            worker.stdin.flush()
        try:
            streams[worker.stdout].wait()
        except KeyboardInterrupt:
            interrupted = True
            worker.stdin.close()
            streams[worker.stdout].wait(timeout_s=10)
        output = streams[worker.stdout].data
        if not output:
            streams[worker.stderr].wait(timeout_s=1)
            said = streams[worker.stderr].data.decode("utf-8", "replace").strip().splitlines()
            raise ServerError(f"the load generator broke down: {said[-1] if said else 'it said nothing'}")
        return output, interrupted
    finally:
        worker.kill()
        worker.wait()
        for reader in streams.values():
            reader.wait(timeout_s=1)
        for stream in (worker.stdin, worker.stdout, worker.stderr):
            with contextlib.suppress(OSError):
                stream.close()


class _Reader(threading.Thread):
    """Reads a pipe to its end, so that the thread that waits can be interrupted without a loss."""

    def __init__(self, stream: Any) -> None:
        super().__init__(daemon=True)
        self.data, self._stream = b"", stream
        self._done = threading.Event()  # an interrupted join() may take a running thread for an ended one
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.data = self._stream.read()
        self._done.set()

    def wait(self, timeout_s: float = math.inf) -> None:
        while timeout_s > 0 and not self._done.wait(min(0.1, timeout_s)):  # in steps: Windows interrupts between them
            timeout_s -= 0.1


def _result(
    output: bytes, facts: dict[str, Any], plan: dict[str, Any], warm_up_s: float, interrupted: bool
) -> LoadResult:
    line, _, packed = output.partition(b"\n")
    said = json.loads(line)
    columns = _unpack(packed, said["n"])
    counted = columns[0] >= warm_up_s
    due, took, status, right = (column[counted] for column in columns)
    fine = (status > 0) & (status < 400) & (right == 1)
    end = said["seconds"] if plan["seconds"] is None else min(plan["seconds"], said["seconds"])
    seconds = max(end - warm_up_s, 0.0)
    in_time = int((fine & (due + took <= end)).sum())
    latencies = 1e3 * took[fine]
    return LoadResult(
        **facts,
        seconds=seconds,
        requests=len(due),
        ok=int(fine.sum()),
        rps=in_time / seconds if seconds else 0.0,
        latency=Summary.of(latencies) if len(latencies) else None,
        statuses={int(s): int((status == s).sum()) for s in np.unique(status) if s > 0},
        errors={
            kind: int((status == -1 - i).sum())
            for i, kind in enumerate(_load_worker.ERRORS)
            if (status == -1 - i).any()
        },
        wrong=int(((status >= 200) & (status < 300) & (right == 0)).sum()),
        examples={int(s): text for s, text in said["examples"].items()},
        connections=said["connections"],
        generator_cpu_s=said["cpu_s"],
        lag_ms=1e3 * said["lag_s"],
        interrupted=interrupted,
        due_s=due[fine],
        latencies_ms=latencies,
    )


def _unpack(packed: bytes, n: int) -> list[np.ndarray]:
    columns, at = [], 0
    for code in "ddhb":
        size = n * array(code).itemsize
        columns.append(np.frombuffer(packed[at : at + size], dtype=np.dtype(code)))
        at += size
    return columns


__all__ = ["Interrupted", "LoadResult", "closed_loop", "histogram", "histogram_text", "multipart", "open_loop"]
