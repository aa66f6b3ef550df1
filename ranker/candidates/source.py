"""The CandidateSource Protocol: what proposes items for a request, before anything is scored."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from features.kernels import njit
from features.schema import F32, F64, I32, I64
from ranker.request import Request


class Proposal(NamedTuple):
    """What a source says of one request."""

    item: I32  # [<= limit], distinct item indexes, best first
    #: Gives float32[n], the source's own score of any int32[n] items, also those that it did not propose: higher is
    #: better, NaN where it says nothing. The items may stand by more than it (`Nearest` adds demand). Cheap: for some
    #: hundred items much less than the proposal. Called as `propose` is: on a thread, in what that left of the
    #: deadline, where the source may block. None: no scores.
    score: Callable[[I32], F32] | None = None
    #: float32[n, c], what it knows of the items that it proposes in this request: numbers and codes in the order of
    #: `Catalog.candidates`, NaN unknown. An item of several sources has the value of the first that knows one.
    given: F32 | None = None


#: so many places or fewer are sorted by insertion
SHORT = 16
#: of a source that has nothing to say
NOTHING = Proposal(np.empty(0, np.int32))


class CandidateSource(Protocol):
    """Proposes items. `tests/contracts.py` holds every source to this.

    A source may propose what the filters remove: it is asked for more where that is to be expected. One that is not
    Pairlift's own is asked on a thread with a deadline, unless its attribute `blocks` is False (`ranker.lanes`). The
    class of a `[sources.NAME]` is built from the keys of its table, as keyword arguments, and is then given its name;
    what else it may have stands in `ranker.candidates.named`.
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

    So is `given` of another shape than an entry for each item and candidate column. A limit of 0 asks nothing.
    """
    if not limit:
        return NOTHING
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


def best(score: F32 | F64, limit: int, item: I32 | None = None) -> I32:
    """Return int32[<= limit]: places of the highest scores, best first; NaN and -inf never.

    Ties stand by item (int32[n]), then by place; without items by place alone.
    """
    falling, item = -score, np.zeros(len(score), np.int32) if item is None else item
    place = None
    if 2 * limit < len(score):  # to sort them all would take longer
        # Everything at the limit's score stays in, so that ties are not cut by the partition's whim; all, where it is
        # NaN.
        place = np.flatnonzero(~(falling > np.partition(falling, limit)[limit]))
        falling, item = falling[place], item[place]
    order = np.argsort(falling)
    order_ties(order, falling, item)
    order = order[: min(limit, np.count_nonzero(falling < np.inf))]
    return (order if place is None else place[order]).astype(np.int32)


@njit(cache=True, nogil=True)
def order_ties(order: I64, falling: F32 | F64, item: I32) -> None:
    """Order by item, then by place, each run of places that have an equal value; order: int64[n], by value."""
    n, first = len(order), 0
    for k in range(1, n + 1):
        if k == n or falling[order[k]] != falling[order[first]]:
            if k - first > SHORT:
                run = order[first:k].copy()
                order[first:k] = run[np.argsort(item[run].astype(np.int64) * n + run)]
            elif k - first > 1:
                _insert_each(order[first:k], item)
            first = k


@njit(cache=True, nogil=True)
def _insert_each(run: I64, item: I32) -> None:
    """Sort a few places by item, then by place, without the arrays that another sort makes."""
    for k in range(1, len(run)):
        moved, at = run[k], k
        while at > 0 and (item[run[at - 1]], run[at - 1]) > (item[moved], moved):
            run[at] = run[at - 1]
            at -= 1
        run[at] = moved
