"""Popular now: the items with the highest decayed count of wanted events as of the request."""

from functools import partial
from typing import NamedTuple

import numpy as np
from numba import njit

from features.counters.places import first_not_before
from features.schema import F32, F64, I8, I32, I64
from features.state.histories import Histories
from features.state.store import State
from ranker.candidates.source import Proposal, best
from ranker.request import Request


class Popular:
    """Items by their decayed count of wanted events; an item without one before `as_of` is not proposed.

    An event is wanted from the grade `floor` on; where no event of the log is, all count. Events are read from the
    state's histories, recorded ones too.

    The one source that does not read the request's state: it reads the events of the state that it was made from. To
    make it, the wanted events are sorted by item and then by time (0.06 s a million; they are held, 12 bytes each) and
    all items are ordered, which holds for every `as_of` from that state's end on: such a request costs nothing. An
    earlier one counts and orders all items (some 0.1 ms a thousand). A server that records makes another one every 30 s
    (`Pipeline.refresh`, in a thread of its own): events recorded since do not count here before that, and an item that
    the request's state does not know yet is removed by the filter `unknown`.
    """

    name = "popular"

    def __init__(self, state: State, floor: int, half_life: int) -> None:
        """floor: rank of the lowest grade that is wanted. half_life: µs."""
        self._floor, self._half_life = floor, half_life
        self._end = state.end
        # Not the state itself: recorded events replace it, and what it alone has would stay in memory.
        self._wanted = _wanted(state.histories, floor, state.catalog.all_items, half_life)
        self._at_end = _counts(self._wanted, half_life, state.end)
        # Decay fades all items alike, so without new events their order stays: from the state's end on it is this
        # one, at any later time too, when the counts themselves may have faded to zero.
        self._order_at_end = _order(self._at_end, len(self._at_end))

    def by(self, state: State) -> "Popular":
        """Return the same source, made from another state."""
        return Popular(state, self._floor, self._half_life)

    def propose(self, request: Request, limit: int) -> Proposal:
        """Return the most popular items as of the request, of all surfaces; the score is log(1 + decayed count)."""
        if request.as_of >= self._end:
            faded = 2.0 ** ((self._end - request.as_of) / self._half_life)
            return Proposal(self._order_at_end[:limit], partial(_score, self._at_end, faded))
        counts = _counts(self._wanted, self._half_life, request.as_of)
        return Proposal(_order(counts, limit), partial(_score, counts, 1.0))


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


def _order(counts: F64, limit: int) -> I32:
    """Return int32[<= limit]: the items that have a count, the highest first."""
    return best(np.where(counts > 0, counts, np.nan).astype(np.float32), limit)


def _score(counts: F64, faded: float, item: I32) -> F32:
    """Return float32[n]: log(1 + faded count); an item that is not known yet has none, and -1 no score."""
    known = (item >= 0) & (item < len(counts))
    score = np.where(item >= 0, np.float32(0), np.float32(np.nan))
    score[known] = np.log1p(counts[item[known]] * faded)
    return score
