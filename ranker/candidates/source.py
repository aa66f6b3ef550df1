"""The CandidateSource Protocol: what proposes items for a request, before anything is scored."""

from typing import Protocol

import numpy as np

from features.schema import F32, F64, I32
from ranker.request import Request


class CandidateSource(Protocol):
    """Proposes items. `tests/contracts.py` holds every source to this.

    A source may propose what the filters remove: it is asked for more where that is to be expected.
    """

    name: str

    def propose(self, request: Request, limit: int) -> I32:
        """Return int32[<= limit]: distinct item indexes, best first.

        Only events with `ts < as_of` of the request count; what was recorded is read from the request's state (but by
        `Popular`, see there). The same request gives the same items. Safe to call from several threads. May raise: the
        answer then comes without this source.
        """


def proposed(source: CandidateSource, request: Request, limit: int) -> I32:
    """Ask a source; what is not a list of integers is its failure, a list that is too long is cut."""
    items = np.asarray(source.propose(request, limit))
    if items.ndim != 1:
        raise ValueError(f"a list of items was expected, found an array of shape {items.shape}")
    return items.astype(np.int32, casting="same_kind")[:limit]


def best(score: F32 | F64, limit: int) -> I32:
    """Return int32[<= limit]: places of the highest scores, best first, ties by place; NaN and -inf never."""
    score = np.where(np.isnan(score), -np.inf, score)
    if limit < len(score):
        # Everything at the limit's score stays in, so that ties are cut by place and not by the partition's
        # whim.
        threshold = np.partition(score, len(score) - limit)[len(score) - limit]
        place = np.flatnonzero((score >= threshold) & (score > -np.inf))
    else:
        place = np.flatnonzero(score > -np.inf)
    return place[np.lexsort((place, -score[place]))][:limit].astype(np.int32)
