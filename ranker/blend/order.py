"""Lists of several sources side by side: their items in a table, and the configured order in which they take turns."""

from typing import NamedTuple

import numpy as np

from features.kernels import njit
from features.schema import F64, I16, I32, I64, Bool
from ranker.candidates.merge import Places, merged, taken
from ranker.request import ABSENT

#: weight that is left over by rounding
NOUGHT = 1e-9


class Table(NamedTuple):
    """What s sources propose to u users, each item of a user's in one row."""

    rows: I32  # [s, u, m], the rows of the lists' items, -1 behind the end of a list
    place: I16  # [n, s], at which place each source has the item, -1 where it does not
    hit: Bool  # [n], whether the user wanted it
    user: I64  # [n], whose it is
    item: I32  # [n]


class Order(NamedTuple):
    """n places of the lists."""

    source: I32  # [n], whose list
    depth: I32  # [n], behind which place of it that is


def table_of(lists: I32, offsets: I64, item: I32) -> Table:
    """Return the table of int32[s, u, m] lists, -1 behind their end; user k wanted item[offsets[k]:offsets[k + 1]]."""
    rows, places, n = np.full_like(lists, -1), [np.empty((0, len(lists)), np.int16)], 0
    hits, items = [np.empty(0, bool)], [np.empty(0, np.int32)]
    for k in range(lists.shape[1]):
        inside = lists[:, k] >= 0
        found, where, place = merged(lists[:, k][inside], np.cumsum([0, *inside.sum(axis=1)]))
        rows[:, k][inside] = n + where
        places.append(np.where(place == ABSENT, -1, place).astype(np.int16))
        hits.append(np.isin(found, item[offsets[k] : offsets[k + 1]]))
        items.append(found)
        n += len(found)
    user = np.repeat(np.arange(len(hits) - 1), list(map(len, hits[1:])))
    return Table(rows, np.concatenate(places), np.concatenate(hits), user, np.concatenate(items))


def in_turn(most: I64, quota: I64) -> Order:
    """Return the order of places in turns by quotas: next is the source of the least (places + 1) / quota.

    Of several, it is the first. most: int64[s], places of each list at most; quota: int64[s].
    """
    source = np.repeat(np.arange(len(most)), most)
    depth = np.arange(len(source)) - np.repeat(np.cumsum(most) - most, most) + 1
    turns = np.lexsort((source, depth / quota[source]))
    return Order(source[turns].astype(np.int32), depth[turns].astype(np.int32))


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
