"""Work in no hurry rests three times as long as it worked; other work does not."""

import contextlib
import time

from features.pace import REST, STEP, breathe, unhurried


def rests_of(monkeypatch, hurry) -> list[float]:
    """The rests of a thread that works 4 steps of 2.5 ms and 50 of 0.1 ms."""
    rests: list[float] = []
    now = [7.0]
    monkeypatch.setattr(time, "thread_time", lambda: now[0])
    monkeypatch.setattr(time, "sleep", rests.append)
    with hurry():
        for seconds in (*[0.0025] * 4, *[0.0001] * 50):
            now[0] += seconds
            breathe()
    return rests


def test_unhurried_work_rests_in_proportion(monkeypatch):
    rests = rests_of(monkeypatch, unhurried)
    assert abs(sum(rests) / REST - 0.015) < STEP + 1e-9
    assert len(rests) < 10


def test_other_work_does_not_rest(monkeypatch):
    assert rests_of(monkeypatch, unhurried)
    assert rests_of(monkeypatch, contextlib.nullcontext) == []
