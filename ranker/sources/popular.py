"""Popular or trending items of a surface, of users alike, or of an attribute that the user's items have."""

from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
from numba import njit
from pydantic import Field, field_validator, model_validator

from features.counters.places import first_not_before
from features.errors import PairliftError, did_you_mean
from features.schema import DAY, F32, F64, I32, I64, Attribute, Catalog, offsets_of
from features.settings import Duration, Settings
from features.state.store import State
from ranker.candidates.named import Served
from ranker.candidates.seeds import taken_last
from ranker.candidates.source import Proposal, best
from ranker.request import Request

#: items that the user took last whose values of an item's attribute count
SEEDS = 20
#: kinds of attributes that have values to go by
KINDS = ("categorical", "multi")
#: what `by` may be: a side, and whether it names an attribute of it
BY = {("surface", False), ("user", True), ("item", True)}
NO_VALUES, NO_WEIGHTS = np.empty(0, np.int64), np.empty(0)


class PopularBySettings(Settings):
    """Items that are wanted most, or more than before, on the request's surface, by users alike, or of like items.

    Items with few events of that kind stand by the events of all.
    """

    by: str | None = Field(
        default=None,
        description='What events are told apart by: "surface"; "user.NAME", a text or list of [users.columns], for '
        'events of users who share the value; "item.NAME" of [items.columns], for items that share the values of the '
        "source item, else of what the user took last. Left out, and where the request has no value: the whole log.",
    )
    half_life: Duration = Field(
        default=7 * DAY, gt=0, description="An event so much older than another counts half as much."
    )
    trend: Duration | None = Field(
        default=None,
        gt=0,
        description="A longer half-life: items then stand by how far their count lies above what that of the longer "
        "half-life lets expect, in standard deviations. Left out: by the count.",
    )
    prior: float = Field(
        default=10.0,
        ge=0,
        allow_inf_nan=False,
        description="How many events of the whole log, shared by the items as all its events are, are added to those "
        "of the value (Dirichlet smoothing).",
    )

    @field_validator("by")
    @classmethod
    def _known(cls, by: str | None) -> str | None:
        side, _, attribute = (by or "").partition(".")
        if by is not None and (side, bool(attribute)) not in BY:
            raise ValueError(f"'surface', 'user.NAME' or 'item.NAME' was expected, found '{by}'")
        return by

    @model_validator(mode="after")
    def _longer(self) -> Self:
        if self.trend is not None and self.trend <= self.half_life:
            raise ValueError("trend: a longer time than half_life was expected")
        return self


class Table(NamedTuple):
    """The m wanted events by (value, item): each such pair has a timeline. The last value is that of all events."""

    starts: I64  # [values + 2], value v has the pairs [starts[v], starts[v + 1])
    item: I32  # [pairs], ascending within a value
    timeline: I64  # [pairs], the row of offsets that is the pair's
    offsets: I64  # [timelines + 1], of ts
    ts: I64  # [m], µs, never decreasing within a timeline
    decayed: F64  # [m], the decayed count behind each event
    expected: F64  # [m], the same by the longer half-life; [0] without one


