"""The totals of every key of items, or of users, as of the end of a level, a row for each: what a request reads.

Later than its last event nothing happens to a timeline but the passing of time, and that fades all decayed totals
of one half-life by one factor. So a value as of any later time is a row of this table, a factor for each column and
the smoothing, with no search for each candidate. It is equal up to rounding to what a timeline says: the table has
float32 and timelines run in float64, so some 17 % of the values differ in their last bits. At most 11 roundings of
2 ** -24 add up in a quotient, 6.6e-7 of the value (2.6e-7 was measured); where values of both signs cancel, of the sum
of their sizes. Windows lose events as time passes: a row has their values, to the last bit, and how long these hold.
Later than that they are read from the timeline (`Timeline.add_windows`), as is every time before the end of the level
(`Timeline.add`).
"""

from dataclasses import dataclass

import numpy as np

from features.counters.keys import has_list, key_attribute, without_arm
from features.counters.plans import DECAYED, SINCE, Plan
from features.counters.timeline import Timeline
from features.ids import IdIndex
from features.kernels import AHEAD, LINE, njit, prefetch
from features.schema import BY_ARM, F32, F64, I32, I64, SECOND, Bool, Catalog


def has_table(plan: Plan, catalog: Catalog) -> bool:
    """Return whether a plan has a table: more than windows, and one key for a candidate, of the item or of the user.

    Not of both. By arm that is one of each arm, so there is a table for each.
    """
    key = row_key(plan)
    if plan.windowed.all() or has_list(key, catalog):
        return False
    sides = {found[0] if (found := key_attribute(part, catalog)) else part for part in key}
    return not {"user", "item"} <= sides


def row_key(plan: Plan) -> tuple[str, ...]:
    """Return the parts of the key by which the rows of a plan's table are found: without the arm."""
    return plan.key[plan.key[0] == BY_ARM :]


def tables_of(plan: Plan, catalog: Catalog) -> int:
    """Return how many tables a plan has: by arm, one for each and one for none. An experiment is of two at least."""
    return 1 + max(len(catalog.arms), 2) if plan.key[0] == BY_ARM else 1


def divisors_of(plan: Plan) -> list[tuple[int, float]]:
    """Return the (total, strength) by which counters of a plan are divided, each once."""
    below = zip(plan.denominator.tolist(), plan.strength.tolist(), strict=True)
    return sorted({(total, strength) for total, strength in below if total >= 0})


def lasting(plan: Plan) -> Plan:
    """Return the part of a plan that its table has: the counters that are not of a window."""
    return plan.only(np.flatnonzero(~plan.windowed)) if plan.windowed.any() else plan


def windows_of(plan: Plan) -> Plan | None:
    """Return the other part, the counters of a window; None where there are none."""
    return plan.only(np.flatnonzero(plan.windowed)) if plan.windowed.any() else None


def row_bytes(plan: Plan) -> int:
    """Return the bytes of a row of the table of a plan."""
    kept, windows = lasting(plan), int(plan.windowed.sum())
    return (len(kept.counters) + len(divisors_of(kept)) + (windows + 1 if windows else 0)) * 4


def table_bytes(plan: Plan, timeline: Timeline) -> int:
    """Return the bytes of the table of a plan that has one."""
    keys = len(timeline.offsets) - 1
    index = IdIndex.most_bytes(keys) if len(timeline.codes) else 0
    return (keys + 1) * row_bytes(plan) + index


