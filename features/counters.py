"""Counters as of any time: each key's events in time order, with running totals beside every event.

The value of a counter for (key, as_of) is read off the last event of the key with `ts < as_of`: a running sum
(less the sum before the window's start), or a running decayed sum carried on to as_of. Training rows and
requests take this one path; the cost is a binary search for each (key, as_of).
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numba import njit

from features.schema import F32, F64, I16, I32, I64, SECOND, Catalog, EventLog
from features.spec import Counter, event_values

T = TypeVar("T")

# Running columns: what stands beside each event.
SUM, DECAY, LAST = 0, 1, 2
# Totals: how a number as of a time is read off the running columns.
ALL, WINDOW, DECAYED, SINCE = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Plan:
    """How the counters of one key are computed.

    series: (event, form) of each value series, form `value`, `hit` (value is not 0) or `trial` (value is known).
    running_*: int64[c] series and kind, float64[c] half-life in µs, of each running column.
    total_*: int64[b] kind, running column and window in µs, of each total.
    counters: their places in the whole list. numerator, denominator: the totals of each (-1: none).
    """

    key: tuple[str, ...]
    series: tuple[tuple[str, str], ...]
    running_series: I64
    running_kind: I64
    half_life: F64
    total_kind: I64
    total_column: I64
    total_window: I64
    counters: I64
    numerator: I64
    denominator: I64
    strength: F64
    prior: F64


class _Index(Generic[T]):
    """Numbers things in the order in which they are first asked for."""

    def __init__(self) -> None:
        self.items: list[T] = []

    def __call__(self, item: T) -> int:
        if item not in self.items:
            self.items.append(item)
        return self.items.index(item)


def make_plans(counters: tuple[Counter, ...]) -> tuple[Plan, ...]:
    """Return one plan for each key, so that counters of a key share its search and its running columns."""
    keys = dict.fromkeys(counter.key for counter in counters)
    return tuple(_plan(key, counters) for key in keys)


def _plan(key: tuple[str, ...], counters: tuple[Counter, ...]) -> Plan:
    series: _Index[tuple[str, str]] = _Index()
    running: _Index[tuple[int, int, float]] = _Index()
    totals: _Index[tuple[int, int, int]] = _Index()

    def total(counter: Counter, form: str) -> int:
        number = series((counter.event, form))
        if counter.stat == "since":
            return totals((SINCE, running((number, LAST, 0.0)), 0))
        if counter.span.kind == "h":
            return totals((DECAYED, running((number, DECAY, float(counter.span.size))), 0))
        kind = WINDOW if counter.span.kind == "w" else ALL
        return totals((kind, running((number, SUM, 0.0)), counter.span.size))

    mine = [(place, counter) for place, counter in enumerate(counters) if counter.key == key]
    smoothed = [counter.stat in ("rate", "mean") for _, counter in mine]
    numerator = [total(c, "value" if c.stat in ("sum", "mean") else "hit") for _, c in mine]
    denominator = [total(c, "trial") if s else -1 for (_, c), s in zip(mine, smoothed, strict=True)]
    return Plan(
        key,
        tuple(series.items),
        np.array([r[0] for r in running.items], np.int64),
        np.array([r[1] for r in running.items], np.int64),
        np.array([r[2] for r in running.items], np.float64),
        np.array([t[0] for t in totals.items], np.int64),
        np.array([t[1] for t in totals.items], np.int64),
        np.array([t[2] for t in totals.items], np.int64),
        np.array([place for place, _ in mine], np.int64),
        np.array(numerator, np.int64),
        np.array(denominator, np.int64),
        np.array([c.strength for _, c in mine]),
        np.array([c.prior for _, c in mine]),
    )


def key_codes(key: tuple[str, ...], catalog: Catalog, user: I32, item: I32, surface: I16) -> tuple[I64, I64, int]:
    """Return (rows, codes, size): the key of each row as one integer in [0, size), -1 where a part is missing.

    A multi-valued attribute gives a row several codes (`rows` repeats it), or none where its list is empty.
    """
    rows = np.arange(len(item), dtype=np.int64)
    code, size = np.zeros(len(item), np.int64), 1
    multi = None
    for part in key:
        values, radix = _part(part, catalog, user, item, surface)
        if values is None:
            multi = part
            continue
        code = np.where((code < 0) | (values < 0), -1, code * radix + values)
        size *= radix
    if multi is not None:
        attribute = catalog.item_attribute(multi)
        safe = np.maximum(item, 0)
        counts = np.where(item >= 0, np.diff(attribute.offsets)[safe], 0)
        rows = np.repeat(rows, counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        values = attribute.codes[np.repeat(attribute.offsets[:-1][safe], counts) + within]
        radix = max(len(attribute.values), 1)
        code = np.where(code[rows] < 0, -1, code[rows] * radix + values)
        size *= radix
    return rows, code, size


def _part(part: str, catalog: Catalog, user: I32, item: I32, surface: I16) -> tuple[I64 | None, int]:
    """Return the values of one part of a key (None for a multi-valued attribute) and how many there can be."""
    if part == "user":
        return user.astype(np.int64), max(catalog.n_users, 1)
    if part == "item":
        return item.astype(np.int64), max(catalog.n_items, 1)
    if part == "surface":
        return surface.astype(np.int64), max(len(catalog.surfaces), 1)
    attribute = catalog.item_attribute(part)
    if attribute.kind == "multi":
        return None, len(attribute.values)
    codes = np.append(attribute.codes, np.int32(-1))  # an unknown item (-1) reads the last place
    return codes[item].astype(np.int64), max(len(attribute.values), 1)


@njit(cache=True, nogil=True)
def _run(offsets: I64, ts: I64, values: F64, series: I64, kind: I64, half_life: F64, out: F64) -> None:
    for k in range(len(offsets) - 1):
        for e in range(offsets[k], offsets[k + 1]):
            first = e == offsets[k]
            for c in range(len(series)):
                value = values[e, series[c]]
                if kind[c] == SUM:
                    out[e, c] = value if first else out[e - 1, c] + value
                elif kind[c] == DECAY:
                    faded = 0.0 if first else out[e - 1, c] * 2.0 ** (-(ts[e] - ts[e - 1]) / half_life[c])
                    out[e, c] = faded + value
                else:
                    before = -np.inf if first else out[e - 1, c]
                    out[e, c] = float(ts[e]) if value != 0 else before


@njit(cache=True, nogil=True)
def _first_not_before(ts: I64, lo: int, hi: int, cut: int) -> int:
    while lo < hi:
        middle = (lo + hi) // 2
        if ts[middle] < cut:
            lo = middle + 1
        else:
            hi = middle
    return lo


@njit(cache=True, nogil=True)
def _totals(
    offsets: I64, ts: I64, running: F64, keys: I64, rows: I64, as_of: I64,
    kind: I64, column: I64, window: I64, half_life: F64, out: F64,
) -> None:  # fmt: skip
    for i in range(len(keys)):
        if keys[i] < 0:
            continue
        r = rows[i]
        start = offsets[keys[i]]
        stop = _first_not_before(ts, start, offsets[keys[i] + 1], as_of[r])
        if stop == start:
            continue
        for b in range(len(kind)):
            last = running[stop - 1, column[b]]
            if kind[b] == ALL:
                out[r, b] += last
            elif kind[b] == WINDOW:
                begin = _first_not_before(ts, start, stop, as_of[r] - window[b])
                out[r, b] += last - (running[begin - 1, column[b]] if begin > start else 0.0)
            elif kind[b] == DECAYED:
                out[r, b] += last * 2.0 ** (-(as_of[r] - ts[stop - 1]) / half_life[column[b]])
            else:
                out[r, b] = max(out[r, b], last)


@dataclass(frozen=True, slots=True)
class Timeline:
    """The events of each key with their running columns.

    codes: int64[k], sorted, the keys that occur; empty where every code in [0, k) has a place of its own.
    offsets: int64[k + 1] into ts: int64[m] (never decreasing within a key) and running: float64[m, c].
    """

    codes: I64
    offsets: I64
    ts: I64
    running: F64

    @classmethod
    def build(cls, plan: Plan, log: EventLog, catalog: Catalog, grades: tuple[str, ...]) -> "Timeline":
        """Sort the events by key (time order stays) and run the columns of the plan once over them."""
        rows, code, size = key_codes(plan.key, catalog, log.user, log.item, log.surface)
        known = np.flatnonzero(code >= 0)
        order = known[np.argsort(code[known], kind="stable")]
        if len(plan.key) == 1:
            codes = np.empty(0, np.int64)
            offsets = np.searchsorted(code[order], np.arange(size + 1)).astype(np.int64)
        else:
            codes, counts = np.unique(code[order], return_counts=True)
            offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = rows[order]
        ts = log.ts[rows]
        values = np.empty((len(rows), len(plan.series)))
        for s, (event, form) in enumerate(plan.series):
            values[:, s] = _form(log, event, form, grades)[rows]
        running = np.empty((len(rows), len(plan.running_series)))
        _run(offsets, ts, values, plan.running_series, plan.running_kind, plan.half_life, running)
        return cls(codes, offsets, ts, running)

    def find(self, code: I64) -> I64:
        """Return the place of each code, -1 where the key has no event."""
        if not len(self.codes):
            return np.where(code < len(self.offsets) - 1, code, -1)
        at = np.minimum(np.searchsorted(self.codes, code), len(self.codes) - 1)
        return np.where(self.codes[at] == code, at, -1)

    def values(self, plan: Plan, rows: I64, code: I64, as_of: I64) -> F32:
        """Return float32[len(as_of), counters of the plan]; rows, code: from `key_codes`."""
        totals = np.zeros((len(as_of), len(plan.total_kind)))
        totals[:, plan.total_kind == SINCE] = -np.inf
        _totals(
            self.offsets, self.ts, self.running, self.find(code), rows, as_of,
            plan.total_kind, plan.total_column, plan.total_window, plan.half_life, totals,
        )  # fmt: skip
        return _finish(plan, totals, as_of)


def _form(log: EventLog, event: str, form: str, grades: tuple[str, ...]) -> F32:
    value, trial = event_values(log, event, grades)
    if form == "trial":
        return trial
    return value if form == "value" else (value != 0).astype(np.float32)


def _finish(plan: Plan, totals: F64, as_of: I64) -> F32:
    """Turn totals into counters: counts and sums as they are, smoothed rates, seconds since (NaN: never)."""
    values = totals[:, plan.numerator]
    smoothed = plan.denominator >= 0
    trials = totals[:, plan.denominator[smoothed]]
    strength, prior = plan.strength[smoothed], plan.prior[smoothed]
    values[:, smoothed] = (values[:, smoothed] + strength * prior) / (trials + strength)
    since = plan.total_kind[plan.numerator] == SINCE
    last = np.where(np.isinf(values[:, since]), np.nan, values[:, since])
    values[:, since] = (as_of[:, None] - last) / SECOND
    return values.astype(np.float32)
