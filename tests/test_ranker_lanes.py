"""Lanes: threads that do not pile up, failures that are counted, and breakers that open, try and close."""

import threading
import time
import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from world import with_config

from features.schema import SECOND
from ranker.lanes import Breaker, BusyError, Failures, Lane
from ranker.pipeline import Pipeline
from ranker.request import Check, Request, awaited


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_breaker_opens_tries_and_closes():
    clock = Clock()
    breaker = Breaker(clock)
    opened = 0
    while not breaker.failed():
        opened += 1
        assert breaker.state == "closed"
        assert breaker.admits()
    assert opened == 9  # the 10th in a row opens it
    for pause in (5, 10, 20, 40, 60, 60):
        clock.now += pause - 0.01
        assert (breaker.state, breaker.admits()) == ("open", False)
        assert not breaker.failed()  # of a call from before the pause
        assert not breaker.succeeded()
        clock.now += 0.02
        assert breaker.state == "half-open"
        assert [breaker.admits() for _ in range(3)] == [True, False, False]
        assert breaker.failed()
    clock.now += 60.01
    assert breaker.admits()
    clock.now += 60.01
    assert breaker.admits()  # the first try never reported
    assert breaker.succeeded()
    assert (breaker.state, breaker.admits()) == ("closed", True)
    for k in range(1000):  # one of five fails: it goes on
        breaker.failed() if k % 5 == 0 else breaker.succeeded()
        assert breaker.state == "closed"
    for k in range(100):  # and every second one does not
        breaker.failed() if k % 2 == 0 else breaker.succeeded()
    assert breaker.state == "open"


def test_a_lane_refuses_what_it_has_no_thread_for():
    lane, held = Lane("lane", 2), threading.Event()
    calls = [lane.start(held.wait) for _ in range(3)]
    with pytest.raises(BusyError, match="2 threads"):
        calls[2].result(0)
    with pytest.raises(TimeoutError):
        calls[0].result(0)
    held.set()
    assert calls[0].result(5)
    assert calls[1].result(5)
    assert lane.start(lambda: 7).result(5) == 7
    with pytest.raises(RuntimeError, match="SystemExit"):
        lane.start(lambda: (_ for _ in ()).throw(SystemExit(3))).result(5)
    lane.close()


def test_hurried_calls_have_threads_of_their_own():
    lane, held = Lane("lane", 1, deadline=5.0), threading.Event()
    hurried = [lane.start(held.wait, most=0.01) for _ in range(2)]
    for running, error in zip(hurried, (TimeoutError, BusyError), strict=True):
        for _ in range(20):  # neither is a failure of the lane
            with pytest.raises(error):
                lane.outcome(running, 0)
    assert lane.state == "closed"
    assert lane.outcome(lane.start(lambda: 7, most=5.0), 5) == 7
    held.set()
    assert lane.outcome(hurried[0], 5)
    broken = lane.start(lambda: 1 // 0, most=0.01)
    for _ in range(11):  # what it raises is one, however hurried
        with pytest.raises(ZeroDivisionError):
            lane.outcome(broken, 5)
    assert lane.state == "open"
    lane.close()


def _given_up(lane, seconds):
    """Make a hurried call that nobody waits for, and wait until it was judged."""
    running = lane.start(partial(time.sleep, seconds), most=0.001)
    with pytest.raises(TimeoutError):
        lane.outcome(running, 0)
    running.result(5)


def test_a_call_that_its_hurried_caller_gave_up_is_judged_by_the_lanes_own_deadline():
    lane = Lane("lane", 1, deadline=5.0)
    while lane.state == "closed":
        lane.failed()
    lane.breaker._until = 0.0  # the pause is over
    _given_up(lane, 0.03)  # well within the lane's deadline: it works again, for others too
    assert lane.state == "closed"
    lane.deadline = 0.002
    for _ in range(10):
        _given_up(lane, 0.01)
    assert lane.state == "open"
    lane.close()


class Soon(Check):
    """A caller that waits for a moment."""

    def __init__(self, seconds):
        self.until = time.monotonic() + seconds


def test_a_call_with_less_time_than_a_plugin_may_take_is_answered_without_it(bundle):
    """And that it was too slow for this caller is no failure that keeps others from asking it."""
    held, late = threading.Event(), []

    class Slow:
        columns = ("dot",)

        def values(self, requests, histories):
            held.wait(20)
            return np.zeros((len(requests.item), 1), np.float32)

    serve = bundle.config.serve.model_copy(update={"plugin_deadline": 60 * SECOND})
    pipeline = Pipeline(with_config(replace(bundle, plugins={"als": Slow()}), serve=serve))
    for _ in range(2):
        request = Request(0, bundle.state.end, state=bundle.state, check=Soon(0.05))
        answer = pipeline.rank(request, np.arange(9, dtype=np.int32))
        late.append(held.is_set())
        assert (answer.degraded, len(answer.item)) == (("plugins.als",), 9)
    assert late == [False, False]
    held.set()
    assert pipeline.rank(replace(request, check=awaited), np.arange(9, dtype=np.int32)).degraded == ()
    pipeline.close()


def test_failures_are_logged_ever_more_rarely(caplog):
    failures = Failures()
    for _ in range(9):
        failures.add("sources.x", TimeoutError())
    assert failures.counts() == {"sources.x": 9}
    assert len(caplog.records) == 4  # the 1st, 2nd, 4th and 8th


class WeirdError(Exception):
    """One whose text cannot be had."""

    def __str__(self):
        raise SystemExit(3)

    __repr__ = __str__


class WeirdEnd(SystemExit):
    __str__ = __repr__ = WeirdError.__str__


@pytest.mark.parametrize("width", [0, 1])
@pytest.mark.parametrize("error", [WeirdError, WeirdEnd])
def test_an_error_without_a_text_is_a_failure_like_any_other(width, error):
    def fails():
        raise error

    lane, failures = Lane("lane", width), Failures()
    with pytest.raises((WeirdError, RuntimeError)) as caught:
        lane.outcome(lane.start(fails), 5)
    assert f"{error.__name__}, whose text raises SystemExit" in failures.add("sources.x", caught.value)
    assert failures.counts() == {"sources.x": 1}
    lane.close()


def test_the_text_of_an_error_is_brief(caplog):
    reason = Failures().add("sources.x", ValueError("x" * 2_000_000))
    assert reason == f"ValueError: {'x' * 300}… (2,000,000 characters)"
    assert reason in caplog.text


class Thing:
    """What a call returns."""


def test_an_idle_lane_holds_nothing_of_its_last_call():
    lane, thing = Lane("some", 1), Thing()
    known, future = weakref.ref(thing), lane.start(lambda one=thing: one)
    assert future.result(10) is thing
    del thing, future
    until = time.monotonic() + 10
    while known() is not None and time.monotonic() < until:
        time.sleep(0.01)
    assert known() is None
    lane.close()
