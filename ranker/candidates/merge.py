"""From the lists of all sources to candidates: one entry for each item, and each source cut to its quota."""

from collections.abc import Sequence

import numpy as np

from features.hashing import bits_for, probe
from features.kernels import njit
from features.schema import F32, I32, I64, NO_GIVEN, Bool
from ranker.candidates.source import Proposal
from ranker.request import ABSENT, Candidates

NO_ITEMS = np.empty(0, np.int32)


def dedupe(proposals: Sequence[Proposal]) -> Candidates:
    """Merge what the sources proposed, in the order of the first proposal of each item.

    An item keeps its place in the list of each source. What they know of it in this request is that of the first source
    which knows the value.
    """
    items = [proposal.item for proposal in proposals]
    together, starts = np.concatenate([NO_ITEMS, *items]), np.cumsum([0, *map(len, items)])
    item, where, place = merged(together, starts)
    return Candidates(item, place, _given(proposals, where, starts, len(item)))


@njit(cache=True, nogil=True)
def merged(proposed: I32, starts: I64) -> tuple[I32, I64, I32]:
    """Return (int32[n] the different items; int64[m] the row of each proposed one; int32[n, s] places).

    proposed: int32[m], the lists of all sources one behind another, that of source s from starts[s]. Of an item that a
    source proposes twice, the first place counts.
    """
    bits, n, sources = bits_for(len(proposed)), 0, len(starts) - 1
    slots = np.full((1 << bits, 2), -1, np.int64)
    item, where = np.empty(len(proposed), np.int32), np.empty(len(proposed), np.int64)
    place = np.full((len(proposed), sources), ABSENT, np.int32)
    for s in range(sources):
        for at in range(starts[s], starts[s + 1]):
            slot = probe(slots, np.int64(proposed[at]), 64 - bits)
            if slots[slot, 1] < 0:
                slots[slot, 0], slots[slot, 1], item[n] = proposed[at], n, proposed[at]
                n += 1
            where[at] = row = slots[slot, 1]
            place[row, s] = min(place[row, s], np.int32(at - starts[s]))
    return item[:n].copy(), where, place[:n].copy()


def _given(proposals: Sequence[Proposal], where: I64, starts: I64, n: int) -> F32:
    """Return float32[n, c] of n candidates. where, starts: of `merged`."""
    known = [(p.given, where[starts[s] : starts[s + 1]]) for s, p in enumerate(proposals) if p.given is not None]
    if not known:
        return NO_GIVEN
    given = np.full((n, known[0][0].shape[1]), np.nan, np.float32)
    for values, at in known:
        given[at] = np.where(np.isnan(given[at]), values, given[at])
    return given


def within_quota(candidates: Candidates, keep: Bool, quotas: Sequence[int]) -> Candidates:
    """Return the first `quota` of each source's items of the mask bool[n], by item; an item needs one source."""
    place = candidates.place.copy()
    rows = _cut(place, keep, np.array(quotas, np.int64))
    return Candidates(candidates.item, place, candidates.given).select(rows[np.argsort(candidates.item[rows])])


@njit(cache=True, nogil=True)
def _cut(place: I32, keep: Bool, quotas: I64) -> I64:
    """Write ABSENT to the places of int32[n, s] behind each source's quota; return the rows that have a place left.

    limit: of each source, behind its last place that stays
    """
    n, sources = place.shape
    limit, left = _limits(place, keep, quotas), np.zeros(n, np.bool_)
    for k in range(n):
        for s in range(sources):
            if keep[k] and place[k, s] < limit[s]:
                left[k] = True
            else:
                place[k, s] = ABSENT
    return np.flatnonzero(left)


@njit(cache=True, nogil=True)
def _limits(place: I32, keep: Bool, quotas: I64) -> I64:
    """Return int64[s]: the place of each source at which its quota is full, above all places where it never is.

    mark the places of those to be kept; the first quota of each source are below its limit
    """
    n, sources = place.shape
    there = np.zeros((sources, _longest(place)), np.bool_)
    for k in range(n):
        for s in range(sources):
            if keep[k] and place[k, s] < ABSENT:
                there[s, place[k, s]] = True
    limit = np.full(sources, there.shape[1])
    for s in range(sources):
        kept = 0
        for at in range(there.shape[1]):
            if there[s, at] and kept == quotas[s]:
                limit[s] = at
                break
            kept += there[s, at]
    return limit


@njit(cache=True, nogil=True)
def _longest(place: I32) -> int:
    longest = 0
    for at in place.flat:
        if at < ABSENT:
            longest = max(longest, int(at) + 1)
    return longest
