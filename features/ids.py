"""Dense indexes of ids, in one read of memory that is far away.

Integers without a gap are their own index; those that lie close together have a table of 4 bytes a place; others, and
text, a hash table of 16 bytes a slot.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from features.errors import PairliftError
from features.prefetch import AHEAD, prefetch
from features.schema import I32, I64, Ids, is_text

#: bits of a hash that the multiplication of Fibonacci hashing (Knuth, vol. 3, 6.4) makes
GOLDEN = -7046029254386353131
#: integers in a range of so many times their number are close together: as large a table as by hash
CLOSE = 8
SLOT_BYTES = 16


@njit(cache=True, nogil=True, inline="always")
def slot_of(key: int, shift: int) -> Any:
    """Return the place of an int64 key in a table of 2 ** (64 - shift) slots: int64, spread by Fibonacci hashing."""
    return np.int64(np.uint64(key * GOLDEN) >> np.uint64(shift))


@njit(cache=True, nogil=True)
def _fill(keys: I64, slots: I64, shift: int) -> int:
    for k in range(len(keys)):
        s = slot_of(keys[k], shift)
        while slots[s, 1] >= 0:
            if slots[s, 0] == keys[k]:
                return k
            s = (s + 1) & (len(slots) - 1)
        slots[s, 0], slots[s, 1] = keys[k], k
    return -1


@njit(cache=True, nogil=True)
def _find(keys: I64, slots: I64, shift: int, out: I32) -> None:
    for k in range(len(keys)):
        prefetch(slots, slot_of(keys[min(k + AHEAD, len(keys) - 1)], shift) * SLOT_BYTES)
        s = slot_of(keys[k], shift)
        while slots[s, 1] >= 0 and slots[s, 0] != keys[k]:
            s = (s + 1) & (len(slots) - 1)
        out[k] = slots[s, 1]


@njit(cache=True, nogil=True)
def _find_between(keys: I64, lowest: int, highest: int, out: I32) -> None:
    for k in range(len(keys)):
        out[k] = keys[k] - lowest if lowest <= keys[k] <= highest else -1


@njit(cache=True, nogil=True)
def _find_close(keys: I64, lowest: int, table: I32, out: I32) -> None:
    for k in range(len(keys)):
        ahead = keys[min(k + AHEAD, len(keys) - 1)] - lowest
        if 0 <= ahead < len(table):
            prefetch(table, ahead * 4)
        # The difference of far integers wraps around, and is negative then.
        at = keys[k] - lowest
        out[k] = table[at] if keys[k] >= lowest and 0 <= at < len(table) else -1


@dataclass(frozen=True, slots=True)
class IdIndex:
    """slots: int64[2 ** k, 2] of (key, dense index), -1 where empty. Text has Python's own 64-bit hash as its key.

    close: int32[range], the dense index of each integer from `lowest` on, -1 for none; empty where there are slots.
    count: where above 0, the ids are so many integers from `lowest` on without a gap, and need neither.
    Two of n texts share a hash with a chance of n² / 2 ** 65, which is refused; an unknown text is taken for a known
    one with a chance of n / 2 ** 64. Python draws the hash's secret anew in each process, so the index is never saved.
    """

    slots: I64
    shift: int
    text: bool
    close: I32
    lowest: int = 0
    count: int = 0

    @classmethod
    def of(cls, ids: Ids) -> "IdIndex":
        """Index ids int64[n] or object[n] of text; PairliftError where one stands twice."""
        text = is_text(ids)
        if not text and len(ids) and int(ids.max()) - int(ids.min()) < CLOSE * len(ids):
            return cls._of_close(ids)
        bits = max(2 * len(ids) - 1, 1).bit_length()
        index = cls(np.full((1 << bits, 2), -1, np.int64), 64 - bits, text, np.empty(0, np.int32))
        twice = _fill(_keys(ids.tolist(), text), index.slots, index.shift)
        if twice >= 0:
            raise PairliftError(f"the id {ids[twice]!r} stands twice (or shares its hash with another: start again)")
        return index

    @classmethod
    def _of_close(cls, ids: Ids) -> "IdIndex":
        lowest, none = int(ids.min()), np.empty((0, 2), np.int64)
        if (np.diff(ids) == 1).all():
            return cls(none, 0, False, np.empty(0, np.int32), lowest, len(ids))
        close = np.full(int(ids.max()) - lowest + 1, -1, np.int32)
        close[ids - lowest] = np.arange(len(ids))
        twice = np.flatnonzero(close[ids - lowest] != np.arange(len(ids)))
        if len(twice):
            raise PairliftError(f"the id {ids[twice[0]]!r} stands twice")
        return cls(none, 0, False, close, lowest)

    @staticmethod
    def most_bytes(n: int) -> int:
        """Return the most that the index of n integers takes."""
        return max(4 * CLOSE * n, SLOT_BYTES << max(2 * n - 1, 1).bit_length())

    def find(self, wanted: Sequence[Any] | Ids) -> I32:
        """Return int32[n]: the dense index of each id, -1 where it is not known."""
        out = np.empty(len(wanted), np.int32)
        keys = _keys(wanted, self.text)
        if self.count:
            _find_between(keys, self.lowest, self.lowest + self.count - 1, out)
        elif len(self.close):
            _find_close(keys, self.lowest, self.close, out)
        else:
            _find(keys, self.slots, self.shift, out)
        return out


def _keys(ids: Sequence[Any] | Ids, text: bool) -> I64:
    if text:
        return np.fromiter(map(hash, ids), np.int64, len(ids))
    return np.asarray(ids, np.int64)
