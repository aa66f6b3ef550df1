"""Reads counters: the one way from a state and requests to numbers, in training and in serving.

    counter_values ─┬─ _one_request    for each plan: a row of the base's table for each candidate, where the plan has
                    │                  one and the request comes after it, and of timelines the windows that have
                    │                  changed since; else each different key once, of timelines
                    ├─ _many_requests  for each plan: the key of each candidate (one key for each request, where its
                    │                  candidates share it), of timelines
                    └─ _further        distinct counts and ranks, which are not totals of a plan

A plan holds the counters of one key (`features.counters.plans`), and a level of the state has a timeline for each
plan. What all levels say of a key is added up in `_totals`, and `Plan.finish` makes values of totals. Both readers
give the same values (up to rounding, where tables are read): a test compares them.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from features.counters.distinct import EVER, count_over, distinct_parts
from features.counters.keys import Part, codes_of_one, key_codes, of_request, single_parts
from features.counters.latest import Latest, has_table, row_key, windows_of
from features.counters.plans import Plan, scatter
from features.counters.ranks import rank_values
from features.counters.spec import Counter
from features.counters.timeline import merge_totals
from features.hashing import each_once
from features.schema import BY_ARM, F32, F64, I16, I32, I64, Requests
from features.state.store import Level, State

#: in the place of columns that stay as they are
NOTHING = np.empty(0, np.float32)
#: the key of counters that no user and no attribute is in
ITEM = ("item",)
#: the item of a key that names none
NO_ITEM = np.full(1, -1, np.int32)


class Order(NamedTuple):
    """Which counters are read in which way; plans are meant by their numbers."""

    shared: list[int]  # plans whose key is the same for all candidates of a request
    each: list[int]  # the other plans, first those with a table: the first of them writes whole rows
    tabled: frozenset[int]  # plans that have a table
    windows: dict[int, Plan]  # of each of these that has windows, that part
    distinct: list[tuple[int, Counter, int]]  # (column, counter, which index of a level)
    rank: list[tuple[int, Counter, int]]  # (column, counter, plan)


def counter_values(state: State, requests: Requests, out: F32 | None = None, row: F32 | None = None) -> F32:
    """Return float32[n, counters]: every counter of every candidate, as of its request's `as_of`.

    out: float32[n, width >= counters], where they are to stand. row: float32[width], for one request alone: what is
    to stand in the other columns of every candidate, so that one pass writes all; it is changed.
    """
    if out is None:
        out = np.empty((len(requests.item), len(state.counters)), np.float32)
    order = _order(state)
    if len(requests) == 1:
        _one_request(state, order, requests, np.empty(out.shape[1], np.float32) if row is None else row, out)
    else:
        _many_requests(state, order, requests, out)
    if order.distinct or order.rank:
        _further(state, order, requests, out)
    return out


def of_items(state: State) -> I64:
    """Return int64[c]: the columns of the counters of the item alone, but distinct counts. A rank is no count there."""
    found: list[I64] = [plan.counters for plan in state.plans if plan.key == ITEM]
    return found[0] if found else np.empty(0, np.int64)


def item_counters(state: State, requests: Requests, out: F32) -> None:
    """Write to float32[n, width >= c] `out`, side by side, what `counter_values` does of one request in `of_items`.

    In place of a rank stands the count that it is made from. Narrow rows, for many candidates.
    """
    for number, plan in enumerate(state.plans):
        if plan.key == ITEM:
            _read_plan(_alone(state, number), 0, requests, requests.item, NOTHING, out)


def _alone(state: State, number: int) -> State:
    """Return the state of one plan whose counters stand side by side; it shares all arrays."""
    plan, table = state.plans[number], _table(state, number, -1)
    wide = plan.counters  # ascending
    tables: dict[tuple[int, int], Latest | None] = {}
    if table is not None:
        at, windows = (np.searchsorted(wide, of) for of in (table.counters, table.windows))
        tables[0, -1] = replace(table, counters=at, windows=windows)
    base, *later = (Level((level.timelines[number],), ()) for level in state.levels)
    return replace(
        state,
        counters=tuple(state.counters[k] for k in wide if state.counters[k].kind != "rank"),
        plans=(replace(plan, counters=np.arange(len(wide))),),
        levels=(replace(base, tables=tables), *later),
        made=state.made.setdefault("alone", {}),
    )


def make_tables(state: State, arms: Iterable[int] = ()) -> None:
    """Make all tables that single requests of no arm, and of these arms (codes), read, so that none waits for them."""
    for number in _order(state).tabled:
        for arm in {-1, *arms}:
            _table(state, number, arm)


def item_totals(state: State, number: int, plan: Plan, n_items: int, as_of: int) -> F64:
    """Return float64[n_items, totals] of the first items as of one time. plan: that number's, of the key `item`."""
    items = np.arange(n_items)
    return _totals(state, number, plan, items, items, np.full(n_items, as_of, np.int64))


