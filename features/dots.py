"""Scalar products of rows that are looked up: each of its row alone, whatever rows stand beside it."""

import numpy as np

from features.kernels import AHEAD, LINE, njit, prefetch
from features.schema import F32, I32, I64


def row_dots(vectors: F32, row: I32 | I64, offsets: I64, queries: F32) -> F32:
    """Return float32[n]: vectors[row[k]] · queries[r] for k of [offsets[r], offsets[r + 1]).

    vectors: float32[m, d], C-ordered. row: int32 or int64[n]; one outside [0, m) gives NaN. offsets: int64[g + 1].
    queries: float32[g, d].
    """
    out = np.empty(len(row), np.float32)
    _row_dots(vectors, row, offsets, np.ascontiguousarray(queries, np.float32), out)
    return out


# Not one matrix product: BLAS sums in another order for another number of rows, so a value would depend on the others.
# The sum may be taken in any order that is the same for each row, so that the compiler can use vectors.
@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _row_dots(vectors: F32, row: I32 | I64, offsets: I64, queries: F32, out: F32) -> None:
    known, width = vectors.shape
    for r in range(len(offsets) - 1):
        query = queries[r]
        for k in range(offsets[r], offsets[r + 1]):
            ahead = row[min(k + AHEAD, len(row) - 1)]
            for byte in range(0, width * 4, LINE):
                prefetch(vectors, (ahead if 0 <= ahead < known else 0) * width * 4 + byte)
            if not 0 <= row[k] < known:
                out[k] = np.nan
                continue
            vector, total = vectors[row[k]], np.float32(0)
            for j in range(width):
                total += vector[j] * query[j]
            out[k] = total
