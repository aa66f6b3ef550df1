"""Codes of keys (`features.counters.keys`) sorted in linear time, and those left out that no request asks for."""

import numpy as np

from features.hashing import slot_of
from features.kernels import njit
from features.schema import I32, I64

DIGIT = 11  # bits that one pass of the sort looks at: its counters stay in the first-level cache
MASK = (1 << DIGIT) - 1


def stable_order(code: I64, size: int) -> I32:
    """Return int32[n]: the order that sorts codes in [0, size); equal ones keep their order. Linear in n."""
    passes = -(-max(size - 1, 1).bit_length() // DIGIT)
    order: I32 = _radix_order(code, passes)
    return order


# A radix sort, from the lowest digit up. In each pass:
#     starts[d] ← how many keys have a digit below d
#     for each key, in their present order: it goes to starts[its digit], which moves on by one
# Equal digits keep their order, so after the last pass all codes are sorted, and equal ones as they came. Codes move
# with the order: to look each up by its place would wait for memory at every step.
@njit(cache=True, nogil=True)
def _radix_order(code: I64, passes: int) -> I32:
    keys, other_keys = code.copy(), np.empty_like(code)
    order, other = np.arange(len(code)).astype(np.int32), np.empty(len(code), np.int32)
    for p in range(passes):
        shift = p * DIGIT
        starts = np.zeros((1 << DIGIT) + 1, np.int64)
        for k in range(len(keys)):
            starts[((keys[k] >> shift) & MASK) + 1] += 1
        for d in range(1 << DIGIT):
            starts[d + 1] += starts[d]
        for k in range(len(keys)):
            digit = (keys[k] >> shift) & MASK
            at = starts[digit]
            starts[digit] = at + 1
            other_keys[at], other[at] = keys[k], order[k]
        keys, other_keys = other_keys, keys
        order, other = other, order
    return order


def keep_wanted(code: I64, wanted: I64) -> None:
    """Set the codes that are not among the wanted ones to -1, but for about one in 32 of them: a Bloom filter.

    Those that stay cost time, and change nothing: no one asks for them.
    """
    _keep(code, wanted, 64 - max((32 * len(wanted) - 1).bit_length(), 3))


# A Bloom filter of one hash: a bit for each wanted code, at its slot, and no code beside it. At 32 bits a code it takes
# 4 bytes where a table that knows the codes takes 32, and is read once for each event of the log.
#
#     for each wanted code: set the bit at its slot
#     for each code: -1 where the bit at its slot is not set
@njit(cache=True, nogil=True)
def _keep(code: I64, wanted: I64, shift: int) -> None:
    bits = np.zeros((1 << (64 - shift)) // 8, np.uint8)
    for k in range(len(wanted)):
        at = slot_of(wanted[k], shift)
        bits[at >> 3] |= np.uint8(1 << (at & 7))
    for k in range(len(code)):
        at = slot_of(code[k], shift)
        if not bits[at >> 3] & np.uint8(1 << (at & 7)):
            code[k] = -1
