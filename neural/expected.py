"""An item's mean signals as of a time, and how far an event deviates from them. NumPy and numba alone."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from features.counters.places import first_not_before
from features.kernels import AHEAD, njit, prefetch
from features.schema import F32, F64, I32, I64, NO_CONTEXT, EventLog
from features.state.histories import Histories
from neural.histories import Tokens, TokenSpec, ranges, raw_signals

#: an item's mean signal is drawn towards the mean of all, as by so many events of the latter
PRIOR_EVENTS = 10.0


@dataclass(frozen=True, slots=True)
class ItemSignals:
    """The items' mean scaled signals as of any time, over the n events of the fit: what is known without a tower.

    After the fit an item's mean stays that of the whole fit period. So an event's token is the same in training and in
    serving.
    """

    offsets: I64  # [n_items + 1]; item i has the rows offsets[i] .. offsets[i + 1] - 1
    ts: I64  # [n], µs, never decreasing within an item
    mean: F32  # [n, k], the item's mean signals once this event is known, drawn towards 0 (the mean of all)

    @classmethod
    def build(cls, log: EventLog, spec: TokenSpec) -> Self:
        """Take the events of a log, which is in time order."""
        by_item = Histories.build(replace(log, user=log.item, item=log.user, context=NO_CONTEXT), spec.n_items)
        raw = raw_signals(by_item.grade, by_item.feedback)
        scaled = (raw - np.array(spec.signal_mean)) / np.array(spec.signal_scale)
        mean = np.empty(scaled.shape, np.float32)
        _running_means(by_item.offsets, scaled, mean)
        return cls(by_item.offsets, by_item.ts, mean)

    def before(self, item: I32 | I64, cut: I64) -> F32:
        """Return float32[..., k] over each item's events with `ts < cut`; 0 for an unknown item.

        item, cut: of one shape.
        """
        out = np.zeros((item.size, self.mean.shape[1]), np.float32)
        _look_up(self.offsets, self.ts, self.mean, item.ravel().astype(np.int64), cut.ravel(), out)
        return out.reshape(*item.shape, self.mean.shape[1])

    def surprise(self, tokens: Tokens) -> F32:
        """Return float32[b, t, k]: each known signal less what its item led one to expect, 0 where unknown.

        A like of what everyone likes says little of a user.
        """
        out = np.zeros((*tokens.item.shape, self.mean.shape[1]), np.float32)
        _deviate(self.offsets, self.ts, self.mean, tokens.item, tokens.ts, tokens.signals, out)
        return out

    def recoded(self, items: I32) -> "ItemSignals":
        """Return it for another catalogue: its item k was `items[k]` of the present one, -1 for none."""
        known = np.where(items >= 0, items, 0)
        start, stop = self.offsets[known], np.where(items >= 0, self.offsets[known + 1], self.offsets[known])
        rows = ranges(start, stop)
        offsets = np.concatenate([[0], np.cumsum(stop - start)]).astype(np.int64)
        return ItemSignals(offsets, self.ts[rows], self.mean[rows])


@njit(cache=True, nogil=True)
def _running_means(offsets: I64, scaled: F64, mean: F32) -> None:
    """Fill float32[n, k] mean from float64[n, k] scaled signals (NaN unknown); rows are by item, then in time order.

    for each item
        sums and counts of its k signals start at 0 (no other item's signals change the last bit of its means)
        for each of its rows: add the known signals; mean[row] = sum / (count + PRIOR_EVENTS)
    """
    total, count = np.zeros(scaled.shape[1]), np.zeros(scaled.shape[1])
    for item in range(len(offsets) - 1):
        total[:], count[:] = 0.0, 0.0
        for row in range(offsets[item], offsets[item + 1]):
            for k in range(scaled.shape[1]):
                if np.isfinite(scaled[row, k]):
                    total[k] += scaled[row, k]
                    count[k] += 1.0
                mean[row, k] = total[k] / (count[k] + PRIOR_EVENTS)


@njit(cache=True, nogil=True)
def _look_up(offsets: I64, ts: I64, mean: F32, item: I64, cut: I64, out: F32) -> None:
    """Write the mean after the item's last event with `ts <` the cut; 0 stays where there is none.

        for each n with an item of the fit
            bisect the item's rows for the first one with ts >= cut[n]
            out[n] = mean of the row before it, where the item has one

    offsets: int64[n_items + 1], ts: int64[rows], mean: float32[rows, k]. item, cut: int64[n]. out: float32[n, k].
    """
    for n in range(len(item)):
        ahead = item[min(n + AHEAD, len(item) - 1)]
        if 0 <= ahead < len(offsets):
            prefetch(offsets, ahead * 8)
        if not 0 <= item[n] < len(offsets) - 1:
            continue
        first = offsets[item[n]]
        row = first_not_before(ts, first, offsets[item[n] + 1], cut[n]) - 1
        if row >= first:
            for c in range(mean.shape[1]):
                out[n, c] = mean[row, c]


@njit(cache=True, nogil=True)
def _deviate(offsets: I64, ts: I64, mean: F32, item: I64, at: I64, signals: F32, out: F32) -> None:
    """Write what is left of `Tokens.signals` once what `_look_up` finds is taken from the known ones.

    item, at: int64[b, t], signals: float32[b, t, 2k] of `Tokens`. out: float32[b, t, k], of zeros.
    """
    k = out.shape[2]
    for b in range(len(item)):
        _look_up(offsets, ts, mean, item[b], at[b], out[b])
        for t in range(item.shape[1]):
            for c in range(k):
                out[b, t, c] = signals[b, t, c] - out[b, t, c] * signals[b, t, k + c]
