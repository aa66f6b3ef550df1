"""The CandidateSource Protocol: what proposes items for a request, before anything is scored."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from features.schema import F32, F64, I32
from ranker.request import Request


class Proposal(NamedTuple):
    """What a source says of one request."""

    item: I32  # [<= limit], distinct item indexes, best first
    #: Gives float32[n], the source's own score of any int32[n] items, also those that it did not propose: higher is
    #: better, NaN where it says nothing. The items may stand by more than it (`Nearest` adds demand). Cheap: for some
    #: hundred items much less than the proposal. None: no scores.
    score: Callable[[I32], F32] | None = None
    #: float32[n, c], what it knows of the items that it proposes in this request: numbers and codes in the order of
    #: `Catalog.candidates`, NaN unknown. An item of several sources has the value of the first that knows one.
    given: F32 | None = None


#: of a source that has nothing to say
NOTHING = Proposal(np.empty(0, np.int32))


class CandidateSource(Protocol):
    """Proposes items. `tests/contracts.py` holds every source to this.

    A source may propose what the filters remove: it is asked for more where that is to be expected. One that is not
    Pairlift's own is asked on a thread with a deadline, unless its attribute `blocks` is False (`ranker.lanes`).
    """

    name: str

    def propose(self, request: Request, limit: int) -> Proposal:
        """Return at most `limit` items, best first, and what scores them and others by the same measure.

        Only events with `ts < as_of` of the request count; what was recorded is read from the request's state (but
        demand, see `Popular`). The same request gives the same proposal. Safe to call from several threads. May raise:
        the answer then comes without this source.
        """


def proposed(source: CandidateSource, request: Request, limit: int) -> Proposal:
    """Ask a source; what is not a Proposal of integers is its failure (ValueError), a list too long is cut.

    So is `given` of another shape than an entry for each item and candidate column.
    """
    proposal = source.propose(request, limit)
    if not isinstance(proposal, Proposal):
        raise ValueError(f"a Proposal was expected, found {type(proposal).__name__}: return Proposal(items, score)")
    items = np.asarray(proposal.item)
    if items.ndim != 1:
        raise ValueError(f"a list of items was expected, found an array of shape {items.shape}")
    given = proposal.given
    if given is not None:
        expected, given = (len(items), len(request.state.catalog.candidates)), np.asarray(given, np.float32)
        if given.shape != expected:
            raise ValueError(f"given: an array of shape {expected} was expected, found {given.shape}")
        given = given[:limit]
    return Proposal(items.astype(np.int32, casting="same_kind")[:limit], proposal.score, given)


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


def score_of(items: I32, score: F32 | F64, wanted: I32) -> F32:
    """Return float32[n] scores of int32[n] wanted items: score[k] of items[k] (ascending), NaN for all others."""
    found = np.full(len(wanted), np.nan, np.float32)
    if len(items):
        place = np.minimum(np.searchsorted(items, wanted), len(items) - 1)
        known = items[place] == wanted
        found[known] = score[place[known]]
    return found
