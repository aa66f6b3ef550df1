"""States that are computed ahead: found where they are what a request would compute, whatever is recorded meanwhile."""

from dataclasses import replace

import numpy as np
import pytest

from features.errors import PairliftError
from features.state.histories import Histories, HistoryBuffer
from features.state.kept import key_of
from features.state.refreshed import BESIDE, PLACE, Ahead, refreshed

#: events of a user that are read, and numbers of a state
LENGTH, WIDTH = 5, 3


def compute(histories, user, start, stop):
    """States that differ wherever what is read of a user does."""
    rows = [slice(a, b) for a, b in zip(start, stop, strict=True)]
    sums = [(histories.item[r].sum(), histories.ts[r].sum(), u) for r, u in zip(rows, user, strict=True)]
    return np.array(sums, np.float32).reshape(-1, WIDTH)


def ahead(histories, as_of, users=100, memory=10_000, told=lambda done, total: None):
    return Ahead(histories, as_of, users, memory, told)


def one(histories, user, cut):
    """(the key of a request, what it would compute)."""
    start, stop = histories.before(np.array([user], np.int32), np.array([cut]), LENGTH)
    state = compute(histories, np.array([user]), start, stop)
    return key_of(histories, user, int(start[0]), int(stop[0])), state


def events(world, rng, n, low, high, users=8):
    log = world.log.select(np.sort(rng.choice(len(world.log), n, replace=False)))
    return replace(log, ts=np.sort(rng.integers(low, high, n)), user=rng.integers(0, users, n).astype(np.int32))


def test_what_is_found_is_what_a_request_would_compute(world, monkeypatch):
    monkeypatch.setattr("features.state.refreshed.SOME", 3)
    rng = np.random.default_rng(0)
    buffer, made, found, missed = HistoryBuffer(Histories.build(events(world, rng, 80, 0, 30), 8)), None, 0, 0
    for step in range(40):
        cut = 10 + step
        if step % 5 == 0:
            made = refreshed(ahead(lambda: buffer.histories, cut), cut, LENGTH, WIDTH, compute, made)
        buffer.extended(events(world, rng, 3, max(0, cut - 6), cut + 10, users=12))
        for user in range(-1, 13):
            for when in (cut, cut + 3, cut - 4):
                key, state = one(buffer.histories, user, when)
                got = made.find(buffer.histories, key)
                if got is not None:
                    np.testing.assert_array_equal(got, state)
                    found += 1
                missed += got is None
    assert found > 200
    assert missed > 200
    other = HistoryBuffer(buffer.histories).histories
    assert all(made.find(other, one(other, user, 49)[0]) is None for user in range(12))


def test_only_what_changed_is_computed_anew(world):
    rng, asked = np.random.default_rng(1), []
    buffer = HistoryBuffer(Histories.build(events(world, rng, 80, 0, 30), 8))

    def counted(histories, user, start, stop):
        asked.append(sorted(user.tolist()))
        return compute(histories, user, start, stop)

    def turn(before, cut):
        return refreshed(ahead(lambda: buffer.histories, cut), cut, LENGTH, WIDTH, counted, before)

    first = turn(None, 30)
    assert (first.computed, len(first), asked) == (8, 8, [list(range(8))])
    late, later = events(world, rng, 2, 0, 30), events(world, rng, 2, 30, 40)
    buffer.extended(replace(late, user=np.array([2, 5], np.int32)))
    buffer.extended(replace(later, user=np.array([1, 9], np.int32)))
    second = turn(first, 30)
    assert (second.computed, asked[-1]) == (2, [2, 5])
    third = turn(second, 40)
    assert (third.computed, asked[-1], len(third)) == (2, [1, 9], 9)
    for user in range(10):
        key, state = one(buffer.histories, user, 40)
        got = third.find(buffer.histories, key)
        assert (got is None) == (user == 8)
        if user != 8:
            np.testing.assert_array_equal(got, state)


def test_those_with_the_latest_events_come_first_and_fit(world):
    rng = np.random.default_rng(2)
    histories = Histories.build(events(world, rng, 80, 0, 30), 8)
    last = np.array([histories.ts[stop - 1] for stop in histories.ends])
    room = PLACE * 8 + 3 * (4 * WIDTH + BESIDE)
    for few in (ahead(lambda: histories, 30, users=3), ahead(lambda: histories, 30, memory=room + 1)):
        made = refreshed(few, 30, LENGTH, WIDTH, compute, None)
        users = np.flatnonzero(made.place >= 0)
        assert len(users) == len(made) == 3
        assert last[users].min() >= np.sort(last)[-3]
        assert made.bytes <= room
    with pytest.raises(PairliftError, match="33 bytes are too few for a state: 32 for the places"):
        refreshed(ahead(lambda: histories, 30, memory=33), 30, LENGTH, WIDTH, compute, None)
    none = refreshed(ahead(lambda: histories, 0), 0, LENGTH, WIDTH, compute, None)
    assert len(none) == 0
    assert len(refreshed(ahead(lambda: histories, 30), 30, LENGTH, WIDTH, compute, none)) == 8


def test_progress_is_told_and_what_it_raises_ends_the_work(world, monkeypatch):
    monkeypatch.setattr("features.state.refreshed.SOME", 3)
    histories, said = Histories.build(events(world, np.random.default_rng(3), 80, 0, 30), 8), []
    refreshed(
        ahead(lambda: histories, 30, told=lambda *step: said.append(step)), 30, LENGTH, WIDTH, compute, None
    )  # fmt: skip
    assert said == [(0, 8), (3, 8), (6, 8), (8, 8)]

    def stop(done, total):
        if done:
            raise PairliftError("stopped")

    with pytest.raises(PairliftError, match="stopped"):
        refreshed(ahead(lambda: histories, 30, told=stop), 30, LENGTH, WIDTH, compute, None)
