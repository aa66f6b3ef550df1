"""The highest of many products, found in two passes: one over all keys in 8 bits, an exact one over what that leaves.

Reading the keys is what it costs, and a byte a number is a quarter of float32's. One thread takes some 3 ms for a
million keys of 64 numbers, whatever the keys are; an inverted file takes less where they form clusters, and more, or
loses items, where they do not. The rounding moves a product by about 1 % of its spread, so that the first pass keeps
all but very few of the highest (`test_ranker_candidates`).
"""

from dataclasses import dataclass

import numpy as np
from numba import njit

from features.schema import F32, I8, I16, I32, I64

#: keys that one maximum is of, and numbers of a key that one loop takes: constants, for the compiler to unroll
BLOCK, LANES = 64, 64
#: of a number's absolute value
LARGEST = 127
#: how many more than are asked for the first pass keeps: a share of them, and some
SHARE, SPARE = 1 / 8, 64


@dataclass(frozen=True, slots=True)
class Coarse:
    """n keys of d numbers in 8 bits, padded to n' (a multiple of BLOCK) by keys that are never found."""

    codes: I8  # [ceil(d / LANES), n', LANES]
    scale: F32  # [n'], by which a key's codes are multiplied; NaN of one that is not known
    count: int  # n

    @classmethod
    def of(cls, keys: F32) -> "Coarse":
        """Round float32[n, d] keys; a row with a NaN is an unknown key."""
        n, d = keys.shape
        padded, planes = -(-n // BLOCK) * BLOCK, -(-d // LANES)
        codes, scale = np.zeros((planes, padded, LANES), np.int8), np.full(padded, np.nan, np.float32)
        _round(keys, codes, scale)
        return cls(codes, scale, n)

    @property
    def blocks(self) -> int:
        """How many maxima there are of keys."""
        return len(self.scale) // BLOCK

    def highest(self, query: F32, weight: float, offset: F32, limit: int) -> I64:
        """Return int64[>= limit]: rows among which the highest of weight · key · query + offset are, ascending.

        query: float32[d]. offset: float32[>= n], or [0] for none. Fewer come back where fewer keys are known.
        """
        largest = float(np.abs(query).max(initial=0.0)) or 1.0
        code = np.zeros(self.codes.shape[0] * LANES, np.int16)
        code[: len(query)] = np.rint(query * (LARGEST / largest))
        plane, factor = code.reshape(-1, LANES), np.float32(weight * largest / LARGEST)
        most = np.empty(self.blocks, np.float32)
        _maxima(self.codes, self.scale, plane, factor, offset[: self.count], most)
        wanted = limit + int(limit * SHARE) + SPARE
        threshold = np.float32(-np.inf)
        if wanted < len(most):  # so many blocks have a maximum from here on, and so at least so many keys do
            threshold = np.partition(most, len(most) - wanted)[len(most) - wanted]
        rows: I64 = _from(self.codes, self.scale, plane, factor, offset[: self.count], most, threshold)
        return rows


@njit(cache=True, nogil=True)
def _round(keys: F32, codes: I8, scale: F32) -> None:
    """Write the codes of each key, its largest number being LARGEST, and its scale."""
    for i in range(len(keys)):
        largest = np.float32(0)
        for j in range(keys.shape[1]):
            largest = max(largest, abs(keys[i, j])) if not np.isnan(keys[i, j]) else np.float32(np.nan)
            if np.isnan(largest):
                break
        if np.isnan(largest):
            continue
        scale[i] = largest / LARGEST
        for j in range(keys.shape[1]):
            if largest > 0:
                codes[j // LANES, i, j % LANES] = np.int8(np.rint(keys[i, j] / largest * LARGEST))


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
def _from(codes: I8, scale: F32, query: I16, factor: float, offset: F32, most: F32, threshold: float) -> I64:
    """Return int64[]: the known keys whose score is not below the threshold, from the blocks that have such."""
    blocks = np.flatnonzero((most >= threshold) & (most > -np.inf))
    found, n = np.empty(len(blocks) * BLOCK, np.int64), 0
    total, scores = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.float32)
    for b in blocks:
        _block(codes, scale, query, factor, offset, b, total, scores)
        for i in range(BLOCK):
            if scores[i] >= threshold and scores[i] > -np.inf:
                found[n] = b * BLOCK + i
                n += 1
    return found[:n].copy()


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
