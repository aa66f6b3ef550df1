"""In which order stretches of the sources' lists are taken, so that the first k candidates have the most of the wanted.

The order is greedy: next comes a stretch of the source whose next places had the most wanted items for each item that
no stretch before had. What several lists cover is submodular, and of that a greedy order has at every k at least 63 %
of the most that is possible (Nemhauser, Wolsey, Fisher 1978, "An analysis of approximations for maximizing submodular
set functions I").
"""

from typing import NamedTuple

import numpy as np

from features.kernels import njit
from features.schema import F64, I16, I32, I64, Bool
from ranker.candidates.merge import Places, merged, taken
from ranker.request import ABSENT

#: a stretch has a place for each so many that were taken of its list before, and one at least
STRETCH = 8
#: to what a stretch is worth, so many users are added of whom it has one item, worth the mean of all: what few users
#: were proposed says little
PRIOR = 20.0
#: weight that is left over by rounding
NOUGHT = 1e-9


class Table(NamedTuple):
    """What s sources propose to u users, each item of a user's in one row."""

    rows: I32  # [s, u, m], the rows of the lists' items, -1 behind the end of a list
    place: I16  # [n, s], at which place each source has the item, -1 where it does not
    hit: Bool  # [n], whether the user wanted it


class Order(NamedTuple):
    """n stretches of the lists."""

    source: I32  # [n], whose list
    depth: I32  # [n], to which place of it the stretch goes, from where the one before ended


def table_of(lists: I32, offsets: I64, item: I32) -> Table:
    """Return the table of int32[s, u, m] lists, -1 behind their end; user k wanted item[offsets[k]:offsets[k + 1]]."""
    rows, places, hits, n = np.full_like(lists, -1), [np.empty((0, len(lists)), np.int16)], [np.empty(0, bool)], 0
    for k in range(lists.shape[1]):
        inside = lists[:, k] >= 0
        found, where, place = merged(lists[:, k][inside], np.cumsum([0, *inside.sum(axis=1)]))
        rows[:, k][inside] = n + where
        places.append(np.where(place == ABSENT, -1, place).astype(np.int16))
        hits.append(np.isin(found, item[offsets[k] : offsets[k + 1]]))
        n += len(found)
    return Table(rows, np.concatenate(places), np.concatenate(hits))


def order_of(table: Table, weight: F64, worth: F64, most: I64) -> Order:
    """Return the greedy order.

    weight: float64[u] of each user; one without any plays no part. worth: float64[u] of a hit of the user's. most:
    int64[s], so many places of a source's list at most.
    """
    some = np.flatnonzero(weight > 0)
    return Order(*_greedy(*table, some, weight, worth, np.minimum(most, table.rows.shape[2])))


def in_turn(most: I64, quota: I64) -> Order:
    """Return the order of places in turns by quotas: next is the source of the least (places + 1) / quota.

    Of several, it is the first. most: int64[s], places of each list at most; quota: int64[s].
    """
    source = np.repeat(np.arange(len(most)), most)
    depth = np.arange(len(source)) - np.repeat(np.cumsum(most) - most, most) + 1
    turns = np.lexsort((source, depth / quota[source]))
    return Order(source[turns].astype(np.int32), depth[turns].astype(np.int32))


def beside(first: Order, second: Order, share: float) -> Order:
    """Return the stretches of two orders, each in its own order: of the places, a share is of the second's."""
    orders, at, places = (first, second), [0, 0], [0, 0]
    depth, found = (
        np.zeros((2, int(max(of.source.max(initial=-1) for of in orders)) + 1), np.int64),
        list[tuple[int, int]](),
    )
    while any(n < len(of.source) for n, of in zip(at, orders, strict=True)):
        k = int(places[1] < share * sum(places) or at[0] == len(first.source))
        k = 0 if at[1] == len(second.source) else k
        s, end = int(orders[k].source[at[k]]), int(orders[k].depth[at[k]])
        places[k] += end - int(depth[k, s])
        depth[k, s], at[k] = end, at[k] + 1
        found.append((s, end))
    both = np.array(found, np.int32).reshape(-1, 2)
    return Order(both[:, 0].copy(), both[:, 1].copy())


