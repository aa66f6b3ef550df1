"""Keys in an order in which near ones stand together, so that a block of them can be judged by its mean.

Halved again and again: the line between two means of a part (2-means, on a sample) says which half of the part goes to
which side, so that all parts of a depth are of one size, whatever the keys are. A random projection tree with a learned
direction (Dasgupta and Freund 2008, "Random projection trees and low dimensional manifolds").
"""

import numpy as np

from features.kernels import njit
from features.pace import breathe
from features.schema import F32, I32

#: keys of which a direction is learned, and how often it is improved
SAMPLE, ROUNDS = 512, 4
#: keys that one step of the work takes whole: some 10 ms
STEP = 8192


def near_together(keys: F32, size: int) -> I32:
    """Return int32[m]: the rows of the m finite keys; each `size` of them, from the first on, are near each other.

    keys: float32[n, d]. The same keys give the same order. It rests now and then where the thread is unhurried, and
    holds the interpreter's lock for none of the work: some 2 s for a million keys of 64 numbers.
    """
    rows: I32 = _finite(keys)
    parts = [rows]
    while parts:
        part = parts.pop()
        breathe()
        if len(part) <= STEP:
            _halve_all(keys, part, size)
        else:
            half = _halve(keys, part, size)
            parts += [part[:half], part[half:]]
    return rows


@njit(cache=True, nogil=True)
def _finite(keys: F32) -> I32:
    rows, n = np.empty(len(keys), np.int32), 0
    for i in range(len(keys)):
        rows[n] = i
        n += np.isfinite(keys[i]).all()
    return rows[:n].copy()


@njit(cache=True, nogil=True)
def _halve_all(keys: F32, rows: I32, size: int) -> None:
    parts = [(0, len(rows))]
    while len(parts) > 0:
        start, stop = parts.pop()
        if stop - start > size:
            half = start + _halve(keys, rows[start:stop], size)
            parts.append((start, half))
            parts.append((half, stop))


# project the keys on the direction; the lower half, rounded up to whole blocks, goes first
@njit(cache=True, nogil=True)
def _halve(keys: F32, rows: I32, size: int) -> int:
    """Part the rows in place; return how many are in the first half, a multiple of size."""
    along = _products(keys, rows, _direction(keys, rows))
    half = ((len(rows) + 1) // 2 + size - 1) // size * size
    middle = np.partition(along, half - 1)[half - 1]
    ties = half - (along < middle).sum()  # of those at the middle, so many go first
    old, low, high = rows.copy(), 0, half
    for k in range(len(rows)):
        tie = along[k] == middle and ties > 0
        ties -= tie
        if along[k] < middle or tie:
            rows[low] = old[k]
            low += 1
        else:
            rows[high] = old[k]
            high += 1
    return half


# start from the key that is farthest from the mean
# part the sample at its median along the direction; the two parts' means give the next direction
@njit(cache=True, nogil=True)
def _direction(keys: F32, rows: I32) -> F32:
    """Return float32[d]: from the mean of one half of the keys to that of the other."""
    sample = rows[:: max(1, len(rows) // SAMPLE)]
    mean, direction = np.zeros(keys.shape[1], np.float32), np.zeros(keys.shape[1], np.float32)
    for row in sample:
        mean += keys[row] / np.float32(len(sample))
    farthest = np.float32(-1)
    for row in sample:
        distance = ((keys[row] - mean) ** 2).sum()
        if distance > farthest:
            farthest, direction = distance, keys[row] - mean
    for _ in range(ROUNDS):
        along = _products(keys, sample, direction)
        middle = np.median(along)
        direction[:] = 0
        for k, row in enumerate(sample):
            direction += keys[row] if along[k] > middle else -keys[row]
    return direction


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _products(keys: F32, rows: I32, direction: F32) -> F32:
    along = np.empty(len(rows), np.float32)
    for k in range(len(rows)):
        key, total = keys[rows[k]], np.float32(0)
        for j in range(len(direction)):
            total += key[j] * direction[j]
        along[k] = total
    return along
