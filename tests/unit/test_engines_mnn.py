"""MNN's options: its two APIs, and weights stored as integers."""

import subprocess
import sys
import textwrap
import threading
import time

import engine_nets as nets
import numpy as np
import pytest
import torch

from deploylab import engines
from deploylab.errors import ConversionError

mnn = engines.get("mnn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def convert(folder):
    return lambda **options: mnn.convert(nets.tiny(), nets.pictures(), folder, **options)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_session_api_gives_what_the_module_gives_at_any_batch(convert, threads):
    with mnn.load(convert(api="session"), threads) as session, mnn.load(convert(), threads) as module:
        for count in (1, 5, 2, 1):
            x = nets.pictures(count, seed=count)
            y = session(x)
            assert y.shape == (count, 7)
            assert np.abs(y - nets.truth(nets.tiny(), x)).max() < 1e-5
            assert np.abs(y - module(x)).max() < 1e-6
        kept = session(nets.pictures(seed=1))
        copy = kept.copy()
        session(nets.pictures(seed=2))
        assert np.array_equal(kept, copy)


def test_the_session_api_takes_several_inputs_of_other_types(folder):
    path = nets.two_inputs_onnx(folder / "two.onnx")
    rng = np.random.default_rng(0)
    given = rng.standard_normal((3, 3, 8, 8), np.float32), rng.integers(0, 10, (3, 4))
    answers = {}
    for api in ("module", "session"):
        with mnn.load(mnn.convert(path, given, folder, api=api)) as session:
            answers[api] = session(*given)
    for module, session in zip(answers["module"], answers["session"], strict=True):
        assert np.abs(module - session).max() < 1e-6


@pytest.mark.parametrize(("api", "gil"), [("module", "held"), ("session", "released")])
def test_facts_tell_the_threads_that_mnn_gives(convert, api, gil):
    """The first wish above one fixes the number for the whole process, hence a process of its own."""
    code = f"""
    from deploylab import engines
    for threads in (1, 2, 4, 1):
        with engines.get("mnn").load({str(convert(api=api).path)!r}, threads) as session:
            print("facts", session.facts()["threads"], session.facts()["gil"])
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    told = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("facts")]
    assert told == [["1", gil], ["2", gil], ["2", gil], ["1", gil]], done.stderr


class Heavy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(*(torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).mean((2, 3))


def turns_of_another_thread(session: engines.Session, x: np.ndarray) -> int:
    """How often another Python thread got its turn while the session ran."""
    running, ended = threading.Event(), threading.Event()

    def run() -> None:
        running.set()
        session(x)
        ended.set()

    runner = threading.Thread(target=run)
    runner.start()
    running.wait()
    turns = 0
    while not ended.is_set():
        time.sleep(0.001)
        turns += 1
    runner.join()
    return turns


def test_facts_tell_the_truth_about_the_gil(folder):
    x = np.zeros((4, 16, 256, 256), np.float32)  # a tenth of a second of work
    turns = {}
    for api in ("module", "session"):
        with mnn.load(mnn.convert(Heavy().eval(), x[:1], folder, api=api)) as session:
            session(x)
            turns[api] = [turns_of_another_thread(session, x) for _ in range(5)]
    assert min(turns["module"]) <= 3  # before it, between MNN's calls, after it
    assert max(turns["session"]) > 3


@pytest.mark.parametrize("api", ["module", "session"])
def test_fewer_bits_make_smaller_files_and_larger_errors(folder, api):
    net, x = Heavy().eval(), np.random.default_rng(0).standard_normal((1, 16, 8, 8), np.float32)
    exact = nets.truth(net, x)
    sizes, errors = [], []
    for bits in (None, 8, 4):
        artifact = mnn.convert(net, x, folder, weight_bits=bits, api=api)
        with mnn.load(artifact) as session:
            errors.append(np.abs(session(x) - exact).max())
        sizes.append(artifact.bytes)
    assert sizes == sorted(sizes, reverse=True)
    assert errors[0] < 1e-5 < errors[1] < errors[2]


def test_facts_tell_storage_from_arithmetic(convert):
    with mnn.load(convert(weight_bits=8)) as session:
        facts = session.facts()
    assert (facts["precision"], facts["weights_in_file"], facts["weights_in_memory"]) == ("fp32", "int8", "fp32")
    with mnn.load(convert(weight_bits=8, memory="low")) as session:
        facts = session.facts()
    assert "int8" in facts["precision"]
    assert facts["weights_in_memory"] == "int"
    with mnn.load(convert(memory="low")) as session:
        assert session.facts()["precision"] == "fp32"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"weight_bits": 9}, r"2 to 8 bits, not in 9"),
        ({"weight_bits": 8, "precision": "fp16"}, "not both"),
        ({"memory": "small"}, "no memory 'small'; choose from normal, low"),
        ({"api": "express"}, "no api 'express'; choose from module, session"),
        ({"weight_bit": 8}, "unexpected keyword argument 'weight_bit'"),
    ],
)
def test_a_wrong_option_is_refused(convert, options, told):
    with pytest.raises(ConversionError, match=told):
        convert(**options)


def test_onnxruntime_refuses_an_unknown_option(folder):
    with pytest.raises(ConversionError, match="unexpected keyword argument 'threads'"):
        engines.get("onnxruntime").convert(nets.tiny(), nets.pictures(), folder, threads=2)
