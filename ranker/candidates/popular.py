"""Popular now: the items with the highest decayed count of wanted events as of the request."""

from functools import partial

import numpy as np

from features.kernels import njit
from features.schema import F32, F64, I32
from ranker.candidates.demand import Counts, Demand
from ranker.candidates.source import Proposal, best
from ranker.request import Request


class Popular:
    """Items by their demand; an item without a wanted event before `as_of` is not proposed.

    It does not read the request's state, but the events of the state that its demand was made from. All items are
    ordered once as of that state's end, which holds for every later `as_of`: such a request costs nothing. An earlier
    one counts and orders all items (some 0.1 ms a thousand). A server that records has it made anew every 30 s of the
    machine, or of the recorded events' own time (`ranker.serving.renewing`): events recorded since do not count here
    before that, and an item that the request's state does not know yet is removed by the filter `unknown`.
    """

    name = "popular"

    def __init__(self, demand: Demand) -> None:
        self.demand = demand
        # Without new events the order stays.
        self._order_at_end = _order(demand.at_end, len(demand.at_end))

    def by(self, demand: Demand) -> "Popular":
        """Return the same source over another demand."""
        return Popular(demand)

    def propose(self, request: Request, limit: int) -> Proposal:
        """Return the most popular items as of the request, of all surfaces; the score is log(1 + decayed count)."""
        counts = self.demand.counts(request.as_of)
        at_end = request.as_of >= self.demand.end
        items = self._order_at_end[:limit] if at_end else _order(counts.at, limit)
        return Proposal(items, partial(_score, counts))


def _order(counts: F64, limit: int) -> I32:
    """Return int32[<= limit]: the items that have a count, the highest first."""
    return best(np.where(counts > 0, counts, np.nan).astype(np.float32), limit)


def _score(counts: Counts, item: I32) -> F32:
    """Return float32[n]: log(1 + faded count); an item that is not known yet has none, and -1 no score."""
    return np.asarray(np.log1p(_faded(counts.at, counts.faded, item)), np.float32)


@njit(cache=True, nogil=True)
def _faded(at: F64, faded: float, item: I32) -> F64:
    """Return float64[n]: the faded count of int32[n] items; 0 of one that is not known yet, NaN of -1."""
    counts = np.zeros(len(item))
    for k in range(len(item)):
        if item[k] < 0:
            counts[k] = np.nan
        elif item[k] < len(at):
            counts[k] = at[item[k]] * faded
    return counts
