"""The kernel of `ranker.forest.scorer`: columns of rows, words of blocks, and the leaves that remain.

score_rows(forest, rows, values, codes, out):
    for each pass of at most ROWS_AT_ONCE rows:
        values, codes = the columns that splits compare, one after another     `_columns`
        for each tree, for each pair of its blocks of 32 leaves, the last first:
            wide = all ones, and the words of each row's categories            `_look_up`
            for each block of the pair, the last first:
                bits = its half of wide
                for each numeric split of the block:                           `_narrow`
                    bits &= mask of the split, where the value is above the threshold
                leaf = the lowest bit of bits, where a leaf remains; else as it was
            out += leaves[leaf]

A mask has a zero for each leaf of the left subtree: what goes right removes them.
"""

from typing import NamedTuple

import numpy as np

from features.kernels import njit
from features.schema import F32, F64, I32, I64
from ranker.forest.text import NAN, ZERO

#: leaves of a block: a word is then as wide as the float32 that it is compared for
WORD = 32
#: rows of one pass: their words and one column of each fit the first cache
ROWS_AT_ONCE = 512
#: a multiple of the rows that any processor compares at a time
LANES = 64
#: kinds of a split: a number whose missing values go left, one whose go right, a category
LEFT, RIGHT, CATEGORY = 0, 1, 2
TINY = np.float32(1e-35)  # LightGBM's kZeroThreshold
ALL = np.uint32(0xFFFFFFFF)
MAX = np.finfo(np.float32).max
BELOW_MAX = np.nextafter(MAX, np.float32(0))
ALL_OF_TWO = np.uint64(0xFFFFFFFFFFFFFFFF)
U32 = np.ndarray[tuple[int], np.dtype[np.uint32]]
U64 = np.ndarray[tuple[int], np.dtype[np.uint64]]


class Columns(NamedTuple):
    """The columns that splits compare: one for each feature and way in which its missing values go."""

    feature: I64  # [c] column of the rows
    kind: I64  # [c] LEFT, RIGHT or CATEGORY
    missing: I64  # [c] which values are missing: `text.NONE`, ZERO or NAN
    largest: I64  # [c] category that a split knows, -1 of a number


class Splits(NamedTuple):
    """Numeric splits, in the order of the blocks."""

    column: I32  # [s] of `Columns`
    threshold: F32  # [s] what is above goes right
    mask: U32  # [s] the block's leaves that then remain


class Lookups(NamedTuple):
    """Tables of words: one for all splits of a pair of blocks on one category."""

    column: I32  # [l] of `Columns`
    table: I64  # [l] its first word in `words`
    words: U64  # a word for each category, and one for what is missing or unknown; the first block in the lower half


class Forest(NamedTuple):
    """A forest as flat arrays: trees of pairs of blocks of 32 leaves."""

    columns: Columns  # what splits compare
    splits: Splits  # of numbers, in the order of the blocks
    lookups: Lookups  # of categories, in the order of the pairs of blocks
    block_splits: I64  # [blocks + 1] first of `splits`
    block_leaves: I64  # [blocks] first of `leaves`
    pair_lookups: I64  # [pairs + 1] first of `lookups`
    pair_blocks: I64  # [pairs + 1] first block
    tree_pairs: I64  # [trees + 1] first pair
    leaves: F64  # values, those of a tree from left to right


@njit(cache=True, nogil=True)
def score_rows(forest: Forest, rows: F32, values: F32, codes: U32, out: F64) -> None:
    """Add the scores of float32[n, features] rows to `out`, tree after tree: see the module.

    forest: as plain tuples. values, codes: [columns, width] to work in, width being a multiple of LANES.
    """
    columns, splits, lookups, block_splits, block_leaves, pair_lookups, pair_blocks, tree_pairs, leaves = forest
    column, threshold, mask = splits
    lookup_column, lookup_table, words = lookups
    wide = np.empty(values.shape[1], np.uint64)
    bits = np.empty(values.shape[1], np.uint32)
    lowest = np.empty(values.shape[1], np.float32)
    exponent = lowest.view(np.int32)
    leaf = np.empty(values.shape[1], np.int32)
    for start in range(0, len(rows), max(values.shape[1], 1)):
        n = min(values.shape[1], len(rows) - start)
        width = (n + LANES - 1) // LANES * LANES
        _columns(rows[start : start + n], columns, values, codes)
        for tree in range(len(tree_pairs) - 1):
            # From the last block to the first: the first one in which a leaf remains has the last word.
            for pair in range(tree_pairs[tree + 1] - 1, tree_pairs[tree] - 1, -1):
                first, end = pair_lookups[pair], pair_lookups[pair + 1]
                if end > first:
                    _look_up(first, end, width, lookup_column, lookup_table, words, codes, wide)
                for block in range(pair_blocks[pair + 1] - 1, pair_blocks[pair] - 1, -1):
                    bits[:width] = ALL
                    if end > first:
                        shift = np.uint64(WORD * (block - pair_blocks[pair]))
                        for r in range(width):
                            bits[r] = np.uint32(wide[r] >> shift)
                    _narrow(
                        block_splits[block], block_splits[block + 1], width, column, threshold, mask, values, bits
                    )  # fmt: skip
                    for r in range(width):
                        lowest[r] = np.float32(bits[r] & (~bits[r] + np.uint32(1)))
                    begin = np.int32(block_leaves[block] - 127)
                    for r in range(width):
                        # The exponent of a power of two is the place of its bit.
                        leaf[r] = begin + (exponent[r] >> 23) if bits[r] != 0 else leaf[r]
            for r in range(n):
                out[start + r] += leaves[leaf[r]]


@njit(cache=True, nogil=True)
def _columns(rows: F32, columns: Columns, values: F32, codes: U32) -> None:
    """Turn rows into columns, so that the loops over splits read one number after another.

    for each column, for each row:
        category: its code, or largest + 1 where it is missing, negative or unknown
        number:   almost 0 becomes 0, and so does NaN where the forest has no missing values
                  what is missing becomes NaN (never above a threshold) or, where it goes right, infinity (always)
                  an infinity of the caller's own becomes the greatest float32, which infinite thresholds hold
    """
    feature, kind, missing, largest = columns
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
def _look_up(first: int, end: int, width: int, column: I32, table: I64, words: U64, codes: U32, wide: U64) -> None:
    """Fill uint64[width] with the words that the categories of two blocks leave."""
    wide[:width] = ALL_OF_TWO
    for k in range(first, end):
        c, row = codes[column[k]], words[table[k] :]
        for r in range(width):
            wide[r] &= row[c[r]]


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
