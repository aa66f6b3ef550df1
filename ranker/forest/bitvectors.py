"""The kernels of `ranker.forest.scorer`: columns of rows, words of blocks, and the leaves that remain."""

import numpy as np
from numba import njit

from features.schema import F32, F64, I32, I64

WORD = 32
#: rows of one pass: their words and one column of each fit the first cache
ROWS_AT_ONCE = 512
#: a multiple of the rows that any processor compares at a time
LANES = 64
#: kinds of a split: a number whose missing values go left, one whose go right, a category
LEFT, RIGHT, CATEGORY = 0, 1, 2
#: LightGBM's kinds of missing values (bits 2 and 3 of its `decision_type`)
NONE, ZERO, NAN = 0, 1, 2
TINY = np.float32(1e-35)  # LightGBM's kZeroThreshold
ALL = np.uint32(0xFFFFFFFF)
MAX = np.finfo(np.float32).max
BELOW_MAX = np.nextafter(MAX, np.float32(0))
ALL_OF_TWO = np.uint64(0xFFFFFFFFFFFFFFFF)
U32 = np.ndarray[tuple[int], np.dtype[np.uint32]]
U64 = np.ndarray[tuple[int], np.dtype[np.uint64]]


@njit(cache=True, nogil=True)
def _columns(rows: F32, feature: I64, kind: I64, missing: I64, largest: I64, values: F32, codes: U32) -> None:
    """Turn rows into columns. A missing number becomes NaN (never above a threshold) or infinity (always).

    An infinity of the caller's own is below it, as the greatest float32: LightGBM's infinite thresholds hold it.
    """
    for c in range(len(feature)):
        for r in range(len(rows)):
            x = rows[r, feature[c]]
            if kind[c] == CATEGORY:
                # As LightGBM: cut to an integer; what is missing, negative or unknown goes right.
                known = x > np.float32(-1.0) and x < np.float32(largest[c] + 1)
                codes[c, r] = np.uint32(np.int32(x)) if known else np.uint32(largest[c] + 1)
                continue
            if -TINY <= x <= TINY or (missing[c] != NAN and np.isnan(x)):
                x = np.float32(np.nan) if missing[c] == ZERO else np.float32(0.0)
            elif x >= MAX:
                x = MAX if np.isinf(x) else BELOW_MAX
            values[c, r] = np.float32(np.inf) if kind[c] == RIGHT and np.isnan(x) else x


@njit(cache=True, nogil=True)
def _look_up(first: int, end: int, width: int, column: I32, table: I64, tables: U64, codes: U32, wide: U64) -> None:
    """Fill uint64[width] with the words that the categories of two blocks leave."""
    wide[:width] = ALL_OF_TWO
    for k in range(first, end):
        c, words = codes[column[k]], tables[table[k] :]
        for r in range(width):
            wide[r] &= words[c[r]]


@njit(cache=True, nogil=True)
def _narrow(
    first: int, end: int, width: int, column: I32, threshold: F32, mask: U32, values: F32, bits: U32
) -> None:  # fmt: skip
    """Take from each row's word the leaves that the splits of one block remove. Four splits a pass: fewer stores."""
    node = first
    while node + 3 < end:
        x, x1 = values[column[node]], values[column[node + 1]]
        x2, x3 = values[column[node + 2]], values[column[node + 3]]
        s, s1, s2, s3 = threshold[node], threshold[node + 1], threshold[node + 2], threshold[node + 3]
        m, m1, m2, m3 = mask[node], mask[node + 1], mask[node + 2], mask[node + 3]
        for r in range(width):
            w = (m if x[r] > s else ALL) & (m1 if x1[r] > s1 else ALL)
            bits[r] &= w & (m2 if x2[r] > s2 else ALL) & (m3 if x3[r] > s3 else ALL)
        node += 4
    for last in range(node, end):
        x, s, m = values[column[last]], threshold[last], mask[last]
        for r in range(width):
            bits[r] &= m if x[r] > s else ALL


@njit(cache=True, nogil=True)
def score_rows(
    rows: F32, feature: I64, kind: I64, missing: I64, largest: I64,
    column: I32, threshold: F32, mask: U32, lookup_column: I32, lookup_table: I64, tables: U64,
    block_nodes: I64, block_leaves: I64, pair_lookups: I64, pair_blocks: I64, tree_pairs: I64, leaves: F64,
    values: F32, codes: U32, out: F64,
) -> None:  # fmt: skip
    """Add the scores of float32[n, features] rows to `out`, tree after tree. The arrays: see `forest.scorer.Scorer`."""
    wide = np.empty(values.shape[1], np.uint64)
    bits = np.empty(values.shape[1], np.uint32)
    lowest = np.empty(values.shape[1], np.float32)
    exponent = lowest.view(np.int32)
    leaf = np.empty(values.shape[1], np.int32)
    for start in range(0, len(rows), max(values.shape[1], 1)):
        n = min(values.shape[1], len(rows) - start)
        width = (n + LANES - 1) // LANES * LANES
        _columns(rows[start : start + n], feature, kind, missing, largest, values, codes)
        for tree in range(len(tree_pairs) - 1):
            # From the last block to the first: the first one in which a leaf remains has the last word.
            for pair in range(tree_pairs[tree + 1] - 1, tree_pairs[tree] - 1, -1):
                first, end = pair_lookups[pair], pair_lookups[pair + 1]
                if end > first:
                    _look_up(first, end, width, lookup_column, lookup_table, tables, codes, wide)
                for block in range(pair_blocks[pair + 1] - 1, pair_blocks[pair] - 1, -1):
                    bits[:width] = ALL
                    if end > first:
                        shift = np.uint64(WORD * (block - pair_blocks[pair]))
                        for r in range(width):
                            bits[r] = np.uint32(wide[r] >> shift)
                    _narrow(
                        block_nodes[block], block_nodes[block + 1], width, column, threshold, mask, values, bits
                    )  # fmt: skip
                    for r in range(width):
                        lowest[r] = np.float32(bits[r] & (~bits[r] + np.uint32(1)))
                    begin = np.int32(block_leaves[block] - 127)
                    for r in range(width):
                        # The exponent of a power of two is the place of its bit.
                        leaf[r] = begin + (exponent[r] >> 23) if bits[r] != 0 else leaf[r]
            for r in range(n):
                out[start + r] += leaves[leaf[r]]
