"""From the lists of all sources to candidates: one entry for each item, and each source cut to its quota."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from features.schema import F32, I64, NO_GIVEN
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
    for number, quota in enumerate(quotas):
        order = np.sort(place[:, number])
        if quota < len(order):
            place[place[:, number] >= order[quota], number] = ABSENT
    return replace(candidates, place=place).select(np.asarray((place < ABSENT).any(axis=1)))
