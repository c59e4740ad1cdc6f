"""The worker protocol, and what the parent sees when a worker crashes, hangs, lies or outlives its parent."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploylab import machine
from deploylab.bench import client, worker
from deploylab.bench.client import Worker
from deploylab.errors import WorkerError


def snippet(code: str) -> tuple[str, ...]:
    """A worker that greets as it should and then runs ``code`` at its next request."""
    hello = "import os, signal, sys, time; sys.stdin.readline(); print('{\"ok\": true}', flush=True)"
    return sys.executable, "-c", f"{hello}; sys.stdin.readline()\n{code}"


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_until_gone(pid: int, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not is_gone(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return is_gone(pid)


@given(
    hnp.arrays(st.sampled_from([np.float32, np.float64, np.int64, np.bool_, np.uint8]), hnp.array_shapes(min_side=0))
)
def test_arrays_travel_unchanged(array):
    back = worker.decode(worker.encode(array))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize("text", ["", "not base64!", "AAAA", None, worker.encode(np.zeros(9))[:40]])
def test_what_is_no_array_is_refused(text):
    with pytest.raises(WorkerError, match="not an array"):
        worker.decode(text)


def test_a_worker_greets_and_stops():
    with Worker() as running:
        assert running.greeting["protocol"] == worker.PROTOCOL
        assert running.greeting["pid"] == running.pid
        assert running.greeting["cores"] == machine.usable_cores()
        assert running.start_s > 0
        pid = running.pid
    assert is_gone(pid)
    running.close()  # twice is fine


def test_the_worker_brings_neither_torch_nor_the_command_line():
    code = "import sys, deploylab.bench.worker, deploylab.engines; deploylab.engines.names();"
    code += "print(sorted({'torch', 'typer', 'rich', 'matplotlib', 'onnx', 'psutil', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_environment_is_pinned_before_anything_is_imported():
    code = "import json, os; print(json.dumps({'ok': True, 'omp': os.environ['OMP_NUM_THREADS']}), flush=True)"
    with Worker(threads=3, command=(sys.executable, "-c", f"{code}; input(); input()")) as running:
        assert running.greeting["omp"] == "3"


def test_errors_are_answers_and_the_worker_lives_on():
    with Worker("toy") as running:
        with pytest.raises(WorkerError, match="toy: unknown op 'dance'; there are: hello"):
            running.request("dance", 20)
        with pytest.raises(WorkerError, match="send a load first"):
            running.request("measure", 20)
        with pytest.raises(WorkerError, match="unknown engine 'nosuch'"):
            running.request("load", 20, engine="nosuch", artifact="/nowhere")
        with pytest.raises(WorkerError, match="No module named 'nosuch'"):
            running.request("import", 20, modules=["nosuch"])
        assert running.request("memory", 20)["rss"] > 1 << 20


def test_lines_that_are_no_requests_get_an_answer():
    answers = io.BytesIO()
    worker.serve(io.BytesIO(b'nonsense\n[1]\n{"op": "memory"}\n{"op": "stop"}\n{"op": "hello"}\n'), answers)
    replies = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert [reply["ok"] for reply in replies] == [False, False, True]


def test_chatter_on_stdout_does_not_touch_the_protocol(tmp_path):
    chatter = tmp_path / "chatter.py"
    chatter.write_text("import os; print('Python says hello'); os.system('echo so does the shell')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from deploylab.bench import worker; worker.main()"
    with Worker(command=(sys.executable, "-c", code)) as running:
        assert running.request("import", 20, modules=["chatter"])["seconds"] >= 0
        assert running.request("hello", 20)["ok"]
        running.close()
        assert {"Python says hello", "so does the shell"} <= set(running._stderr)


def test_a_crash_names_the_signal_and_the_last_words():
    code = "print('about to fall', file=sys.stderr, flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
    with Worker("ncnn", command=snippet(code)) as running:
        with pytest.raises(WorkerError, match=r"ncnn: crashed with SIGSEGV \(signal 11\) during 'load'") as caught:
            running.request("load", 20)
        assert "about to fall" in str(caught.value)


def test_a_crash_in_native_code_shows_where_python_was():
    code = "import ctypes; from deploylab.bench import worker\n"
    code += "worker.Server.hello = lambda self: {}\n"
    code += "worker.Server.import_modules = lambda self: ctypes.string_at(0)\nworker.main()"
    with Worker(command=(sys.executable, "-c", code)) as running:
        with pytest.raises(WorkerError, match="SIGSEGV") as caught:
            running.request("import", 20)
        assert "string_at" in str(caught.value)


def test_an_ordinary_exit_is_reported_with_its_code():
    with Worker(command=snippet("sys.exit(3)")) as running, pytest.raises(WorkerError, match="ended with exit code 3"):
        running.request("load", 20)


def test_a_hang_is_ended_and_reported(monkeypatch):
    monkeypatch.setattr(client, "GRACE_S", 0.2)
    with Worker("mnn", command=snippet("time.sleep(600)")) as running:
        with pytest.raises(WorkerError, match=r"mnn: did not answer 'measure' within 0.3 s and was ended"):
            running.request("measure", 0.3)
        assert is_gone(running.pid)


def test_a_hang_that_holds_pythons_lock_ends_itself():
    # sleep() through PyDLL keeps the GIL, as some engines do; only the worker's own watchdog can act then.
    code = "import ctypes; from deploylab.bench import worker\n"
    code += "worker.Server.import_modules = lambda self: ctypes.PyDLL(None).sleep(600)\nworker.main()"
    with Worker(command=(sys.executable, "-c", code)) as running:
        with pytest.raises(WorkerError, match=r"did not answer 'import' within 0\.3 s") as caught:
            running.request("import", 0.3)
        assert "Timeout" in str(caught.value)
        assert running._process.returncode == 1


def test_nonsense_is_reported_with_a_piece_of_it():
    with Worker(command=snippet("print('x' * 999); sys.stdout.flush(); time.sleep(600)")) as running:
        with pytest.raises(WorkerError, match=r"nonsense: 'x{80}\.\.\.'"):
            running.request("load", 20)
        assert is_gone(running.pid)


def test_a_program_that_is_not_there():
    with pytest.raises(WorkerError, match="cannot start /no/such/python: No such file"):
        Worker(command=("/no/such/python",))


def test_an_interrupt_ends_the_worker_and_its_children():
    code = "import subprocess; child = subprocess.Popen(['sleep', '600']); "
    code += 'print(\'{"ok": true, "child": %d}\' % child.pid, flush=True); time.sleep(600)'
    with pytest.raises(KeyboardInterrupt), Worker(command=snippet(code)) as running:  # noqa: PT012
        child = running.request("load", 20)["child"]
        raise KeyboardInterrupt
    assert is_gone(running.pid)
    assert wait_until_gone(child)


def test_a_worker_ends_when_its_parent_is_killed():
    code = "import time; from deploylab.bench.client import Worker; w = Worker(); print(w.pid, flush=True)"
    parent = subprocess.Popen([sys.executable, "-c", f"{code}; time.sleep(600)"], stdout=subprocess.PIPE, text=True)
    try:
        pid = int(parent.stdout.readline())
        assert not is_gone(pid)
        os.kill(parent.pid, signal.SIGKILL)
        assert wait_until_gone(pid)
    finally:
        parent.kill()
        parent.communicate()


def test_memory_peak_starts_again_on_request():
    block = np.ones(1 << 23)
    before = worker.memory()
    del block
    after = worker.memory(reset=True)
    assert before["rss"] - after["rss"] > 1 << 25
    if before["peak"] is not None and after["peak"] < before["peak"]:
        assert after["peak"] - after["rss"] < 1 << 24