class PopularBy:
    """Items by the decayed count of wanted events that share a value with the request.

        c(item) = Σ over the request's values v: weight(v) · count(v, item)
                  + prior · count(item) / Σ count           (Zhai and Lafferty, TOIS 2004: Dirichlet smoothing)
        popular:  log(1 + c)
        trending: (c - e) / sqrt(e + 1), where e = c by the longer half-life · half_life / trend: a steady stream of
                  events has c = e, and Poisson's deviation is the root

    A value is of the surface, or of the user, each of several weighs alike; or of items: that of the source item, else
    of what the user took last, the k-th weighing 1 / sqrt(k). Without a value, c is the count over all events.

    Counts are of the state that it was made from, as of the request; from that state's end on they stand still. An item
    is found by the first ones of one of the values: of attributes with several values to an item, one that is far down
    in each list may be missed.
    """

    options = PopularBySettings
    name = "popular_by"

    def __init__(self, **params: Any) -> None:
        self.settings = PopularBySettings(**params)
        side, _, attribute = (self.settings.by or "").partition(".")
        self._side, self._attribute = side, attribute

    def check(self, catalog: Catalog) -> None:
        """Refuse an attribute that the log does not have, or that has no values to go by."""
        if self._attribute:
            self._values_of(catalog)

    def _values_of(self, catalog: Catalog) -> Attribute:
        of_side = catalog.user_attributes if self._side == "user" else catalog.item_attributes
        known = {a.name: a for a in of_side if a.kind in KINDS}
        if self._attribute not in known:
            near = did_you_mean(self._attribute, known)
            raise PairliftError(f"by: '{self._attribute}' is no text or list of [{self._side}s.columns]{near}")
        return known[self._attribute]

    def open(self, served: Served) -> None:
        """Count as of the state."""
        self._floor = served.floor
        self._count(served.state)

    def over(self, state: State) -> Self:
        """Return the same source, counted over another state."""
        other = copy(self)
        other._count(state)
        return other

    def _count(self, state: State) -> None:
        of = self._values_of(state.catalog) if self._attribute else None
        spans = (self.settings.half_life, self.settings.trend or 0)
        self._table = made_table(state, self._floor, self._side, of, spans)
        self._of, self._whole, self._end = of, len(self._table.starts) - 2, state.end
        self._orders: dict[int, I32] = {}  # by value, of all its items as of the end; made when first asked for
        self._sum = (self._end, self._summed(self._end))

    def propose(self, request: Request, limit: int) -> Proposal:
        """Return the first items by the score above; none that nobody wanted before as_of."""
        as_of = min(request.as_of, self._end)
        values, weights = self._values(request)
        share = self._share(as_of) if len(values) else 0.0
        if not len(values):
            values, weights = np.array([self._whole]), np.ones(1)
        among = {*values.tolist(), self._whole} if share else values.tolist()
        items = np.unique(np.concatenate([self._order(value, as_of, limit) for value in among]))
        score = partial(self._score, values, weights, share, as_of)
        return Proposal(items[best(score(items), limit, items)], score)

    def _values(self, request: Request) -> tuple[I64, F64]:
        """Return the request's values and their weights, which sum to 1; none where it has none."""
        if self._side == "surface":
            values = np.array([request.surface], np.int64)
        elif self._of is None:
            return NO_VALUES, NO_WEIGHTS
        elif self._side == "user":
            values = codes_of(self._of, request.user)
        else:
            return self._of_items(request)
        values = values[values >= 0]
        return values, np.full(len(values), 1 / max(len(values), 1))

    def _of_items(self, request: Request) -> tuple[I64, F64]:
        """Return the values of the source item, else of the items that the user took last."""
        assert self._of is not None
        codes = [codes_of(self._of, int(request.source_item))]
        if not len(codes[0]):
            n_items = request.state.catalog.n_items
            seeds = taken_last(replace(request, source_item=-1), self._floor, n_items, SEEDS)
            codes = [codes_of(self._of, int(item)) for item in seeds]
        weight = [np.full(len(own), 1 / (max(len(own), 1) * np.sqrt(k))) for k, own in enumerate(codes, 1)]
        values, place = np.unique(np.concatenate([NO_VALUES, *codes]), return_inverse=True)
        total = np.bincount(place, np.concatenate([NO_WEIGHTS, *weight]), len(values))
        return values, total / max(total.sum(), np.finfo(float).tiny)

    def _order(self, value: int, as_of: int, limit: int) -> I32:
        """Return int32[<= limit]: the first items of one value by its own events and the share of all."""
        if as_of < self._end:
            return self._ordered(value, as_of, limit)
        if value not in self._orders:
            self._orders[value] = self._ordered(value, as_of, len(self._table.item))
        return self._orders[value][:limit]

    def _ordered(self, value: int, as_of: int, limit: int) -> I32:
        items = self._table.item[self._table.starts[value] : self._table.starts[value + 1]]
        share = 0.0 if value == self._whole else self._share(as_of)
        return items[best(self._score(np.array([value]), np.ones(1), share, as_of, items), limit, items)]

    def _score(self, values: I64, weights: F64, share: float, as_of: int, item: I32) -> F32:
        """Return float32[n] of any items; NaN of one without a wanted event before as_of."""
        spans = (self.settings.half_life, self.settings.trend or 0)
        found: F32 = _scores(self._table, spans, values, weights, share, as_of, item)
        return found

    def _share(self, as_of: int) -> float:
        """Return what an event of the whole log weighs beside one of the value."""
        known, total = self._sum  # one read: another thread may put its own there
        if known != as_of:
            total = self._summed(as_of)
            self._sum = (as_of, total)
        return self.settings.prior / total if total > 0 else 0.0

    def _summed(self, as_of: int) -> float:
        return float(_total(self._table, self.settings.half_life, as_of))


