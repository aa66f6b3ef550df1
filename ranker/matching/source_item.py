"""A candidate beside the source item of its request."""

import numpy as np

from features.kernels import AHEAD, njit, prefetch
from features.schema import F32, I32, I64, Attribute
from ranker.candidates.cooccurrence import Cooccurrence


def beside(table: Cooccurrence, source: I32, item: I32) -> F32:
    """Return float32[n]: the score of each item as a neighbour of its source item; 0 of one that is none.

    source, item: int32[n]. NaN where either is unknown (-1, or behind the table) or was never taken beside another.
    """
    found: F32 = _beside(table.neighbour, table.score, source, item)
    return found


# for each run of candidates of one source item: sort its neighbours, then find each candidate among them by halving
@njit(cache=True, nogil=True)
def _beside(neighbour: I32, score: F32, source: I32, item: I32) -> F32:
    out, n, width = np.full(len(item), np.nan, np.float32), len(neighbour), neighbour.shape[1]
    order, near, last = np.empty(0, np.int64), np.empty(0, np.int32), -1
    for k in range(len(item)):
        of, own, ahead = source[k], item[k], item[min(k + AHEAD, len(item) - 1)]
        prefetch(neighbour, np.int64(ahead if 0 <= ahead < n else 0) * width * 4)
        if not (0 <= of < n and 0 <= own < n) or neighbour[of, 0] < 0 or neighbour[own, 0] < 0:
            continue
        if of != last:
            order = np.argsort(neighbour[of])
            near, last = neighbour[of][order], of
        at = np.searchsorted(near, own)
        out[k] = score[of, order[at]] if at < width and near[at] == own else 0
    return out


def same_value(of: Attribute, source: I32, item: I32) -> F32:
    """Return float32[n]: 1 where an item has a value of its source item's, 0 where not, NaN where either has none.

    of: a category or a list.
    """
    found: F32 = _shared(of.codes, of.offsets, source, item) if of.kind == "multi" else _same(of.codes, source, item)
    return found


@njit(cache=True, nogil=True)
def _same(codes: I32, source: I32, item: I32) -> F32:
    out, n = np.full(len(item), np.nan, np.float32), len(codes)
    for k in range(len(item)):
        if 0 <= source[k] < n and 0 <= item[k] < n and codes[source[k]] >= 0 and codes[item[k]] >= 0:
            out[k] = codes[source[k]] == codes[item[k]]
    return out


# for each row: both lists are ascending, so the one whose value is lower moves on, until both are at one value
@njit(cache=True, nogil=True)
def _shared(codes: I32, offsets: I64, source: I32, item: I32) -> F32:
    out, n = np.full(len(item), np.nan, np.float32), len(offsets) - 1
    for k in range(len(item)):
        if not (0 <= source[k] < n and 0 <= item[k] < n):
            continue
        a, end_a = offsets[source[k]], offsets[source[k] + 1]
        b, end_b = offsets[item[k]], offsets[item[k] + 1]
        if a == end_a or b == end_b:
            continue
        while a < end_a and b < end_b and codes[a] != codes[b]:
            if codes[a] < codes[b]:
                a += 1
            else:
                b += 1
        out[k] = a < end_a and b < end_b
    return out
