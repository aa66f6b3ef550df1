"""Popular now: the items with the highest decayed count of wanted events as of the request."""

from dataclasses import replace
from functools import partial

import numpy as np

from features.counters.plans import make_plans
from features.counters.spec import Counter, Span
from features.counters.timeline import Timeline
from features.schema import F32, F64, I32, EventLog, empty_log
from features.state.histories import Histories
from features.state.store import State
from ranker.candidates.source import Proposal, best
from ranker.request import Request


class Popular:
    """Items by their decayed count of wanted events; an item without one before `as_of` is not proposed.

    An event is wanted from the grade `floor` on; where no event of the log is, all count. Events are read from the
    state's histories, recorded ones too.

    The one source that does not read the request's state: it reads the events of the state that it was made from. To
    make it, the wanted events are sorted by time and by item (about 0.2 s a million) and all items are ordered, which
    holds for every `as_of` from that state's end on: such a request costs nothing. An earlier one counts and orders all
    items in the request (about 0.1 ms a thousand items). A server that records makes another one every 30 s
    (`Pipeline.refresh`, in a thread of its own): events recorded since do not count here before that, and an item that
    the request's state does not know yet is removed by the filter `unknown`.
    """

    name = "popular"

    def __init__(self, state: State, floor: int, half_life: int) -> None:
        """floor: rank of the lowest grade that is wanted. half_life: µs."""
        self._floor, self._half_life = floor, half_life
        self._end, self._n_items = state.end, state.catalog.all_items
        log = _wanted(state.histories, floor)
        self._plan = make_plans((Counter(("item",), "impression", Span("h", half_life), "count"),))[0]
        self._timeline = Timeline.build(self._plan, log, state.catalog)
        self._at_end = self._counts(state.end)
        # Decay fades all items alike, so without new events their order stays: from the state's end on it is this
        # one, at any later time too, when the counts themselves may have faded to zero.
        self._order_at_end = _order(self._at_end, self._n_items)

    def by(self, state: State) -> "Popular":
        """Return the same source, made from another state."""
        return Popular(state, self._floor, self._half_life)

    def propose(self, request: Request, limit: int) -> Proposal:
        """Return the most popular items as of the request, of all surfaces; the score is log(1 + decayed count)."""
        if request.as_of >= self._end:
            faded = 2.0 ** ((self._end - request.as_of) / self._half_life)
            return Proposal(self._order_at_end[:limit], partial(_score, self._at_end, faded))
        counts = self._counts(request.as_of)
        return Proposal(_order(counts, limit), partial(_score, counts, 1.0))

    def _counts(self, as_of: int) -> F64:
        """Return float64[n_items]: the decayed count of each item as of a time."""
        items, totals = np.arange(self._n_items), self._plan.empty(self._n_items)
        self._timeline.add(self._plan, items, items, np.full(self._n_items, as_of), totals)
        return totals[:, 0]


def _wanted(histories: Histories, floor: int) -> EventLog:
    """Return the events of a grade >= floor (all, where there is none) in time order: of each only item and ts."""
    _, row = histories.rows()
    wanted = histories.grade[row] >= floor
    if wanted.any():
        row = row[wanted]
    row = row[np.argsort(histories.ts[row], kind="stable")]
    return replace(empty_log((), len(row)), item=histories.item[row], ts=histories.ts[row])


def _order(counts: F64, limit: int) -> I32:
    """Return int32[<= limit]: the items that have a count, the highest first."""
    return best(np.where(counts > 0, counts, np.nan).astype(np.float32), limit)


def _score(counts: F64, faded: float, item: I32) -> F32:
    """Return float32[n]: log(1 + faded count); an item that is not known yet has none, and -1 no score."""
    known = (item >= 0) & (item < len(counts))
    score = np.where(item >= 0, np.float32(0), np.float32(np.nan))
    score[known] = np.log1p(counts[item[known]] * faded)
    return score
