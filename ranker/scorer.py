"""A compiled scorer for LightGBM forests: bitvectors, one tree at a time over all rows, bit-identical to `Booster`.

QuickScorer (Lucchese et al., SIGIR 2015): the leaves of a tree are numbered from left to right, and a split that
sends a row to the right removes the leaves of its left subtree; the first leaf that remains is the row's. Here the
rows of a request are the inner loop, so that the compiler compares eight or sixteen of them at a time. Leaves are
worked on in blocks of 32, for a word is then as wide as the float32 that it is compared for; a tree may have any
number of them.
"""

import logging
from dataclasses import dataclass

import lightgbm as lgb
import numpy as np
from numba import njit

from features.schema import F32, F64, I32, I64
from ranker.forest import Tree, UnsupportedError, left_leaves, parse

log = logging.getLogger(__name__)

WORD = 32
#: rows of one pass: their words and one column of each fit the first cache
ROWS_AT_ONCE = 512
#: a multiple of the rows that any processor compares at a time
LANES = 64
#: kinds of a split: a number whose missing values go left, one whose go right, a category
LEFT, RIGHT, CATEGORY = 0, 1, 2
#: LightGBM's kinds of missing values (bits 2 and 3 of its `decision_type`)
NONE, ZERO, NAN = 0, 1, 2
_ZERO = np.float32(1e-35)  # LightGBM's kZeroThreshold
_ALL = np.uint32(0xFFFFFFFF)
_MAX = np.finfo(np.float32).max
_BELOW_MAX = np.nextafter(_MAX, np.float32(0))
U32 = np.ndarray[tuple[int], np.dtype[np.uint32]]


def _mask(first: int, end: int, block: int) -> int:
    """Return the word of a block without the leaves first .. end - 1."""
    low, high = max(first - block * WORD, 0), min(end - block * WORD, WORD)
    return int(_ALL) if high <= low else int(_ALL) & ~(((1 << (high - low)) - 1) << low)


def _down(threshold: float) -> np.float32:
    """Return the greatest float32 that is not above the threshold: x <= it just where x <= the threshold.

    An infinite threshold, which only a missing value passes, becomes the greatest float32: see `_columns`.
    """
    if np.isinf(threshold):
        return np.float32(np.sign(threshold)) * _MAX
    rounded = np.float32(min(max(threshold, -float(_MAX)), float(_BELOW_MAX)))
    return rounded if float(rounded) <= threshold else np.nextafter(rounded, np.float32(-np.inf))