@dataclass(frozen=True, slots=True, kw_only=True)
class Latest:
    """A plan's c lasting counters as of `end`, the d numbers that some of them are divided by, and w windows."""

    #: [k + 1, c + d + w + 1]: of each of the k keys the numerators of the counters, then the divisors, then the values
    #: of windows, and how many µs after `end` these hold (nothing where w = 0); the last row is that of a key without
    #: events (-1). Times of last events stand as seconds before `end`, NaN: never
    table: F32
    end: int  # µs
    half_life: F64  # [c + d], µs, inf where nothing fades
    add: F32  # [c + d], the prior's part, or the strength
    since: Bool  # [c + d], the columns that grow by the second
    divisor: I64  # [c], 1 for the first, 0 for none
    counters: I64  # [c], their places in the whole list
    windows: I64  # [w], those of the counters of a window
    index: IdIndex | None  # the row of each code; None where a code is its row

    @classmethod
    def of(cls, plan: Plan, timeline: Timeline) -> "Latest":
        """Return the table of a plan that `has_table`, and is not by arm."""
        code = _codes_of(timeline)
        return cls._made(plan, timeline, np.arange(len(code)), code, timeline.codes)

    @classmethod
    def of_arm(cls, plan: Plan, timeline: Timeline, catalog: Catalog, arm: int) -> "Latest | None":
        """Return the table of a plan by arm that `has_table`, for requests of an arm (its code, -1 none).

        A row adds up what the keys of that arm and of none say. None: no event is of the arm, so the table is that of
        none.
        """
        code = _codes_of(timeline)
        of, rest = without_arm(code, plan.key, catalog)
        if arm >= 0 and not (of == arm + 1).any():
            return None
        mine = np.flatnonzero((of == 0) | (of == arm + 1))
        different, rows = np.unique(rest[mine], return_inverse=True)
        if int(different.max(initial=-1)) < 2 * len(different):  # so close that a code may be its own row
            different, rows = np.empty(0, np.int64), rest[mine]
        return cls._made(plan, timeline, rows, code[mine], different)

    @classmethod
    def _made(cls, plan: Plan, timeline: Timeline, rows: I64, code: I64, codes: I64) -> "Latest":
        """Return the table that adds up keys of a timeline in rows. codes: sorted, of the rows; empty: a code is its
        row.
        """
        windows, plan = windows_of(plan), lasting(plan)
        kind, place = plan.totals.kind, timeline.find(code)
        start, stop = timeline.offsets[place], timeline.offsets[place + 1]
        # Of these keys' events alone: what another arm does must not move a rounding.
        last = timeline.ts[stop[stop > start] - 1]
        end = int(last.max(initial=0)) + 1 + int(plan.totals.delays.max(initial=0))
        n = int(rows.max(initial=-1)) + 1
        totals = plan.empty(n + 1)
        timeline.add(plan, rows, code, np.full(n, end, np.int64), totals)
        since = kind == SINCE
        totals[:, since] = (end - np.where(np.isinf(totals[:, since]), np.nan, totals[:, since])) / SECOND
        divisors, below = divisors_of(plan), zip(plan.denominator.tolist(), plan.strength.tolist(), strict=True)
        divisor = np.array([divisors.index(b) + 1 if b[0] >= 0 else 0 for b in below], np.int64)
        shown = np.array([*plan.numerator, *(total for total, _ in divisors)], np.int64)
        add = [*np.where(divisor > 0, plan.strength * plan.prior, 0), *(strength for _, strength in divisors)]
        table = np.empty((n + 1, len(shown) + (0 if windows is None else len(windows.counters) + 1)), np.float32)
        table[:, : len(shown)] = totals[:, shown]
        if windows is not None:
            table[:, len(shown) :] = _held(windows, timeline, rows, code, end, n + 1)
        return cls(
            table=table,
            end=end,
            half_life=np.where(kind == DECAYED, plan.half_lives()[plan.totals.column], np.inf)[shown],
            add=np.array(add, np.float32),
            since=since[shown],
            divisor=divisor,
            counters=plan.counters,
            windows=np.empty(0, np.int64) if windows is None else windows.counters,
            index=IdIndex.of(codes) if len(codes) else None,
        )

    def gather(self, code: I64 | I32, as_of: int, shared: F32, out: F32) -> I64:
        """Write float32[n, width]: the plan's counters of keys (-1: no events), and `shared` elsewhere.

        as_of >= end, µs. shared: float32[width], or [0] to leave the other columns as they are. out: C-ordered.
        Returns int64[]: of which rows the windows have lost events since `end`, so that they must be read anew.
        """
        changed: I64 = _gather(
            self._rows(code), self.table, float(as_of - self.end), self.half_life, self.add, self.since, self.divisor,
            self.counters, self.windows, shared, out,
        )  # fmt: skip
        return changed

    def _rows(self, code: I64 | I32) -> I32:
        """Return int32[n]: the row of each code (-1, or one behind the table: none)."""
        if self.index is not None:
            return self.index.find(code)
        wide = code.dtype == np.int64  # a code behind the table may be more than an int32 holds
        return (np.minimum(code, len(self.table) - 1) if wide else code).astype(np.int32, copy=False)


