"""Users' histories, cut as of a time, as padded batches of tokens: one token for each event.

NumPy and numba alone: training and serving build their batches with this code.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from features.kernels import njit
from features.schema import F32, I8, I16, I32, I64, SECOND, Requests
from features.state.histories import Histories
from features.state.lag import Lag
from neural.vocabulary.context import ContextSpec

#: code columns of a token, in this order; behind them hour, weekday and attributes, where the context has them
CODES = ("grade", "surface", "organic", "gap")
N_GAPS = 14
#: a signal is clipped to so many standard deviations from its mean
FARTHEST = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSpec:
    """What the tokens' vocabulary was during fit; what lies outside it later is clamped to "unknown"."""

    n_items: int  # of the catalogue of the fit; that number itself stands for an unknown item
    n_grades: int  # of [feedback]
    n_surfaces: int  # codes 0 .. n_surfaces - 1 of the log are known
    signal_mean: tuple[float, ...]  # [k], of the grade's rank, then of each feedback column, where known during fit
    signal_scale: tuple[float, ...]  # [k], standard deviations of the same
    length: int  # the most events that a history may have, the latest ones
    context: ContextSpec = field(default_factory=ContextSpec)  # what is read of a request, and of past ones

    @property
    def n_signals(self) -> int:
        """How many signals an event has: its grade, and each feedback column."""
        return len(self.signal_mean)

    @property
    def code_sizes(self) -> tuple[int, ...]:
        """How many codes each code column of a token has, 0 being "unknown"."""
        return self.n_grades + 1, self.n_surfaces + 1, 3, N_GAPS, *self.context.token_sizes

    @property
    def context_sizes(self) -> tuple[int, ...]:
        """How many codes each column of `context_codes` has, 0 being "unknown"."""
        return self.n_surfaces + 1 if self.context.surface else 1, *self.context.sizes

    def surface_code(self, surface: I16) -> I64:
        """Return int64[n]: the code of each surface, 0 where it is unknown or new."""
        codes: I64 = _codes_of(surface, self.n_surfaces + 1)
        return codes

    def context_codes(self, surface: I16, ts: I64, context: F32) -> I64:
        """Return int64[g, c]: the code of the surface (0 where it is not read), then those of `ContextSpec`.

        surface: int16[g]; ts, context: as `ContextSpec.codes` takes them.
        """
        first = self.surface_code(surface) if self.context.surface else np.zeros(len(surface), np.int64)
        if not self.context.sizes:
            return first[:, None]
        return np.concatenate([first[:, None], self.context.codes(ts, context)], axis=1)

    def request_codes(self, requests: Requests) -> I64:
        """Return int64[g, c] `context_codes` of requests."""
        return self.context_codes(requests.surface, requests.as_of, requests.context)

    def item_row(self, item: I32) -> I64:
        """Return int64[n]: the item, or `n_items` where it is unknown."""
        return np.where((item >= 0) & (item < self.n_items), item, self.n_items).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Tokens:
    """b histories, right padded to t tokens, oldest event first; k signals."""

    item: I64  # [b, t]; `n_items` for an unknown one and for padding
    ts: I64  # [b, t], µs; 0 for padding
    codes: I64  # [b, t, c] as `CODES`, then of `ContextSpec.token_codes`; 0 unknown
    signals: F32  # [b, t, 2k]: the scaled values (0 where unknown), then whether they are known (1 or 0)
    length: I64  # [b], events of each history


def raw_signals(grade: I8, feedback: F32) -> F32:
    """Return float32[n, 1 + k]: the grade's rank, then each feedback column; NaN where unknown."""
    rank = np.where(grade >= 0, grade, np.nan).astype(np.float32)
    return np.concatenate([rank[:, None], feedback], axis=1)


def make_tokens(histories: Histories, user: I32, start: I64, stop: I64, spec: TokenSpec) -> Tokens:
    """Return the rows `start[b] .. stop[b] - 1` of each user as a padded batch; t is the longest, at least 1.

    A token's gap counts from the user's event before it, be that one in the batch or not, so a token is the
    same in every window that it stands in.
    """
    length = (stop - start).astype(np.int64)
    b, t = len(start), max(int(length.max(initial=0)), 1)
    item = np.full((b, t), spec.n_items, np.int64)
    ts = np.zeros((b, t), np.int64)
    codes = np.zeros((b, t, len(spec.code_sizes)), np.int64)
    signals = np.zeros((b, t, 2 * spec.n_signals), np.float32)
    h = histories
    # A user without events, known or not, has nothing to fill: any row will do.
    first = h.offsets[np.where(length > 0, user, 0)]
    _fill(
        start, stop, first, h.item, h.ts, h.grade, h.surface, h.organic, h.feedback,
        np.array(spec.code_sizes, np.int64), np.array(spec.signal_mean, np.float32),
        np.array(spec.signal_scale, np.float32), spec.n_items, item, ts, codes, signals,
    )  # fmt: skip
    if spec.context.token_sizes:
        there = np.arange(t) < length[:, None]
        codes[there, len(CODES) :] = spec.context.token_codes(ts[there], h.context[ranges(start, stop)])
    return Tokens(item, ts, codes, signals, length)


