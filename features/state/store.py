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
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from features.counters.distinct import EVER, Distinct, count_over, distinct_parts
from features.counters.keys import key_codes, of_request
from features.counters.latest import Latest, has_table
from features.counters.plans import Plan, make_plans, place
from features.counters.ranks import RankTables, rank_values
from features.counters.spec import Counter
from features.counters.timeline import Timeline
from features.schema import F32, F64, I16, I32, I64, Catalog, EventLog, Requests
from features.state.histories import Histories
from features.state.read import fill_request

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
    made: dict[int, Latest] = field(default_factory=dict, compare=False, repr=False)


class Kinds(NamedTuple):
    """How counters are read. Numbers of plans: `single` are equal for all candidates of a request, `each` are not,
    those with tables first; `tabled` have a table. further: (column, counter) of those that are no totals.
    """

    single: list[int]
    each: list[int]
    tabled: frozenset[int]
    further: list[tuple[int, Counter]]


@dataclass(frozen=True, slots=True)
class State:
    """Everything known of events with `ts < end` (µs UTC).

    plans: one for each key. segments: the base, then what came after it was built. first_seen: int64[n_items],
    µs of the item's first event, NEVER without one; new items too.
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
        asked: Requests | None = None,
    ) -> "State":
        """Build the state of a whole log.

        histories: where they are there already. asked: the only requests whose counters will be read, so that what
        does not concern them can be left out.
        """
        plans = make_plans(counters, grades)
        first_seen = np.full(catalog.all_items, NEVER, np.int64)
        histories = Histories.build(log, catalog.all_users) if histories is None else histories
        empty = cls(catalog, counters, grades, plans, (), first_seen, histories, int(EVER))
        built = empty.extended(log, asked)
        return replace(built, end=max(built.end, 0))

    def extended(self, log: EventLog, asked: Requests | None = None) -> "State":
        """Return this state with further events in a segment of their own; linear in those events and the items.

        log: in time order within itself; its events may be older than what is known. A user or item of -1 counts
        for no key that names it. Histories stay as they are. Each segment adds to the cost of a read: rebuild the
        base now and then. asked: as in `build`.
        """
        if any(counter.kind == "rank" for counter in self.counters):
            asked = None  # a rank compares all items
        timelines = tuple(Timeline.build(plan, log, self.catalog, self.grades, asked) for plan in self.plans)
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
        first_seen = np.full(max(len(self.first_seen), int(log.item.max(initial=-1)) + 1), NEVER, np.int64)
        first_seen[: len(self.first_seen)] = self.first_seen
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
        return plan.finish(self.totals(number, plan, rows, code, as_of), as_of)

    def totals(self, number: int, plan: Plan, rows: I64, code: I64, as_of: I64) -> F64:
        """Return float64[len(as_of), totals of the plan], over all segments; arguments as of `plan_values`."""
        totals = plan.empty(len(as_of))
        for segment in self.segments:
            segment.timelines[number].add(plan, rows, code, as_of, totals)
        return totals

    def counter_values(self, requests: Requests, out: F32 | None = None, shared: F32 | None = None) -> F32:
        """Return float32[n, counters]: every counter of every candidate, as of its request's `as_of`.

        out: float32[n, width >= counters], where they are to stand. shared: float32[width], for one request alone:
        what is to stand in the other columns of every row, and is completed by what all candidates share.
        """
        if out is None:
            out = np.empty((len(requests.item), len(self.counters)), np.float32)
        each = _Candidates(requests)
        kinds = self.kinds()
        if len(requests) == 1:
            fill_request(self, requests, np.empty(out.shape[1], np.float32) if shared is None else shared, out)
        else:
            for number in kinds.single:
                self._shared(number, requests, each, out)
            for number in kinds.each:
                plan = self.plans[number]
                rows, code, _ = key_codes(plan.key, self.catalog, each.user, each.item, each.surface)
                place(self.plan_values(number, plan, rows, code, each.as_of), np.arange(len(out)), plan.counters, out)
        for column, counter in kinds.further:
            read = self._distinct if counter.kind == "distinct" else self._rank
            out[:, column] = read(column, counter, each)
        return out

    def kinds(self) -> Kinds:
        """Return which plan is read in which way."""
        if "kinds" not in self.made:
            numbers = range(len(self.plans))
            tabled = frozenset(k for k in numbers if has_table(self.plans[k], self.catalog))
            single = [k for k in numbers if of_request(self.plans[k].key, self.catalog)]
            each = sorted((k for k in numbers if k not in single), key=lambda k: k not in tabled)
            further = [(k, c) for k, c in enumerate(self.counters) if c.kind in ("distinct", "rank")]
            self.made["kinds"] = Kinds(single, each, tabled, further)
        kinds: Kinds = self.made["kinds"]
        return kinds

    def table(self, number: int) -> Latest:
        """Return the base's table of a plan that has one, made when it is first asked for."""
        made = self.segments[0].made
        if number not in made:
            made[number] = Latest.of(self.plans[number], self.segments[0].timelines[number])
        return made[number]

    def make_tables(self) -> None:
        """Make all that requests read from tables, so that the first one does not wait for them."""
        for number in self.kinds().tabled:
            self.table(number)

    def _shared(self, number: int, requests: Requests, each: "_Candidates", out: F32) -> None:
        """Fill the counters that are equal for all candidates of a request: one look-up for each request."""
        plan, none = self.plans[number], np.full(len(requests), -1, np.int32)
        rows, code, _ = key_codes(plan.key, self.catalog, requests.user, none, requests.surface)
        values = self.plan_values(number, plan, rows, code, requests.as_of)
        place(values[each.owner], np.arange(len(out)), plan.counters, out)

    def _distinct(self, place: int, counter: Counter, each: "_Candidates") -> I64:
        number = distinct_parts(self.counters).index((counter.key, counter.event, counter.argument))
        indexes = [segment.distincts[number] for segment in self.segments]
        rows, code, _ = key_codes(counter.key, self.catalog, each.user, each.item, each.surface)
        as_of = each.as_of
        low = as_of - counter.span.size if counter.span.kind == "w" else np.full(len(as_of), EVER)
        return count_over(indexes, [index.find(code) for index in indexes], rows, low, as_of - counter.span.delay)

    def _rank(self, place: int, counter: Counter, each: "_Candidates") -> F32:
        # New items have no attributes, so they neither have ranks nor change those of others.
        number = next(k for k, plan in enumerate(self.plans) if plan.key == counter.key)
        plan = self.plans[number].only(self.plans[number].counters.tolist().index(place))
        items = np.arange(self.catalog.n_items)

        def counts(time: int) -> F64:
            return self.totals(number, plan, items, items, np.full(len(items), time, np.int64))[:, 0]

        attribute = self.catalog.item_attribute(counter.argument)
        described = self.catalog.described_items(each.item)
        return rank_values(self.ranks, counter.column, attribute, described, each.as_of, counts)
