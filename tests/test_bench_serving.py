"""The parts of `make bench WHAT=serving`: the ideal queue, the search for a capacity, and the generator's accounts."""

import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent / "bench" / "peers"))

from serving_http2 import LONGEST, call_of
from serving_load import DEADLINE_EXCEEDED, GIVEN_UP, OK, Calls, Outcome, drive, percentile, phases, poisson
from serving_queue import CLOSE, capacity, fifo, recovery, refused_ceiling

METHOD = "/bench.Service/Do"


def waits(due: list[float], service: float, cores: int) -> list[float]:
    """Kiefer and Wolfowitz (1955): the work that is left on each core, sorted, from one arrival to the next."""
    left, before, found = [0.0] * cores, 0.0, []
    for at in due:
        left = sorted(max(0.0, w - (at - before)) for w in left)
        found.append(left[0] + service)
        left[0] += service
        before = at
    return found


@given(
    st.lists(st.floats(0, 3), min_size=1, max_size=60).map(sorted), st.sampled_from([0.01, 0.3, 1.0]), st.integers(1, 4)
)
def test_the_ideal_queue_is_that_of_kiefer_and_wolfowitz(due: list[float], service: float, cores: int) -> None:
    np.testing.assert_allclose(fifo(np.array(due), service, cores), waits(due, service, cores), atol=1e-9)


def test_the_mean_wait_of_one_core_is_pollaczek_and_khinchines() -> None:
    rate, service = 70.0, 0.01
    took = fifo(poisson(rate, 5000, 1), service, 1)
    load = rate * service
    assert took.mean() - service == pytest.approx(load * service / (2 * (1 - load)), rel=0.03)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50), st.sampled_from([1.0, 50.0, 90.0, 99.0, 100.0]))
def test_a_percentile_is_a_value_that_enough_do_not_exceed(values: list[float], q: float) -> None:
    array, found = np.array(values), percentile(np.array(values), q)
    assert found in values
    assert (array <= found).mean() >= q / 100 - 1e-12
    assert (array < found).mean() < q / 100


def test_a_percentile_counts_what_has_no_answer() -> None:
    assert percentile(np.array([*[1.0] * 98, np.inf, np.inf]), 99) == np.inf
    assert percentile(np.array([*[1.0] * 99, np.inf]), 99) == 1.0


def test_arrivals_are_a_poisson_process_and_the_same_for_a_seed() -> None:
    due = poisson(200, 100, 3)
    assert (np.diff(due) >= 0).all()
    assert due[0] >= 0
    assert due[-1] < 100
    counts = np.histogram(due, np.arange(101))[0]
    assert counts.mean() == pytest.approx(200, rel=0.03)
    assert counts.var() == pytest.approx(200, rel=0.3)
    np.testing.assert_array_equal(due, poisson(200, 100, 3))
    followed = phases([(10, 50), (400, 10), (10, 50)], 1)
    assert (np.diff(followed) >= 0).all()
    assert len(followed[(followed >= 50) & (followed < 60)]) == pytest.approx(4000, rel=0.1)


@pytest.mark.parametrize("guess", [20.0, 80.0, 900.0])
def test_a_capacity_is_found_from_below_and_from_above(guess: float) -> None:
    def p99_ms(rate: float) -> float:
        return percentile(fifo(poisson(rate, 40, 7), 0.01, 1) * 1e3, 99)

    best = capacity(p99_ms, 50.0, guess)
    assert p99_ms(best.rate) == best.p99_ms <= 50
    assert p99_ms(best.rate * CLOSE * 1.03) > 50
    assert 50 < best.rate < 100
    assert len(best.tried) < 25


def test_a_server_that_answers_nothing_has_no_capacity() -> None:
    with pytest.raises(SystemExit, match="not even"):
        capacity(lambda rate: float("inf"), 20.0, 100.0)


@given(st.floats(1.5, 20), st.floats(1e-5, 5e-4), st.integers(1, 4))
def test_answers_and_refusals_fill_the_cores(times: float, refusal: float, cores: int) -> None:
    rate = 300.0 * cores
    answered = refused_ceiling(times * rate, rate, refusal, cores)
    assert 0 <= answered <= rate
    if answered:
        assert answered * cores / rate + (times * rate - answered) * refusal == pytest.approx(cores)
    else:
        assert times * rate * refusal >= cores


def test_recovery_is_when_what_follows_is_fast_again() -> None:
    due = np.arange(0, 10, 0.01)
    latency = np.where(due < 4.5, 200.0, 5.0)
    assert recovery(due, latency, 3.0, 20.0) == pytest.approx(1.5, abs=0.11)
    assert recovery(due, np.full(len(due), 5.0), 3.0, 20.0) == 0.0
    assert recovery(due, np.full(len(due), np.inf), 3.0, 20.0) == np.inf


