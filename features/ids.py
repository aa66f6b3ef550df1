"""Dense indexes of ids by hash: one table of 16 bytes a slot, so a look-up is one read of memory that is far away."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from features.errors import PairliftError
from features.schema import I32, I64, Ids

#: bits of a hash that the multiplication of Fibonacci hashing (Knuth, vol. 3, 6.4) makes
GOLDEN = -7046029254386353131


@njit(cache=True, nogil=True, inline="always")
def _slot(key: int, shift: int) -> Any:
    return np.int64(np.uint64(key * GOLDEN) >> np.uint64(shift))


@njit(cache=True, nogil=True)
def _fill(keys: I64, slots: I64, shift: int) -> int:
    for k in range(len(keys)):
        s = _slot(keys[k], shift)
        while slots[s, 1] >= 0:
            if slots[s, 0] == keys[k]:
                return k
            s = (s + 1) & (len(slots) - 1)
        slots[s, 0], slots[s, 1] = keys[k], k
    return -1


@njit(cache=True, nogil=True)
def _find(keys: I64, slots: I64, shift: int, out: I32) -> None:
    for k in range(len(keys)):
        s = _slot(keys[k], shift)
        while slots[s, 1] >= 0 and slots[s, 0] != keys[k]:
            s = (s + 1) & (len(slots) - 1)
        out[k] = slots[s, 1]


@dataclass(frozen=True, slots=True)
class IdIndex:
    """slots: int64[2 ** k, 2] of (key, dense index), -1 where empty. Text has Python's own 64-bit hash as its key.

    Two of n texts share a hash with a chance of n² / 2 ** 65, which is refused; an unknown text is taken for a known
    one with a chance of n / 2 ** 64. Python draws the hash's secret anew in each process, so the index is never saved.
    """

    slots: I64
    shift: int
    text: bool

    @classmethod
    def of(cls, ids: Ids) -> "IdIndex":
        """Index ids int64[n] or object[n] of text; PairliftError where one stands twice."""
        text = ids.dtype == object
        bits = max(2 * len(ids) - 1, 1).bit_length()
        index = cls(np.full((1 << bits, 2), -1, np.int64), 64 - bits, text)
        twice = _fill(_keys(ids.tolist(), text), index.slots, index.shift)
        if twice >= 0:
            raise PairliftError(f"the id {ids[twice]!r} stands twice (or shares its hash with another: start again)")
        return index

    def find(self, wanted: Sequence[Any] | Ids) -> I32:
        """Return int32[n]: the dense index of each id, -1 where it is not known."""
        out = np.empty(len(wanted), np.int32)
        _find(_keys(wanted, self.text), self.slots, self.shift, out)
        return out


def _keys(ids: Sequence[Any] | Ids, text: bool) -> I64:
    if text:
        return np.fromiter(map(hash, ids), np.int64, len(ids))
    return np.asarray(ids, np.int64)
