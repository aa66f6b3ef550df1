"""A compiled scorer for LightGBM forests: bitvectors, one tree at a time over all rows, bit-identical to `Booster`.

QuickScorer (Lucchese et al., SIGIR 2015): the leaves of a tree are numbered from left to right, and a split that
sends a row to the right removes the leaves of its left subtree; the first leaf that remains is the row's. Here the
rows of a request are the inner loop, so that the compiler compares eight or sixteen of them at a time. Leaves are
worked on in blocks of 32, for a word is then as wide as the float32 that it is compared for; a tree may have any
number of them. A category is looked up in a table of words, for two blocks at a time.
"""

import logging
from dataclasses import dataclass
from typing import Any

import lightgbm as lgb
import numpy as np

from features.pace import breathe
from features.schema import F32, F64
from ranker.forest.bitvectors import (
    ALL,
    ALL_OF_TWO,
    BELOW_MAX,
    CATEGORY,
    LANES,
    LEFT,
    MAX,
    RIGHT,
    ROWS_AT_ONCE,
    U64,
    WORD,
    Columns,
    Forest,
    Lookups,
    Splits,
    score_rows,
)
from ranker.forest.text import CODES, NAN, Tree, UnsupportedError, left_leaves, parse

log = logging.getLogger(__name__)


def _mask(first: int, end: int, block: int) -> int:
    """Return the word of a block without the leaves first .. end - 1."""
    low, high = max(first - block * WORD, 0), min(end - block * WORD, WORD)
    return int(ALL) if high <= low else int(ALL) & ~(((1 << (high - low)) - 1) << low)


def _down(threshold: float) -> np.float32:
    """Return the greatest float32 that is not above the threshold: x <= it just where x <= the threshold.

    An infinite threshold, which only a missing value passes, becomes the greatest float32: see `_columns`.
    """
    if np.isinf(threshold):
        return np.float32(np.sign(threshold)) * MAX
    rounded = np.float32(min(max(threshold, -float(MAX)), float(BELOW_MAX)))
    return rounded if float(rounded) <= threshold else np.nextafter(rounded, np.float32(-np.inf))