class Service(grpc.GenericRpcHandler):
    """Does with a call what its message says."""

    def __init__(self) -> None:
        self.at_once = self.most = 0
        self.seen: list[float | None] = []
        self._lock = threading.Lock()

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self.do)

    def do(self, message: bytes, context: Any) -> bytes:
        with self._lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            self.seen.append(context.time_remaining())
        try:
            word, _, value = message.decode().partition(" ")
            if word == "sleep":
                time.sleep(float(value))
            if word == "abort":
                context.abort(getattr(grpc.StatusCode, value), "as asked")
            return message * 3
        finally:
            with self._lock:
                self.at_once -= 1


@contextmanager
def serving(threads: int = 8, *options: tuple[str, int]) -> Iterator[tuple[str, Service, Any]]:
    service = Service()
    server = grpc.server(ThreadPoolExecutor(threads), options=options)
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", service, server
    finally:
        server.stop(0).wait()


def calls(words: list[str], gap: float = 0.002, **options: Any) -> Calls:
    due = np.arange(len(words)) * gap
    return Calls(due, [METHOD] * len(words), [word.encode() for word in words], **options)


def test_each_way_to_end_is_counted_once() -> None:
    words = ["ok"] * 100
    for place, word in enumerate(["abort RESOURCE_EXHAUSTED"] * 7 + ["abort UNAVAILABLE"] * 3 + ["abort INTERNAL"] * 2):
        words[7 * place + 5] = word
    words[50] = words[99] = "sleep 3"
    with serving() as (address, service, _):
        outcome = drive(address, calls(words, deadline=1.5))
    assert outcome.counts() == {
        "ok": 86, "late": 0, "deadline": 2, "exhausted": 7, "cancelled": 0, "unavailable": 3, "other": 2,
    }  # fmt: skip
    assert outcome.good == 86
    assert len(outcome.status) == 100
    assert outcome.status[99] in (GIVEN_UP, DEADLINE_EXCEEDED)  # of this side or of the server's, whoever was first
    assert np.isinf(outcome.latency_ms[50])
    assert outcome.bodies == [b"ok" * 3]  # the first of each 50; the other one was given up
    assert len(service.seen) == 100
    assert all(left is not None and 0.5 < left <= 1.5 for left in service.seen)


def test_a_call_that_waits_for_another_counts_from_when_it_was_due() -> None:
    words = ["sleep 0.6", *["ok"] * 20]
    due = np.array([0.0, *np.linspace(0.3, 0.4, 20)])
    with serving(threads=1) as (address, _, _):
        outcome = drive(address, Calls(due, [METHOD] * 21, [word.encode() for word in words]))
    assert (outcome.status == OK).all()
    assert (outcome.latency_ms[1:] > 0.6e3 - due[1:] * 1e3 - 1).all()
    assert (outcome.sent[1:] < 0.6).all()  # the generator did not wait


def test_a_closed_loop_has_no_more_calls_open_than_it_may() -> None:
    with serving() as (address, service, _):
        outcome = drive(address, calls(["sleep 0.005"] * 60, gap=0.0, at_once=3))
    assert (outcome.status == OK).all()
    assert service.most == 3


def test_calls_move_from_connections_that_the_server_closes() -> None:
    aged = (("grpc.max_connection_age_ms", 150), ("grpc.max_connection_age_grace_ms", 5000))
    with serving(8, *aged) as (address, _, _):
        outcome = drive(address, calls(["ok"] * 300, gap=0.004))
    assert outcome.counts()["ok"] == 300


def test_calls_to_a_server_that_goes_away_end() -> None:
    with serving() as (address, _, server):
        stop = threading.Timer(0.3, server.stop, (0,))
        stop.start()
        outcome = drive(address, calls(["ok"] * 200, gap=0.004, deadline=0.2))
        stop.join()
    counts = outcome.counts()
    assert counts["ok"] > 20
    assert sum(counts.values()) == 200
    assert counts["ok"] < 150


def test_long_answers_and_messages_go_through_whole() -> None:
    word = "x" * 9000
    with serving() as (address, _, _):
        outcome = drive(address, calls([word] * 400, gap=0.001))  # more than the first windows, either way
    assert (outcome.status == OK).all()
    assert outcome.bodies
    assert all(body == word.encode() * 3 for body in outcome.bodies)
    with pytest.raises(ValueError, match="at most"):
        call_of(METHOD, b"x" * LONGEST, None)


@settings(max_examples=20)
@given(st.floats(0.01, 0.3), st.lists(st.tuples(st.floats(0, 1), st.sampled_from([OK, 8, GIVEN_UP])), min_size=1))
def test_good_are_the_answers_within_the_deadline(deadline: float, ends: list[tuple[float, int]]) -> None:
    took, status = np.array([t for t, _ in ends]), np.array([code for _, code in ends])
    due = np.arange(len(ends), dtype=float)
    outcome = Outcome(due, due, due + took, status, deadline, [])
    right = sum(code == OK and (at + t - at) * 1e3 <= deadline * 1e3 for at, (t, code) in enumerate(ends))
    assert outcome.good == right
    assert sum(outcome.counts().values()) == len(ends)
    assert outcome.part(0.5, 2.5).good == Outcome(*(a[1:3] for a in (due, due, due + took, status)), deadline, []).good
