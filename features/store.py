"""The state that features are read from: counters' timelines, histories and the catalogue, as of a time.

One class for training and serving: training builds it from the log, a server maps the same arrays from a
snapshot. It is immutable; a value as of any time can be asked of it, and rests on the events that it knows.

A state is a base and any number of small further segments, each built from a part of the log by the same code.
Totals are additive, so a value is read from the sum of the segments' totals: `extended` costs what its events
cost, and events may come late and in any order.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numba import njit

from features.counters import Timeline
from features.distinct import EVER, Distinct, count_over, distinct_parts
from features.histories import Histories
from features.keys import key_codes, of_request
from features.latest import Latest, spread
from features.plans import Plan, make_plans
from features.ranks import RankTables, rank_values
from features.schema import F32, F64, I16, I32, I64, Catalog, EventLog, Requests
from features.spec import Counter

#: form and values of a plain column
Static = tuple[str, F32]
#: `first_seen` of an item without an event
NEVER = 2**62


class _Candidates:
    """The candidates of requests one by one, their columns made when they are first asked for."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self.item = requests.item

    @cached_property
    def owner(self) -> I64:
        """int64[n], the request of each."""
        return self._requests.row_request()

    @cached_property
    def user(self) -> I32:
        """int32[n]."""
        return self._requests.user[self.owner]

    @cached_property
    def surface(self) -> I16:
        """int16[n]."""
        return self._requests.surface[self.owner]

    @cached_property
    def as_of(self) -> I64:
        """int64[n]."""
        return self._requests.as_of[self.owner]


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
    made: dict[int, Latest | None] = field(default_factory=dict, compare=False, repr=False)

    def latest(self, number: int, plan: Plan, n_items: int) -> Latest | None:
        """Return the table of all items for a plan, made when it is first asked for; None where there can be none."""
        if number not in self.made:
            self.made[number] = Latest.of(plan, self.timelines[number], n_items)
        return self.made[number]


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
    made: dict[str, Any] = field(default_factory=dict, compare=False)

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

    def static(self, name: str, make: Callable[[], Static]) -> Static:
        """Return what rests on the catalogue alone, made when it is first asked for."""
        if name not in self.made:
            self.made[name] = make()
        made: Static = self.made[name]
        return made

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
        each = _Candidates(requests)
        shared, further = self.made.get("kinds") or self._kinds()
        for number, plan in enumerate(self.plans):
            if shared[number]:
                self._shared(number, plan, requests, each, out)
            elif not self._gathered(number, plan, requests, out):
                rows, code, _ = key_codes(plan.key, self.catalog, each.user, each.item, each.surface)
                out[:, plan.counters] = self.plan_values(number, plan, rows, code, each.as_of)
        for place, counter in further:
            read = self._distinct if counter.kind == "distinct" else self._rank
            out[:, place] = read(place, counter, each)
        return out

    def _kinds(self) -> tuple[list[bool], list[tuple[int, Counter]]]:
        """Return which plans are the same for all candidates, and the (place, counter) that are no totals."""
        shared = [of_request(plan.key, self.catalog) for plan in self.plans]
        further = [(k, c) for k, c in enumerate(self.counters) if c.kind in ("distinct", "rank")]
        self.made["kinds"] = shared, further
        return shared, further

    def _shared(self, number: int, plan: Plan, requests: Requests, each: "_Candidates", out: F32) -> None:
        """Fill the counters that are equal for all candidates of a request: one look-up for each request."""
        none = np.full(len(requests), -1, np.int32)
        rows, code, _ = key_codes(plan.key, self.catalog, requests.user, none, requests.surface)
        values = self.plan_values(number, plan, rows, code, requests.as_of)
        if len(requests) == 1:
            spread(values[0], plan.counters, out)
        else:
            out[:, plan.counters] = values[each.owner]

    def _gathered(self, number: int, plan: Plan, requests: Requests, out: F32) -> bool:
        """Fill one request's counters of items from the base's table; return whether there is one for its as_of."""
        if len(requests) != 1 or plan.key != ("item",):
            return False
        item, as_of = requests.item, int(requests.as_of[0])
        latest = self.segments[0].latest(number, plan, self.catalog.n_items)
        if latest is None or as_of < latest.end:
            return False
        latest.gather(item, as_of, out)
        later = [segment.timelines[number].find(item.astype(np.int64)) >= 0 for segment in self.segments[1:]]
        rows = np.flatnonzero(np.any(later, axis=0)) if later else ()
        if len(rows):
            times, code = np.full(len(rows), as_of, np.int64), item[rows].astype(np.int64)
            out[np.ix_(rows, plan.counters)] = self.plan_values(number, plan, np.arange(len(rows)), code, times)
        return True

    def _distinct(self, place: int, counter: Counter, each: "_Candidates") -> I64:
        number = distinct_parts(self.counters).index((counter.key, counter.event, counter.argument))
        indexes = [segment.distincts[number] for segment in self.segments]
        rows, code, _ = key_codes(counter.key, self.catalog, each.user, each.item, each.surface)
        as_of = each.as_of
        low = as_of - counter.span.size if counter.span.kind == "w" else np.full(len(as_of), EVER)
        return count_over(indexes, [index.find(code) for index in indexes], rows, low, as_of - counter.span.delay)

    def _rank(self, place: int, counter: Counter, each: "_Candidates") -> F32:
        number = next(k for k, plan in enumerate(self.plans) if plan.key == counter.key)
        plan = self.plans[number].only(self.plans[number].counters.tolist().index(place))
        items = np.arange(self.catalog.n_items)

        def counts(time: int) -> F64:
            return self._totals(number, plan, items, items, np.full(len(items), time, np.int64))[:, 0]

        attribute = self.catalog.item_attribute(counter.argument)
        return rank_values(self.ranks, counter.column, attribute, each.item, each.as_of, counts)
