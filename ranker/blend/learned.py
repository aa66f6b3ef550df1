"""Shares of candidates, learned of lists that the sources proposed and of what their users wanted later.

Told            what each source proposed to the requests of a period, and what their users wanted
orders          of each kind of requests the greedy order of stretches (`ranker.blend.order`), or the configured one
  judged        which of the two, and which share of new items: see `ranker.lists.judging`
shares          how deep that goes into each list, until the mean request of the kind has its candidates

Each user weighs one, however many requests are asked about, and a hit is worth 1 / wanted items, as in recall. Kinds of
requests are those of users with and without history. Where fewer than LEAST users are without, theirs is learned of
all users, by the sources alone that have something for a user without history. Of each kind again a surface with LEAST
users has an order of its own; the requests of all other surfaces count in it as much as PRIOR of its users, so that few
users are led by the whole, and many by themselves.

In the configured order sources take turns by their quotas, as they do without all of this.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from features.schema import F64, I16, I32, I64, Bool, offsets_of
from ranker.blend.order import Order, Table, beside, filled, in_turn, mean_items, order_of, table_of
from ranker.blend.shares import ANY, Judged, Share, Shares
from ranker.candidates.configured import Sources
from ranker.candidates.gathering import most_of, own_places
from ranker.candidates.merge import Places
from ranker.settings import SourceSettings

#: users of a kind of requests that has an order of its own
LEAST = 50
#: users for whom the other surfaces count together
PRIOR = 50.0
#: candidates that each source has at least, where that is no more in all than is asked for. The log favours what was
#: shown, so it never tells all that a new item is worth; and what a source says of others' items is a feature of theirs
FLOOR = 10


class Told(NamedTuple):
    """What s sources proposed to r requests, and what their users wanted later."""

    lists: I32  # [s, r, m], each source's own, behind the filters, -1 behind the end
    user: I32  # [r]
    known: Bool  # [r], whether the user had a history
    surface: I16  # [r], its code, -1 none
    offsets: I64  # [r + 1], of request k item[offsets[k]:offsets[k + 1]] was wanted, ascending
    item: I32

    def at(self, rows: Bool) -> "Told":
        """Return the requests of the mask bool[r]."""
        wanted = np.diff(self.offsets)
        return Told(
            self.lists[:, rows],
            self.user[rows],
            self.known[rows],
            self.surface[rows],
            offsets_of(wanted[rows]),
            self.item[np.repeat(rows, wanted)],
        )

    def only(self, of: Bool) -> "Told":
        """Return the same where nothing but the items of the mask bool[items] was wanted."""
        some = of[self.item]
        return self._replace(offsets=np.append(0, np.cumsum(some))[self.offsets], item=self.item[some])


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
    judged: Mapping[bool, Judged] = field(default_factory=dict)  # by `known`; empty: all have the configured order

    @classmethod
    def of(cls, told: Told, sources: Sources, surfaces: Sequence[str], new: Bool) -> "Learner":
        """Return that of what sources proposed, not judged yet. new: bool[items], whether an item is new to all."""
        fresh = told.only(new)
        return cls(
            told=told,
            table=table_of(told.lists, told.offsets, told.item),
            names=[source.name for source, _ in sources],
            settings=[of for _, of in sources],
            surfaces=surfaces,
            fresh=fresh,
            of_fresh=table_of(told.lists, fresh.offsets, fresh.item),
        )

    def orders(self, rows: Bool | None = None, without: int | None = None) -> dict[Kind, Order]:
        """Return the order of each kind; ANY is there for both, and alone where the configured order is kept.

        rows: bool[r], requests that are learned of; None: all. without: a source that is left out.
        """
        found = dict[Kind, Order]()
        for kind, weight in self.weights(rows).items():
            if (judged := self.judged.get(kind.known)) and judged.learned:
                every, fresh = self.learned(kind, weight, without)
                found[kind] = beside(every, fresh, judged.reserved)
            elif kind.surface == ANY:
                found[kind] = self.configured(kind, without)
        return found

    def learned(self, kind: Kind, weight: F64, without: int | None = None) -> tuple[Order, Order]:
        """Return the greedy orders for all that was wanted, and for new items. weight: of `weights`."""
        most = self._most(kind, without)
        both = ((self.table, self.told), (self.of_fresh, self.fresh))
        every, fresh = (self._greedy(table, told, weight, most) for table, told in both)
        return every, fresh

    def configured(self, kind: Kind, without: int | None = None) -> Order:
        """Return the order in which sources take turns by their quotas."""
        quota = own_places(self.settings, kind.surface).quota
        return in_turn(self._most(kind, without), np.array(quota, np.int64))

    def _most(self, kind: Kind, without: int | None) -> I64:
        """Return int64[s]: how many places of each list there may be."""
        most = np.minimum(most_of(self.settings, kind.surface), self.told.lists.shape[2])
        most[~self._says(kind.known)] = 0
        if without is not None:
            most[without] = 0
        return most.astype(np.int64)

    def _says(self, known: bool) -> Bool:
        """Return bool[s]: whether each source had something for any user, without history unless `known`."""
        rows = self.told.known == known
        own = rows if rows.any() and not known else np.ones(len(rows), bool)
        return np.asarray((self.told.lists[:, own, :1] >= 0).any(axis=(1, 2)))

    def _greedy(self, table: Table, told: Told, weight: F64, most: I64) -> Order:
        worth = weight / np.maximum(np.minimum(np.diff(told.offsets), told.lists.shape[2]), 1)
        return order_of(table, weight, worth, most)

    def of_kind(self, known: bool) -> Bool:
        """Return bool[r]: the requests that tell of users with or without history, all where they are too few."""
        own = self.told.known == known
        return own if _users(self.told.user, own) >= LEAST else np.ones(len(own), bool)

    def weights(self, rows: Bool | None = None) -> dict[Kind, F64]:
        """Return float64[r] by kind: what each request weighs, 0 outside the mask bool[r]; None: all are in."""
        told, found = self.told, dict[Kind, F64]()
        rows = np.ones(len(told.user), bool) if rows is None else rows
        for known in (True, False):
            own = rows & self.of_kind(known)
            every = _each_user(told.user, own if own.any() else rows)
            found[Kind(known, ANY)] = every
            for code, name in enumerate(self.surfaces):
                mine = own & (told.surface == code) & (told.known == known)
                if _users(told.user, mine) >= LEAST:
                    rest = np.where(mine, 0, every)
                    prior = min(PRIOR / max(rest.sum(), 1e-9), 1.0)
                    found[Kind(known, name)] = _each_user(told.user, mine) + prior * rest
        return found

    def shares(self, orders: Mapping[Kind, Order], budget: int | None, rows: Bool | None = None) -> Shares:
        """Return the shares of the orders. budget: candidates in the mean; None: as own quotas and QUOTA give."""
        weights = self.weights(rows)
        of = tuple(self._share(kind, order, weights[kind], budget) for kind, order in orders.items())
        return Shares(of, tuple(self.judged.values()))

    def _share(self, kind: Kind, order: Order, weight: F64, budget: int | None) -> Share:
        own = own_places(self.settings, kind.surface)
        if budget is None and not self.judged[kind.known].learned:  # exactly as it is without all of this
            places = own
        else:
            mean = budget or self.items(kind, weight, own)
            full = range(len(order.source) + 1)

            def of(stretches: int) -> Places:
                return self._places(kind, order, stretches, mean, budget)

            def items(stretches: int) -> float:
                return self.items(kind, weight, of(stretches))

            places = of(max(0, bisect_right(full, mean, key=items) - 1))
        candidates = round(self.items(kind, weight, places), 2)
        named = dict(zip(self.names, places.quota, strict=True))
        return Share(kind.known, kind.surface, _users(self.told.user, weight > 0), candidates, named, places.total)

    def _places(self, kind: Kind, order: Order, stretches: int, mean: float, budget: int | None) -> Places:
        """Return the places after so many stretches of an order. Of a source that never had any, they are its own.

        mean: candidates that are to be there. budget: so many where they are asked for: what some sources leave empty
        brings the others to no more than that.
        """
        own, says = own_places(self.settings, kind.surface), self._says(kind.known)
        least = np.minimum(min(FLOOR, int(mean) // max(int(says.sum()), 1)), own.quota)
        quota = np.where(says, np.maximum(_depth(order, stretches, len(says)), least), own.quota)
        total = int(quota[says].sum())
        return Places(quota.tolist(), own.most, total if budget is None else min(total, budget))

    def items(self, kind: Kind, weight: F64, places: Places) -> float:
        """Return how many candidates a request of the kind has in the mean."""
        return mean_items(self.table, weight, places, self._says(kind.known))


def kinds_of(told: Told, surfaces: Sequence[str], orders: Mapping[Kind, Order]) -> list[Kind]:
    """Return of each request the kind whose order holds for it."""
    named = [surfaces[code] if code >= 0 else ANY for code in told.surface.tolist()]
    exact = [Kind(known, name) for known, name in zip(told.known.tolist(), named, strict=True)]
    return [kind if kind in orders else Kind(kind.known, ANY) for kind in exact]


def blended(told: Told, surfaces: Sequence[str], orders: Mapping[Kind, Order], m: int) -> I32:
    """Return int32[r, m]: of each request the first m items in the order that holds for it, -1 behind the end."""
    found, kinds = np.full((len(told.user), m), -1, np.int32), kinds_of(told, surfaces, orders)
    for kind in set(kinds):
        rows = np.array([own == kind for own in kinds])
        order = orders[kind]
        found[rows] = filled(told.lists[:, rows], order.source, order.depth, m)
    return found


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
