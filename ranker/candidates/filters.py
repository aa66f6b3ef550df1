"""Filters of candidates: each returns (kept, removed), so that nothing drops in silence."""

from collections.abc import Callable

import numpy as np
from numba import njit

from features.hashing import bits_for, probe
from features.schema import I32, Bool
from ranker.request import Candidates, Request

Filter = Callable[[Candidates, Request], tuple[Candidates, Candidates]]


def unknown(candidates: Candidates, request: Request) -> tuple[Candidates, Candidates]:
    """Remove what is not an item of the catalogue."""
    return candidates.split((candidates.item >= 0) & (candidates.item < request.state.catalog.all_items))


def excluded(candidates: Candidates, request: Request) -> tuple[Candidates, Candidates]:
    """Remove what the caller excluded, and the item that the list is to be related to."""
    unwanted = np.append(request.exclude, np.int32(request.source_item))
    return candidates.split(_outside(candidates.item, unwanted))


def seen(candidates: Candidates, request: Request) -> tuple[Candidates, Candidates]:
    """Remove every item of the user's history before `as_of`, whatever the feedback was."""
    return candidates.split(_outside(candidates.item, history(request)))


def history(request: Request) -> I32:
    """Return int32[m]: the items of the user's events with `ts < as_of`, in time order, with repeats."""
    histories = request.state.histories
    start, stop = histories.before(np.array([request.user], np.int32), np.array([request.as_of]))
    return histories.item[int(start[0]) : int(stop[0])]


@njit(cache=True, nogil=True)
def _outside(item: I32, unwanted: I32) -> Bool:
    """Return bool[n]: whether each item is none of the unwanted ones, by a hash table of these."""
    bits = bits_for(len(unwanted))
    slots = np.full((1 << bits, 2), -1, np.int64)
    for k in range(len(unwanted)):
        s = probe(slots, np.int64(unwanted[k]), 64 - bits)
        slots[s, 0], slots[s, 1] = unwanted[k], k
    outside = np.empty(len(item), np.bool_)
    for k in range(len(item)):
        outside[k] = slots[probe(slots, np.int64(item[k]), 64 - bits), 1] < 0
    return outside
