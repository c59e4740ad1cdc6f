"""The line before an engine: right answers under concurrency, bounded waiting, deadlines, draining, one bad input."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import engine_nets as nets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploylab import engines
from deploylab.errors import EngineError, InputError
from deploylab.serving.batcher import CallQueue, DeadlineExceeded, Direct, Draining, MicroBatcher, QueueFull

TOLERANCE = 1e-5  # of outputs of order one; a batch sums in another order than a single row
LONG = 60.0  # seconds no test waits for, unless something hangs


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Iterator[engines.Session]:
    engine = engines.get("onnxruntime")
    folder = tmp_path_factory.mktemp("artifacts")
    with engine.load(engine.convert(nets.tiny(), nets.pictures(), folder)) as loaded:
        assert loaded.facts()["batch"] == "dynamic"
        yield loaded


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as threads:
        yield threads


class Gate:
    """The real engine behind a door that the test opens; it notes what came through, in order."""

    def __init__(self, session: engines.Session) -> None:
        self._session = session
        self._open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.batches: list[np.ndarray] = []

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.batches.append(x)
        self.entered.release()
        assert self._open.wait(LONG)
        return self._session(x)

    def open(self) -> None:
        self._open.set()

    def saw(self, x: np.ndarray) -> bool:
        return any((row == x[0]).all() for batch in self.batches for row in batch)


@pytest.fixture
def gate(session) -> Iterator[Gate]:
    door = Gate(session)
    yield door
    door.open()


def picture(number: int, rows: int = 1) -> np.ndarray:
    """Rows that no other call has, so that a mixed-up answer shows."""
    return nets.pictures(rows, seed=1000 + number)


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.001)


def line_up(pool: ThreadPoolExecutor, queue: CallQueue, calls: list[np.ndarray], **options) -> list[Future]:
    """Start the calls one after the other, each standing in the line before the next comes."""
    futures = []
    for x in calls:
        before = queue.stats().waiting
        future = pool.submit(queue, x, **options)
        until(lambda before=before, future=future: queue.stats().waiting > before or future.done())
        futures.append(future)
    return futures


def occupied(pool: ThreadPoolExecutor, queue: CallQueue, gate: Gate) -> Future:
    """A call that has gone into the engine and stands before the closed door."""
    future = pool.submit(queue, picture(999))
    assert gate.entered.acquire(timeout=LONG)
    until(lambda: queue.stats().waiting == 0)
    return future


def kinds(run, **options) -> list[CallQueue]:
    return [Direct(run, **options), MicroBatcher(run, max_batch=4, max_wait_s=0.001, **options)]


SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=24)
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(sizes=SIZES, max_batch=st.integers(1, 8), max_wait_s=st.sampled_from([0.0, 0.0005, 0.005]))
def test_everyone_gets_his_own_rows_in_order(session, pool, sizes, max_batch, max_wait_s):
    calls = [picture(number, rows) for number, rows in enumerate(sizes)]
    with MicroBatcher(session, max_batch=max_batch, max_wait_s=max_wait_s) as batcher:
        answers = list(pool.map(batcher, calls))
        stats = batcher.stats()
    for x, answer in zip(calls, answers, strict=True):
        np.testing.assert_allclose(answer, session(x), atol=TOLERANCE)
    assert sum(rows * runs for rows, runs in stats.batches.items()) == sum(sizes)
    assert max(stats.batches) <= max(max_batch, *sizes)
    assert (stats.answered, stats.failed, stats.waiting, stats.running) == (len(sizes), 0, 0, 0)


@QUICK
@given(sizes=SIZES, data=st.data())
def test_a_bad_input_fails_alone(session, pool, sizes, data):
    calls = [picture(number, rows) for number, rows in enumerate(sizes)]
    spoilt = data.draw(
        st.lists(st.sampled_from(["no", "nan", "shape", "dtype"]), min_size=len(sizes), max_size=len(sizes))
    )
    for number, how in enumerate(spoilt):
        if how == "nan":
            calls[number][-1, 0, 0, 0] = np.nan
        elif how == "shape":
            calls[number] = np.zeros((len(calls[number]), 4, 32, 32), np.float32)
        elif how == "dtype":
            calls[number] = calls[number].astype(np.float16)  # joined with float32 it would pass
    with MicroBatcher(session, max_batch=8, max_wait_s=0.002) as batcher:
        futures = [pool.submit(batcher, x) for x in calls]
        for x, how, future in zip(calls, spoilt, futures, strict=True):
            if how == "no":
                np.testing.assert_allclose(future.result(LONG), session(x), atol=TOLERANCE)
            else:
                with pytest.raises(InputError, match="NaN" if how == "nan" else "expected"):
                    future.result(LONG)


@QUICK
@given(
    calls=st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.sampled_from([None, 0.0, 0.001, LONG])), max_size=30),
    max_queue=st.integers(1, 8),
    drained=st.booleans(),
    kind=st.integers(0, 1),
)
def test_every_call_has_one_outcome(session, pool, calls, max_queue, drained, kind):
    queue = kinds(session, max_queue=max_queue)[kind]
    inputs = [picture(number, rows) for number, (rows, _, _) in enumerate(calls)]
    for x, (_, spoilt, _) in zip(inputs, calls, strict=True):
        x[0, 0, 0, 0] = np.inf if spoilt else x[0, 0, 0, 0]
    futures = [pool.submit(queue, x, timeout_s) for x, (_, _, timeout_s) in zip(inputs, calls, strict=True)]
    if drained:
        assert queue.drain(LONG)
    outcomes = [future.exception(LONG) for future in futures]
    queue.close()
    stats = queue.stats()
    assert stats.answered == sum(error is None for error in outcomes)
    assert stats.failed == sum(isinstance(error, InputError) for error in outcomes)
    assert stats.refused == sum(isinstance(error, (QueueFull, Draining)) for error in outcomes)
    assert stats.expired == sum(isinstance(error, DeadlineExceeded) for error in outcomes)
    assert stats.answered + stats.failed + stats.refused + stats.expired == len(calls)
    assert (stats.waiting, stats.running) == (0, 0)
    for x, (_, spoilt, _), future in zip(inputs, calls, futures, strict=True):
        if future.exception() is None:
            assert not spoilt
            np.testing.assert_allclose(future.result(), session(x), atol=TOLERANCE)


@pytest.mark.parametrize("kind", [0, 1])
def test_the_line_is_bounded(gate, session, pool, kind):
    queue = kinds(gate, max_queue=3)[kind]
    running = occupied(pool, queue, gate)
    waiting = line_up(pool, queue, [picture(number) for number in range(3)])
    with pytest.raises(QueueFull, match="3 calls wait already"):
        queue(picture(7))
    assert queue.stats().refused == 1
    gate.open()
    for number, future in enumerate(waiting):
        np.testing.assert_allclose(future.result(LONG), session(picture(number)), atol=TOLERANCE)
    running.result(LONG)
    queue(picture(7))  # there is room again


@pytest.mark.parametrize("kind", [0, 1])
def test_who_gave_up_is_never_computed(gate, pool, kind):
    queue = kinds(gate)[kind]
    running = occupied(pool, queue, gate)
    stays = line_up(pool, queue, [picture(0)])
    leaves = line_up(pool, queue, [picture(3)], timeout_s=0.05)[0]
    stays += line_up(pool, queue, [picture(4)])
    with pytest.raises(DeadlineExceeded, match=r"no answer within 0.05 s; \d calls waited"):
        leaves.result(LONG)
    gate.open()
    for future in (running, *stays):
        future.result(LONG)
    assert gate.saw(picture(0))
    assert gate.saw(picture(4))
    assert not gate.saw(picture(3))
    assert queue.stats().expired == 1


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
def test_a_deadline_that_has_passed_costs_nothing(gate, kind, timeout_s):
    queue = kinds(gate)[kind]
    with pytest.raises(DeadlineExceeded):
        queue(picture(0), timeout_s=timeout_s)
    assert gate.batches == []


def test_a_follower_may_leave_a_running_batch(gate, session, pool):
    batcher = MicroBatcher(gate, max_batch=2, max_wait_s=LONG)
    leader = line_up(pool, batcher, [picture(0)])[0]
    with pytest.raises(DeadlineExceeded, match="the engine was still at it"):
        batcher(picture(1), timeout_s=1)
    assert len(gate.batches[0]) == 2
    gate.open()
    np.testing.assert_allclose(leader.result(LONG), session(picture(0)), atol=TOLERANCE)
    assert batcher.drain(LONG)
    assert (batcher.stats().answered, batcher.stats().expired) == (1, 1)


def test_calls_are_run_in_order_of_arrival(gate, pool):
    queue = Direct(gate)
    calls = [picture(number) for number in range(8)]
    futures = [occupied(pool, queue, gate), *line_up(pool, queue, calls)]
    gate.open()
    for future in futures:
        future.result(LONG)
    assert [len(batch) for batch in gate.batches] == [1] * 9
    assert all((seen == x).all() for seen, x in zip(gate.batches[1:], calls, strict=True))


def test_what_queued_up_runs_together(gate, pool):
    batcher = MicroBatcher(gate, max_batch=4, max_wait_s=0)
    futures = [occupied(pool, batcher, gate), *line_up(pool, batcher, [picture(number) for number in range(6)])]
    gate.open()
    for future in futures:
        future.result(LONG)
    assert [len(batch) for batch in gate.batches] == [1, 4, 2]
    assert batcher.stats().batches == {1: 1, 2: 1, 4: 1}


def test_a_full_batch_waits_no_longer(session, pool):
    batcher = MicroBatcher(session, max_batch=4, max_wait_s=2 * LONG)
    futures = [pool.submit(batcher, picture(number)) for number in range(8)]
    for number, future in enumerate(futures):
        np.testing.assert_allclose(future.result(LONG), session(picture(number)), atol=TOLERANCE)
    assert batcher.stats().batches == {4: 2}


def test_a_call_that_does_not_fit_closes_the_batch_before_it(session, pool):
    batcher = MicroBatcher(session, max_batch=4, max_wait_s=2 * LONG)
    small = line_up(pool, batcher, [picture(0, rows=3)])[0]
    large = pool.submit(batcher, picture(1, rows=4))
    np.testing.assert_allclose(small.result(LONG), session(picture(0, rows=3)), atol=TOLERANCE)
    np.testing.assert_allclose(large.result(LONG), session(picture(1, rows=4)), atol=TOLERANCE)


@pytest.mark.parametrize("queue", [Direct, MicroBatcher])
def test_more_rows_than_the_engine_takes_are_run_in_pieces(gate, session, queue):
    gate.open()
    answer = queue(gate, max_batch=2)(picture(0, rows=5))
    np.testing.assert_allclose(answer, session(picture(0, rows=5)), atol=TOLERANCE)
    assert [len(batch) for batch in gate.batches] == [2, 2, 1]


@pytest.mark.parametrize("kind", [0, 1])
def test_draining_answers_who_waits_and_refuses_who_comes(gate, session, pool, kind):
    queue = kinds(gate)[kind]
    futures = [occupied(pool, queue, gate), *line_up(pool, queue, [picture(number) for number in range(3)])]
    assert not queue.drain(timeout_s=0)
    with pytest.raises(Draining, match="stopping"):
        queue(picture(5))
    gate.open()
    assert queue.drain(LONG)
    for number, future in enumerate(futures[1:]):
        np.testing.assert_allclose(future.result(LONG), session(picture(number)), atol=TOLERANCE)


def test_draining_does_not_wait_for_company(session, pool):
    batcher = MicroBatcher(session, max_batch=4, max_wait_s=2 * LONG)
    future = line_up(pool, batcher, [picture(0)])[0]
    assert batcher.drain(LONG)
    assert future.result(LONG).shape == (1, 7)


@pytest.mark.parametrize("kind", [0, 1])
def test_closing_sends_away_who_waits(gate, pool, kind):
    queue = kinds(gate)[kind]
    running, waiting = occupied(pool, queue, gate), line_up(pool, queue, [picture(0)])[0]
    closing = pool.submit(queue.close)
    with pytest.raises(Draining):
        waiting.result(LONG)
    assert not closing.done()  # the engine is still in use
    gate.open()
    closing.result(LONG)
    assert running.result(LONG).shape == (1, 7)
    queue.close()
    assert not gate.saw(picture(0))


def test_ctrl_c_in_the_thread_that_runs_the_engine_hurts_nobody_else(gate, session, pool):
    class Interrupted:
        first = True

        def __call__(self, x: np.ndarray) -> np.ndarray:
            rows = gate(x)
            if self.first:
                self.first = False
                raise KeyboardInterrupt
            return rows

    batcher = MicroBatcher(Interrupted(), max_batch=3, max_wait_s=LONG)
    futures = line_up(pool, batcher, [picture(0), picture(1)])
    futures.append(pool.submit(batcher, picture(2)))
    assert gate.entered.acquire(timeout=LONG)
    gate.open()
    with pytest.raises(KeyboardInterrupt):
        futures[0].result(LONG)
    assert batcher.drain(LONG)
    for number in (1, 2):
        np.testing.assert_allclose(futures[number].result(LONG), session(picture(number)), atol=TOLERANCE)
    assert (gate.batches[1] == gate.batches[0][1:]).all()  # in the order of their arrival


@pytest.mark.parametrize("queue", [Direct, MicroBatcher])
def test_runs_may_be_parallel_if_the_engine_allows_it(session, pool, queue):
    both_inside = threading.Barrier(2)

    def run(x: np.ndarray) -> np.ndarray:
        both_inside.wait(LONG)
        return session(x)

    line = queue(run, max_batch=1, parallel=2)
    for future in [pool.submit(line, picture(number)) for number in range(4)]:
        assert future.result(LONG).shape == (1, 7)


def test_no_thread_is_started(session):
    before = set(threading.enumerate())
    with Direct(session) as direct, MicroBatcher(session) as batcher:
        direct(picture(0))
        batcher(picture(0))
        assert set(threading.enumerate()) == before


def test_the_times_say_where_a_call_was(gate, pool):
    queue = Direct(gate)
    occupied(pool, queue, gate)
    future = pool.submit(queue.timed, picture(0, rows=3))
    until(lambda: queue.stats().waiting == 1)
    gate.open()
    timed = future.result(LONG)
    assert timed.rows.shape == (3, 7)
    assert timed.queue_s > 0
    assert timed.run_s > 0
    assert timed.batch == 3


@pytest.mark.parametrize("queue", [Direct, MicroBatcher])
def test_an_engine_that_answers_for_others_is_caught(session, pool, queue):
    line = queue(lambda x: session(x)[:0])
    for future in [pool.submit(line, picture(number)) for number in range(3)]:
        with pytest.raises(EngineError, match=r"given 1 rows and returned an array of shape \(0, 7\)"):
            future.result(LONG)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_queue": 0}, "max_queue must be at least 1, got 0"),
        ({"max_batch": 0}, "max_batch must be at least 1, got 0"),
        ({"parallel": 0}, "parallel must be at least 1, got 0"),
        ({"max_wait_s": -1}, "max_wait_s must be 0 or more seconds, got -1"),
        ({"max_wait_s": float("nan")}, "max_wait_s must be 0 or more"),
    ],
)
def test_bad_settings_are_named(session, options, message):
    with pytest.raises(InputError, match=message):
        MicroBatcher(session, **options)


@pytest.mark.parametrize("x", [None, [[1.0]], np.float32(1), np.zeros((0, 3, 32, 32), np.float32)])
def test_what_is_not_rows_is_refused(session, x):
    with pytest.raises(InputError, match="expected an array of at least one row"):
        Direct(session)(x)
