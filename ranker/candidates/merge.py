"""From the lists of all sources to candidates: one entry for each item, and each source cut to its quota."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numba import njit

from features.schema import F32, I32, I64, NO_GIVEN, Bool
from ranker.candidates.source import Proposal
from ranker.request import ABSENT, Candidates


def dedupe(proposals: Sequence[Proposal]) -> Candidates:
    """Merge what the sources proposed; an item keeps its place in the list of each source.

    What they know of it in this request is that of the first source which knows the value.
    """
    items = [proposal.item for proposal in proposals]
    together = np.concatenate([np.empty(0, np.int32), *items])
    starts = np.cumsum([0, *map(len, items)])
    item, where, place = _merged(together, np.argsort(together), starts)
    return Candidates(item, place, _given(proposals, np.split(where, starts[1:-1]), len(item)))


@njit(cache=True, nogil=True)
def _merged(proposed: I32, order: I64, starts: I64) -> tuple[I32, I64, I32]:
    """Return (int32[n] the different items, ascending; int64[m] the place of each among them; int32[n, s] places).

    for each proposed item in the order of the items: another item than before is the next one; its place in the list
    of the source that proposed it counts, the least of them

    proposed: int32[m], the lists of all sources one behind another, that of source s from starts[s]. order: int64[m],
    which sorts it; equal ones in any order.
    """
    item, where = np.empty(len(proposed), np.int32), np.empty(len(proposed), np.int64)
    place = np.full((len(proposed), len(starts) - 1), ABSENT, np.int32)
    n, source = 0, np.empty(len(proposed), np.int64)
    for s in range(len(starts) - 1):
        source[starts[s] : starts[s + 1]] = s
    for k in range(len(order)):
        at = order[k]
        if n == 0 or proposed[at] != item[n - 1]:
            item[n] = proposed[at]
            n += 1
        where[at] = n - 1
        place[n - 1, source[at]] = min(place[n - 1, source[at]], np.int32(at - starts[source[at]]))
    return item[:n].copy(), where, place[:n].copy()


def _given(proposals: Sequence[Proposal], rows: Sequence[I64], n: int) -> F32:
    """Return float32[n, c] of n candidates. rows: the candidate that each proposed item is, for each source."""
    known = [(p.given, at) for p, at in zip(proposals, rows, strict=False) if p.given is not None]
    if not known:
        return NO_GIVEN
    given = np.full((n, known[0][0].shape[1]), np.nan, np.float32)
    for values, at in known:
        given[at] = np.where(np.isnan(given[at]), values, given[at])
    return given


def within_quota(candidates: Candidates, quotas: Sequence[int]) -> Candidates:
    """Keep the first `quota` of each source's items that are left; an item needs one source."""
    place = candidates.place.copy()
    keep = _cut(place, np.array(quotas, np.int64))
    return replace(candidates, place=place).select(keep)


@njit(cache=True, nogil=True)
def _cut(place: I32, quotas: I64) -> Bool:
    """Write ABSENT to the places of int32[n, s] behind each source's quota; return bool[n]: who has a place left.

    for each source: mark the places that are there; the first quota of them are below the limit
    """
    keep = np.zeros(len(place), np.bool_)
    for s in range(place.shape[1]):
        last = -1
        for k in range(len(place)):
            last = max(last, place[k, s] if place[k, s] < ABSENT else -1)
        there, limit, left = np.zeros(last + 1, np.bool_), last + 1, quotas[s]
        for k in range(len(place)):
            if place[k, s] < ABSENT:
                there[place[k, s]] = True
        for at in range(last + 1):
            if there[at]:
                if left == 0:
                    limit = at
                    break
                left -= 1
        for k in range(len(place)):
            if place[k, s] < limit:
                keep[k] = True
            else:
                place[k, s] = ABSENT
    return keep
