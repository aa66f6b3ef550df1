"""Popular or trending items of a surface, of users alike, or of an attribute that the user's items have."""

from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from features.errors import PairliftError, did_you_mean
from features.schema import DAY, F32, F64, I32, I64, NO_CODES, NO_OFFSETS, Attribute, Catalog
from features.settings import Duration, Settings
from features.state.store import State
from ranker.candidates.named import Served
from ranker.candidates.seeds import taken_last
from ranker.candidates.source import Proposal, best
from ranker.request import Request
from ranker.sources.by_value import NO_VALUES, factors_of, lists_of, made_table, scores_of, total_of, value_scores

#: items that the user took last whose values of an item's attribute count
SEEDS = 20
#: kinds of attributes that have values to go by
KINDS = ("categorical", "multi")
#: bytes of an entry while it is counted anew: 44 that are held, twice, and what sorting takes; and the entries of an
#: event: one of the whole, and one for each value of the surface, or of the user (three; few have more)
ENTRY, ENTRIES = 168, {"surface": 2, "user": 4}
#: what `by` may be: a side, and whether it names an attribute of it
BY = {("surface", False), ("user", True), ("item", True)}
NO_WEIGHTS, NO_ITEMS = np.empty(0), np.empty(0, np.int32)


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
            raise ValueError("trend: a longer time than half_life was expected; leave it out for popular items")
        return self


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
        self._spans = (self.settings.half_life, self.settings.trend or 0)
        self.event_bytes = ENTRY * ENTRIES.get(side, 1)

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
        self._table = made_table(state, self._floor, self._side, of, self._spans)
        self._codes = lists_of(of) if of is not None and self._side == "item" else (NO_OFFSETS, NO_CODES)
        self._of, self._whole, self._end = of, len(self._table.starts) - 2, state.end
        #: by value, its first items as of the end, and how many were asked for; made when first asked for
        self._orders: dict[int, tuple[int, I32]] = {}
        self._sum = (self._end, self._summed(self._end))

    def propose(self, request: Request, limit: int) -> Proposal:
        """Return the first items by the score above; none that nobody wanted before as_of."""
        as_of = min(request.as_of, self._end)
        values, weights = self._values(request)
        share = self._share(as_of) if len(values) else 1.0
        among = [*values.tolist(), *([self._whole] if share else [])]
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
        most, order = self._orders.get(value, (0, NO_ITEMS))
        if most < limit:  # more than that, lest somewhat more be asked for next; all of a million take long to sort
            order = self._ordered(value, as_of, 2 * limit)
            self._orders[value] = 2 * limit, order
        return order[:limit]

    def _ordered(self, value: int, as_of: int, limit: int) -> I32:
        items = self._table.item[self._table.starts[value] : self._table.starts[value + 1]]
        whole = value == self._whole or self._side == "item"  # whose order within a value is that of the whole
        weight, factor = (0.0, 1.0) if whole else (1.0, self._share(as_of))
        score = value_scores(self._table, self._spans, value, weight, factor, as_of)
        return items[best(score, limit, items)]

    def _score(self, values: I64, weights: F64, share: float, as_of: int, item: I32) -> F32:
        """Return float32[n] of any items; NaN of one without a wanted event before as_of."""
        if self._side == "item" and self._of is not None:
            factor = factors_of(*self._codes, values, weights, share, item)
            values, weights = NO_VALUES, NO_WEIGHTS
        else:
            factor = np.full(len(item), share)
        found: F32 = scores_of(self._table, self._spans, values, weights, factor, as_of, item)
        return found

    def _share(self, as_of: int) -> float:
        """Return what an event of the whole log weighs beside one of the value."""
        known, total = self._sum  # one read: another thread may put its own there
        if known != as_of:
            total = self._summed(as_of)
            self._sum = (as_of, total)
        return self.settings.prior / total if total > 0 else 0.0

    def _summed(self, as_of: int) -> float:
        return float(total_of(self._table, self.settings.half_life, as_of))


def codes_of(attribute: Attribute, index: int) -> I64:
    """Return the codes that one item or user has of an attribute; none where it is not known."""
    if attribute.kind == "multi":
        inside = 0 <= index < len(attribute.offsets) - 1
        found = attribute.codes[attribute.offsets[index] : attribute.offsets[index + 1]] if inside else NO_VALUES
    else:
        found = attribute.codes[index : index + 1] if 0 <= index < len(attribute.codes) else NO_VALUES
    return found[found >= 0].astype(np.int64)