def codes_of(attribute: Attribute, index: int) -> I64:
    """Return the codes that one item or user has of an attribute; none where it is not known."""
    if attribute.kind == "multi":
        inside = 0 <= index < len(attribute.offsets) - 1
        found = attribute.codes[attribute.offsets[index] : attribute.offsets[index + 1]] if inside else NO_VALUES
    else:
        found = attribute.codes[index : index + 1] if 0 <= index < len(attribute.codes) else NO_VALUES
    return found[found >= 0].astype(np.int64)


def made_table(state: State, floor: int, side: str, of: Attribute | None, spans: tuple[int, int]) -> Table:
    """Return the wanted events of a state by value. of: the attribute of a side. spans: both half-lives in µs, 0: none.

    An event is wanted from the grade `floor` on; where none is, all are. About a second for each 3 million events.
    """
    h, n_items = state.histories, state.catalog.all_items
    user, row = h.rows()
    use = (h.grade[row] >= floor) & (h.item[row] >= 0)
    use = use if use.any() else h.item[row] >= 0
    user, row = user[use], row[use]
    event, value, n_values = np.empty(0, np.int64), NO_VALUES, 0
    if side == "surface":
        n_values, value = len(state.catalog.surfaces), h.surface[row].astype(np.int64)
        event, value = np.flatnonzero(value >= 0), value[value >= 0]
    elif of is not None:
        n_values = len(of.values)
        if side == "user":
            event, value = _expanded(of, user)
    event = np.concatenate([event, np.arange(len(row))])  # behind them, each event as one of the whole
    value = np.concatenate([value, np.full(len(row), n_values)])
    key, ts = value * n_items + h.item[row][event], h.ts[row][event]
    order = np.lexsort((ts, key))
    pairs, offsets = _runs(key[order])
    pair_value, item, timeline = pairs // n_items, (pairs % n_items).astype(np.int32), np.arange(len(pairs))
    if side == "item" and of is not None:
        pair_value, item, timeline = _by_value(of, item, n_values)
    ts, starts = ts[order], np.searchsorted(pair_value, np.arange(n_values + 2))
    decayed, expected = (_running(offsets, ts, span) if span else np.empty(0) for span in spans)
    return Table(starts, item, timeline, offsets, ts, decayed, expected)


def _expanded(of: Attribute, index: I32) -> tuple[I64, I64]:
    """Return (event, value) of each value that the users int32[n] of events have."""
    if of.kind != "multi":
        value = np.append(of.codes, np.int32(-1))[np.where(index < len(of.codes), index, -1)].astype(np.int64)
        return np.flatnonzero(value >= 0), value[value >= 0]
    inside = (index >= 0) & (index < len(of.offsets) - 1)
    first = np.where(inside, of.offsets[np.where(inside, index, 0)], 0)
    sizes = np.where(inside, of.offsets[np.where(inside, index + 1, 0)], 0) - first
    event = np.repeat(np.arange(len(index)), sizes)
    at = np.arange(len(event)) + np.repeat(first - offsets_of(sizes)[:-1], sizes)
    return event, of.codes[at].astype(np.int64)


