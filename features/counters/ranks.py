"""Ranks within an item attribute: 1 is the item with the highest count of those that share the value.

Ranks are those of the last full hour: all counts as of `as_of - as_of % HOUR`. A rank as of the microsecond would
have to sort the catalogue for every request; a table for each hour is sorted once, in training and in serving.
"""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from features.schema import F32, F64, HOUR, I32, I64, Attribute

#: tables that are kept: a server needs the one of this hour and, while it turns, of the last one
KEPT = 4


def ranks_within(attribute: Attribute, count: F64) -> F32:
    """Return float32[n_items]: 1 + how many items of the same value have a higher count; the best of several values.

    NaN for an item without a value. Equal counts (as float32) have equal ranks.
    """
    out = np.full(len(count), np.nan, np.float32)
    if attribute.kind == "multi":
        item = np.repeat(np.arange(len(count)), np.diff(attribute.offsets))
        value = attribute.codes
    else:
        item = np.flatnonzero(attribute.codes >= 0)
        value = attribute.codes[item]
    if not len(item):
        return out
    score = count.astype(np.float32)[item]
    order = np.lexsort((-score, value))
    new_value = np.diff(value[order], prepend=-1) != 0
    new_score = new_value | (np.diff(score[order], prepend=np.float32(np.inf)) != 0)
    place = np.arange(len(order))
    start = np.maximum.accumulate(np.where(new_value, place, 0))
    tied = np.maximum.accumulate(np.where(new_score, place, 0))
    np.fmin.at(out, item[order], (tied - start + 1).astype(np.float32))
    return out


class RankTables:
    """Tables of ranks by (column, hour), the latest few of them; safe to share between threads."""

    def __init__(self, kept: "dict[tuple[str, int], F32] | None" = None) -> None:
        self._tables: OrderedDict[tuple[str, int], F32] = OrderedDict(kept or {})

    def before(self, end: int) -> "RankTables":
        """Return the tables that events at `end` (µs) or later leave as they are."""
        return RankTables({k: t for k, t in list(self._tables.items()) if k[1] <= end})

    def get(self, column: str, time: int, make: Callable[[], F32]) -> F32:
        """Return the table of a column as of a full hour, made where it is not there."""
        table = self._tables.get((column, time))
        if table is None:
            table = make()
            self._tables[column, time] = table
            while len(self._tables) > KEPT:
                self._tables.pop(next(iter(self._tables)), None)
        return table


def rank_values(
    tables: RankTables, column: str, attribute: Attribute, item: I32, as_of: I64, counts: Callable[[int], F64]
) -> F32:
    """Return float32[n] ranks of items (-1: NaN), each as of the full hour before its as_of. counts: of all items."""
    out = np.empty(len(item), np.float32)
    hour, place = np.unique(as_of - as_of % HOUR, return_inverse=True)
    order = np.argsort(place, kind="stable")
    bounds = np.searchsorted(place[order], np.arange(len(hour) + 1))
    for k, time in enumerate(hour.tolist()):
        rows = order[bounds[k] : bounds[k + 1]]
        table = tables.get(column, time, lambda time=time: ranks_within(attribute, counts(time)))  # type: ignore[misc]
        out[rows] = np.append(table, np.float32(np.nan))[item[rows]]
    return out
