"""What is kept of histories: bounded, the oldest goes first, and nothing of other events comes back."""

from dataclasses import replace

import numpy as np

from features.state.histories import COLUMNS, Histories, HistoryBuffer
from features.state.kept import ENTRY, KeptStates, key_of


def histories(n=10):
    return Histories(
        np.array([0, n]), item=np.arange(n, dtype=np.int32), ts=np.arange(n), grade=np.zeros(n, np.int8),
        surface=np.zeros(n, np.int16), organic=np.zeros(n, np.int8), feedback=np.zeros((n, 1), np.float32),
    )  # fmt: skip


def test_what_was_asked_for_longest_ago_goes_first():
    h, size = histories(), 4 * 8 + ENTRY
    kept = KeptStates(3 * size)
    for k in range(3):
        kept.keep(h, (k, 0, 1), np.full(8, k, np.float32))
    assert kept.find(h, (0, 0, 1))[0] == 0
    kept.keep(h, (3, 0, 1), np.full(8, 3, np.float32))
    assert [kept.find(h, (k, 0, 1)) is None for k in range(4)] == [False, True, False, False]
    assert (len(kept), kept.bytes) == (3, 3 * size)
    kept.keep(h, (3, 0, 1), np.full(8, 3, np.float32))  # two threads computed it
    assert (len(kept), kept.bytes) == (3, 3 * size)
    kept.keep(h, (9, 0, 1), np.zeros(10_000, np.float32))  # larger than all that may be kept
    assert len(kept) == 3


def test_nothing_of_other_arrays_comes_back():
    h, kept = histories(), KeptStates()
    kept.keep(h, (0, 0, 5), np.ones(2, np.float32))
    assert kept.find(h.until(5), (0, 0, 5)) is not None  # the same arrays
    for name in ("item", "ts", "grade", "surface", "organic", "feedback"):
        assert kept.find(replace(h, **{name: getattr(h, name).copy()}), (0, 0, 5)) is None
    other = histories()
    kept.keep(other, (1, 0, 5), np.ones(2, np.float32))
    assert kept.find(h, (0, 0, 5)) is None
    assert len(kept) == 1
    del h, other
    assert kept.find(histories(), (1, 0, 5)) is None


def test_nothing_of_another_buffer_comes_back():
    h, kept = histories(), KeptStates()
    one, two = HistoryBuffer(h), HistoryBuffer(h)
    kept.keep(one.histories, (0, 5, 4), np.ones(2, np.float32))
    assert kept.find(one.histories, (0, 5, 4)) is not None
    assert kept.find(two.histories, (0, 5, 4)) is None
    assert kept.find(h, (0, 5, 4)) is None


def events(world, rng, n, low, high):
    """Events of any users, in time order, with many ties."""
    log = world.log.select(np.sort(rng.choice(len(world.log), n, replace=False)))
    return replace(log, ts=np.sort(rng.integers(low, high, n)), user=rng.integers(0, 6, n).astype(np.int32))


def test_a_key_is_of_the_same_events_wherever_they_lie(world, monkeypatch):
    """Over late events, ties, blocks that move, arrays that are made anew, and states that readers still hold."""
    monkeypatch.setattr("features.state.histories.TAIL", 64)
    rng = np.random.default_rng(0)
    buffer = HistoryBuffer(Histories.build(events(world, rng, 60, 0, 20), 4))
    states, contents, places, arrays = [buffer.histories], {}, {}, set()
    for _ in range(60):
        states.append(buffer.extended(events(world, rng, 9, 0, 40)))
        for h in (states[-1], states[rng.integers(len(states))]):
            for user in range(7):
                start, stop = h.before(np.array([user], np.int32), np.array([rng.integers(0, 42)]))
                a, b = int(start[0]), int(stop[0])
                key = key_of(h, user, a, b)
                content = b"".join(getattr(h, name)[a:b].tobytes() for name in COLUMNS)
                assert contents.setdefault(key, content) == content
                places.setdefault(key, set()).add((id(h.ts), a))
            arrays.add(id(h.ts))
    assert len(arrays) > 3
    assert sum(len(found) > 1 for found in places.values()) > 50
    assert len(contents) > 200


def test_an_event_that_is_not_visible_yet_ends_nothing(world):
    rng, kept = np.random.default_rng(1), KeptStates()
    buffer = HistoryBuffer(Histories.build(events(world, rng, 60, 0, 20), 6))

    def key():
        start, stop = buffer.histories.before(np.array([3], np.int32), np.array([25]))
        return key_of(buffer.histories, 3, int(start[0]), int(stop[0]))

    before = buffer.histories
    kept.keep(before, key(), np.ones(2, np.float32))
    buffer.extended(replace(events(world, rng, 200, 25, 40), user=np.full(200, 3, np.int32)))  # its block moves
    assert buffer.histories.offsets[3] != before.offsets[3]
    assert kept.find(buffer.histories, key()) is not None
    buffer.extended(replace(events(world, rng, 1, 5, 6), user=np.full(1, 3, np.int32)))
    assert kept.find(buffer.histories, key()) is None
