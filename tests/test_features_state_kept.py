"""What is kept of histories: bounded, the oldest goes first, and nothing of other arrays comes back."""

from dataclasses import replace

import numpy as np

from features.state.histories import Histories
from features.state.kept import ENTRY, KeptStates


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
