"""Packed repeated fields of protobuf, written from arrays: a message takes their bytes by `MergeFromString`.

A Python number for each entry, which the message's own setters need, costs some ten times as much.
Format: https://protobuf.dev/programming-guides/encoding/
"""

import numpy as np
from numba import njit

from features.schema import F64, I64
from ranker.request import U32

U8 = np.ndarray[tuple[int], np.dtype[np.uint8]]
U64 = np.ndarray[tuple[int], np.dtype[np.uint64]]

#: bytes of the longest varint
LONGEST = 10
#: wire type of what has a length
LEN = 2


def packed_doubles(field: int, values: F64) -> bytes:
    """Return the field `repeated double` of that number, with float64[n]."""
    return _field(field, np.asarray(values, "<f8").tobytes())


def packed_unsigned(field: int, values: I64 | U32) -> bytes:
    """Return the field `repeated uint32` or `uint64` of that number, with n integers that are not negative."""
    return _field(field, _varints(values.astype(np.uint64)))


def packed_signed(field: int, values: I64) -> bytes:
    """Return the field `repeated sint64` of that number, with int64[n]: zigzag, which keeps small ones short."""
    return _field(field, _varints(((values << 1) ^ (values >> 63)).view(np.uint64)))


def _field(number: int, payload: bytes) -> bytes:
    """Return tag, length and payload; nothing for an empty list, as protobuf does."""
    head = np.array([number << 3 | LEN, len(payload)], np.uint64)
    return _varints(head) + payload if payload else b""


def _varints(values: U64) -> bytes:
    out = np.empty(LONGEST * len(values), np.uint8)
    return out[: _write(values, out)].tobytes()


@njit(cache=True, nogil=True)
def _write(values: U64, out: U8) -> int:
    """Write each value in groups of 7 bits, the lowest first, the high bit set where more follow; return how many."""
    n = 0
    for value in values:
        rest = value
        while rest >= np.uint64(128):
            out[n] = np.uint8(rest & np.uint64(127)) | np.uint8(128)
            rest >>= np.uint64(7)
            n += 1
        out[n] = np.uint8(rest)
        n += 1
    return n
