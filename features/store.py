"""The state that features are read from: counters' timelines, histories and the catalogue, as of a time.

One class for training and serving: training builds it from the log, a server maps the same arrays from a
snapshot. It is immutable; a value as of any time can be asked of it, and rests on the events that it knows.

A state is a base and any number of small further segments, each built from a part of the log by the same code.
Totals are additive, so a value is read from the sum of the segments' totals: `extended` costs what its events
cost, and events may come late and in any order.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numba import njit

from features.counters import Timeline
from features.distinct import EVER, Distinct, count_over, distinct_parts
from features.histories import Histories
from features.keys import key_codes, of_request
from features.plans import Plan, make_plans
from features.ranks import RankTables, rank_values
from features.schema import F32, F64, I16, I32, I64, Catalog, EventLog, Requests
from features.spec import Counter

#: `first_seen` of an item without an event
NEVER = 2**62


@njit(cache=True, nogil=True)
def _see(item: I32, ts: I64, first_seen: I64) -> None:
    for e in range(len(item)):
        if item[e] >= 0:
            first_seen[item[e]] = min(first_seen[item[e]], ts[e])


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the events. timelines: one for each plan; distincts: one for each index of `distinct_parts`."""

    timelines: tuple[Timeline, ...]
    distincts: tuple[Distinct, ...]


@dataclass(frozen=True, slots=True)
class State:
    """Everything known of events with `ts < end` (µs UTC).

    plans: one for each key. segments: the base, then what came after it was built. first_seen: int64[n_items],
    µs of the item's first event, NEVER without one.
    """

    catalog: Catalog
    counters: tuple[Counter, ...]
    grades: tuple[str, ...]
    plans: tuple[Plan, ...]
    segments: tuple[Segment, ...]
    first_seen: I64
    histories: Histories
    end: int
    ranks: RankTables = field(default_factory=RankTables, compare=False)
    made: dict[str, F32] = field(default_factory=dict, compare=False)

    @classmethod
    def build(
        cls,
        log: EventLog,
        catalog: Catalog,
        counters: tuple[Counter, ...],
        grades: tuple[str, ...],
        histories: Histories | None = None,
    ) -> "State":
        """Build the state of a whole log. histories: where they are there already."""
        plans = make_plans(counters, grades)
        first_seen = np.full(catalog.n_items, NEVER, np.int64)
        histories = Histories.build(log, catalog.n_users) if histories is None else histories
        empty = cls(catalog, counters, grades, plans, (), first_seen, histories, int(EVER))
        built = empty.extended(log)
        return replace(built, end=max(built.end, 0))

    def extended(self, log: EventLog) -> "State":
        """Return this state with further events in a segment of their own; linear in those events and the items.

        log: in time order within itself; its events may be older than what is known. A user or item of -1 counts
        for no key that names it. Histories stay as they are. Each segment adds to the cost of a read: rebuild the
        base now and then.
        """
        timelines = tuple(Timeline.build(plan, log, self.catalog, self.grades) for plan in self.plans)
        distincts = tuple(
            Distinct.build(parts, log, self.catalog, self.grades) for parts in distinct_parts(self.counters)
        )
        if not len(log):
            return replace(self, segments=(*self.segments, Segment(timelines, distincts)))
        return replace(
            self.with_first_seen(log),
            segments=(*self.segments, Segment(timelines, distincts)),
            end=max(self.end, int(log.ts[-1]) + 1),
            ranks=self.ranks.before(int(log.ts[0])),
        )

    def with_first_seen(self, log: EventLog) -> "State":
        """Return this state with the times of the items' first events of a log."""
        first_seen = self.first_seen.copy()
        _see(log.item, log.ts, first_seen)
        return replace(self, first_seen=first_seen)

    def static(self, name: str, make: Callable[[], F32]) -> F32:
        """Return an array that rests on the catalogue alone, made when it is first asked for."""
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    @property
    def timelines(self) -> tuple[Timeline, ...]:
        """The base's timelines, one for each plan."""
        return self.segments[0].timelines

    def plan_values(self, number: int, plan: Plan, rows: I64, code: I64, as_of: I64) -> F32:
        """Return float32[len(as_of), counters of the plan], over all segments.

        number: place in `plans`; plan: that one, or the part `only` of it. rows, code: from `key_codes`.
        """
        return plan.finish(self._totals(number, plan, rows, code, as_of), as_of)

    def _totals(self, number: int, plan: Plan, rows: I64, code: I64, as_of: I64) -> F64:
        totals = plan.empty(len(as_of))
        for segment in self.segments:
            segment.timelines[number].add(plan, rows, code, as_of, totals)
        return totals

    def counter_values(self, requests: Requests, out: F32 | None = None) -> F32:
        """Return float32[n, counters]: every counter of every candidate, as of its request's `as_of`.

        out: float32[n, at least counters], where they are to stand.
        """
        if out is None:
            out = np.empty((len(requests.item), len(self.counters)), np.float32)
        owner = requests.row_request()
        user, surface, as_of = requests.user[owner], requests.surface[owner], requests.as_of[owner]
        for number, plan in enumerate(self.plans):
            if of_request(plan.key, self.catalog):
                # Equal for all candidates of a request: one look-up for each request.
                none = np.full(len(requests), -1, np.int32)
                rows, code, _ = key_codes(plan.key, self.catalog, requests.user, none, requests.surface)
                out[:, plan.counters] = self.plan_values(number, plan, rows, code, requests.as_of)[owner]
            else:
                rows, code, _ = key_codes(plan.key, self.catalog, user, requests.item, surface)
                out[:, plan.counters] = self.plan_values(number, plan, rows, code, as_of)
        for place, counter in enumerate(self.counters):
            if counter.kind == "distinct":
                out[:, place] = self._distinct(counter, user, requests.item, surface, as_of)
            elif counter.kind == "rank":
                out[:, place] = self._rank(place, counter, requests.item, as_of)
        return out

    def _distinct(self, counter: Counter, user: I32, item: I32, surface: I16, as_of: I64) -> I64:
        number = distinct_parts(self.counters).index((counter.key, counter.event, counter.argument))
        indexes = [segment.distincts[number] for segment in self.segments]
        rows, code, _ = key_codes(counter.key, self.catalog, user, item, surface)
        low = as_of - counter.span.size if counter.span.kind == "w" else np.full(len(as_of), EVER)
        return count_over(indexes, [index.find(code) for index in indexes], rows, low, as_of - counter.span.delay)

    def _rank(self, place: int, counter: Counter, item: I32, as_of: I64) -> F32:
        number = next(k for k, plan in enumerate(self.plans) if plan.key == counter.key)
        plan = self.plans[number].only(self.plans[number].counters.tolist().index(place))
        items = np.arange(self.catalog.n_items)

        def counts(time: int) -> F64:
            return self._totals(number, plan, items, items, np.full(len(items), time, np.int64))[:, 0]

        attribute = self.catalog.item_attribute(counter.argument)
        return rank_values(self.ranks, counter.column, attribute, item, as_of, counts)
