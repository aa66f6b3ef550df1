"""Distinct counts as of any time: how many different items, users, … a key had within a window.

An event is the first of its thing in a window where the thing's event before it lies before the window. How many
such events there are in a stretch of a key is a range count over "where was this thing before", which a wavelet
matrix (Claude, Navarro, Ordóñez 2015) answers in log(events of the largest key) steps, at about 4 bytes an event.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from features.counters.keys import key_codes, without_last
from features.counters.places import find_places, first_not_before, places_of
from features.counters.sorting import stable_order
from features.counters.spec import Counter, event_values
from features.kernels import njit
from features.schema import I32, I64, Bool, Catalog, EventLog

U64 = npt.NDArray[np.uint64]
Parts = tuple[tuple[str, ...], str, str]
WORD = 64
#: `low` of a window that has no start
EVER = -(2**62)


def distinct_parts(counters: tuple[Counter, ...]) -> tuple[Parts, ...]:
    """Return (key, event, what is counted) of every index that the counters need."""
    return tuple(dict.fromkeys((c.key, c.event, c.argument) for c in counters if c.kind == "distinct"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Distinct:
    """The events of each key (those whose value is not 0), and where each one's thing was before."""

    codes: I64  # [k], as in `Timeline`
    offsets: I64  # [k + 1]
    ts: I64  # [m], µs
    before: I32  # [m], the place of the thing's event before within the key, -1 for none
    bits: U64  # [levels, words], the wavelet matrix of `before`, …
    ones: I64  # [levels, words + 1], … and the ones before each word
    pairs: I64  # [p], sorted codes of (key, thing)
    last: I32  # [p], the place of its last event
    event_pair: I64  # [m], the code of each event

    @classmethod
    def build(cls, parts: Parts, log: EventLog, catalog: Catalog, grades: tuple[str, ...]) -> "Distinct":
        """Index the events of a log."""
        key, event, thing = parts
        rows, pair, pair_size = key_codes((*key, thing), catalog, log.user, log.item, log.surface, log.arm)
        known = (pair >= 0) & (event_values(log, event, grades)[0][rows] != 0)
        rows, pair = rows[known], pair[known]
        code, size = without_last(pair, (*key, thing), catalog)
        order = stable_order(code, size)
        codes, offsets = places_of(code, order)
        rows, pair = rows[order], pair[order]
        by_pair = stable_order(pair, pair_size)
        new = np.diff(pair[by_pair], prepend=-1) != 0
        before = np.empty(len(pair), np.int32)
        before[by_pair] = np.where(new, -1, np.roll(by_pair, 1))
        ends = np.append(np.flatnonzero(new)[1:], len(pair))[: int(new.sum())] - 1
        start = np.repeat(offsets[:-1], np.diff(offsets))
        local = np.where(before < 0, 0, before - start + 1).astype(np.int64)
        levels, words = int(local.max(initial=1)).bit_length(), len(local) // WORD + 1
        bits, ones = np.zeros((levels, words), np.uint64), np.zeros((levels, words + 1), np.int64)
        _wavelet(local, bits, ones)
        return cls(
            codes=codes,
            offsets=offsets,
            ts=log.ts[rows],
            before=before,
            bits=bits,
            ones=ones,
            pairs=pair[by_pair][new],
            last=by_pair[ends],
            event_pair=pair,
        )

    def find(self, code: I64) -> I64:
        """Return the place of each key, -1 where it has no event."""
        return find_places(self.codes, self.offsets, code)

    def count(self, places: I64, rows: I64, low: I64, high: I64) -> I64:
        """Return int64[n]: how many things had an event in [low, high) (int64[n]), added up over a row's keys."""
        out = np.zeros(len(low), np.int64)
        _count(self.offsets, self.ts, self.bits, self.ones, places, rows, low, high, out)
        return out

    def things(self, places: I64, rows: I64, low: I64, high: I64) -> tuple[I64, I64]:
        """Return (row, pair) of every thing that had an event in [low, high). Linear in the events of the window."""
        out = np.empty((2, 64 + len(rows)), np.int64)
        n = _things(self.offsets, self.ts, self.before, places, rows, low, high, out)
        if n > out.shape[1]:
            out = np.empty((2, n), np.int64)
            _things(self.offsets, self.ts, self.before, places, rows, low, high, out)
        return out[0, :n], self.event_pair[out[1, :n]]

    def holds(self, pairs: I64, low: I64, high: I64) -> Bool:
        """Return bool[n]: whether each (key, thing) had an event in its [low, high)."""
        out = np.zeros(len(pairs), bool)
        if len(self.pairs) and len(pairs):
            at = np.minimum(np.searchsorted(self.pairs, pairs), len(self.pairs) - 1)
            last = np.where(self.pairs[at] == pairs, self.last[at], -1).astype(np.int64)
            _holds(self.ts, self.before, last, low, high, out)
        return out


def count_over(indexes: list[Distinct], keys: list[I64], rows: I64, low: I64, high: I64) -> I64:
    """Return int64[n] distinct things of all levels together, an index each.

        count those of the first index, by its wavelet matrix: it is the base's, and large
        for each later one: list its things in the window, event by event; add those that no earlier index has there

    keys: the places of the keys in each index. rows: of each place, which of the n. low, high: int64[n], the windows.
    """
    count = indexes[0].count(keys[0], rows, low, high)
    for number in range(1, len(indexes)):
        row, pair = indexes[number].things(keys[number], rows, low, high)
        new = np.ones(len(row), bool)
        for earlier in indexes[:number]:
            new &= ~earlier.holds(pair, low[row], high[row])
        count += np.bincount(row[new], minlength=len(low))
    return count


