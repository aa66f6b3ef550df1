"""Shares of candidates, learned of lists that the sources proposed and of what their users wanted later.

Told            what each source proposed to the requests of a period, and what their users wanted
blends          of each kind of requests what the places of each list are worth (`ranker.blend.worth`), or the
                configured order
  judged        which of the two, and how much more new items count: see `ranker.lists.judging`
shares          how many candidates a request of the kind has, and how deep each list is looked at

Each user weighs one, however many requests are asked about, and a hit is worth 1 / wanted items, as in recall. Kinds of
requests are those of users with and without history. Where fewer than LEAST users are without, theirs is learned of
all users, by the sources alone that have something for a user without history. Of each kind again a surface with LEAST
users has a blend of its own; the requests of all other surfaces count in it as much as PRIOR of its users, so that few
users are led by the whole, and many by themselves.

In the configured order sources take turns by their quotas, as they do without all of this.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from features.schema import F64, I16, I32, I64, Bool, offsets_of
from ranker.blend.order import NOUGHT, Order, Table, filled, in_turn, mean_items, table_of
from ranker.blend.shares import ANY, FLOOR, Judged, Share, Shares, floor_of
from ranker.blend.worth import Cells, Worth, cells_of, first_of, worth_of
from ranker.candidates.configured import Sources
from ranker.candidates.gathering import most_of, own_places
from ranker.candidates.merge import Places
from ranker.settings import SourceSettings

#: users of a kind of requests that has a blend of its own
LEAST = 50
#: users for whom the other surfaces count together
PRIOR = 50.0
#: lists are looked at so many times as deep as there are candidates: agreement lifts what lies deep in two of them
DEEPER = 1.5
#: what decides which of the candidates a request has
Blend = Order | Worth


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
    """Lists to learn of, read once for several blends."""

    told: Told
    table: Table
    cells: Cells  # of the table
    names: Sequence[str]  # [s] of the sources
    settings: Sequence[SourceSettings]  # [s]
    surfaces: Sequence[str]  # by their codes
    fresh: Told  # with what was wanted of new items alone
    new_hit: Bool  # of the table's items, which were wanted and are new
    judged: Mapping[bool, Judged] = field(default_factory=dict)  # by `known`; empty: all have the configured order

    @classmethod
    def of(cls, told: Told, sources: Sources, surfaces: Sequence[str], new: Bool) -> "Learner":
        """Return that of what sources proposed, not judged yet. new: bool[items], whether an item is new to all."""
        table = table_of(told.lists, told.offsets, told.item)
        return cls(
            told=told,
            table=table,
            cells=cells_of(table),
            names=[source.name for source, _ in sources],
            settings=[of for _, of in sources],
            surfaces=surfaces,
            fresh=told.only(new),
            new_hit=table.hit & new[table.item],
        )

    def blends(self, rows: Bool | None = None, without: int | None = None) -> dict[Kind, Blend]:
        """Return the blend of each kind; ANY is there for both, and alone where the configured order is kept.

        rows: bool[r], requests that are learned of; None: all. without: a source that is left out.
        """
        found = dict[Kind, Blend]()
        for kind, weight in self.weights(rows).items():
            if (judged := self.judged.get(kind.known)) and judged.learned:
                found[kind] = self.learned(kind, weight, judged.new_weight, without)
            elif kind.surface == ANY:
                found[kind] = self.configured(kind, without)
        return found

    def learned(self, kind: Kind, weight: F64, new_weight: float, without: int | None = None) -> Worth:
        """Return what places are worth. weight: of `weights`. new_weight: as so many count new items of the wanted."""
        told = self.told
        each = weight / np.maximum(np.minimum(np.diff(told.offsets), told.lists.shape[2]), 1)
        weight = each[self.table.user] * np.where(self.new_hit, new_weight, 1.0)
        return worth_of(self.cells, self.table.hit, weight, self._most(kind, without))

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

    def floor(self, known: bool, total: int) -> int:
        """Return how many of so many candidates each source has at least, see `floor_of`."""
        return floor_of(total, int(self._says(known).sum()))

    def _says(self, known: bool) -> Bool:
        """Return bool[s]: whether each source had something for any user, without history unless `known`."""
        rows = self.told.known == known
        own = rows if rows.any() and not known else np.ones(len(rows), bool)
        return np.asarray((self.told.lists[:, own, :1] >= 0).any(axis=(1, 2)))

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

    def shares(self, blends: Mapping[Kind, Blend], budget: int | None, rows: Bool | None = None) -> Shares:
        """Return the shares of the blends. budget: candidates in the mean; None: as own quotas and QUOTA give."""
        weights = self.weights(rows)
        of = tuple(self._share(kind, blend, weights[kind], budget) for kind, blend in blends.items())
        return Shares(of, tuple(self.judged.values()))

    def _share(self, kind: Kind, blend: Blend, weight: F64, budget: int | None) -> Share:
        own, users = own_places(self.settings, kind.surface), _users(self.told.user, weight > 0)
        if isinstance(blend, Worth):
            return self._worth(kind, blend, weight, budget)
        places = own if budget is None else self._in_turn(kind, blend, weight, budget)
        named = dict(zip(self.names, places.quota, strict=True))
        return Share(kind.known, kind.surface, users, round(self.items(kind, weight, places), 2), named, places.total)

    def _worth(self, kind: Kind, worth: Worth, weight: F64, budget: int | None) -> Share:
        """Return the share of lists whose places are worth something."""
        own = own_places(self.settings, kind.surface)
        depth = np.minimum(np.maximum(worth.most, FLOOR), own.most)
        there = ((self.table.place >= 0) & (self.table.place < depth)).any(axis=1)
        items = np.bincount(self.table.user[there], minlength=len(weight))

        def mean(total: int) -> float:
            return float(np.minimum(items, total) @ weight) / max(float(weight.sum()), NOUGHT)

        # Where some users' lists are short, as many more for the others as give the same mean.
        most = sum(own.quota)  # of any surface: not all sources are for requests that name none
        total = budget or bisect_left(range(1, most), self.items(kind, weight, own), key=mean) + 1
        floor = self.floor(kind.known, total)
        return Share(
            known=kind.known,
            surface=kind.surface,
            users=_users(self.told.user, weight > 0),
            candidates=round(mean(total), 2),
            quotas=dict(zip(self.names, np.minimum(depth, int(DEEPER * total)).tolist(), strict=True)),
            total=total,
            floor=floor,
            worth=dict(zip(self.names, worth.steps(), strict=True)),
        )

    def _in_turn(self, kind: Kind, order: Order, weight: F64, budget: int) -> Places:
        """Return the places of the configured order, as many as give the budget in the mean."""

        def of(places: int) -> Places:
            return self._places(kind, order, places, budget)

        def items(places: int) -> float:
            return self.items(kind, weight, of(places))

        return of(max(0, bisect_right(range(len(order.source) + 1), float(budget), key=items) - 1))

    def _places(self, kind: Kind, order: Order, n: int, budget: int) -> Places:
        """Return the first n places of an order. Of a source that never had any, they are its own.

        What some sources leave empty brings the others to no more than the budget.
        """
        own, says = own_places(self.settings, kind.surface), self._says(kind.known)
        depth = np.zeros(len(says), np.int64)
        np.maximum.at(depth, order.source[:n], order.depth[:n])
        least = np.minimum(min(FLOOR, budget // max(int(says.sum()), 1)), own.quota)
        quota = np.where(says, np.maximum(depth, least), own.quota)
        return Places(quota.tolist(), own.most, min(int(quota[says].sum()), budget))

    def items(self, kind: Kind, weight: F64, places: Places) -> float:
        """Return how many candidates a request of the kind has in the mean."""
        return mean_items(self.table, weight, places, self._says(kind.known))


def kinds_of(told: Told, surfaces: Sequence[str], blends: Mapping[Kind, Blend]) -> list[Kind]:
    """Return of each request the kind whose blend holds for it."""
    named = [surfaces[code] if code >= 0 else ANY for code in told.surface.tolist()]
    exact = [Kind(known, name) for known, name in zip(told.known.tolist(), named, strict=True)]
    return [kind if kind in blends else Kind(kind.known, ANY) for kind in exact]


def blended(told: Told, surfaces: Sequence[str], blends: Mapping[Kind, Blend], m: int, floor: int = 0) -> I32:
    """Return int32[r, m]: of each request the first m items of the blend that holds for it, -1 behind the end.

    floor: items that each source has at least, where places have a worth.
    """
    found, kinds = np.full((len(told.user), m), -1, np.int32), kinds_of(told, surfaces, blends)
    for kind in set(kinds):
        rows = np.array([own == kind for own in kinds])
        blend, lists = blends[kind], told.lists[:, rows]
        found[rows] = first_of(lists, blend, m, floor) if isinstance(blend, Worth) else filled(lists, *blend, m)
    return found


def _each_user(user: I32, rows: Bool) -> F64:
    """Return float64[r]: 1 / the user's requests of the mask, so that each user weighs one; 0 of other requests."""
    count = np.bincount(user[rows], minlength=int(user.max(initial=-1)) + 1)
    return np.where(rows, 1.0 / np.maximum(count[user], 1), 0.0)


def _users(user: I32, rows: Bool) -> int:
    return len(np.unique(user[rows]))
