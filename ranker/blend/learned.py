"""Shares of candidates, learned of lists that the sources proposed and of what their users wanted later.

Told            what each source proposed to the requests of a period, and what their users wanted
orders          of each kind of requests the greedy order of stretches (`ranker.blend.order`), or all sources in turn
  _judge          which share of new items, if any, finds more for users that it was not learned of
shares          how deep that goes into each list, until the mean request of the kind has its candidates

Each user weighs one, however many requests are asked about, and a hit is worth 1 / wanted items, as in recall. Kinds of
requests are those of users with and without history: each by itself where LEAST users are there to learn from, else
both together. Of these again a surface with LEAST users has an order of its own; the requests of all other surfaces
count in it as much as PRIOR of its users, so that few users are led by the whole, and many by themselves.

New items are few among what the log has, for what was shown was chosen by others; so a share of the places is taken in
an order that is greedy for new items alone. Of RESERVED it is the least with which new items are found no less than
with all sources in turn, and all items more, by more than noise and for users that it was not learned of. Where there
is none, the sources have as many candidates each, as they would without all of this.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from features.schema import F64, I16, I32, I64, Bool
from ranker.blend.order import Order, Table, beside, in_turn, mean_items, order_of, reached, table_of
from ranker.blend.shares import ANY, Share, Shares
from ranker.candidates.configured import Sources
from ranker.metrics.interval import mean_interval
from ranker.settings import QUOTA, SourceSettings

#: users of a kind of requests that has an order of its own
LEAST = 50
#: users for whom the other surfaces count together
PRIOR = 50.0
#: candidates that each source has at least. The log favours what was shown, so it never tells all that a new item is
#: worth; and what a source says of the others' items is a feature of theirs
FLOOR = 10
#: shares of the places for new items, as they are tried: never none, for the log tells too little of them
RESERVED = (0.125, 0.25, 0.5)


class Told(NamedTuple):
    """What s sources proposed to r requests, and what their users wanted later."""

    lists: I32  # [s, r, m], each source's own, behind the filters, -1 behind the end
    user: I32  # [r]
    known: Bool  # [r], whether the user had a history
    surface: I16  # [r], its code, -1 none
    offsets: I64  # [r + 1], of request k item[offsets[k]:offsets[k + 1]] was wanted, ascending
    item: I32


class Judged(NamedTuple):
    """Recall of the candidates of a learned order less that of all sources in turn, for users it was not learned of.

    Means and the ends of their intervals of 95 %, NaN of fewer than two users.
    """

    reserved: float  # share of the places that were taken for new items
    gain: tuple[float, float, float]
    new_items: tuple[float, float, float]

    @property
    def better(self) -> bool:
        """Whether it is better by more than noise, and no worse of new items by more than that."""
        return self.gain[1] > 0 and not self.new_items[2] < 0


class Kind(NamedTuple):
    """A kind of requests."""

    known: bool
    surface: str  # or ANY


@dataclass(frozen=True, slots=True)
class Learner:
    """Lists to learn of, read once for several orders."""

    told: Told
    table: Table
    names: Sequence[str]  # [s] of the sources
    settings: Sequence[SourceSettings]  # [s]
    surfaces: Sequence[str]  # by their codes
    fresh: Told  # with what was wanted of new items alone
    of_fresh: Table
    judged: Mapping[bool, Judged] = field(default_factory=dict)  # of requests with and without history

    @classmethod
    def of(
        cls, told: Told, sources: Sources, surfaces: Sequence[str], new: Bool, budget: int | None = None
    ) -> "Learner":
        """Return that of what sources proposed, judged. new: bool[items], whether an item is new to all sources.

        budget: as of `shares`.
        """
        few = new[told.item]
        fresh = told._replace(offsets=np.append(0, np.cumsum(few))[told.offsets], item=told.item[few])
        own = cls(
            told=told,
            table=table_of(told.lists, told.offsets, told.item),
            names=[source.name for source, _ in sources],
            settings=[of for _, of in sources],
            surfaces=surfaces,
            fresh=fresh,
            of_fresh=table_of(told.lists, fresh.offsets, fresh.item),
        )
        return replace(own, judged=own._judge(budget))

    def orders(self, rows: Bool | None = None, without: int | None = None) -> dict[Kind, Order]:
        """Return the order of each kind; ANY is there for both, and alone where the sources have their turns.

        rows: bool[r], requests that are learned of; None: all. without: a source that is left out.
        """
        found = dict[Kind, Order]()
        for kind, weight in self._weights(rows).items():
            judged = self.judged[kind.known]
            if judged.better or kind.surface == ANY:
                most = self._most(kind, without)
                found[kind] = self._learned(weight, most, judged.reserved) if judged.better else in_turn(most)
        return found

    def _most(self, kind: Kind, without: int | None) -> I64:
        """Return int64[s]: how many places of each list there may be."""
        most = [settings.most(kind.surface) or self.told.lists.shape[2] for settings in self.settings]
        if without is not None:
            most[without] = 0
        return np.array(most, np.int64)

    def _learned(self, weight: F64, most: I64, reserved: float) -> Order:
        """Return the greedy order, with a share of the places for new items."""
        every = self._greedy(self.table, self.told, weight, most)
        return beside(every, self._greedy(self.of_fresh, self.fresh, weight, most), reserved) if reserved else every

    def _greedy(self, table: Table, told: Told, weight: F64, most: I64) -> Order:
        worth = weight / np.maximum(np.minimum(np.diff(told.offsets), told.lists.shape[2]), 1)
        return order_of(table, weight, worth, most)

    def _judge(self, budget: int | None) -> dict[bool, Judged]:
        """Compare orders with turns at one budget: each half of the users by what was learned of the other."""
        turns = self._folded(budget, None)
        found = dict[bool, Judged]()
        for reserved in RESERVED:
            quotas, kinds = self._folded(budget, reserved), [known for known in (True, False) if known not in found]
            gains = [
                self._gains(table, of, quotas, turns)
                for table, of in ((self.table, self.told), (self.of_fresh, self.fresh))
            ]
            for known in kinds:
                rows = self.told.known == known
                judged = Judged(reserved, *(self._interval(gain, rows & np.isfinite(gain)) for gain in gains))
                if judged.better or reserved == RESERVED[-1]:
                    found[known] = judged
        return found

    def _folded(self, budget: int | None, reserved: float | None) -> I64:
        """Return int64[r, s]: the quotas of each half of the users, learned of the other. reserved: None for turns."""
        fold, quota = self.told.user % 2, np.zeros((len(self.told.user), len(self.settings)), np.int64)
        for own in (0, 1):
            orders = {
                kind: in_turn(most) if reserved is None else self._learned(weight, most, reserved)
                for kind, weight in self._weights(fold != own).items()
                for most in [self._most(kind, None)]
            }
            quota[fold == own] = self._quotas(self.shares(orders, budget, fold != own))[fold == own]
        return quota

    def _quotas(self, shares: Shares) -> I64:
        """Return int64[r, s]: of the requests that are learned of, as they would be served."""
        told, of = self.told, {(share.known, share.surface): share.quotas for share in shares.of}
        found = np.empty((len(told.user), len(self.names)), np.int64)
        for k, (known, code) in enumerate(zip(told.known.tolist(), told.surface.tolist(), strict=True)):
            surface = self.surfaces[code] if code >= 0 else ANY
            own = of.get((known, surface)) or of[known, ANY]
            most = [settings.most(surface) for settings in self.settings]
            found[k] = [min(own[name], m or own[name]) for name, m in zip(self.names, most, strict=True)]
        return found

    def _gains(self, table: Table, told: Told, quota: I64, other: I64) -> F64:
        """Return float64[r]: recall with quotas, int64[r, s], less that with others; NaN where nothing was wanted."""
        wanted = np.diff(told.offsets)
        with np.errstate(invalid="ignore"):
            return np.asarray((reached(table, quota) - reached(table, other)) / np.where(wanted > 0, wanted, np.nan))

    def _interval(self, gain: F64, rows: Bool) -> tuple[float, float, float]:
        """Return the mean of users' means of float64[r] and its interval. rows: bool[r], which count."""
        count, total = np.bincount(self.told.user[rows]), np.bincount(self.told.user[rows], gain[rows])
        return mean_interval(total[count > 0] / count[count > 0])

    def _weights(self, rows: Bool | None) -> dict[Kind, F64]:
        """Return float64[r] by kind: what each request weighs. 0 of those that are not learned of."""
        told, found = self.told, dict[Kind, F64]()
        rows = np.ones(len(told.user), bool) if rows is None else rows
        for known in (True, False):
            own = rows & (told.known == known)
            every = _each_user(told.user, own if _users(told.user, own) >= LEAST else rows)
            found[Kind(known, ANY)] = every
            for code, name in enumerate(self.surfaces):
                mine = own & (told.surface == code)
                if _users(told.user, mine) >= LEAST:
                    rest = np.where(mine, 0, every)
                    prior = min(PRIOR / max(rest.sum(), 1e-9), 1.0)
                    found[Kind(known, name)] = _each_user(told.user, mine) + prior * rest
        return found

    def shares(self, orders: Mapping[Kind, Order], budget: int | None, rows: Bool | None = None) -> Shares:
        """Return the shares of the orders. budget: candidates in the mean; None: as own quotas and QUOTA give."""
        weights = self._weights(rows)
        mean = (
            float(budget) if budget else self._as_it_was(np.ones(len(self.told.user), bool) if rows is None else rows)
        )
        return Shares(mean, tuple(self._share(kind, order, weights[kind], mean) for kind, order in orders.items()))

    def _share(self, kind: Kind, order: Order, weight: F64, budget: float) -> Share:
        own = np.array([settings.most(kind.surface) or QUOTA for settings in self.settings])
        said = (self.told.lists[:, weight > 0, :1] >= 0).any(axis=(1, 2))

        def quota(stretches: int) -> I64:
            """Return int64[s] after so many stretches of the order. Of a source that never had any, it is the own."""
            return np.where(said, np.maximum(_depth(order, stretches, len(own)), np.minimum(FLOOR, own)), own)

        full = range(len(order.source) + 1)
        stretches = max(0, bisect_right(full, budget, key=lambda n: mean_items(self.table, weight, quota(n))) - 1)
        candidates = round(mean_items(self.table, weight, quota(stretches)), 2)
        named = dict(zip(self.names, quota(stretches).tolist(), strict=True))
        return Share(kind.known, kind.surface, _users(self.told.user, weight > 0), candidates, named)

    def _as_it_was(self, rows: Bool) -> float:
        """Return how many candidates a request has in the mean by the sources' own quotas, and QUOTA."""
        weight, total = _each_user(self.told.user, rows), 0.0
        for code in np.unique(self.told.surface[rows]).tolist():
            surface = self.surfaces[code] if code >= 0 else ANY
            quota = np.array([settings.most(surface) or QUOTA for settings in self.settings])
            mine = np.where(self.told.surface == code, weight, 0.0)
            total += float(mine.sum()) * mean_items(self.table, mine, quota)
        return round(total / max(float(weight.sum()), 1e-9), 6)  # however many requests without weight there are


def kinds_of(told: Told, surfaces: Sequence[str], orders: Mapping[Kind, Order]) -> list[Kind]:
    """Return of each request the kind whose order holds for it."""
    named = [surfaces[code] if code >= 0 else ANY for code in told.surface.tolist()]
    exact = [Kind(known, name) for known, name in zip(told.known.tolist(), named, strict=True)]
    return [kind if kind in orders else Kind(kind.known, ANY) for kind in exact]


def _each_user(user: I32, rows: Bool) -> F64:
    """Return float64[r]: 1 / the user's requests of the mask, so that each user weighs one; 0 of other requests."""
    count = np.bincount(user[rows], minlength=int(user.max(initial=-1)) + 1)
    return np.where(rows, 1.0 / np.maximum(count[user], 1), 0.0)


def _users(user: I32, rows: Bool) -> int:
    return len(np.unique(user[rows]))


def _depth(order: Order, stretches: int, sources: int) -> I64:
    """Return int64[s]: to which place of each list the first stretches of an order go."""
    depth = np.zeros(sources, np.int64)
    np.maximum.at(depth, order.source[:stretches], order.depth[:stretches])
    return depth