# A wavelet matrix: for each bit of the values, from the highest down,
#     write that bit of each value, in their present order, to the level's row
#     sort the values stably by it: those with a 0 first
# To count the values of [start, stop) below a limit, go down the levels with the limit's bits: where the bit is 1, the
# values of the stretch with a 0 there are all below, so count them and go on with those that have a 1; where it is 0,
# go on with those that have a 0. A stretch stays a stretch: its zeros go to start - ones before start, its ones behind
# all zeros; `ones` has the ones before each word, and the rest of a word is counted by its bits.
@njit(cache=True, nogil=True)
def _wavelet(values: I64, bits: U64, ones: I64) -> None:
    """Fill bits: uint64[levels, words] and ones: int64[levels, words + 1], the ones before each word."""
    current, other = values.copy(), np.empty_like(values)
    for level in range(len(bits)):
        shift = len(bits) - 1 - level
        zeros = 0
        for k in range(len(current)):
            if (current[k] >> shift) & 1:
                bits[level, k // WORD] |= np.uint64(1) << np.uint64(k % WORD)
            else:
                other[zeros] = current[k]
                zeros += 1
        for w in range(bits.shape[1]):
            ones[level, w + 1] = ones[level, w] + _bits_set(bits[level, w])
        at = zeros
        for k in range(len(current)):
            if (current[k] >> shift) & 1:
                other[at] = current[k]
                at += 1
        current, other = other, current


@njit(cache=True, nogil=True)
def _count(offsets: I64, ts: I64, bits: U64, ones: I64, places: I64, rows: I64, low: I64, high: I64, out: I64) -> None:
    """Add to out[rows[i]] the things of the key at places[i]: events of the window whose thing is there the first time.

    The matrix holds `before - start + 1` of each event (0: never before), so that is a count of the window's values
    below a limit: the thing was before the window's first event, or never.

        for each key that is there: find the events of its window; count those whose value is below that limit
    """
    for i in range(len(places)):
        if places[i] < 0:
            continue
        start, end = offsets[places[i]], offsets[places[i] + 1]
        stop = first_not_before(ts, start, end, high[rows[i]])
        begin = first_not_before(ts, start, stop, low[rows[i]])
        out[rows[i]] += _count_below(bits, ones, len(ts), begin, stop, begin - start + 1)


@njit(cache=True, nogil=True)
def _count_below(bits: U64, ones: I64, n: int, start: int, stop: int, limit: int) -> int:
    """Return how many of the values at [start, stop) are below `limit`."""
    if limit >> len(bits):
        return stop - start
    found = 0
    for level in range(len(bits)):
        zeros = n - ones[level, -1]
        a, b = _ones_before(bits, ones, level, start), _ones_before(bits, ones, level, stop)
        if (limit >> (len(bits) - 1 - level)) & 1:
            found += (stop - start) - (b - a)
            start, stop = zeros + a, zeros + b
        else:
            start, stop = start - a, stop - b
    return found


@njit(cache=True, nogil=True)
def _ones_before(bits: U64, ones: I64, level: int, k: int) -> Any:
    """Return how many of a level's first k bits are 1."""
    word, rest = k // WORD, k % WORD
    if rest == 0:
        return ones[level, word]
    below = bits[level, word] & ((np.uint64(1) << np.uint64(rest)) - np.uint64(1))
    return ones[level, word] + _bits_set(below)


@njit(cache=True, nogil=True)
def _bits_set(x: Any) -> Any:
    """Return how many bits of a uint64 are 1: sums of neighbours, two by two (Warren, Hacker's Delight, 5-1)."""
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(cache=True, nogil=True)
def _things(offsets: I64, ts: I64, before: I32, places: I64, rows: I64, low: I64, high: I64, out: I64) -> int:
    """List in int64[2, …] (row, place) the first event of each thing within each window; return how many there are.

        for each key that is there: find the events of its window
            for each of them whose thing was not before it within the window: list it, while there is room

    Where that is more than `out` has room for, it is called again with more.
    """
    n = 0
    for i in range(len(places)):
        if places[i] < 0:
            continue
        start, end = offsets[places[i]], offsets[places[i] + 1]
        stop = first_not_before(ts, start, end, high[rows[i]])
        begin = first_not_before(ts, start, stop, low[rows[i]])
        for e in range(begin, stop):
            if before[e] < begin:
                if n < out.shape[1]:
                    out[0, n], out[1, n] = rows[i], e
                n += 1
    return n


@njit(cache=True, nogil=True)
def _holds(ts: I64, before: I32, last: I64, low: I64, high: I64, out: Bool) -> None:
    """Set bool[n] `out` to whether each thing has an event in its window [low, high).

    e ← the thing's last event (int64[n], -1: none); while it is not below `high`: e ← the thing's event before it
    out ← there is such an event, and it is not below `low`
    """
    for i in range(len(last)):
        e = last[i]
        while e >= 0 and ts[e] >= high[i]:
            e = before[e]
        out[i] = e >= 0 and ts[e] >= low[i]
