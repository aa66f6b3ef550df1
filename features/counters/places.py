"""Where the events of a key lie, when events are sorted by key and then by time: the index of timelines and distincts.

The k-th key has the events `[offsets[k], offsets[k + 1])`. Its code is `codes[k]`, and k is found by a binary search;
where about all codes occur, `codes` is empty and a code is its own place.
"""

import numpy as np

from features.hashing import slot_of
from features.kernels import njit
from features.schema import I32, I64

#: codes that are searched for in the order of the keys, as many are
MANY = 10_000
#: bits of the hash of such few codes
MARKS = 12


def places_of(code: I64, order: I32) -> tuple[I64, I64]:
    """Return (codes, offsets) of codes in their sorted order: each up to the greatest has a place if that are few, else
    those that occur.
    """
    size = int(code[order[-1]]) + 1 if len(code) else 0
    if size <= len(code):
        return np.empty(0, np.int64), _offsets(code, size)
    codes, offsets = np.empty(len(code), np.int64), np.empty(len(code) + 1, np.int64)
    n = _occurring(code, order, codes, offsets)
    return codes[:n].copy(), offsets[: n + 1].copy()


@njit(cache=True, nogil=True)
def _occurring(code: I64, order: I32, codes: I64, offsets: I64) -> int:
    """Fill codes and offsets with the keys that occur, in their order; return how many they are."""
    n = 0
    for k in range(len(code)):
        if n == 0 or code[order[k]] != codes[n - 1]:
            codes[n], offsets[n] = code[order[k]], k
            n += 1
    offsets[n] = len(code)
    return n


@njit(cache=True, nogil=True)
def _offsets(code: I64, size: int) -> I64:
    """Return int64[size + 1]: the events of each code, counted and added up."""
    offsets = np.zeros(size + 1, np.int64)
    for k in range(len(code)):
        offsets[code[k] + 1] += 1
    for k in range(size):
        offsets[k + 1] += offsets[k]
    return offsets


def find_places(codes: I64, offsets: I64, code: I64 | I32) -> I64:
    """Return the place of each code by what `places_of` gave, -1 where it has none."""
    if not len(codes):
        return np.where(code < len(offsets) - 1, code, -1)
    if len(code) < MANY:
        few: I64 = _find_few(codes, code)
        return few
    at = np.minimum(np.searchsorted(codes, code), len(codes) - 1)
    return np.where(codes[at] == code, at, -1)


@njit(cache=True, nogil=True, inline="always")
def first_not_before(ts: I64, lo: int, hi: int, cut: int) -> int:
    """Return the first place of [lo, hi) with `ts >= cut`, hi where there is none."""
    while lo < hi:
        middle = (lo + hi) // 2
        if ts[middle] < cut:
            lo = middle + 1
        else:
            hi = middle
    return lo


@njit(cache=True, nogil=True)
def _find_few(codes: I64, code: I64) -> I64:
    """Return the place of each code, -1 where it has none.

    Those of one user lie side by side among millions: first their bounds are found, then each of them within these.
    """
    places, lowest, highest = np.full(len(code), -1, np.int64), np.int64(2**62), np.int64(-1)
    for k in range(len(code)):
        if code[k] >= 0:
            lowest, highest = min(lowest, np.int64(code[k])), max(highest, np.int64(code[k]))
    first, step = first_not_before(codes, 0, len(codes), lowest), 1
    while first + step < len(codes) and codes[first + step] <= highest:
        step *= 2
    last = first_not_before(codes, first, min(first + step, len(codes)), highest + 1)
    # Most of a user's candidates have no key there: a mark for the hash of each code between the bounds tells so.
    marks, filtered = np.zeros(1 << MARKS, np.bool_), last - first < 1 << MARKS
    for at in range(first, last if filtered else first):
        marks[slot_of(codes[at], 64 - MARKS)] = True
    for k in range(len(code)):
        if code[k] >= 0 and (not filtered or marks[slot_of(code[k], 64 - MARKS)]):
            at = first_not_before(codes, first, last, code[k])
            if at < last and codes[at] == code[k]:
                places[k] = at
    return places
