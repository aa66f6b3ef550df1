"""The highest of many products, found in two passes: one over all keys in 8 bits, an exact one over what that leaves.

Reading the keys is what it costs, and a byte a number is a quarter of float32's. One thread takes some 3 ms for a
million keys of 64 numbers, whatever the keys are; see `Probed` for less, where near keys stand together. The rounding
moves a product by about 1 % of its spread, so that the first pass keeps all but very few of the highest.

Of a million such keys around 2,000 centres, the 200 highest products take 3.2 ms of one thread at a recall of 1.000,
and 0.1 s to build (in full: 25 ms). usearch's HNSW (2.26, f16, 318 s to build) has a recall of .79 after 0.9 ms, of .83
after 2.1 ms, and of no more than .84 however long it searches; of keys without near ones .98, after 70 ms
(`tests/bench/peers/nearest_usearch.py`). So there is no graph here.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from features.kernels import njit
from features.schema import F32, I8, I16, I32, I64

#: keys that one maximum is of, and numbers of a key that one loop takes: constants, for the compiler to unroll
BLOCK, LANES = 64, 64
#: of a number's absolute value
LARGEST = 127
#: how many more than are asked for the first pass keeps: a share of them, and some
SHARE, SPARE = 1 / 8, 64
#: one of so many scores is sampled, and by so many more than its share the sample is cut too low
SAMPLED, SURE = 17, 24


@dataclass(frozen=True, slots=True)
class Coarse:
    """n keys of d numbers in 8 bits, padded to n' (a multiple of BLOCK) by keys that are never found."""

    codes: I8  # [ceil(d / LANES), n', LANES]
    scale: F32  # [n'], by which a key's codes are multiplied; NaN of one that is not known
    count: int  # n

    @classmethod
    def of(cls, keys: F32, rows: I32 | None = None) -> "Coarse":
        """Round float32[m, d] keys, or int32[n] rows of them in this order; one with a NaN is an unknown key."""
        rows = np.arange(len(keys), dtype=np.int32) if rows is None else rows
        n, d = len(rows), keys.shape[1]
        padded, planes = -(-n // BLOCK) * BLOCK, -(-d // LANES)
        codes, scale = np.zeros((planes, padded, LANES), np.int8), np.full(padded, np.nan, np.float32)
        _round(keys, rows, codes, scale)
        return cls(codes, scale, n)

    def picked(self, rows: I32) -> "Coarse":
        """Return int32[m] of the rows alone."""
        padded = np.zeros(-(-len(rows) // BLOCK) * BLOCK, np.int32)
        padded[: len(rows)] = rows
        scale = self.scale[padded]
        scale[len(rows) :] = np.nan
        return Coarse(np.ascontiguousarray(self.codes[:, padded]), scale, len(rows))

    @property
    def blocks(self) -> int:
        """How many maxima there are of keys."""
        return len(self.scale) // BLOCK

    def coded(self, query: F32, weight: float) -> "Coded":
        """Return weight · query, float32[d], in 8 bits, as the keys are."""
        largest = float(np.abs(query).max(initial=0.0)) or 1.0
        code = np.zeros(self.codes.shape[0] * LANES, np.int16)
        code[: len(query)] = np.rint(query * (LARGEST / largest))
        return Coded(code.reshape(-1, LANES), weight * largest / LARGEST)

    def highest(self, query: F32, weight: float, offset: F32, limit: int) -> I64:
        """Return int64[>= limit]: rows among which the highest of weight · key · query + offset are, ascending.

        query: float32[d]. offset: float32[>= n], or [0] for none. Fewer come back where fewer keys are known.
        """
        coded, most = self.coded(query, weight), np.empty(self.blocks, np.float32)
        _maxima(self.codes, self.scale, *coded, offset[: self.count], most)
        # So many blocks have a maximum from there on, and so at least so many keys do.
        threshold = least_of(most, enough(limit))
        return self.above(coded, offset, np.flatnonzero((most >= threshold) & (most > -np.inf)), threshold)[0]

    def scores(self, coded: "Coded", offset: F32, blocks: I64) -> F32:
        """Return float32[len(blocks) * BLOCK] of these blocks' keys: product + offset; -inf of unknown ones."""
        scores = np.empty(len(blocks) * BLOCK, np.float32)
        _scores(self.codes, self.scale, *coded, offset[: self.count], blocks, scores)
        return scores

    def above(self, coded: "Coded", offset: F32, blocks: I64, threshold: np.float32) -> tuple[I64, F32]:
        """Return (int64[m] rows, float32[m] scores): the known keys of these blocks not below the threshold."""
        found: tuple[I64, F32] = _above(self.codes, self.scale, *coded, offset[: self.count], blocks, threshold)
        return found


class Coded(NamedTuple):
    """A query in 8 bits: what the integer products with it are multiplied by gives weight · key · query."""

    codes: I16  # [ceil(d / LANES), LANES]
    factor: float


def enough(limit: int) -> int:
    """Return how many keys a pass keeps, of which so many are wanted."""
    return limit + int(limit * SHARE) + SPARE


def least_of(scores: F32, count: int) -> np.float32:
    """Return the least of the so many highest scores; -inf where there are fewer."""
    if count > len(scores):
        return np.float32(-np.inf)
    sample, among = scores[::SAMPLED], count // SAMPLED + SURE
    if 2 * among < len(sample):
        # It tells about where that is, so that most scores need not be parted.
        few = scores[scores >= np.partition(sample, len(sample) - among)[len(sample) - among]]
        scores = few if len(few) >= count else scores
    return np.float32(np.partition(scores, len(scores) - count)[len(scores) - count])


@njit(cache=True, nogil=True)
def _round(keys: F32, rows: I32, codes: I8, scale: F32) -> None:
    """Write the codes of each row's key, its largest number being LARGEST, and its scale."""
    for i in range(len(rows)):
        key, largest = keys[rows[i]], np.float32(0)
        for j in range(len(key)):
            largest = max(largest, abs(key[j])) if not np.isnan(key[j]) else np.float32(np.nan)
            if np.isnan(largest):
                break
        if np.isnan(largest):
            continue
        scale[i] = largest / LARGEST
        for j in range(len(key)):
            if largest > 0:
                codes[j // LANES, i, j % LANES] = np.int8(np.rint(key[j] / largest * LARGEST))


# for each block: its maximum of factor · scale · (codes · query) + offset; -inf for one without known keys
#
# Integers are summed in any order, so that the compiler multiplies and adds 32 bytes at a time. Of numbers it takes a
# maximum in vectors only where it need not keep an order: so half of a block is compared with the other half.
@njit(cache=True, nogil=True)
def _maxima(codes: I8, scale: F32, query: I16, factor: float, offset: F32, most: F32) -> None:
    total, scores = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.float32)
    for b in range(len(most)):
        _block(codes, scale, query, factor, offset, b, total, scores)
        half = BLOCK // 2
        while half > 0:
            upper = scores[half : 2 * half]
            for i in range(half):
                scores[i] = upper[i] if upper[i] > scores[i] else scores[i]
            half //= 2
        most[b] = scores[0]


@njit(cache=True, nogil=True)
def _scores(codes: I8, scale: F32, query: I16, factor: float, offset: F32, blocks: I64, scores: F32) -> None:
    total = np.empty(BLOCK, np.int32)
    for k in range(len(blocks)):
        _block(codes, scale, query, factor, offset, blocks[k], total, scores[k * BLOCK : (k + 1) * BLOCK])


@njit(cache=True, nogil=True)
def _above(
    codes: I8, scale: F32, query: I16, factor: float, offset: F32, blocks: I64, threshold: float
) -> tuple[I64, F32]:
    rows, found, n = np.empty(len(blocks) * BLOCK, np.int64), np.empty(len(blocks) * BLOCK, np.float32), 0
    total, scores = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.float32)
    for b in blocks:
        _block(codes, scale, query, factor, offset, b, total, scores)
        for i in range(BLOCK):
            if scores[i] >= threshold and scores[i] > -np.inf:
                rows[n], found[n] = b * BLOCK + i, scores[i]
                n += 1
    return rows[:n].copy(), found[:n].copy()


@njit(cache=True, nogil=True)
def _block(
    codes: I8, scale: F32, query: I16, factor: float, offset: F32, b: int, total: I32, scores: F32
) -> None:  # fmt: skip
    """Write float32[BLOCK] scores of the keys of block b, -inf of unknown ones. total: int32[BLOCK], to work in."""
    start = b * BLOCK
    for i in range(BLOCK):
        total[i] = 0
    for c in range(len(codes)):
        keys, part = codes[c, start : start + BLOCK], query[c]
        for i in range(BLOCK):
            key, product = keys[i], np.int32(0)
            for j in range(LANES):
                product += np.int32(key[j]) * np.int32(part[j])
            total[i] += product
    own = scale[start : start + BLOCK]
    for i in range(BLOCK):
        value = np.float32(total[i]) * (own[i] * np.float32(factor))
        scores[i] = value if value > -np.inf else np.float32(-np.inf)  # NaN is not above anything
    beside = offset[start : start + BLOCK]
    for i in range(len(beside)):
        scores[i] += beside[i]