# cost[s, p]: weight of the users to whom source s has at place p an item that is not taken
# gain[s, p]: what is worth of it
#
# until no source has an item that is not taken:
#     for each source: how much gain for its cost has the best stretch that begins at its depth? (see _steepest)
#     of the best source, take a stretch: an item that it has is taken, and counts in no list any more
@njit(cache=True, nogil=True)
def _greedy(
    rows: I32, place: I16, hit: Bool, some: I64, weight: F64, worth: F64, most: I64
) -> tuple[I32, I32]:  # fmt: skip
    cost, gain = _sums(rows, hit, some, weight, worth)
    mean = (gain.sum() + NOUGHT * NOUGHT) / max(cost.sum(), NOUGHT)
    taken, depth = np.zeros(len(hit), np.bool_), np.zeros(len(rows), np.int64)
    source, until, n = np.empty(most.sum(), np.int32), np.empty(most.sum(), np.int32), 0
    while True:
        best, rate = -1, -1.0
        for s in range(len(rows)):
            own = _steepest(cost[s, : most[s]], gain[s, : most[s]], depth[s], mean)
            if own > rate:
                best, rate = s, own
        if best < 0:
            return source[:n].copy(), until[:n].copy()
        end = min(most[best], depth[best] + 1 + depth[best] // STRETCH)
        source[n], until[n] = best, end
        for u in some:
            for p in range(depth[best], end):
                row = rows[best, u, p]
                if row < 0:
                    break
                if not taken[row]:
                    taken[row] = True
                    _take(place[row], cost, gain, weight[u], worth[u] * hit[row])
        depth[best] = end
        n += 1


@njit(cache=True, nogil=True)
def _sums(rows: I32, hit: Bool, some: I64, weight: F64, worth: F64) -> tuple[F64, F64]:
    cost, gain = np.zeros((len(rows), rows.shape[2])), np.zeros((len(rows), rows.shape[2]))
    for s in range(len(rows)):
        for u in some:
            for p in range(rows.shape[2]):
                if rows[s, u, p] < 0:
                    break
                cost[s, p] += weight[u]
                gain[s, p] += worth[u] * hit[rows[s, u, p]]
    return cost, gain


@njit(cache=True, nogil=True)
def _take(place: I16, cost: F64, gain: F64, weight: float, worth: float) -> None:
    for s in range(len(place)):
        if place[s] >= 0:
            cost[s, place[s]] -= weight
            gain[s, place[s]] -= worth


@njit(cache=True, nogil=True)
def _steepest(cost: F64, gain: F64, start: int, mean: float) -> float:
    """Return the most gain for its cost of all stretches from `start`, none shorter than the next one that is taken.

    That is the slope there of the least concave curve above the list's own, as isotonic regression has it of noisy
    shares that fall with depth. Below 0 where nothing is left.
    """
    total, got, best, least = 0.0, 0.0, -1.0, start + 1 + start // STRETCH
    for p in range(start, len(cost)):
        total += cost[p]
        got += gain[p]
        if (p + 1 >= least or p + 1 == len(cost)) and total > NOUGHT:
            best = max(best, (got + PRIOR * mean) / (total + PRIOR))
    return best


def mean_items(table: Table, weight: F64, places: Places, use: Bool) -> float:
    """Return how many different items the places of the lists have, in the mean by float64[u] weight.

    use: bool[s], sources that take part.
    """
    own = table.rows[use], len(table.hit), weight, np.array(places.quota)[use], np.array(places.most)[use]
    return float(_items(*own, places.total) @ weight) / max(float(weight.sum()), NOUGHT)


@njit(cache=True, nogil=True)
def _items(rows: I32, n: int, weight: F64, quota: I64, most: I64, total: int) -> F64:
    count, met = np.zeros(rows.shape[1]), np.zeros(n, np.bool_)
    length, own = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    for u in np.flatnonzero(weight > 0):
        for s in range(len(rows)):
            length[s] = (rows[s, u] >= 0).sum()
        taken(length, quota, most, total, own)
        for s in range(len(rows)):
            for p in range(own[s]):
                row = rows[s, u, p]
                count[u] += not met[row]
                met[row] = True
    return count


# for each user: from stretch to stretch, append what the list does not have
@njit(cache=True, nogil=True)
def filled(lists: I32, source: I32, depth: I32, m: int) -> I32:
    """Return int32[u, m] of int32[s, u, n] lists: the first m different items in an order's stretches, then -1."""
    found, met = np.full((lists.shape[1], m), -1, np.int32), np.full(max(lists.max(), 0) + 1, -1, np.int64)
    for u in range(lists.shape[1]):
        at, n = np.zeros(len(lists), np.int64), 0
        for k in range(len(source)):
            s = source[k]
            while at[s] < depth[k] and n < m:
                item = lists[s, u, at[s]]
                at[s] += 1
                if item >= 0 and met[item] != u:
                    met[item], found[u, n] = u, item
                    n += 1
    return found
