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
    item, where = np.unique(np.concatenate([np.empty(0, np.int32), *items]), return_inverse=True)
    rows = np.split(where, np.cumsum([len(proposed) for proposed in items])[:-1])
    place = np.full((len(item), len(proposals)), ABSENT)
    for number, (proposed, at) in enumerate(zip(items, rows, strict=False)):
        np.minimum.at(place[:, number], at, np.arange(len(proposed), dtype=np.int32))
    return Candidates(item, place, _given(proposals, rows, len(item)))


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
