"""Filters of candidates: each returns (kept, removed), so that nothing drops in silence."""

from collections.abc import Callable

import numpy as np
from numba import njit

from features.counters.places import first_not_before
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
    """Return bool[n]: whether each item is none of the unwanted ones."""
    sorted_ones, outside = np.sort(unwanted), np.ones(len(item), np.bool_)
    for k in range(len(item)):
        at = first_not_before(sorted_ones, 0, len(sorted_ones), item[k])
        outside[k] = at == len(sorted_ones) or sorted_ones[at] != item[k]
    return outside