class _Writer:
    """Collects the flat arrays of a forest."""

    def __init__(self) -> None:
        self.missing: dict[int, int] = {}
        self.largest: dict[int, int] = {}
        self.columns: dict[tuple[int, int], int] = {}
        self.nodes: list[tuple[int, np.float32, int, int]] = []
        self.tables: list[U32] = []
        self.table_words = 0
        self.block_nodes: list[int] = [0]
        self.block_numeric: list[int] = []
        self.block_leaves: list[int] = []
        self.tree_blocks: list[int] = [0]
        self.leaves: list[float] = []

    def note(self, tree: Tree) -> None:
        """Take down how each feature treats missing values, and its largest category."""
        for feature, decision, threshold in zip(tree.feature.tolist(), tree.decision, tree.threshold, strict=True):
            missing = NAN if decision & 1 else int(decision >> 2) & 3
            if self.missing.setdefault(feature, missing) != missing:
                raise UnsupportedError(f"feature {feature} treats missing values in two ways")
            if decision & 1:
                words = int(tree.bounds[int(threshold) + 1] - tree.bounds[int(threshold)])
                self.largest[feature] = max(self.largest.get(feature, 0), 32 * words - 1)

    def add(self, tree: Tree) -> None:
        """Append a tree, block by block."""
        first, end, place = left_leaves(tree)
        kinds = np.where(tree.decision & 1, CATEGORY, np.where(tree.decision & 2, LEFT, RIGHT))
        for block in range(-(-len(tree.leaf) // WORD)):
            masks = [_mask(int(a), int(b), block) for a, b in zip(first, end, strict=True)]
            removing = [node for node in range(len(masks)) if masks[node] != int(_ALL)]
            for node in removing:
                if kinds[node] != CATEGORY:
                    column = self._column(int(tree.feature[node]), int(kinds[node]))
                    self.nodes.append((column, _down(tree.threshold[node]), masks[node], 0))
            self.block_numeric.append(len(self.nodes))
            self._categories(tree, {node: masks[node] for node in removing if kinds[node] == CATEGORY})
            self.block_nodes.append(len(self.nodes))
            self.block_leaves.append(len(self.leaves) + block * WORD)
        self.tree_blocks.append(len(self.block_leaves))
        self.leaves += tree.leaf[np.argsort(place)].tolist()

    def _column(self, feature: int, kind: int) -> int:
        return self.columns.setdefault((feature, kind), len(self.columns))

    def _categories(self, tree: Tree, masks: dict[int, int]) -> None:
        """Append one node for each categorical feature of a block: its splits there are one table, and one look-up."""
        tables: dict[int, U32] = {}
        for node, mask in masks.items():
            feature, which = int(tree.feature[node]), int(tree.threshold[node])
            # The last place stands for missing and unknown categories, which go right.
            table = tables.setdefault(feature, np.full(self.largest[feature] + 2, _ALL, np.uint32))
            words = tree.bits[tree.bounds[which] : tree.bounds[which + 1]].astype("<u4")
            inside = np.unpackbits(words.view(np.uint8), bitorder="little").astype(bool)
            table[: len(inside)][~inside] &= np.uint32(mask)
            table[len(inside) :] &= np.uint32(mask)
        for feature, table in tables.items():
            self.nodes.append((self._column(feature, CATEGORY), np.float32(0), 0, self.table_words))
            self.tables.append(table)
            self.table_words += len(table)


@dataclass(frozen=True, slots=True)
class Scorer:
    """A forest as flat arrays. `score` gives what `Booster.predict(rows, raw_score=True)` gives, bit for bit.

    column_*: the columns that splits compare: a feature, on which side its missing values go (LEFT, RIGHT, or
    CATEGORY), which values are missing, and its largest category. node_*: splits, in the order of the blocks, those
    of a block on one category as one. tables: uint32, for each of these a word for each category. block_*: first
    node, end of the numeric nodes, first leaf; tree_blocks: first block of each tree.
    """

    n_features: int
    column_feature: I64
    column_kind: I64
    column_missing: I64
    column_largest: I64
    node_column: I32
    node_threshold: F32
    node_mask: U32
    node_table: I64
    tables: U32
    block_nodes: I64
    block_numeric: I64
    block_leaves: I64
    tree_blocks: I64
    leaves: F64

    @classmethod
    def compile(cls, booster: lgb.Booster) -> "Scorer":
        """Read a booster. Raises UnsupportedError for linear trees, several classes and averaged forests."""
        trees = parse(booster.model_to_string(num_iteration=-1))
        w = _Writer()
        for tree in trees:
            w.note(tree)
        for tree in trees:
            w.add(tree)
        features = [feature for feature, _ in w.columns]
        column, threshold, mask, table = zip(*w.nodes, strict=True) if w.nodes else ((), (), (), ())
        missing, largest = [w.missing[f] for f in features], [w.largest.get(f, -1) for f in features]
        return cls(
            booster.num_feature(),
            np.array(features, np.int64), np.array([kind for _, kind in w.columns], np.int64),
            np.array(missing, np.int64), np.array(largest, np.int64),
            np.array(column, np.int32), np.array(threshold, np.float32), np.array(mask, np.uint32),
            np.array(table, np.int64), np.concatenate([np.empty(0, np.uint32), *w.tables]),
            np.array(w.block_nodes, np.int64), np.array(w.block_numeric, np.int64),
            np.array(w.block_leaves, np.int64), np.array(w.tree_blocks, np.int64), np.array(w.leaves, np.float64),
        )  # fmt: skip

    def score(self, rows: F32) -> F64:
        """Return float64[n] raw scores of float32[n, n_features], on the calling thread; the GIL is released."""
        if rows.ndim != 2 or rows.shape[1] != self.n_features:
            raise ValueError(f"rows of {self.n_features} columns were expected, found the shape {rows.shape}")
        out = np.zeros(len(rows))
        # Rows that fill up a pass are scored and dropped: the compiled loops then have no remainder. Unsigned codes
        # need no check for places from the end.
        width = min(-(-len(rows) // LANES) * LANES, ROWS_AT_ONCE)
        values = np.zeros((len(self.column_feature), width), np.float32)
        codes = np.zeros(values.shape, np.uint32)
        _score(
            np.ascontiguousarray(rows, np.float32),
            self.column_feature, self.column_kind, self.column_missing, self.column_largest,
            self.node_column, self.node_threshold, self.node_mask, self.node_table, self.tables,
            self.block_nodes, self.block_numeric, self.block_leaves, self.tree_blocks, self.leaves, values, codes, out,
        )  # fmt: skip
        return out


def checked_scorer(booster: lgb.Booster, rows: int = 256) -> Scorer | None:
    """Return the compiled scorer of a booster, proved equal to it; None, with a line in the log, where it is not.

    The proof is on random rows and on rows at the thresholds: each value is a threshold of its column or a
    neighbour of one, a category, NaN, a zero or an infinity. It also compiles the kernel before the first request.
    """
    try:
        scorer = Scorer.compile(booster)
    except UnsupportedError as error:
        log.warning("scoring with LightGBM's own predict: the forest is not compiled, for %s", error)
        return None
    probe = probe_rows(scorer, rows)
    if not np.array_equal(scorer.score(probe), np.asarray(booster.predict(probe, raw_score=True, num_threads=1))):
        log.error("scoring with LightGBM's own predict: the compiled forest gives other scores; please report this")
        return None
    return scorer


def probe_rows(scorer: Scorer, rows: int) -> F32:
    """Return float32[rows, n_features] that try every column at its thresholds and at odd values."""
    rng = np.random.default_rng(0)
    probe = rng.normal(0, 10, (rows, scorer.n_features)).astype(np.float32)
    odd = np.array([np.nan, 0.0, -0.0, 1e-36, -1.0, np.inf, -np.inf, 3e38, 40000.0], np.float32)
    for column, feature in enumerate(scorer.column_feature):
        near = scorer.node_threshold[scorer.node_column == column]
        with np.errstate(over="ignore"):
            below, above = (np.nextafter(near, np.float32(side)) for side in (-np.inf, np.inf))
        values = [near, below, above, odd]
        values.append(np.arange(-1, scorer.column_largest[column] + 3, dtype=np.float32))
        probe[: rows * 7 // 8, feature] = rng.choice(np.concatenate(values), rows * 7 // 8)
    return probe


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
            if -_ZERO <= x <= _ZERO or (missing[c] != NAN and np.isnan(x)):
                x = np.float32(np.nan) if missing[c] == ZERO else np.float32(0.0)
            elif x >= _MAX:
                x = _MAX if np.isinf(x) else _BELOW_MAX
            values[c, r] = np.float32(np.inf) if kind[c] == RIGHT and np.isnan(x) else x


@njit(cache=True, nogil=True)
def _narrow(
    first: int, numeric: int, end: int, width: int, column: I32, threshold: F32, mask: U32, table: I64, tables: U32,
    values: F32, codes: U32, bits: U32,
) -> None:  # fmt: skip
    """Take from each row's word the leaves that the splits of one block remove. Four splits a pass: fewer stores."""
    node = first
    while node + 3 < numeric:
        x, x1 = values[column[node]], values[column[node + 1]]
        x2, x3 = values[column[node + 2]], values[column[node + 3]]
        s, s1, s2, s3 = threshold[node], threshold[node + 1], threshold[node + 2], threshold[node + 3]
        m, m1, m2, m3 = mask[node], mask[node + 1], mask[node + 2], mask[node + 3]
        for r in range(width):
            w = (m if x[r] > s else _ALL) & (m1 if x1[r] > s1 else _ALL)
            bits[r] &= w & (m2 if x2[r] > s2 else _ALL) & (m3 if x3[r] > s3 else _ALL)
        node += 4
    for last in range(node, numeric):
        x, s, m = values[column[last]], threshold[last], mask[last]
        for r in range(width):
            bits[r] &= m if x[r] > s else _ALL
    for node in range(numeric, end):
        c, words = codes[column[node]], tables[table[node] :]
        for r in range(width):
            bits[r] &= words[c[r]]


@njit(cache=True, nogil=True)
def _score(
    rows: F32, feature: I64, kind: I64, missing: I64, largest: I64,
    column: I32, threshold: F32, mask: U32, table: I64, tables: U32,
    block_nodes: I64, block_numeric: I64, block_leaves: I64, tree_blocks: I64, leaves: F64,
    values: F32, codes: U32, out: F64,
) -> None:  # fmt: skip
    bits = np.empty(values.shape[1], np.uint32)
    lowest = np.empty(values.shape[1], np.float32)
    exponent = lowest.view(np.int32)
    leaf = np.empty(values.shape[1], np.int32)
    for start in range(0, len(rows), max(values.shape[1], 1)):
        n = min(values.shape[1], len(rows) - start)
        width = (n + LANES - 1) // LANES * LANES
        _columns(rows[start : start + n], feature, kind, missing, largest, values, codes)
        for tree in range(len(tree_blocks) - 1):
            # From the last block to the first: the first one in which a leaf remains has the last word.
            for block in range(tree_blocks[tree + 1] - 1, tree_blocks[tree] - 1, -1):
                bits[:width] = _ALL
                _narrow(
                    block_nodes[block], block_numeric[block], block_nodes[block + 1], width,
                    column, threshold, mask, table, tables, values, codes, bits,
                )  # fmt: skip
                for r in range(width):
                    lowest[r] = np.float32(bits[r] & (~bits[r] + np.uint32(1)))
                begin = np.int32(block_leaves[block] - 127)
                for r in range(width):
                    # The exponent of a power of two is the place of its bit.
                    leaf[r] = begin + (exponent[r] >> 23) if bits[r] != 0 else leaf[r]
            for r in range(n):
                out[start + r] += leaves[leaf[r]]
