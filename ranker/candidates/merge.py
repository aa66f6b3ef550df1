"""From the lists of all sources to candidates: one entry for each item, and each source cut to its quota."""

from collections.abc import Sequence

import numpy as np

from features.schema import I32
from ranker.request import ABSENT, Candidates


def dedupe(proposals: Sequence[I32]) -> Candidates:
    """Merge what the sources proposed; an item keeps its place in the list of each source."""
    item, where = np.unique(np.concatenate([np.empty(0, np.int32), *proposals]), return_inverse=True)
    place = np.full((len(item), len(proposals)), ABSENT)
    start = 0
    for number, proposed in enumerate(proposals):
        rows = where[start : start + len(proposed)]
        np.minimum.at(place[:, number], rows, np.arange(len(proposed), dtype=np.int32))
        start += len(proposed)
    return Candidates(item, place)


def within_quota(candidates: Candidates, quotas: Sequence[int]) -> Candidates:
    """Keep the first `quota` of each source's items that are left; an item needs one source."""
    place = candidates.place.copy()
    for number, quota in enumerate(quotas):
        order = np.sort(place[:, number])
        if quota < len(order):
            place[place[:, number] >= order[quota], number] = ABSENT
    return Candidates(candidates.item, place).select(np.asarray((place < ABSENT).any(axis=1)))
