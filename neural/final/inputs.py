"""The rows of the booster as a network reads them: numbers by their place among the training's, categories by code.

One path for training and serving. A number is its place among the training's values, by straight lines between some of
them, so no scale and no tail of a counter matters; a missing one is the mean, and that it is missing is an input of its
own. A category of few training rows is unknown, as a new one is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from features.kernels import njit
from features.schema import F32, I64, Bool

#: names of what a row becomes, in the order of the `forward` of `neural.final.model.Network`
INPUTS = ("numbers", "codes")
#: points of each half of the lines: one at shares of the rows, the other at shares of the distinct values
POINTS = 33
#: rows that the lines are drawn from: of more, so many evenly
SAMPLE = 200_000
#: training rows of a category, as LightGBM's `cat_smooth`: of fewer it is unknown
LEAST = 20


@dataclass(frozen=True, slots=True)
class Inputs:
    """How rows of c columns become a + m numbers and k codes."""

    number: I64  # [a], columns that are numbers
    edges: F32  # [a, q], values that the lines go through, rising; behind the last ones +inf
    count: I64  # [a], how many they are
    mean: F32  # [a], of the places among the training's values
    scale: F32  # [a], their standard deviation, 1 where that is 0
    lacking: I64  # [m], of `number`: those whose absence is an input; of several absent in the same rows the first
    code: I64  # [k], columns that are categories
    offset: I64  # [k + 1], where each one's codes begin in `slot`
    slot: I64  # [offset[-1]], row of the embedding of each code, 0 of an unknown one

    @classmethod
    def of(cls, columns: Sequence[str], categorical: Sequence[str], rows: F32) -> "Inputs":
        """Learn it from float32[n, c] rows of training. categorical: of the columns, those that are codes."""
        is_code = np.isin(np.array(columns, object), np.array(categorical, object))
        number, code = np.flatnonzero(~is_code), np.flatnonzero(is_code)
        sample = rows[:: -(-len(rows) // SAMPLE) or 1]
        found = [_edges(sample[:, k]) for k in number]
        edges = np.full((len(number), max(map(len, found), default=0)), np.inf, np.float32)
        for row, own in zip(edges, found, strict=True):
            row[: len(own)] = own
        absent = np.isnan(rows[:, number])
        slots = _slots(rows, code)
        drawn = cls(
            number=number,
            edges=edges,
            count=np.array([len(own) for own in found], np.int64),
            mean=np.zeros(len(number), np.float32),
            scale=np.ones(len(number), np.float32),
            lacking=_distinct(absent),
            code=code,
            offset=np.cumsum([0, *map(len, slots)]),
            slot=np.concatenate([np.empty(0, np.int64), *slots]),
        )
        place, _ = drawn.encode(sample)
        known = np.where(np.isnan(sample[:, number]), np.nan, place[:, : len(number)]).astype(np.float64)
        some = ~np.isnan(known).all(axis=0)
        mean, scale = np.zeros(len(number)), np.ones(len(number))
        mean[some], scale[some] = np.nanmean(known[:, some], axis=0), np.nanstd(known[:, some], axis=0)
        scale[scale == 0] = 1
        return replace(drawn, mean=mean.astype(np.float32), scale=scale.astype(np.float32))

    @property
    def n_numbers(self) -> int:
        """a + m."""
        return len(self.number) + len(self.lacking)

    @property
    def n_slots(self) -> int:
        """Rows of the embedding."""
        return int(self.slot.max(initial=0)) + 1

    def encode(self, rows: F32) -> tuple[F32, I64]:
        """Return float32[n, a + m] and int64[n, k] of float32[n, c] rows."""
        numbers = np.empty((len(rows), self.n_numbers), np.float32)
        codes = np.empty((len(rows), len(self.code)), np.int64)
        _numbers(rows, self.number, self.edges, self.count, self.mean, self.scale, self.lacking, numbers)
        _codes(rows, self.code, self.offset, self.slot, codes)
        return numbers, codes


def _edges(values: F32) -> F32:
    """Return distinct values, rising: at even shares of the rows, and, for a column that is mostly zero, of the rest.

    The lowest and the highest are among them.
    """
    known, shares = values[~np.isnan(values)], np.linspace(0, 1, POINTS)
    if not len(known):
        return known
    both = (np.quantile(v, shares, method="inverted_cdf") for v in (known, np.unique(known)))
    return np.unique(np.concatenate(list(both)).astype(np.float32))


def _distinct(absent: Bool) -> I64:
    """Return int64[m] columns of bool[n, a] that have some True, the first of those that are alike."""
    first: dict[bytes, int] = {}
    for k in np.flatnonzero(absent.any(axis=0)).tolist():
        first.setdefault(np.packbits(absent[:, k]).tobytes(), k)
    return np.array(list(first.values()), np.int64)


def _slots(rows: F32, code: I64) -> list[I64]:
    """Return, of each column, int64[highest code + 1]: its code's row of the embedding."""
    found, taken = [], 1
    for k in code:
        own = rows[:, k]
        counts = np.bincount(own[own >= 0].astype(np.int64))  # NaN is not
        often = counts >= LEAST
        found.append(np.where(often, taken + np.cumsum(often) - 1, 0))
        taken += int(often.sum())
    return found


@njit(cache=True, nogil=True)
def _numbers(rows: F32, number: I64, edges: F32, count: I64, mean: F32, scale: F32, lacking: I64, out: F32) -> None:
    """Fill float32[n, a + m]: see `Inputs`."""
    for row in range(len(rows)):
        for a in range(len(number)):
            x = rows[row, number[a]]
            out[row, a] = 0.0 if np.isnan(x) else (_place(x, edges[a], count[a]) - mean[a]) / scale[a]
        for m in range(len(lacking)):
            out[row, len(number) + m] = np.isnan(rows[row, number[lacking[m]]])


@njit(cache=True, nogil=True)
def _place(x: float, edges: F32, count: int) -> float:
    """Return where x lies among the edges, 0 at the first and 1 at the last, by straight lines between them."""
    if count < 2 or x <= edges[0]:
        return 0.0
    if x >= edges[count - 1]:
        return 1.0
    j = np.searchsorted(edges[:count], x, side="right") - 1
    low, high = np.float64(edges[j]), np.float64(edges[j + 1])
    return (j + (x - low) / (high - low)) / (count - 1)


@njit(cache=True, nogil=True)
def _codes(rows: F32, code: I64, offset: I64, slot: I64, out: I64) -> None:
    """Fill int64[n, k]: rows of the embedding."""
    for row in range(len(rows)):
        for k in range(len(code)):
            x = rows[row, code[k]]
            known = 0 <= x < offset[k + 1] - offset[k]
            out[row, k] = slot[offset[k] + int(x)] if known else 0
