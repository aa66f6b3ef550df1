"""What is true of the world of lists: users, items, what each user would want, and so what a list is worth.

A user wants an item that the user looks at by

    u = mood of the user + taste of the user · vector of the item + quality of the item
      + freshness (fades with the item's age) + demand for its genre (drifts from day to day)

with the chance sigmoid(u). `ListWorld.reward` is that chance, `ListWorld.true_reward` the worth of lists,
`ListWorld.best_lists` the lists that no ranker can beat. Indexes are the world's own; `ListWorld.items_of` makes such
of a bundle's.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from features.schema import DAY, F64, I32, I64, SECOND, Bool, EventLog, Ids, lookup

START = 1_767_571_200 * SECOND  # 2026-01-05
DAYS = 30
#: t1 and t2 of the split; the held-out future is from T2 on
T1, T2 = START + 18 * DAY, START + 24 * DAY
#: the rank of the lowest grade that is wanted: `listen`
WANTED = 1
#: utility that an item has more on its first day
FRESH = 1.2
#: when what was never met was met
NEVER = np.iinfo(np.int64).max
#: so many users are looked at together, each with all items
AT_ONCE = 200


class Users(NamedTuple):
    """The n users. A user's taste is `taste[0]` before `turn`, and `taste[1]` from then on."""

    ids: Ids  # int64[n], sorted
    taste: F64  # [2, n, RANK]
    turn: I64  # [n], µs
    mood: F64  # [n]
    cohort: I32  # [n], tells the genre that the user likes best, in part
    joined: I64  # [n], µs: no request is earlier


class Items(NamedTuple):
    """The n items."""

    ids: Ids  # int64[n], sorted
    vector: F64  # [n, RANK]
    quality: F64  # [n]
    born: I64  # [n], µs: not shown, and wanted by nobody, before
    fades: F64  # [n], days
    genre: I32  # [n]
    author: I32  # [n]


@dataclass(frozen=True, kw_only=True)
class ListWorld:
    """Users, items, and the log of a policy; users, items and times of all methods broadcast like NumPy's own."""

    users: Users
    items: Items
    demand: F64  # [GENRES, DAYS + 1], utility at the start of each day; between them it goes straight on
    log: EventLog  # in the world's indexes; grades 0 skip, 1 listen, 2 like
    place: I32  # [n], the event's place in its list, from 1
    uniform: Bool  # [n], whether the list was drawn uniformly, not by the policy

    @cached_property
    def first_met(self) -> I64:
        """int64[n_users, n_items]: the time of the log's first event of both, µs; NEVER where there is none."""
        first = np.full((len(self.users.ids), len(self.items.ids)), NEVER)
        np.minimum.at(first, (self.log.user, self.log.item), self.log.ts)
        return first

    def met(self, user: I32, item: I32, when: I64 | int) -> Bool:
        """Return whether the log has an event of user and item before `when`."""
        return np.asarray(self.first_met[user, item] < when)

    def chance(self, user: I32, item: I32, when: I64 | int) -> F64:
        """Return the chance that a user who looks at the item then wants it, met or not; 0 before its birth."""
        fitting = np.einsum("...d,...d->...", taste_of(self.users, user, when), self.items.vector[item])
        age = (when - self.items.born[item]) / DAY
        fresh = FRESH * np.exp2(-np.maximum(age, 0) / self.items.fades[item])
        u = self.users.mood[user] + fitting + self.items.quality[item] + fresh + self._demand(item, when)
        return np.where(age >= 0, expit(u), 0.0)

    def _demand(self, item: I32, when: I64 | int) -> F64:
        day = np.clip((when - START) / DAY, 0, DAYS)
        first = np.minimum(day.astype(np.int64), DAYS - 1)
        genre = self.items.genre[item]
        step = self.demand[genre, first + 1] - self.demand[genre, first]
        return np.asarray(self.demand[genre, first] + (day - first) * step)

    def reward(self, user: I32, item: I32, when: I64 | int) -> F64:
        """Return the chance that the user would want the item (grade `listen` or better) if it were shown then.

        It is 0 for an item that the user met before, that is not born, and for -1, no item.
        """
        useful = (item >= 0) & ~self.met(user, item, when)
        return np.where(useful, self.chance(user, item, when), 0.0)

    def true_reward(self, lists: I32, users: I32, when: I64 | int, k: int = 10) -> F64:
        """Return float64[u], between 0 and 1: Σ reward / log2(place + 1) over places 1 .. k, by Σ 1 / log2(place + 1).

        lists: int32[u, any], best first, -1 where a list has ended: a missing place gives nothing. Of an item
        that stands twice in a list the first place counts. when: µs, of all or of each user.
        """
        items = np.full((len(users), k), -1, np.int32)
        width = min(k, lists.shape[1])
        items[:, :width] = lists[:, :width]
        for place in range(1, k):
            items[(items[:, :place] == items[:, place, None]).any(axis=1), place] = -1
        discount = 1 / np.log2(np.arange(k) + 2)
        return self.reward(users[:, None], items, _column(when)) @ discount / discount.sum()

    def best_lists(self, users: I32, when: I64 | int, k: int = 10) -> I32:
        """Return int32[u, k]: the items of highest reward, best first; -1 where no item has any."""
        moments = np.broadcast_to(np.asarray(when, np.int64), len(users))
        every, out = np.arange(len(self.items.ids), dtype=np.int32)[None], np.full((len(users), k), -1, np.int32)
        for start in range(0, len(users), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            reward = self.reward(users[rows, None], every, moments[rows, None])
            order = np.argsort(-reward, axis=1, kind="stable")[:, :k]
            found = np.take_along_axis(reward, order, axis=1) > 0
            out[rows, : order.shape[1]] = np.where(found, order, -1)
        return out

    def users_of(self, ids: Ids) -> I32:
        """Return the world's index of each user id; ValueError where it has none."""
        return _known(self.users.ids, ids)

    def items_of(self, item_ids: Ids, lists: I32) -> I32:
        """Return a bundle's lists in the world's indexes. item_ids: of the bundle's catalogue; -1 stays.

        ValueError where an id is none of the world's.
        """
        return np.append(_known(self.items.ids, item_ids), np.int32(-1))[lists]


def _known(ids: Ids, wanted: Ids) -> I32:
    """Return the index of each id; none may be missing: an index of -1 would be the last user's, without a word."""
    found = lookup(ids, wanted)
    if (found < 0).any():
        raise ValueError(f"ids of the world were expected, found {wanted[found < 0][:5].tolist()}")
    return found


def taste_of(users: Users, user: I32, when: I64 | int) -> F64:
    """Return float64[..., RANK]: the taste of each user at a time, µs."""
    return users.taste[(when >= users.turn[user]).astype(np.int64), user]


def _column(when: I64 | int) -> I64:
    """Return a time, or one for each user, so that it broadcasts with a list of items for each."""
    return np.asarray(when, np.int64)[..., None]


def future(world: ListWorld) -> tuple[I32, I64]:
    """Return the users with a request in the held-out future, sorted, and the time of the first one, µs."""
    first = int(np.searchsorted(world.log.ts, T2))
    user, at = np.unique(world.log.user[first:], return_index=True)
    return user, world.log.ts[first:][at]
