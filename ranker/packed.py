"""Packed repeated fields of protobuf, written from arrays: a message takes their bytes by `MergeFromString`.

A Python number for each entry, which the message's own setters need, costs some ten times as much.
Format: https://protobuf.dev/programming-guides/encoding/
"""

import numpy as np

from features.kernels import njit
from features.schema import F64, I64
from ranker.request import U32

U8 = np.ndarray[tuple[int], np.dtype[np.uint8]]
U64 = np.ndarray[tuple[int], np.dtype[np.uint64]]

#: bytes of the longest varint
LONGEST = 10
#: wire type of what has a length
LEN = 2


def packed_signed(field: int, values: I64) -> bytes:
    """Return the field `repeated sint64` of that number, with int64[n]: zigzag, which keeps small ones short."""
    out = np.empty(LONGEST * (2 + len(values)), np.uint8)
    return out[: _write_signed(field, values, out)].tobytes()


def packed_lists(fields: tuple[int, int, int], doubles: F64, first: U32, second: I64) -> bytes:
    """Return a field `repeated double` and two of `repeated uint32` or `uint64`, of those numbers.

    doubles: float64[k]. first, second: uint32[m], int64[n], not negative. Of an empty list there is no field, as
    protobuf has it.
    """
    raw = np.asarray(doubles, "<f8").view(np.uint8)
    out = np.empty(len(raw) + LONGEST * (6 + len(first) + len(second)), np.uint8)
    return out[: _write_lists(fields, raw, first, second, out)].tobytes()


@njit(cache=True, nogil=True)
def _write_signed(field: int, values: I64, out: U8) -> int:
    """Write a field of zigzag values: 0, -1, 1, -2, ... are 0, 1, 2, 3, ...; return how many bytes."""
    zigzag = np.empty(len(values), np.uint64)
    for k in range(len(values)):
        zigzag[k] = (values[k] << 1) ^ (values[k] >> 63)
    n: int = _write_varints(field, zigzag, out, 0)
    return n


@njit(cache=True, nogil=True)
def _write_lists(fields: tuple[int, int, int], raw: U8, first: U32, second: I64, out: U8) -> int:
    """Write the fields of `packed_lists` one behind the other; return how many bytes. raw: of the doubles."""
    n: int = 0
    if len(raw):
        n = _write_head(fields[0], len(raw), out, n)
        for byte in raw:
            out[n] = byte
            n += 1
    n = _write_varints(fields[1], first, out, n)
    n = _write_varints(fields[2], second, out, n)
    return n


@njit(cache=True, nogil=True)
def _write_varints(field: int, values: U32 | I64 | U64, out: U8, n: int) -> int:
    """Write a field at out[n], nothing for an empty list; return the place behind it."""
    if not len(values):
        return n
    size = 0
    for value in values:
        size += _size(value)
    n = _write_head(field, size, out, n)
    for value in values:
        n = _write(value, out, n)
    return n


@njit(cache=True, nogil=True)
def _write_head(field: int, size: int, out: U8, n: int) -> int:
    """Write tag and length at out[n]; return the place behind them."""
    n = _write(field << 3 | LEN, out, n)
    n = _write(size, out, n)
    return n


@njit(cache=True, nogil=True)
def _size(value: int) -> int:
    """Return how many bytes `_write` writes."""
    rest, size = np.uint64(value), 1
    while rest >= np.uint64(128):
        rest >>= np.uint64(7)
        size += 1
    return size


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