def _by_value(of: Attribute, item: I32, n_values: int) -> tuple[I64, I32, I64]:
    """Return (value, item, timeline) of each value of the items int32[timelines] that have events; then the whole's."""
    place, value = _expanded(of, item)
    order = np.lexsort((item[place], value))
    whole = np.arange(len(item))
    place, value = np.concatenate([place[order], whole]), np.concatenate([value[order], np.full(len(item), n_values)])
    return value, item[place], place


def _runs(key: I64) -> tuple[I64, I64]:
    """Return (the different ones of sorted keys, int64[k + 1] where each begins, and the end)."""
    first = np.flatnonzero(np.diff(key, prepend=-1))
    return key[first], np.append(first, len(key)).astype(np.int64)


@njit(cache=True, nogil=True)
def _running(offsets: I64, ts: I64, half_life: int) -> F64:
    """Return float64[m]: the decayed count of a timeline as it stands behind each of its events."""
    decayed = np.empty(len(ts))
    for t in range(len(offsets) - 1):
        at = 0.0
        for k in range(offsets[t], offsets[t + 1]):
            at = at * np.exp2(-(ts[k] - ts[max(k - 1, offsets[t])]) / half_life) + 1.0
            decayed[k] = at
    return decayed


@njit(cache=True, nogil=True)
def _counted(table: Table, pair: int, half_life: int, longer: int, as_of: int) -> tuple[float, float]:
    """Return the decayed counts of a pair as of a time, by both half-lives; 0 where there is no second."""
    t = table.timeline[pair]
    stop = first_not_before(table.ts, table.offsets[t], table.offsets[t + 1], as_of)
    if stop == table.offsets[t]:
        return 0.0, 0.0
    age = as_of - table.ts[stop - 1]
    count = table.decayed[stop - 1] * np.exp2(-age / half_life)
    return count, table.expected[stop - 1] * np.exp2(-age / longer) if longer else 0.0


@njit(cache=True, nogil=True)
def _total(table: Table, half_life: int, as_of: int) -> float:
    """Return the sum of the counts of all items."""
    total, whole = 0.0, len(table.starts) - 2
    for pair in range(table.starts[whole], table.starts[whole + 1]):
        total += _counted(table, pair, half_life, 0, as_of)[0]
    return total


@njit(cache=True, nogil=True)
def _pair(table: Table, value: int, item: int) -> int:
    """Return the pair of a value and an item, found by halving; -1 where there is none."""
    start, stop = table.starts[value], table.starts[value + 1]
    at = start + np.searchsorted(table.item[start:stop], item)
    return at if at < stop and table.item[at] == item else -1


# for each item: c = share · its count in the whole; for each value: c += weight · its count there
@njit(cache=True, nogil=True)
def _scores(
    table: Table, spans: tuple[int, int], values: I64, weights: F64, share: float, as_of: int, item: I32
) -> F32:  # fmt: skip
    score, whole = np.full(len(item), np.nan, np.float32), len(table.starts) - 2
    for k in range(len(item)):
        pair = _pair(table, whole, item[k])
        if pair < 0:
            continue
        count, longer = _counted(table, pair, spans[0], spans[1], as_of)
        if count == 0:
            continue
        count, longer = share * count, share * longer
        for j in range(len(values)):
            pair = _pair(table, values[j], item[k])
            if pair >= 0:
                own, own_longer = _counted(table, pair, spans[0], spans[1], as_of)
                count, longer = count + weights[j] * own, longer + weights[j] * own_longer
        expected = longer * spans[0] / spans[1] if spans[1] else 0.0
        score[k] = (count - expected) / np.sqrt(expected + 1) if spans[1] else np.log1p(count)
    return score
