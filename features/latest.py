"""The totals of every item as of the end of a segment, one row for each item: what a request reads.

Later than its last event nothing happens to a timeline but the passing of time, and that fades all decayed totals
of one half-life by one factor. So a value as of any later time is a row of this table, a factor for each column and
the smoothing: exact, with no search for each candidate. Windows lose events as time passes; they are read from the
timeline (`Timeline.add`), as is every time before the end of the segment.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit

from features.counters import Timeline
from features.plans import DECAYED, SINCE, WINDOW, Plan
from features.schema import F32, F64, I32, I64, SECOND


@dataclass(frozen=True, slots=True)
class Latest:
    """A plan's counters as of `end` (µs), those of one divisor beside each other.

    table: float32[n_items + 1, c + d]: what is above the line of c counters, then d divisors; the last row is that of
    an unknown item (-1). Times of last events stand as seconds before `end`, NaN for never. half_life: float64[c + d],
    µs, inf where nothing fades. add: float32[c + d], the prior's part, or the strength. since: int64, the columns
    that grow by the second. starts: int64[d + 2], the first counter of each divisor, those without one first.
    counters: int64[c], their places in the whole list.
    """

    table: F32
    end: int
    half_life: F64
    add: F32
    since: I64
    starts: I64
    counters: I64

    @classmethod
    def of(cls, plan: Plan, timeline: Timeline, n_items: int) -> "Latest | None":
        """Return the table of a plan whose key is the item; None where it has windows."""
        kind = plan.totals.kind
        if (kind == WINDOW).any():
            return None
        end = int(timeline.ts.max(initial=0)) + 1 + int(plan.totals.delays.max(initial=0))
        items = np.arange(n_items)
        totals = plan.empty(n_items + 1)
        timeline.add(plan, items, items, np.full(n_items, end, np.int64), totals)
        since = kind == SINCE
        totals[:, since] = (end - np.where(np.isinf(totals[:, since]), np.nan, totals[:, since])) / SECOND
        below = list(zip(plan.denominator.tolist(), plan.strength.tolist(), strict=True))
        divisors = sorted({(total, strength) for total, strength in below if total >= 0})
        group = np.array([divisors.index(b) + 1 if b[0] >= 0 else 0 for b in below])
        order = np.argsort(group, kind="stable")
        shown = np.array([*plan.numerator[order], *(total for total, _ in divisors)], np.int64)
        add = [*np.where(group > 0, plan.strength * plan.prior, 0)[order], *(strength for _, strength in divisors)]
        return cls(
            np.ascontiguousarray(totals[:, shown], np.float32),
            end,
            np.where(kind == DECAYED, plan.half_lives()[plan.totals.column], np.inf)[shown],
            np.array(add, np.float32),
            np.flatnonzero(since[shown]),
            np.searchsorted(group[order], np.arange(len(divisors) + 2)).astype(np.int64),
            plan.counters[order],
        )

    def gather(self, item: I32, as_of: int, out: F32) -> None:
        """Write float32[n, counters of the plan] of items (-1: unknown) to their columns of `out`. as_of >= end."""
        passed = as_of - self.end
        factor = np.exp2(-passed / self.half_life).astype(np.float32)
        add = self.add.copy()
        add[self.since] = passed / SECOND
        # Two passes: the processor waits for many far rows at once where it has nothing else to do with each.
        _finish_rows(self.table.take(item, axis=0), factor, add, self.starts, self.counters, out)


@njit(cache=True, nogil=True, error_model="numpy")
def _finish_rows(rows: F32, factor: F32, add: F32, starts: I64, counters: I64, out: F32) -> None:
    width, c = len(factor), len(counters)
    for i in range(len(rows)):
        for b in range(width):
            rows[i, b] = rows[i, b] * factor[b] + add[b]
        for d in range(c, width):
            inverse = np.float32(1) / rows[i, d]
            for b in range(starts[d - c + 1], starts[d - c + 2]):
                rows[i, b] *= inverse
        for b in range(c):
            out[i, counters[b]] = rows[i, b]


@njit(cache=True, nogil=True)
def spread(values: F32, counters: I64, out: F32) -> None:
    """Write float32[c] values to the columns `counters` of every row of `out`."""
    for i in range(len(out)):
        for c in range(len(counters)):
            out[i, counters[c]] = values[c]