def _order(state: State) -> Order:
    order: Order | None = state.made.get("order")
    if order is None:
        plans, parts = list(enumerate(state.plans)), distinct_parts(state.counters)
        shared = [number for number, plan in plans if of_request(plan.key, state.catalog)]
        tabled = frozenset(number for number, plan in plans if has_table(plan, state.catalog))
        each = sorted({number for number, _ in plans} - set(shared), key=lambda number: (number not in tabled, number))
        parts_of = {number: windows_of(plan) for number, plan in plans if number in tabled}
        windows = {number: part for number, part in parts_of.items() if part is not None}
        plan_of = {plan.key: number for number, plan in plans}
        columns = list(enumerate(state.counters))
        distinct = [(k, c, parts.index((c.key, c.event, c.argument))) for k, c in columns if c.kind == "distinct"]
        rank = [(k, c, plan_of[c.key]) for k, c in columns if c.kind == "rank"]
        order = state.made["order"] = Order(shared, each, tabled, windows, distinct, rank)
    return order


# One request: what its candidates share is read once, and rows of tables that lie far apart are fetched ahead.


def _one_request(state: State, order: Order, requests: Requests, row: F32, out: F32) -> None:
    """Complete float32[width] `row` by what all candidates share, and write it with the other counters to `out`."""
    for number in order.shared:
        _read_plan(state, number, requests, NO_ITEM, NOTHING, row.reshape(1, -1))
    if not order.each:
        out[:] = row
    for k, number in enumerate(order.each):
        _read_plan(state, number, requests, requests.item, NOTHING if k else row, out)


def _read_plan(state: State, number: int, requests: Requests, item: I32, row: F32, out: F32) -> None:
    """Write the counters of a plan, of int32[n] items for the one request, and `row` elsewhere unless it is empty."""
    table, as_of = _table(state, number, int(requests.arm[0])), int(requests.as_of[0])
    if table is None or as_of < table.end:
        if len(row):
            out[:] = row
        _from_timelines(state, number, requests, item, out)
        return
    plan, key = state.plans[number], row_key(state.plans[number])
    if key in (("item",), ("user",)):
        code: I64 | I32 = item if key == ("item",) else requests.user  # an index alone is its own code
    else:
        code = _keys(state, key, requests, item)[1]
    changed = table.gather(code, as_of, row, out)
    if not len(changed) and len(state.levels) == 1:
        return
    rows, code = (np.arange(len(code)), code) if key == plan.key else _keys(state, plan.key, requests, item)
    if len(changed):
        _changed_windows(state, number, changed, rows, code, as_of, out)
    if len(state.levels) > 1:
        _again_with_later_events(state, number, rows, code, as_of, out)