class _Writer:
    """Collects the flat arrays of a forest."""

    def __init__(self) -> None:
        self.largest: dict[int, int] = {}  # category, by feature
        # number, by feature, kind and kind of missing values: trees of several fits may take these in other ways
        self.columns: dict[tuple[int, int, int], int] = {}
        self.splits: list[tuple[int, np.float32, int]] = []  # column, threshold, mask
        self.lookups: list[tuple[int, int]] = []  # column, first word
        self.tables: list[U64] = []  # of the look-ups, one after another
        self.table_words = 0  # in all tables
        self.block_splits: list[int] = [0]  # these five and the leaves: see `Forest`
        self.block_leaves: list[int] = []
        self.pair_lookups: list[int] = [0]
        self.pair_blocks: list[int] = [0]
        self.tree_pairs: list[int] = [0]
        self.leaves: list[float] = []

    def note(self, tree: Tree) -> None:
        """Record the largest category of each feature."""
        for node in np.flatnonzero(tree.categorical).tolist():
            feature = int(tree.feature[node])
            self.largest[feature] = max(self.largest.get(feature, 0), CODES * len(tree.words(node)) - 1)

    def add(self, tree: Tree) -> None:
        """Append a tree, block by block, two of them a pair."""
        first, end, place = left_leaves(tree)
        kinds = np.where(tree.categorical, CATEGORY, np.where(tree.default_left, LEFT, RIGHT))
        blocks = -(-len(tree.leaf) // WORD)
        for begin in range(0, blocks, 2):
            wide = np.full(len(kinds), ALL_OF_TWO)
            for block in range(begin, min(begin + 2, blocks)):
                masks = [_mask(int(a), int(b), block) for a, b in zip(first, end, strict=True)]
                gone = ~np.array(masks, np.uint64) & np.uint64(ALL)
                wide &= ~(gone << np.uint64(WORD * (block - begin)))
                for node in np.flatnonzero((np.array(masks) != int(ALL)) & (kinds != CATEGORY)).tolist():
                    column = self._column(int(tree.feature[node]), int(kinds[node]), int(tree.missing[node]))
                    self.splits.append((column, _down(tree.threshold[node]), masks[node]))
                self.block_splits.append(len(self.splits))
                self.block_leaves.append(len(self.leaves) + block * WORD)
            removing = np.flatnonzero((wide != ALL_OF_TWO) & (kinds == CATEGORY))
            self._categories(tree, {node: wide[node] for node in removing.tolist()})
            self.pair_lookups.append(len(self.lookups))
            self.pair_blocks.append(len(self.block_leaves))
        self.tree_pairs.append(len(self.pair_blocks) - 1)
        self.leaves += tree.leaf[np.argsort(place)].tolist()

    def _column(self, feature: int, kind: int, missing: int) -> int:
        return self.columns.setdefault((feature, kind, missing), len(self.columns))

    def _categories(self, tree: Tree, masks: dict[int, np.uint64]) -> None:
        """Append one look-up for each categorical feature of a pair of blocks: its splits there are one table."""
        tables: dict[int, U64] = {}
        for node, mask in masks.items():
            feature = int(tree.feature[node])
            # The last place stands for missing and unknown categories, which go right.
            table = tables.setdefault(feature, np.full(self.largest[feature] + 2, ALL_OF_TWO))
            right = np.ones(len(table), bool)
            right[tree.categories(node)] = False
            table[right] &= mask
        for feature, table in tables.items():
            self.lookups.append((self._column(feature, CATEGORY, NAN), self.table_words))
            self.tables.append(table)
            self.table_words += len(table)

    def forest(self) -> Forest:
        """Return what was collected."""
        features, kinds, missing = zip(*self.columns, strict=True) if self.columns else ((), (), ())
        column, threshold, mask = zip(*self.splits, strict=True) if self.splits else ((), (), ())
        lookup_column, lookup_table = zip(*self.lookups, strict=True) if self.lookups else ((), ())
        return Forest(
            columns=Columns(
                feature=np.array(features, np.int64),
                kind=np.array(kinds, np.int64),
                missing=np.array(missing, np.int64),
                largest=np.array([self.largest.get(f, -1) for f in features], np.int64),
            ),
            splits=Splits(np.array(column, np.int32), np.array(threshold, np.float32), np.array(mask, np.uint32)),
            lookups=Lookups(
                column=np.array(lookup_column, np.int32),
                table=np.array(lookup_table, np.int64),
                words=np.concatenate([np.empty(0, np.uint64), *self.tables]),
            ),
            block_splits=np.array(self.block_splits, np.int64),
            block_leaves=np.array(self.block_leaves, np.int64),
            pair_lookups=np.array(self.pair_lookups, np.int64),
            pair_blocks=np.array(self.pair_blocks, np.int64),
            tree_pairs=np.array(self.tree_pairs, np.int64),
            leaves=np.array(self.leaves, np.float64),
        )


@dataclass(frozen=True, slots=True)
class Scorer:
    """A compiled forest. `score` gives what `Booster.predict(rows, raw_score=True)` gives, bit for bit."""

    n_features: int  # columns of a row
    forest: Forest  # as named tuples
    plain: tuple[Any, ...]  # the same as plain tuples: of named ones numba looks up every type in every call, 8 µs

    @classmethod
    def compile(cls, booster: lgb.Booster) -> "Scorer":
        """Read a booster. Raises UnsupportedError for linear trees, several classes and averaged forests."""
        trees = parse(booster.model_to_string(num_iteration=-1))
        writer = _Writer()
        for tree in trees:
            writer.note(tree)
        for tree in trees:
            writer.add(tree)
            breathe()
        forest = writer.forest()
        plain = tuple(tuple(part) if isinstance(part, tuple) else part for part in forest)
        return cls(booster.num_feature(), forest, plain)

    def score(self, rows: F32) -> F64:
        """Return float64[n] raw scores of float32[n, n_features], on the calling thread; the GIL is released."""
        if rows.ndim != 2 or rows.shape[1] != self.n_features:
            raise ValueError(f"rows of {self.n_features} columns were expected, found the shape {rows.shape}")
        out = np.zeros(len(rows))
        # Rows that fill up a pass are scored and dropped: the compiled loops then have no remainder. Unsigned codes
        # need no check for places from the end.
        width = min(-(-len(rows) // LANES) * LANES, ROWS_AT_ONCE)
        values = np.zeros((len(self.forest.columns.feature), width), np.float32)
        codes = np.zeros(values.shape, np.uint32)
        score_rows(self.plain, np.ascontiguousarray(rows, np.float32), values, codes, out)
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
    columns, splits = scorer.forest.columns, scorer.forest.splits
    for column, feature in enumerate(columns.feature):
        near = splits.threshold[splits.column == column]
        with np.errstate(over="ignore"):
            below, above = (np.nextafter(near, np.float32(side)) for side in (-np.inf, np.inf))
        values = [near, below, above, odd]
        values.append(np.arange(-1, columns.largest[column] + 3, dtype=np.float32))
        probe[: rows * 7 // 8, feature] = rng.choice(np.concatenate(values), rows * 7 // 8)
    return probe
