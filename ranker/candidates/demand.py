"""Demand: the decayed count of wanted events of every item as of any time, which sources share."""

from math import log2
from typing import NamedTuple

import numpy as np

from features.counters.places import first_not_before
from features.kernels import njit
from features.schema import F32, F64, I8, I32, I64
from features.state.histories import Histories
from features.state.store import State

#: a count of the state's end fades to no less than this: a server that hears of no events (months behind, or of an old
#: log) does not know that nothing is wanted any more, and counts that are all about 0 would leave lists without demand
FADED = 1 / 16
#: in how many steps a half-life fades, where that is rounded
STEPS = 64


class Counts(NamedTuple):
    """Decayed counts as of a time: `at * faded`. Decay fades all items alike, so `at` alone orders them."""

    at: F64  # [n_items]
    faded: float  # FADED <= faded <= 1


class Demand:
    """The decayed count of wanted events of each item.

    An event is wanted from the grade `floor` on; where no event of the log is, all count. Events are read from the
    state's histories, recorded ones too, once: the wanted ones are sorted by item and then by time (0.06 s a million;
    they are held, 12 bytes each). From that state's end on the counts only fade, which costs nothing, and stop at FADED
    of what they were; an earlier time counts all items (some 0.01 ms a thousand), once for the sources that are asked
    as of it one after another.
    """

    def __init__(self, state: State, floor: int, half_life: int) -> None:
        """floor: rank of the lowest grade that is wanted. half_life: µs."""
        self.floor, self.half_life, self.end = floor, half_life, state.end
        # Not the state itself: recorded events replace it, and what it alone has would stay in memory.
        self._wanted = _wanted(state.histories, floor, state.catalog.all_items, half_life)
        self.at_end = _counts(self._wanted, half_life, state.end)  # float64[n_items]
        self._last = (state.end, self.at_end)
        self._logs = (state.end, self._log(Counts(self.at_end, 1.0)))

    def by(self, state: State) -> "Demand":
        """Return the same, made from another state."""
        return Demand(state, self.floor, self.half_life)

    def counts(self, as_of: int) -> Counts:
        """Return the counts over the events with `ts < as_of`."""
        if as_of >= self.end:
            return Counts(self.at_end, max(2.0 ** ((self.end - as_of) / self.half_life), FADED))
        known, at = self._last  # one read: another thread may put its own there
        if known != as_of:
            at = _counts(self._wanted, self.half_life, as_of)
            self._last = (as_of, at)
        return Counts(at, 1.0)

    def log1p(self, as_of: int) -> F32:
        """Return float32[n_items]: log(1 + count) of the counts as of a time; not to be changed.

        Behind the end the fading is rounded to a power of 2 ** (-1 / STEPS), which moves the logarithm by at most
        0.0055: so one array serves all requests of a while, where each would take a logarithm of every item.
        """
        if as_of > self.end:
            fading = min((as_of - self.end) / self.half_life, -log2(FADED))
            as_of = self.end + round(round(fading * STEPS) * self.half_life / STEPS)
        known, logs = self._logs  # one read, as of `_last`
        if known != as_of:
            logs = self._log(self.counts(as_of))
            self._logs = (as_of, logs)
        return logs

    def _log(self, counts: Counts) -> F32:
        # `np.log` and not `np.log1p`, which is several times slower: a count below 1e-7 is as good as none.
        return np.asarray(np.log(np.float32(1) + counts.at.astype(np.float32) * np.float32(counts.faded)), np.float32)


class Wanted(NamedTuple):
    """The m wanted events by item."""

    offsets: I64  # [n_items + 1], item i has the events [offsets[i], offsets[i + 1])
    ts: I64  # [m], µs, never decreasing within an item
    decayed: F32  # [m], the item's decayed count as it stands after each event


def _wanted(histories: Histories, floor: int, n_items: int, half_life: int) -> Wanted:
    """Return the events of a grade >= floor; all, where there is none."""
    h = histories
    offsets, ts = _by_item(h.offsets, h.ends, h.item, h.ts, h.grade, floor, n_items)
    if not len(ts):
        offsets, ts = _by_item(h.offsets, h.ends, h.item, h.ts, h.grade, -1, n_items)
    return Wanted(offsets, ts, _run(offsets, ts, half_life))


@njit(cache=True, nogil=True)
def _by_item(first: I64, last: I64, item: I32, ts: I64, grade: I8, floor: int, n_items: int) -> tuple[I64, I64]:
    """Return (offsets, ts) of `Wanted`, but in any order within an item. first, last: the rows of each user.

    count the wanted events of each item; their running sum is where each item's part begins
    put the time of each event at the next free place of its item's part
    """
    # Item i is counted two places behind its own, so that later offsets[i + 1] is where its part begins, then its next
    # free place, and in the end where it ends.
    offsets = np.zeros(n_items + 2, np.int64)
    for u in range(len(last)):
        for r in range(first[u], last[u]):
            if grade[r] >= floor and 0 <= item[r] < n_items:
                offsets[item[r] + 2] += 1
    for i in range(n_items + 1):
        offsets[i + 1] += offsets[i]
    times = np.empty(offsets[-1], np.int64)
    for u in range(len(last)):
        for r in range(first[u], last[u]):
            if grade[r] >= floor and 0 <= item[r] < n_items:
                times[offsets[item[r] + 1]] = ts[r]
                offsets[item[r] + 1] += 1
    return offsets[:-1], times


@njit(cache=True, nogil=True)
def _run(offsets: I64, ts: I64, half_life: int) -> F32:
    """Sort the times within each item; return float32[m] `Wanted.decayed`."""
    decayed = np.empty(len(ts), np.float32)
    for i in range(len(offsets) - 1):
        start, at = offsets[i], 0.0
        ts[start : offsets[i + 1]].sort()
        for k in range(start, offsets[i + 1]):
            passed = ts[k] - ts[max(k - 1, start)]
            at = at * np.exp2(-passed / half_life) + 1.0
            decayed[k] = at
    return decayed


@njit(cache=True, nogil=True)
def _counts(wanted: Wanted, half_life: int, as_of: int) -> F64:
    """Return float64[n_items]: the decayed count of each item as of a time."""
    counts = np.zeros(len(wanted.offsets) - 1)
    for i in range(len(counts)):
        start = wanted.offsets[i]
        stop = first_not_before(wanted.ts, start, wanted.offsets[i + 1], as_of)
        if stop > start:
            counts[i] = wanted.decayed[stop - 1] * np.exp2(-(as_of - wanted.ts[stop - 1]) / half_life)
    return counts