def _table(state: State, number: int, arm: int) -> Latest | None:
    """Return the base's table of a plan, for requests of an arm; None for a plan that has none."""
    if number not in _order(state).tabled:
        return None
    base, plan = state.levels[0], state.plans[number]
    by_arm = plan.key[0] == BY_ARM
    kept = (number, arm if by_arm else -1)
    if kept not in base.tables:
        timeline = base.timelines[number]
        made = Latest.of_arm(plan, timeline, state.catalog, arm) if by_arm else Latest.of(plan, timeline)
        base.tables[kept] = made
    found = base.tables[kept]
    return _table(state, number, -1) if found is None else found


def _changed_windows(
    state: State, number: int, changed: I64, rows: I64, code: I64 | I32, as_of: int, out: F32
) -> None:  # fmt: skip
    """Write the windows of these rows, int64[], from the base's timeline: later events are the next step's.

    rows, code: the keys of each row of `out`, as of `key_codes`.
    """
    windows = _order(state).windows[number]
    place, totals = np.full(len(out), -1, np.int64), windows.empty(len(changed))
    place[changed] = np.arange(len(changed))
    keys = np.flatnonzero(place[rows] >= 0)
    state.levels[0].timelines[number].add_windows(windows, place[rows[keys]], code[keys], as_of, totals)
    scatter(windows.finish(totals, _times(as_of, 1)), changed, windows.counters, out)


def _again_with_later_events(state: State, number: int, rows: I64, code: I64 | I32, as_of: int, out: F32) -> None:
    """Write the counters of rows of which levels behind the base know a key, from the timelines of all levels.

    rows, code: the keys of each row of `out`, as of `key_codes`.
    """
    later = np.any([level.timelines[number].find(code) >= 0 for level in state.levels[1:]], axis=0)
    if not later.any():
        return
    changed = np.zeros(len(out), bool)
    changed[rows[later]] = True
    keys = np.flatnonzero(changed[rows])  # of these rows all, for what one of them says is added to the others
    place, n = np.cumsum(changed) - 1, int(changed.sum())
    values = _values(state, number, place[rows[keys]], code[keys].astype(np.int64), _times(as_of, n))
    scatter(values, np.flatnonzero(changed), state.plans[number].counters, out)


def _from_timelines(state: State, number: int, requests: Requests, item: I32, out: F32) -> None:
    """Read the timelines, each different key once: candidates share keys, of a genre for instance."""
    plan, as_of = state.plans[number], int(requests.as_of[0])
    parts = _parts(state, plan.key)
    if parts is not None:
        different, place_of = each_once(codes_of_one(parts, requests.user, item, requests.surface))
        plan.write(_totals_at(state, number, plan, different, as_of), place_of, as_of, out)
        return
    rows, code = _keys(state, plan.key, requests, item)
    different, place_of = each_once(code)
    totals = plan.empty(len(out))
    merge_totals(_totals_at(state, number, plan, different, as_of), place_of, rows, plan.totals.kind, totals)
    plan.write(totals, np.arange(len(out)), as_of, out)


def _keys(state: State, key: tuple[str, ...], requests: Requests, item: I32) -> tuple[I64, I64]:
    """Return (rows, codes) of a key, of items for the one request."""
    parts = _parts(state, key)
    if parts is not None:
        return np.arange(len(item)), codes_of_one(parts, requests.user, item, requests.surface)
    user, surface, arm = (np.full(len(item), of[0]) for of in (requests.user, requests.surface, requests.arm))
    rows, code, _ = key_codes(key, state.catalog, user, item, surface, arm, asked=True)
    return rows, code


def _parts(state: State, key: tuple[str, ...]) -> list[Part] | None:
    """Return what `single_parts` does, once for all requests: of attributes, and of the room for new ids."""
    catalog = state.catalog
    of = key, catalog.n_users, catalog.n_items, catalog.new_users.room, catalog.new_items.room
    made: dict[Any, list[Part] | None] = state.made.setdefault("parts", {})
    if of not in made:
        made[of] = single_parts(key, catalog)
    return made[of]


