"""At most so many items of one value of a column in a list: the best ones stay."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from features.errors import PairliftError, did_you_mean
from features.kernels import njit
from features.schema import I32, I64, Attribute, Catalog, offsets_of

#: no place of a list is given
NOTHING_FIXED: I64 = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class AtMost:
    """The limits of `[lists] at_most` over the items of a catalogue; v values of all columns together."""

    names: tuple[str, ...]  # of the columns, as they are reported
    offsets: I64  # [n_items + 1], item i has the values code[offsets[i]:offsets[i + 1]]
    code: I32  # those of the first column come before those of the next
    first: I64  # [columns + 1], column c has the codes [first[c], first[c + 1])
    most: I64  # [columns]

    @classmethod
    def of(cls, limits: Mapping[str, int], catalog: Catalog) -> "AtMost | None":
        """Return the limits by column, None for none; PairliftError for what is no column of text or lists."""
        if not limits:
            return None
        columns = [_column(name, catalog) for name in limits]
        first = offsets_of(np.array([len(column.values) for column in columns], np.int64))
        rows = [_rows(column) for column in columns]
        owner = np.concatenate([row for row, _ in rows])
        code = np.concatenate([codes + start for (_, codes), start in zip(rows, first, strict=False)])
        order = np.argsort(owner, kind="stable")
        sizes = np.bincount(owner, minlength=catalog.n_items)
        names, most = tuple(f"at_most.{name}" for name in limits), np.array(list(limits.values()), np.int64)
        return cls(names, offsets_of(sizes), code[order].astype(np.int32), first, most)

    def first_of(self, item: I32, order: I64, k: int, fixed: I64 = NOTHING_FIXED) -> tuple[I64, list[tuple[str, int]]]:
        """Return int64[<= k]: the first places of an order that no limit forbids, and (name, items) of what it removed.

        item: int32[n]. order: int64[m], places of them, best first. An item is removed by the first column of which one
        of its values has as many items already; what comes behind the k-th is not looked at. fixed: int64[f], what is
        to stand at each of the first f places of the list, -1 for none: it is not in the order, counts where it stands,
        and is removed likewise. Behind the end of the order, the rest of it follows.
        """
        counts = np.zeros(self.first[-1], np.int64)
        kept, removed = _first_of(item, order, fixed, k, self.offsets, self.code, self.first, self.most, counts)
        return kept, list(zip(self.names, removed.tolist(), strict=True))

    def last_of(self, item: I32, shown: I32) -> I64:
        """Return int64[n]: the last place of a list, 0 first, at which no limit forbids each of int32[n] items.

        shown: int32[k], the list; an item that is never forbidden has k.
        """
        full = np.full(self.first[-1], len(shown), np.int64)
        last: I64 = _last_of(item, shown, self.offsets, self.code, self.first, self.most, full)
        return last


def _column(name: str, catalog: Catalog) -> Attribute:
    known = {a.name: a for a in catalog.item_attributes if a.kind in ("categorical", "multi")}
    if name not in known:
        raise PairliftError(
            f"[lists] at_most: '{name}' is not a text or a list of [items.columns]{did_you_mean(name, known)}"
        )
    return known[name]


def _rows(column: Attribute) -> tuple[I64, I64]:
    """Return (int64[m] the item of each value, int64[m] its code)."""
    if column.kind == "multi":
        return np.repeat(np.arange(len(column.offsets) - 1), np.diff(column.offsets)), column.codes.astype(np.int64)
    known = np.flatnonzero(column.codes >= 0)
    return known, column.codes[known].astype(np.int64)


# for each item, what is fixed at the next place, else the next of the order, else the next that is fixed anywhere:
#     the first column of which a value of it is full removes it
#     where there is none: keep it, and count its values
@njit(cache=True, nogil=True)
def _first_of(
    item: I32, order: I64, fixed: I64, k: int, offsets: I64, code: I32, first: I64, most: I64, counts: I64
) -> tuple[I64, I64]:
    """Return (int64[<= k] places, int64[columns] removed). counts: int64[v] zeros."""
    kept, removed = np.empty(min(k, len(order) + len(fixed)), np.int64), np.zeros(len(most), np.int64)
    n, at, next_fixed = 0, 0, 0
    while n < len(kept):
        while next_fixed < len(fixed) and fixed[next_fixed] < 0 and (next_fixed < n or at == len(order)):
            next_fixed += 1
        if next_fixed < len(fixed) and fixed[next_fixed] >= 0 and (next_fixed <= n or at == len(order)):
            place = fixed[next_fixed]
            next_fixed += 1
        elif at < len(order):
            place = order[at]
            at += 1
        else:
            break
        i = item[place]
        own = code[offsets[i] : offsets[i + 1]] if 0 <= i < len(offsets) - 1 else code[:0]
        full, c = -1, 0
        for value in own:
            while value >= first[c + 1]:
                c += 1
            if counts[value] >= most[c]:
                full = c
                break
        if full >= 0:
            removed[full] += 1
        else:
            counts[own] += 1
            kept[n] = place
            n += 1
    return kept[:n].copy(), removed


# for each item of the list: count its values; where one is full by it, the item's place is the last for that value
# for each item: the least of its values' places
@njit(cache=True, nogil=True)
def _last_of(item: I32, shown: I32, offsets: I64, code: I32, first: I64, most: I64, full: I64) -> I64:
    """Return int64[n] places. full: int64[v], the length of the list, for each value."""
    k, counts = len(shown), np.zeros(len(full), np.int64)
    for p in range(k):
        i, c = shown[p], 0
        if 0 <= i < len(offsets) - 1:
            for value in code[offsets[i] : offsets[i + 1]]:
                while value >= first[c + 1]:
                    c += 1
                counts[value] += 1
                if counts[value] == most[c]:
                    full[value] = p
    last = np.full(len(item), k, np.int64)
    for row in range(len(item)):
        i = item[row]
        if 0 <= i < len(offsets) - 1:
            for value in code[offsets[i] : offsets[i + 1]]:
                last[row] = min(last[row], full[value])
    return last