@njit(cache=True, nogil=True)
def _fill(
    start: I64, stop: I64, first: I64, item_in: I32, ts: I64, grade: I8, surface: I16, organic: I8, feedback: F32,
    sizes: I64, mean: F32, scale: F32, n_items: int, item: I64, at: I64, codes: I64, signals: F32,
) -> None:  # fmt: skip
    """Fill the arrays of `Tokens` (`at` is its ts) from rows of `Histories`; what is not written is padding.

        for each history b, for each of its rows start[b] .. stop[b] - 1, which is token t = row - start[b]
            item, or n_items where it is outside the vocabulary; ts
            codes of grade, surface, organic, and of the gap since the user's event before (none before first[b]: 0)
            for each known signal (the grade's rank, then the feedback columns): scaled and clipped, and its mark

    sizes: int64[c], codes of each kind. mean, scale: float32[k].
    """
    k = len(mean)
    for b in range(len(start)):
        for row in range(start[b], stop[b]):
            t = row - start[b]
            item[b, t] = item_in[row] if 0 <= item_in[row] < n_items else n_items
            at[b, t] = ts[row]
            codes[b, t, 0] = _code(grade[row], sizes[0])
            codes[b, t, 1] = _code(surface[row], sizes[1])
            codes[b, t, 2] = _code(organic[row], sizes[2])
            codes[b, t, 3] = _gap_code(ts[row] - ts[row - 1]) if row > first[b] else 0
            for c in range(k):
                known = grade[row] >= 0 if c == 0 else np.isfinite(feedback[row, c - 1])
                if known:
                    value = np.float32(grade[row]) if c == 0 else feedback[row, c - 1]
                    signals[b, t, c] = min(max((value - mean[c]) / scale[c], -FARTHEST), FARTHEST)
                    signals[b, t, k + c] = 1.0


@njit(cache=True, nogil=True)
def _codes_of(values: I16, size: int) -> I64:
    """Return int64[n]: `_code` of each value."""
    codes = np.empty(len(values), np.int64)
    for k in range(len(values)):
        codes[k] = _code(values[k], size)
    return codes


@njit(cache=True, nogil=True)
def _code(value: int, size: int) -> int:
    """Return the value's code of `size`: 0 for unknown (-1) or new, else one more than the value."""
    return value + 1 if 0 <= value < size - 1 else 0


@njit(cache=True, nogil=True)
def _gap_code(gap: int) -> int:
    """Return 1 for the same second, then one more for each factor of 4, up to some months."""
    code, left = 1, gap // SECOND
    while left > 0 and code < N_GAPS - 1:
        code, left = code + 1, left // 4
    return code


def gap_seconds() -> I64:
    """Return int64[N_GAPS]: how long the gap of each code is, in seconds, to a factor of 2; 0 for an unknown one."""
    code = np.arange(N_GAPS)
    return np.where(code < 2, 0, 2 * 4 ** np.maximum(code - 2, 0)).astype(np.int64)


def visible(histories: Histories, user: I32, as_of: I64, lag: Lag, length: int) -> tuple[I64, I64]:
    """Return int64[g] start and stop rows of each user's last `length` events with `ts < as_of` less the lag."""
    return histories.before(user, lag.cut(as_of), length)


def length_buckets(length: I64, budget: int) -> Iterator[I64]:
    """Yield index arrays of histories of like length: at most `budget` tokens once padded, or one history."""
    order = np.argsort(length, kind="stable")
    first = 0
    for last in range(1, len(order) + 1):
        # Sorted: the next one would set the width of all. One token more stands for the user.
        if last == len(order) or (last - first + 1) * (int(length[order[last]]) + 1) > budget:
            yield order[first:last]
            first = last


def mixed_buckets(length: I64, budget: int, jitter: tuple[float, float], rng: np.random.Generator) -> list[I64]:
    """Return `length_buckets` in any order, of lengths that are multiplied by a number between those of `jitter`.

    So a history meets others in each epoch; a wider jitter pads more.
    """
    mixed = rng.permutation(len(length))
    jittered = (length[mixed] * rng.uniform(*jitter, len(length))).astype(np.int64)
    parts = [mixed[part] for part in length_buckets(jittered, budget)]
    return [parts[k] for k in rng.permutation(len(parts))]


@dataclass(frozen=True, slots=True)
class Windows:
    """Users' whole histories, cut into w windows of at most `length` events that overlap by half.

    A state that has seen n events of its user is looked up in the first window that holds the n-th: it has seen all n
    there, or at least the last `length / 2`.
    """

    user: I32  # [w], never decreasing
    start: I64  # [w], row of the histories
    stop: I64  # [w], row behind the last
    first_window: I64  # [n_users + 1]; user u has the windows first_window[u] .. first_window[u + 1] - 1
    length: int  # the most events that a window has

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
        """Return int64[n] window and state of users who have seen so many events; state j has seen j of its window."""
        hop = max(self.length // 2, 1)
        window = np.maximum(-(-(seen - self.length) // hop), 0)
        return self.first_window[user] + window, seen - hop * window


def ranges(start: I64, stop: I64) -> I64:
    """Return the concatenation of `start[k] .. stop[k] - 1`."""
    sizes = stop - start
    ends = np.cumsum(sizes)
    return np.repeat(start - ends + sizes, sizes) + np.arange(ends[-1] if len(ends) else 0)
