"""The state that features are read from: counters' timelines, histories and the catalogue, as of a time.

One class for training and serving: training builds it from the log, a server maps the same arrays from a
snapshot. It is immutable, and it only holds: `features.state.read` reads counters from it, as of any time, and
what is read depends only on the events in it.

A state is a base and any number of small further levels, each built from a part of the log by the same code.
Totals are additive, so a value is read from the sum of the levels' totals: `extended` costs what its events
cost, and events may come late and in any order.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from features.counters.distinct import EVER, Distinct, distinct_parts
from features.counters.latest import Latest
from features.counters.plans import Plan, make_plans
from features.counters.ranks import RankTables
from features.counters.spec import Counter
from features.counters.timeline import Timeline
from features.kernels import njit
from features.schema import I32, I64, Catalog, EventLog, Requests
from features.state.histories import Histories

#: `first_seen` of an item without an event
NEVER = 2**62


@dataclass(frozen=True, slots=True)
class Level:
    """A part of the events, indexed for the counters."""

    timelines: tuple[Timeline, ...]  # one for each plan
    distincts: tuple[Distinct, ...]  # one for each index of `distinct_parts`
    #: of the base alone: tables by the plan's number and, of a plan by arm, an arm's code (else -1); None: as of none.
    #: Made when they are first asked for (`features.state.read`)
    tables: dict[tuple[int, int], Latest | None] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything known of events with `ts < end`."""

    catalog: Catalog  # ids and attributes, with the new users and items of these events
    counters: tuple[Counter, ...]  # in the order of their columns
    grades: tuple[str, ...]  # names, from worst to best
    plans: tuple[Plan, ...]  # one for each key of the counters
    levels: tuple[Level, ...]  # the base, then those of later events, oldest first
    first_seen: I64  # [n_items, new ones too], µs of the item's first event, NEVER without one
    histories: Histories  # of all users
    end: int  # µs UTC, behind the last event
    #: tables of items by count within an attribute, of some full hours; readers fill it
    ranks: RankTables = field(default_factory=RankTables, compare=False)
    #: what readers made of plans and attributes alone, by name: it holds for every state that comes from this one
    made: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

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
        empty = cls(
            catalog=catalog,
            counters=counters,
            grades=grades,
            plans=make_plans(counters, grades),
            levels=(),
            first_seen=np.full(catalog.all_items, NEVER, np.int64),
            histories=Histories.build(log, catalog.all_users) if histories is None else histories,
            end=int(EVER),
        )
        built = empty.extended(log, asked)
        return replace(built, end=max(built.end, 0))

    @property
    def start(self) -> int:
        """µs UTC of the first event, NEVER where there is none; linear in the items."""
        return int(self.first_seen.min(initial=NEVER))

    def extended(self, log: EventLog, asked: Requests | None = None) -> "State":
        """Return this state with further events in a level of their own; linear in those events and the items.

        log: in time order within itself; its events may be older than what is known. A user or item of -1 counts
        for no key that names it. Histories stay as they are. Each level adds to the cost of a read: rebuild the
        base now and then. asked: as in `build`.
        """
        if any(counter.kind == "rank" for counter in self.counters):
            asked = None  # a rank compares all items
        timelines = tuple(Timeline.build(plan, log, self.catalog, self.grades, asked) for plan in self.plans)
        distincts = tuple(
            Distinct.build(parts, log, self.catalog, self.grades) for parts in distinct_parts(self.counters)
        )
        if not len(log):
            return replace(self, levels=(*self.levels, Level(timelines, distincts)))
        return replace(
            self.with_first_seen(log),
            levels=(*self.levels, Level(timelines, distincts)),
            end=max(self.end, int(log.ts[-1]) + 1),
            ranks=self.ranks.before(int(log.ts[0])),
        )

    def with_first_seen(self, log: EventLog) -> "State":
        """Return this state with the times of the items' first events of a log."""
        first_seen = np.full(max(len(self.first_seen), int(log.item.max(initial=-1)) + 1), NEVER, np.int64)
        first_seen[: len(self.first_seen)] = self.first_seen
        _see(log.item, log.ts, first_seen)
        return replace(self, first_seen=first_seen)


@njit(cache=True, nogil=True)
def _see(item: I32, ts: I64, first_seen: I64) -> None:
    """Lower int64[n_items] `first_seen` to each event's time where that is earlier; without items of -1."""
    for e in range(len(item)):
        if item[e] >= 0:
            first_seen[item[e]] = min(first_seen[item[e]], ts[e])
