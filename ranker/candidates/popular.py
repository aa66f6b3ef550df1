"""Popular now: the items with the highest decayed counter as of the request."""

import math
from dataclasses import replace

import numpy as np

from features.counters.plans import Plan
from features.counters.spec import Counter, Span
from features.schema import DAY, F32, I32, empty_log
from features.state.histories import Histories
from features.state.read import item_totals
from features.state.store import Level, State
from ranker.candidates.source import best
from ranker.request import Request

#: half-life wanted of "now": long enough for a sparse log, short enough to follow a week
HALF_LIFE = 7 * DAY


class Popular:
    """Items by their decayed count of events; an item without an event before `as_of` is not proposed.

    Reads the item counter of the bundle that is nearest to a 7-day decayed count of impressions; where the
    bundle declares none, it makes that one from the histories.

    The one source that does not read the request's state: it reads the state that it was made from. To order all items
    takes long, so that is done once, for every `as_of` from that state's end on (an earlier one is ordered in the
    request). A server that records makes another one every 30 s (`Pipeline.refresh`): events recorded since do not
    count here before that, and an item that the request's state does not know yet is removed by the filter `unknown`.
    """

    name = "popular"

    def __init__(self, state: State) -> None:
        self._end = state.end
        self._n_items = state.catalog.all_items
        self._state, self.plan = _item_counter(state)
        # Decay fades all items alike, so without new events their order stays: from the state's end on it is this
        # one, at any later time too, when the counts themselves may have faded to zero.
        self._order_at_end = best(self._counts(state.end), self._n_items)

    def propose(self, request: Request, limit: int) -> I32:
        """Return the most popular items as of the request, of all surfaces."""
        if request.as_of >= self._end:
            return self._order_at_end[:limit]
        return best(self._counts(request.as_of), limit)

    def _counts(self, as_of: int) -> F32:
        counts = item_totals(self._state, 0, self.plan, self._n_items, as_of)[:, 0].astype(np.float32)
        return np.where(counts > 0, counts, np.nan)


def _alone(state: State, number: int) -> State:
    """Return a state with one plan and no histories.

    It is held until the next one is made, and meanwhile recorded events replace the state that it was made from: what
    this source does not read (histories, the other counters) would stay in memory beside that of now.
    """
    levels = tuple(Level((level.timelines[number],), ()) for level in state.levels)
    none = Histories.build(empty_log(()), 0)
    return replace(state, plans=(state.plans[number],), levels=levels, histories=none, made={})


def _item_counter(state: State) -> tuple[State, Plan]:
    """Return a state with one plan, and of that plan one decayed count for each item."""
    for number, plan in enumerate(state.plans):
        if plan.key == ("item",):
            found = [k for k, place in enumerate(plan.counters) if _decayed_count(state.counters[place])]
            if found:
                best_one = min(found, key=lambda k: _preference(state.counters[plan.counters[k]]))
                return _alone(state, number), plan.only(best_one)
    counter = Counter(("item",), "impression", Span("h", HALF_LIFE), "count")
    own = State.build(state.histories.log(()), state.catalog, (counter,), ())
    return _alone(own, 0), own.plans[0]


def _decayed_count(counter: Counter) -> bool:
    return counter.stat == "count" and counter.span.kind == "h"


def _preference(counter: Counter) -> tuple[bool, float]:
    return counter.event != "impression", abs(math.log(counter.span.size / HALF_LIFE))