def _times(as_of: int, n: int) -> I64:
    return np.full(n, as_of, np.int64)


# Many requests: all keys of a plan at once, in the order of the keys where they are many.


class _Candidates:
    """The candidates of requests in one row, their columns made when they are first asked for."""

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

    @property
    def keyed(self) -> tuple[I32, I32, I16, I16]:
        """User, item, surface and arm of each: what keys are made of."""
        return self.user, self.item, self.surface, self._requests.arm[self.owner]

    @cached_property
    def as_of(self) -> I64:
        """int64[n], µs."""
        return self._requests.as_of[self.owner]


def _many_requests(state: State, order: Order, requests: Requests, out: F32) -> None:
    """Write the counters of all plans to `out`."""
    each, no_item = _Candidates(requests), np.full(len(requests), -1, np.int32)
    for number in order.shared:
        plan = state.plans[number]
        of = requests.user, no_item, requests.surface, requests.arm
        rows, code, _ = key_codes(plan.key, state.catalog, *of, asked=True)
        values = _values(state, number, rows, code, requests.as_of)
        scatter(values[each.owner], np.arange(len(out)), plan.counters, out)
    for number in order.each:
        plan = state.plans[number]
        rows, code, _ = key_codes(plan.key, state.catalog, *each.keyed, asked=True)
        scatter(_values(state, number, rows, code, each.as_of), np.arange(len(out)), plan.counters, out)


# Of all levels together.


def _values(state: State, number: int, rows: I64, code: I64, as_of: I64) -> F32:
    """Return float32[len(as_of), counters of a plan]. rows, code: from `key_codes`."""
    plan = state.plans[number]
    return plan.finish(_totals(state, number, plan, rows, code, as_of), as_of)


def _totals(state: State, number: int, plan: Plan, rows: I64, code: I64, as_of: I64) -> F64:
    """Return float64[len(as_of), totals of the plan]. plan: the one of that number, or a part (`only`) of it."""
    totals = plan.empty(len(as_of))
    for level in state.levels:
        level.timelines[number].add(plan, rows, code, as_of, totals)
    return totals


def _totals_at(state: State, number: int, plan: Plan, code: I64, as_of: int) -> F64:
    """Return float64[len(code) + 1, totals of the plan] as of one time, a row for each code; the last has no events."""
    totals = plan.empty(len(code) + 1)
    for level in state.levels:
        level.timelines[number].add_at(plan, code, as_of, totals)
    return totals


def _further(state: State, order: Order, requests: Requests, out: F32) -> None:
    """Write distinct counts and ranks."""
    each = _Candidates(requests)
    for column, counter, number in order.distinct:
        out[:, column] = _distinct_count(state, counter, number, each)
    for column, counter, number in order.rank:
        out[:, column] = _rank(state, column, counter, number, each)


def _distinct_count(state: State, counter: Counter, number: int, each: _Candidates) -> I64:
    indexes = [level.distincts[number] for level in state.levels]
    rows, code, _ = key_codes(counter.key, state.catalog, *each.keyed, asked=True)
    as_of, span = each.as_of, counter.span
    low = as_of - span.size if span.kind == "w" else np.full(len(as_of), EVER)
    return count_over(indexes, [index.find(code) for index in indexes], rows, low, as_of - span.delay)


def _rank(state: State, column: int, counter: Counter, number: int, each: _Candidates) -> F32:
    plan = state.plans[number]

    def counts(as_of: int) -> F64:
        alone = plan.only([plan.counters.tolist().index(column)])
        return item_totals(state, number, alone, state.catalog.n_items, as_of)[:, 0]

    # New items have no attributes, so they neither have ranks nor change those of others.
    described = state.catalog.described_items(each.item)
    return rank_values(
        state.ranks, counter.column, state.catalog.item_attribute(counter.argument), described, each.as_of, counts
    )