def _codes_of(timeline: Timeline) -> I64:
    """Return int64[k]: the code of each key."""
    return timeline.codes if len(timeline.codes) else np.arange(len(timeline.offsets) - 1)


def _held(windows: Plan, timeline: Timeline, rows: I64, code: I64, end: int, n: int) -> F32:
    """Return float32[n, w + 1]: the values of windows as of `end`, and how many µs longer they hold, inf for ever.

    rows: of each key, which of the n. That number is rounded down, for before it is over, a window is the same events.
    """
    totals = windows.empty(n)
    timeline.add_windows(windows, rows, code, end, totals)
    left = timeline.windows_hold(windows, rows, code, end, n)
    rounded = left.astype(np.float32)
    rounded = np.where(rounded > left, np.nextafter(rounded, np.float32(-np.inf)), rounded)
    values = windows.finish(totals, np.full(n, end, np.int64))
    return np.concatenate([values, rounded[:, None]], axis=1)


@njit(cache=True, nogil=True, error_model="numpy")
def _rise(passed: float, half_life: F64, add: F32, since: Bool) -> tuple[F32, F32]:
    """Return (factor, plus) of `_gather`, once for all keys."""
    factor, plus = np.empty(len(half_life), np.float32), add.copy()
    for b in range(len(half_life)):
        factor[b] = np.exp2(-passed / half_life[b])
        if since[b]:
            plus[b] = passed / SECOND
    return factor, plus


# Once for all keys: factor[b] = 2 ** (-passed / half_life[b]), the fading since `end`, and plus[b], the addend.
# Then for each key i:
#     ask for the lines of the row that the 12th key from here has
#     out[i] ← shared
#     risen ← row · factor + plus                     the c numerators, then the d divisors, as of now
#     inverse ← 1, 1 / each divisor
#     out[i, counters] ← risen[:c] · inverse[divisor] by a slice where the counters stand side by side
#     out[i, windows] ← the row's; i is returned where they held no longer than until before
# A row is read once, and all of out[i] is written while it is in the first-level cache.
#
# Indexes are unsigned and rows are views: a test for a negative index in the inner loops keeps them from being vectors.
@njit(cache=True, nogil=True, error_model="numpy")
def _gather(
    rows: I32, table: F32, passed: float, half_life: F64, add: F32, since: Bool, divisor: I64, counters: I64,
    windows: I64, shared: F32, out: F32,
) -> I64:  # fmt: skip
    c, width, w = len(divisor), len(half_life), len(windows)
    row_bytes = table.shape[1] * 4
    changed, n = np.empty(len(rows) if w else 0, np.int64), 0
    factor, plus = _rise(passed, half_life, add, since)
    risen, inverse = np.empty(width, np.float32), np.ones(1 + width - c, np.float32)
    first, last = counters[0], counters[-1]
    beside = last - first == c - 1 and (np.diff(counters) == 1).all()
    none = np.uint64(len(table) - 1)
    for i in range(len(rows)):
        # As an unsigned number, -1 is above all.
        start = np.int64(min(np.uint64(rows[min(i + AHEAD, len(rows) - 1)]), none)) * row_bytes
        for line in range(0, row_bytes, LINE):
            prefetch(table, start + line)
        prefetch(table, start + row_bytes - 4)  # a row that begins within a line ends a line later
        row = table[min(np.uint64(rows[i]), none)]
        to = out[np.uint64(i)]
        for k in range(len(shared)):
            to[k] = shared[k]
        for b in range(width):
            risen[b] = row[b] * factor[b] + plus[b]
        for d in range(c, width):
            inverse[1 + d - c] = np.float32(1) / risen[d]
        if beside:
            part = to[first : last + 1]
            for b in range(c):
                part[b] = risen[b] * inverse[np.uint64(divisor[b])]
        else:
            for b in range(c):
                to[np.uint64(counters[b])] = risen[b] * inverse[np.uint64(divisor[b])]
        for k in range(w):
            to[np.uint64(windows[k])] = row[np.uint64(width + k)]
        if w and passed > row[np.uint64(width + w)]:
            changed[n] = i
            n += 1
    return changed[:n]
