"""Hashes, and the hash table of the compiled kernels: slots of (key, number), Fibonacci hashing, linear probing.

A table is int64[2 ** bits, 2]; a slot whose number is -1 is empty. It is at most half full, so a probe looks at 1.5
slots for a key that is there, and at 2.5 for one that is not (Knuth, vol. 3, 6.4). Tables of keys that are wider than
an int64 (`features.log.dedupe`) and bits without keys (`features.counters.sorting`) share `slot_of` alone.
"""

from typing import Any

import numpy as np

from features.kernels import njit
from features.schema import F32, F64, I32, I64

#: 2 ** 64 over the golden ratio, as an int64: multiples of it lie evenly in the range of integers (Knuth, vol. 3, 6.4)
GOLDEN = -7046029254386353131
#: the same as a uint64: from one seed of SplitMix64 to the next
STEP = np.uint64(GOLDEN % 2**64)
#: bytes of a slot
SLOT_BYTES = 16


def mix(x: Any, salt: int = 1) -> Any:
    """Return uint64 of uint64 `x`, every bit of which rests on all of x: what SplitMix64 (Steele, Lea, Flood 2014) with
    the seed x gives as its `salt`-th number.
    """
    x = x + np.uint64(salt * GOLDEN % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True, inline="always")
def mixed(x: np.uint64) -> np.uint64:
    """Return what `mix` does, of one uint64 in compiled code."""
    x = x + STEP
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def bits_for(n: int) -> int:
    """Return the bits of the least table that n keys fill at most by half."""
    bits = 1
    while 1 << bits < 2 * n:
        bits += 1
    return bits


@njit(cache=True, nogil=True, inline="always")
def slot_of(key: int, shift: int) -> Any:
    """Return the first slot of an int64 key among 2 ** (64 - shift): the high bits of its Fibonacci hash (int64)."""
    return np.int64(np.uint64(key * GOLDEN) >> np.uint64(shift))


@njit(cache=True, nogil=True, inline="always")
def probe(slots: I64, key: int, shift: int) -> Any:
    """Return the slot that holds a key; where none does, the empty slot that would."""
    s = slot_of(key, shift)
    while slots[s, 1] >= 0 and slots[s, 0] != key:
        s = (s + 1) & (len(slots) - 1)
    return s


@njit(cache=True, nogil=True)
def each_once(code: I64) -> tuple[I64, I64]:
    """Return (the different codes, int64[n] the place of each code among them; -1 of a missing one).

        for each code that is not missing: go from its slot to the next one that is empty or has the code's place
            where it is empty: the code gets the next place, and the slot that place
            its place is the slot's

    A hash table of places, filled anew for each call: it holds no codes beside their places, as `probe` expects, which
    takes half the memory and a third less time.
    """
    bits = bits_for(len(code))
    slots, mask = np.full(1 << bits, -1, np.int64), (1 << bits) - 1
    different, place_of = np.empty(len(code), np.int64), np.empty(len(code), np.int64)
    n = 0
    for k in range(len(code)):
        if code[k] < 0:
            place_of[k] = -1
            continue
        s = slot_of(code[k], 64 - bits)
        while slots[s] >= 0 and different[slots[s]] != code[k]:
            s = (s + 1) & mask
        if slots[s] < 0:
            slots[s], different[n] = n, code[k]
            n += 1
        place_of[k] = slots[s]
    return different[:n].copy(), place_of


@njit(cache=True, nogil=True)
def looked_up(slots: I64, values: F64, key: I32) -> F32:
    """Return float32[n]: of int32[n] keys the values at their numbers, NaN of one that is not in the table."""
    shift, found = 64 - bits_for(len(slots) // 2), np.empty(len(key), np.float32)
    for k in range(len(key)):
        place = slots[probe(slots, np.int64(key[k]), shift), 1]
        found[k] = values[place] if place >= 0 else np.nan
    return found
