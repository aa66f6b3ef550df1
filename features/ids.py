"""Dense indexes of ids, in one read of memory that is far away.

Integers without a gap are their own index; those that lie close together have a table of 4 bytes a place; others, and
text, a hash table of 16 bytes a slot.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from features.errors import PairliftError
from features.hashing import SLOT_BYTES, bits_for, probe, slot_of
from features.kernels import AHEAD, njit, prefetch
from features.schema import I32, I64, Ids, is_text

#: integers in a range of so many times their number are close together: as large a table as by hash
CLOSE = 8
#: of an index that has no need of them
NO_SLOTS, NO_TABLE = np.empty((0, 2), np.int64), np.empty(0, np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class IdIndex:
    """The dense index of each id. Text has Python's own 64-bit hash as its key.

    Two of n texts share a hash with a chance of n² / 2 ** 65, which is refused; an unknown text is taken for a known
    one with a chance of n / 2 ** 64. Python draws the hash's secret anew in each process, so the index is never saved.
    """

    text: bool  # whether the ids are text
    slots: I64 = field(default_factory=lambda: NO_SLOTS)  # [2 ** bits, 2] of (key, dense index), `features.hashing`
    shift: int = 0  # of `slots`, 64 - bits
    close: I32 = field(default_factory=lambda: NO_TABLE)  # [range], the index of each integer from `lowest` on, -1 none
    lowest: int = 0  # of integers that are close together
    count: int = 0  # where above 0, the ids are so many integers from `lowest` on without a gap, and need neither

    @classmethod
    def of(cls, ids: Ids) -> "IdIndex":
        """Index ids int64[n] or object[n] of text; PairliftError where one stands twice."""
        text = is_text(ids)
        if not text and len(ids) and int(ids.max()) - int(ids.min()) < CLOSE * len(ids):
            return cls._of_close(ids)
        bits = bits_for(len(ids))
        index = cls(text=text, slots=np.full((1 << bits, 2), -1, np.int64), shift=64 - bits)
        twice = _fill(_keys(ids.tolist(), text), index.slots, index.shift)
        if twice >= 0:
            raise PairliftError(f"the id {ids[twice]!r} stands twice (or shares its hash with another: start again)")
        return index

    @classmethod
    def _of_close(cls, ids: Ids) -> "IdIndex":
        lowest = int(ids.min())
        if (np.diff(ids) == 1).all():
            return cls(text=False, lowest=lowest, count=len(ids))
        close = np.full(int(ids.max()) - lowest + 1, -1, np.int32)
        close[ids - lowest] = np.arange(len(ids))
        twice = np.flatnonzero(close[ids - lowest] != np.arange(len(ids)))
        if len(twice):
            raise PairliftError(f"the id {ids[twice[0]]!r} stands twice")
        return cls(text=False, close=close, lowest=lowest)

    @staticmethod
    def most_bytes(n: int) -> int:
        """Return the most that the index of n integers takes."""
        return max(4 * CLOSE * n, SLOT_BYTES << int(bits_for(n)))

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


@njit(cache=True, nogil=True)
def _fill(keys: I64, slots: I64, shift: int) -> int:
    """Put key k with the number k into an empty table; return the place of the first key that was there, else -1."""
    for k in range(len(keys)):
        s = probe(slots, keys[k], shift)
        if slots[s, 1] >= 0:
            return k
        slots[s, 0], slots[s, 1] = keys[k], k
    return -1


# The three ways to find: by hash, by difference where no integer is missing, by a table of a range. A large table is
# not in the caches, so each read would wait for memory: the line that a key some places ahead needs is asked for first.


@njit(cache=True, nogil=True)
def _find(keys: I64, slots: I64, shift: int, out: I32) -> None:
    """By hash: out[k] is what stands beside the key in its slot, -1 where the slot is empty."""
    for k in range(len(keys)):
        prefetch(slots, slot_of(keys[min(k + AHEAD, len(keys) - 1)], shift) * SLOT_BYTES)
        out[k] = slots[probe(slots, keys[k], shift), 1]


@njit(cache=True, nogil=True)
def _find_between(keys: I64, lowest: int, highest: int, out: I32) -> None:
    """By difference: out[k] is how far the key is from the lowest, -1 outside."""
    for k in range(len(keys)):
        out[k] = keys[k] - lowest if lowest <= keys[k] <= highest else -1


@njit(cache=True, nogil=True)
def _find_close(keys: I64, lowest: int, table: I32, out: I32) -> None:
    """By a table: out[k] stands in it as far from its begin as the key is from the lowest, -1 outside."""
    for k in range(len(keys)):
        ahead = keys[min(k + AHEAD, len(keys) - 1)] - lowest
        if 0 <= ahead < len(table):
            prefetch(table, ahead * 4)
        # The difference of far integers wraps around, and is negative then.
        at = keys[k] - lowest
        out[k] = table[at] if keys[k] >= lowest and 0 <= at < len(table) else -1
