"""The highest of many products, by the blocks of keys that may have them: `Coarse` where keys have near ones.

The keys stand in blocks of near ones (`near_together`), each of which has a mean, and a spread around it. A block is
read where this estimate is not below what as many other keys as are wanted reach already:

    weight · (mean · query + reach · spread · |query|) + the block's highest offset

This is an inverted file of many small lists of one size, but how much of it is read is left to the query: where offsets
decide, next to nothing. The reach is measured, on queries such as will be asked. The keys of the highest offsets
(few items have much demand) are set apart and always read: else they would have their whole blocks read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from features.kernels import njit
from features.pace import breathe
from features.schema import F32, I32, I64
from ranker.candidates.coarse import BLOCK, Coarse, Coded, enough, least_of
from ranker.candidates.neighbourhoods import near_together

NO_OFFSET, NO_ROWS = np.empty(0, np.float32), np.empty(0, np.int32)
#: of the highest LEADING products of each sample query, so many are in the blocks that the reach makes read
FOUND, LEADING = 0.98, 20
#: one of so many keys is set apart for its offset
APART = 64
#: how many times the wanted keys are read to begin with, and how many times as many blocks then
FIRST, FACTOR = 2, 4
LOWEST = np.float32(-np.inf)


class Over(NamedTuple):
    """How the m keys of a `Probed` stand by offsets that queries have in common."""

    offset: F32  # [m] in the order of the keys, -inf of those set apart; [0] without offsets
    most: F32  # [blocks]: the highest offset of a block's keys
    apart: Coarse  # a keys: those set apart
    apart_offset: F32  # [a]
    apart_rows: I32  # [a]


@dataclass(slots=True)
class Probed:
    """The m known of n keys, in blocks of near ones."""

    keys: Coarse
    rows: I32  # [m]: the row of each
    means: Coarse  # of the blocks
    spread: F32  # [blocks]: by how much a block's keys deviate from its mean in a direction, if in all alike
    reach: float = 0.0  # in these deviations
    last: tuple[F32, Over] | None = None  # the last offsets, and how the keys stand by them

    @classmethod
    def of(cls, keys: F32, queries: Sequence[F32]) -> "Probed":
        """Sort float32[n, d] keys into blocks, and measure the reach by some float32[d] queries.

        Keys with a number that is not finite are unknown; some are known. Queries have none such. It rests where the
        thread is unhurried.
        """
        rows = near_together(keys, BLOCK)
        means = np.empty((-(-len(rows) // BLOCK), keys.shape[1]), np.float32)
        spread = np.empty(len(means), np.float32)
        _summarise(keys, rows, means, spread)
        made = cls(Coarse.of(keys, rows), rows, Coarse.of(means), spread)
        made.reach = made._reach(queries)
        return made

    def _reach(self, queries: Sequence[F32]) -> float:
        """Return the least reach by which the blocks of the highest products are read."""
        needed = []
        for query in queries:
            breathe()
            scores = self.keys.scores(self.keys.coded(query, 1.0), NO_OFFSET, np.arange(self.keys.blocks))
            least = least_of(scores, LEADING)
            block = np.flatnonzero((scores >= least) & (scores > -np.inf)) // BLOCK
            of_means = self.means.scores(self.means.coded(query, 1.0), NO_OFFSET, np.arange(self.means.blocks))
            short = least - of_means[block]
            needed.append(short / np.maximum(self.spread[block] * np.linalg.norm(query), np.float32(1e-30)))
        return max(0.0, float(np.quantile(np.concatenate(needed), FOUND)))

    def over(self, offset: F32) -> Over:
        """Return how the keys stand by these offsets; told by the array alone whether they are those of the last call.

        Some 6 ms for a million keys, so callers give the same array for as long as they can.
        """
        last = self.last  # one read: another thread may put its own there
        if last is None or last[0] is not offset:
            last = self.last = (offset, self._over(offset))
        return last[1]

    def _over(self, offset: F32) -> Over:
        blocks = len(self.spread)
        if not len(offset):
            return Over(NO_OFFSET, np.zeros(blocks, np.float32), self.keys.picked(NO_ROWS), NO_OFFSET, NO_ROWS)
        own = offset[self.rows]
        sample = own[:: APART - 1]  # of all places in a block alike
        apart = np.flatnonzero(own > least_of(sample, len(sample) // APART)).astype(np.int32)
        theirs = own[apart]
        own[apart] = -np.inf
        most = np.maximum.reduceat(own, np.arange(0, len(own), BLOCK))
        return Over(own, most, self.keys.picked(apart), theirs, self.rows[apart])

    def highest(self, query: F32, weight: float, offset: F32, limit: int) -> I64:
        """Return int64[>= limit]: rows among which most of the highest of weight · key · query + offset are, ascending.

        query: float32[d]. weight: >= 0. offset: float32[>= n], or [0] for none; not to be changed, see `over`. Fewer
        come back where fewer keys are known.
        """
        return self.search(query, weight, offset, limit)[0]

    def search(self, query: F32, weight: float, offset: F32, limit: int) -> tuple[I64, int]:
        """Return what `highest` does, and how many blocks were read for it.

        from those set apart, keep as many as are wanted
        read the blocks of the highest estimates, some at first, then up to FACTOR times as many each time, as long as
        there are such with an estimate not below the least of the highest `limit`
        """
        over, coded, wanted = self.over(offset), self.keys.coded(query, weight), enough(limit)
        estimates = self._estimates(query, weight, coded, over)
        scores = over.apart.scores(coded, over.apart_offset, np.arange(over.apart.blocks))
        least = least_of(scores, wanted)
        beside = np.flatnonzero((scores >= least) & (scores > LOWEST))
        rows, scores = over.apart_rows[beside], scores[beside]
        read, below, count = 0, np.float32(np.inf), FIRST * wanted // BLOCK
        while True:
            down_to = least_of(scores, limit)
            blocks = np.flatnonzero(estimates >= down_to)
            if len(blocks) > count:
                down_to = least_of(estimates[blocks], count)
            blocks = blocks[(estimates[blocks] >= down_to) & (estimates[blocks] < below)]
            if not len(blocks):
                return np.sort(rows).astype(np.int64), read
            places, theirs = self.keys.above(coded, over.offset, blocks, least)
            rows, scores = np.concatenate([rows, self.rows[places]]), np.concatenate([scores, theirs])
            least = least_of(scores, wanted)
            rows, scores = rows[scores >= least], scores[scores >= least]
            read, below = read + len(blocks), down_to
            count = FACTOR * read  # more than have an estimate from `below` on, also where many have the same

    def _estimates(self, query: F32, weight: float, coded: Coded, over: Over) -> F32:
        """Return float32[blocks]: what a block's highest is estimated at. coded: weight · query."""
        beyond = over.most + self.spread * np.float32(weight * self.reach * np.linalg.norm(query))
        return self.means.scores(coded, beyond, np.arange(self.means.blocks))[: len(beyond)]


@njit(cache=True, nogil=True)
def _summarise(keys: F32, rows: I32, means: F32, spread: F32) -> None:
    """Write the mean and the spread of each block."""
    for b in range(len(means)):
        own = rows[b * BLOCK : (b + 1) * BLOCK]
        means[b] = 0
        for row in own:
            means[b] += keys[row]
        means[b] /= np.float32(len(own))
        square = np.float32(0)
        for row in own:
            square += ((keys[row] - means[b]) ** 2).sum()
        spread[b] = np.sqrt(square / np.float32(len(own) * keys.shape[1]))
