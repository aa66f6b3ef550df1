"""From the lists of all sources to candidates: one entry for each item, and each source cut to its places."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from features.hashing import bits_for, probe
from features.kernels import njit
from features.schema import F32, I32, I64, NO_GIVEN, Bool
from ranker.candidates.source import Proposal
from ranker.request import ABSENT, Candidates

NO_ITEMS = np.empty(0, np.int32)


class Places(NamedTuple):
    """How many candidates each of s sources may have for a request."""

    quota: list[int]  # [s], first of all
    most: list[int]  # [s], also of places that others leave empty; the quota where that is larger
    total: int  # places that are to be filled together: those that sources leave empty of it go to the others
    #: float32[s, d], what each place of each list is worth: of all that is within the quotas, the candidates are then
    #: the `total` items whose places are worth most together. None: all that is within the quotas
    worth: F32 | None = None

    @property
    def all(self) -> int:
        """How many candidates there are at most."""
        return max(self.total, sum(self.quota)) if self.worth is None else self.total


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


def within_places(candidates: Candidates, keep: Bool, places: Places) -> Candidates:
    """Return the first items of the mask bool[n] of each source, as many as `taken` gives, by item.

    An item needs one source. Where the places have a worth, those that are worth most, see `first_by_worth`.
    """
    place, quota = candidates.place.copy(), np.array(places.quota, np.int64)
    if places.worth is None:
        rows = _cut(place, keep, quota, np.array(places.most, np.int64), places.total)
    else:
        rows = first_by_worth(_ranked(place, keep, quota), places.worth, places.total)
    return Candidates(candidates.item, place, candidates.given).select(rows[np.argsort(candidates.item[rows])])


@njit(cache=True, nogil=True)
def _cut(place: I32, keep: Bool, quota: I64, most: I64, total: int) -> I64:
    """Write ABSENT to the places of int32[n, s] behind those of each source; return the rows that have a place left.

    limit: of each source, behind its last place that stays
    """
    n, sources = place.shape
    limit, left = _limits(place, keep, quota, most, total), np.zeros(n, np.bool_)
    for k in range(n):
        for s in range(sources):
            if keep[k] and place[k, s] < limit[s]:
                left[k] = True
            else:
                place[k, s] = ABSENT
    return np.flatnonzero(left)


@njit(cache=True, nogil=True)
def _ranked(place: I32, keep: Bool, quota: I64) -> I32:
    """Return int32[n, s] the places among those of the mask bool[n]; write ABSENT to int32[n, s] behind the quotas."""
    n, sources = place.shape
    rank = np.full((sources, _longest(place) + 1), ABSENT, np.int32)
    for k in range(n):
        for s in range(sources):
            if keep[k] and place[k, s] < ABSENT:
                rank[s, place[k, s]] = 0
    for s in range(sources):
        kept = 0
        for at in range(rank.shape[1]):
            if rank[s, at] == 0:
                rank[s, at] = kept if kept < quota[s] else ABSENT
                kept += 1
    found = np.full((n, sources), ABSENT, np.int32)
    for k in range(n):
        for s in range(sources):
            if keep[k] and place[k, s] < ABSENT:
                found[k, s] = rank[s, place[k, s]]
            if found[k, s] == ABSENT:
                place[k, s] = ABSENT
    return found


@njit(cache=True, nogil=True)
def first_by_worth(place: I32, worth: F32, m: int) -> I64:
    """Return int64[<= m]: the rows of int32[n, s] places that are worth most, best first.

    Of equal ones the first source's come first, by their places. worth: float32[s, d], of each place of each source,
    added up; places from d on are worth nothing. A row without any place is left out.
    """
    n, sources = place.shape
    score, turn = np.zeros(n, np.float64), np.full(n, -1, np.int64)
    for k in range(n):
        for s in range(sources):
            at = np.int64(place[k, s])
            if at < ABSENT:
                if turn[k] < 0:
                    turn[k] = s * ABSENT + at
                if at < worth.shape[1]:
                    score[k] += worth[s, at]
    rows = np.flatnonzero(turn >= 0)
    rows = rows[np.argsort(turn[rows], kind="mergesort")]
    return rows[np.argsort(-score[rows], kind="mergesort")[:m]]


@njit(cache=True, nogil=True)
def _limits(place: I32, keep: Bool, quota: I64, most: I64, total: int) -> I64:
    """Return int64[s]: the place of each source behind its last candidate, above all places where all are taken.

    mark the places of those to be kept; as many as are taken of each source are below its limit
    """
    n, sources = place.shape
    there = np.zeros((sources, _longest(place)), np.bool_)
    for k in range(n):
        for s in range(sources):
            if keep[k] and place[k, s] < ABSENT:
                there[s, place[k, s]] = True
    limit, own, length = np.full(sources, there.shape[1]), np.zeros(sources, np.int64), np.zeros(sources, np.int64)
    for s in range(sources):
        length[s] = there[s].sum()
    taken(length, quota, most, total, own)
    for s in range(sources):
        kept = 0
        for at in range(there.shape[1]):
            if there[s, at] and kept == own[s]:
                limit[s] = at
                break
            kept += there[s, at]
    return limit


# of each source, as many as its list has and its quota gives
# until the total is reached or no source has more:
#     one place for the source that has more, and may, of the least (places + 1) / quota, the first of several
@njit(cache=True, nogil=True)
def taken(length: I64, quota: I64, most: I64, total: int, out: I64) -> None:
    """Write to int64[s] how many places each source has. length: int64[s], of its list; the rest as of `Places`."""
    out[:] = np.minimum(length, quota)
    left = total - out.sum()
    while left > 0:
        best, least = -1, np.inf
        for s in range(len(out)):
            turn = (out[s] + 1) / max(quota[s], 1)
            if out[s] < min(length[s], most[s]) and turn < least:
                best, least = s, turn
        if best < 0:
            break
        out[best] += 1
        left -= 1


@njit(cache=True, nogil=True)
def _longest(place: I32) -> int:
    longest = 0
    for at in place.flat:
        if at < ABSENT:
            longest = max(longest, int(at) + 1)
    return longest
