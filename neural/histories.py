"""Users' histories, cut as of a time, as padded batches of tokens: one token for each event.

NumPy and numba alone: training and serving build their batches with this code.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numba import njit

from features.histories import Histories
from features.schema import DAY, F32, I8, I16, I32, I64, SECOND

#: `lag` of vectors that are computed once a day, at 00:00 UTC
DAILY = "daily"
#: code columns of a token, in this order
CODES = ("grade", "surface", "organic", "gap")
N_GAPS = 14


@dataclass(frozen=True, slots=True)
class TokenSpec:
    """What the tokens' vocabulary was during fit; what lies outside it later is clamped to "unknown".

    feedback_mean, feedback_scale: one for each feedback column, of the fit period's known values.
    length: the most events that a history may have, the latest ones.
    """

    n_items: int
    n_grades: int
    n_surfaces: int
    feedback_mean: tuple[float, ...]
    feedback_scale: tuple[float, ...]
    length: int

    @property
    def n_numbers(self) -> int:
        """Width of `Tokens.feedback`; at least 1, for a tensor without columns is a trap for exporters."""
        return max(2 * len(self.feedback_mean), 1)

    @property
    def code_sizes(self) -> tuple[int, ...]:
        """How many codes each of `CODES` has, 0 being "unknown"."""
        return self.n_grades + 1, self.n_surfaces + 1, 3, N_GAPS

    def surface_code(self, surface: I16) -> I64:
        """Return int64[n]: the context code of each surface, 0 where it is unknown or new."""
        code = surface.astype(np.int64) + 1
        return np.where((code < 0) | (code > self.n_surfaces), 0, code)


@dataclass(frozen=True, slots=True)
class Tokens:
    """b histories, right padded to t tokens, oldest event first.

    item: int64[b, t], `n_items` for an unknown one and for padding. codes: int64[b, t, 4] as `CODES`, 0 unknown.
    feedback: float32[b, t, n_numbers], the scaled values (0 where unknown) and then whether they are known.
    length: int64[b].
    """

    item: I64
    codes: I64
    feedback: F32
    length: I64


def cut_times(as_of: I64, lag: int | str) -> I64:
    """Return int64[g]: events with `ts <` this are visible to a request at `as_of`, for a lag in µs or `DAILY`."""
    if lag == DAILY:
        return as_of // DAY * DAY
    return as_of - int(lag)


def known_feedback(feedback: F32) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation (1 where it is 0) of each column's known values."""
    known = np.isfinite(feedback)
    count = np.maximum(known.sum(0), 1)
    values = np.where(known, feedback, 0).astype(np.float64)
    mean = values.sum(0) / count
    scale = np.sqrt((np.where(known, values - mean, 0) ** 2).sum(0) / count)
    return tuple(mean.tolist()), tuple(np.where(scale > 0, scale, 1).tolist())


@njit(cache=True, nogil=True)
def _gap_code(gap: int) -> int:
    """Return 1 for the same second, then one more for each factor of 4, up to some months."""
    code, left = 1, gap // SECOND
    while left > 0 and code < N_GAPS - 1:
        code, left = code + 1, left // 4
    return code


@njit(cache=True, nogil=True)
def _code(value: int, size: int) -> int:
    return value + 1 if 0 <= value < size - 1 else 0


@njit(cache=True, nogil=True)
def _fill(
    start: I64, stop: I64, first: I64, item_in: I32, ts: I64, grade: I8, surface: I16, organic: I8, feedback_in: F32,
    sizes: I64, mean: F32, scale: F32, n_items: int, item: I64, codes: I64, feedback: F32,
) -> None:  # fmt: skip
    k = feedback_in.shape[1]
    for b in range(len(start)):
        for row in range(start[b], stop[b]):
            t = row - start[b]
            item[b, t] = item_in[row] if 0 <= item_in[row] < n_items else n_items
            codes[b, t, 0] = _code(grade[row], sizes[0])
            codes[b, t, 1] = _code(surface[row], sizes[1])
            codes[b, t, 2] = _code(organic[row], sizes[2])
            codes[b, t, 3] = _gap_code(ts[row] - ts[row - 1]) if row > first[b] else 0
            for c in range(k):
                value = feedback_in[row, c]
                if np.isfinite(value):
                    feedback[b, t, c] = min(max((value - mean[c]) / scale[c], -10.0), 10.0)
                    feedback[b, t, k + c] = 1.0


