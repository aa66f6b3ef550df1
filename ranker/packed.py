"""Packed repeated fields of protobuf, written from arrays: a message takes their bytes by `MergeFromString`.

A Python number for each entry, which the message's own setters need, costs some ten times as much.
Format: https://protobuf.dev/programming-guides/encoding/
"""

import numpy as np
from numba import njit

from features.schema import F64, I64
from ranker.request import U32

U8 = np.ndarray[tuple[int], np.dtype[np.uint8]]

#: bytes of the longest varint
LONGEST = 10
#: bytes that are enough for tag and length of a field
HEAD = 2 * LONGEST
#: wire type of what has a length
LEN = 2


def packed_doubles(field: int, values: F64) -> bytes:
    """Return the field `repeated double` of that number, with float64[n]."""
    payload = np.asarray(values, "<f8").tobytes()
    return _head(field, len(payload)) + payload if payload else b""


def packed_unsigned(field: int, values: I64 | U32) -> bytes:
    """Return the field `repeated uint32` or `uint64` of that number, with n integers that are not negative."""
    return _field(field, values, False)


def packed_signed(field: int, values: I64) -> bytes:
    """Return the field `repeated sint64` of that number, with int64[n]: zigzag, which keeps small ones short."""
    return _field(field, values, True)


def _field(number: int, values: I64 | U32, signed: bool) -> bytes:
    """Return tag, length and payload; nothing for an empty list, as protobuf does."""
    if not len(values):
        return b""
    out = np.empty(HEAD + LONGEST * len(values), np.uint8)
    first, behind = _write_field(number << 3 | LEN, values, signed, out)
    return out[first:behind].tobytes()


def _head(number: int, size: int) -> bytes:
    """Return tag and length."""
    out = np.empty(HEAD, np.uint8)
    return out[: _write(size, out, _write(number << 3 | LEN, out, 0))].tobytes()


@njit(cache=True, nogil=True)
def _write_field(tag: int, values: I64 | U32, signed: bool, out: U8) -> tuple[int, int]:
    """Write the payload behind the room for the head, then the head right before it; return where both begin and end.

    signed: whether each value is written as zigzag: 0, -1, 1, -2, ... are 0, 1, 2, 3, ...
    """
    n = HEAD
    for value in values:
        n = _write((value << 1) ^ (value >> 63) if signed else value, out, n)
    size = n - HEAD
    first = HEAD - _write(size, out, _write(tag, out, 0))
    _write(size, out, _write(tag, out, first))
    return first, n


@njit(cache=True, nogil=True)
def _write(value: int, out: U8, n: int) -> int:
    """Write a value at out[n] in groups of 7 bits, the lowest first, the high bit set where more follow.

    Return the place behind it.
    """
    rest = np.uint64(value)
    while rest >= np.uint64(128):
        out[n] = np.uint8(rest & np.uint64(127)) | np.uint8(128)
        rest >>= np.uint64(7)
        n += 1
    out[n] = np.uint8(rest)
    return n + 1