def make_tokens(histories: Histories, user: I32, start: I64, stop: I64, spec: TokenSpec) -> Tokens:
    """Return the rows `start[b] .. stop[b] - 1` of each user as a padded batch; t is the longest, at least 1.

    The gap of a token counts from the user's event before it, be that one in the batch or not, so a token is the same in
    every window that it stands in.
    """
    length = stop - start
    b, t = len(start), max(int(length.max(initial=0)), 1)
    item = np.full((b, t), spec.n_items, np.int64)
    codes = np.zeros((b, t, len(CODES)), np.int64)
    feedback = np.zeros((b, t, spec.n_numbers), np.float32)
    first = (
        histories.offsets[np.clip(user, 0, len(histories.offsets) - 2)]
        if len(histories.offsets) > 1
        else start
    )
    k = len(spec.feedback_mean)
    _fill(
        start, stop, first, histories.item, histories.ts, histories.grade, histories.surface, histories.organic,
        histories.feedback[:, :k], np.array(spec.code_sizes, np.int64), np.array(spec.feedback_mean, np.float32),
        np.array(spec.feedback_scale, np.float32), spec.n_items, item, codes, feedback,
    )  # fmt: skip
    return Tokens(item, codes, feedback, length.astype(np.int64))


def visible(histories: Histories, user: I32, as_of: I64, lag: int | str, length: int) -> tuple[I64, I64]:
    """Return int64[g] start and stop rows of the last `length` events of each user with `ts < as_of` less the lag."""
    start, stop = histories.before(user, cut_times(as_of, lag))
    return np.maximum(start, stop - length), stop


def batches(length: I64, budget: int) -> Iterator[I64]:
    """Yield index arrays of histories of like length, each with at most about `budget` tokens once padded."""
    order = np.argsort(length, kind="stable")
    first = 0
    while first < len(order):
        size, last = 0, first
        while last < len(order) and (last == first or size <= budget):
            last += 1
            if last < len(order):
                size = (last - first + 1) * (int(length[order[last]]) + 1)
        yield order[first:last]
        first = last


@dataclass(frozen=True, slots=True)
class Windows:
    """Users' whole histories, cut into windows of at most `length` events that overlap by half.

    user: int32[w]. start, stop: int64[w] rows of the histories. A state that has seen n events of its user lies
    in the first window where its n-th event does, so it has seen all n, or no fewer than `length / 2` of the last ones.
    """

    user: I32
    start: I64
    stop: I64
    first_window: I64
    length: int

    @classmethod
    def build(cls, histories: Histories, length: int) -> "Windows":
        """Cut all histories; a user without events has one empty window."""
        sizes = np.diff(histories.offsets)
        hop = max(length // 2, 1)
        count = 1 + np.maximum(-(-(sizes - length) // hop), 0)
        first_window = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
        user = np.repeat(np.arange(len(sizes), dtype=np.int32), count)
        start = histories.offsets[user] + hop * (np.arange(len(user)) - first_window[user])
        stop = np.minimum(start + length, histories.offsets[user + 1])
        return cls(user, start, stop, first_window, length)

    def locate(self, user: I32, seen: I64) -> tuple[I64, I64]:
        """Return int64[n] window and state of a user who has seen `seen` events; state j has seen j of its window."""
        hop = max(self.length // 2, 1)
        window = np.maximum(-(-(seen - self.length) // hop), 0)
        return self.first_window[user] + window, seen - hop * window
