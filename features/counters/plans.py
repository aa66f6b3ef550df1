"""Plans: how all counters of one key are computed from one pass over its events.

Counters share what they have in common. A *series* is a value that each event has (is it a `like`?). A *running
column* accumulates a series: a sum, a decayed sum, or the time of the last event. A *total* is what a counter
reads off a running column as of a time. A counter is one total, or a smoothed quotient of two.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from features.counters.spec import Counter, worth_by_grade
from features.kernels import njit
from features.schema import F32, F64, I64, SECOND, Bool

T = TypeVar("T")

#: `Running.decay` of a plain sum, and of the time of the last event; a half-life's number otherwise
SUM, LAST = -1, -2
#: `Totals.kind`
ALL, WINDOW, DECAYED, SINCE = 0, 1, 2, 3
#: `Running.form` of a series that is a feedback column: its value, whether it is not 0, whether it is known
VALUE, HIT, TRIAL = 0, 1, 2


class Running(NamedTuple):
    """What is accumulated: c columns, sums first, then the decayed ones of each of h half-lives, then last times."""

    table: F64  # [grades + 1, c], the value that an event adds by its grade + 1
    fed: I64  # [f], the columns that add a feedback column's value instead, …
    feed: I64  # [f], … of `Plan.feedback` this one, …
    form: I64  # [f], … in this form: VALUE, HIT or TRIAL
    starts: I64  # [h + 2], the first column of each half-life, the first of the last times, and c
    decay: I64  # [c], the half-life's number, SUM or LAST
    half_life: F64  # [h], µs


class Totals(NamedTuple):
    """What is read: b totals, each off a running column."""

    kind: I64  # [b], ALL, WINDOW, DECAYED or SINCE
    column: I64  # [b], of `Running`
    window: I64  # [b], µs, of a WINDOW
    delay: I64  # [b], which one of `delays`
    delays: I64  # [d], µs: an event is seen this long after it; totals of one delay share a search


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The n counters of one key, of b totals."""

    key: tuple[str, ...]  # parts, as in `features.counters.keys`
    feedback: tuple[str, ...]  # the feedback columns that the counters read
    running: Running  # what the events are accumulated to
    totals: Totals  # what the counters read off it
    counters: I64  # [n], their places in the whole list
    numerator: I64  # [n], the total of each
    denominator: I64  # [n], the total that it is divided by, -1 for none
    strength: F64  # [n], of a quotient: so many trials at the prior are added
    prior: F64  # [n], of a quotient
    since: Bool  # [n], which are seconds since the time that their total is
    nothing: F64  # [b], the totals of a key without events

    def half_lives(self) -> F64:
        """Return float64[c]: the half-life of each running column in µs, inf where nothing fades."""
        decay = self.running.decay
        return np.append(self.running.half_life, [np.inf, np.inf])[decay]  # SUM and LAST are the last two

    def empty(self, n: int) -> F64:
        """Return float64[n, b] totals of keys without events."""
        totals = np.empty((n, len(self.nothing)))
        totals[:] = self.nothing
        return totals

    def finish(self, totals: F64, as_of: I64) -> F32:
        """Turn float64[n, b] totals into float32[n, counters]: sums, smoothed quotients, seconds since (NaN: never)."""
        out = np.empty((len(totals), len(self.counters)), np.float32)
        _finish(totals, self.numerator, self.denominator, self.strength, self.prior, self.since, as_of, out)
        return out

    def write(self, totals: F64, place: I64, as_of: int, out: F32) -> None:
        """Write what `finish` makes of totals as of one time to the counters' columns of `out`, float32[n, width].

        place: int64[n], the row of totals for each of `out`; -1 is the last one.
        """
        values = self.finish(totals, np.full(1, as_of, np.int64))
        _spread(values, place, self.counters, out)

    @property
    def windowed(self) -> Bool:
        """bool[n]: which counters are of a window."""
        return np.asarray(self.totals.kind[self.numerator] == WINDOW)

    def only(self, some: Sequence[int] | I64) -> "Plan":
        """Return the plan of some of the n counters alone, over the same running columns."""
        above, below = self.numerator[some].tolist(), self.denominator[some].tolist()
        kept = list(dict.fromkeys(total for total in (*above, *below) if total >= 0))
        t = self.totals
        return replace(
            self,
            totals=Totals(t.kind[kept], t.column[kept], t.window[kept], t.delay[kept], t.delays),
            counters=self.counters[some],
            numerator=np.array([kept.index(total) for total in above], np.int64),
            denominator=np.array([kept.index(total) if total >= 0 else -1 for total in below], np.int64),
            strength=self.strength[some],
            prior=self.prior[some],
            since=self.since[some],
            nothing=self.nothing[kept],
        )


def make_plans(counters: tuple[Counter, ...], grades: tuple[str, ...] = ()) -> tuple[Plan, ...]:
    """Return one plan for each key, so that counters of a key share their events, search and running columns."""
    summed = [(place, c) for place, c in enumerate(counters) if c.kind != "distinct"]
    keys = dict.fromkeys(c.key for _, c in summed)
    return tuple(_Planner(grades).plan(key, [(p, c) for p, c in summed if c.key == key]) for key in keys)


class _Planner:
    """Collects what the counters of one key need, each thing once and by its number."""

    def __init__(self, grades: tuple[str, ...]) -> None:
        self.grades = grades
        self.feedback: _Numbers[str] = _Numbers()  # names of columns
        self.series: _Numbers[tuple[float, ...] | tuple[str, str]] = _Numbers()  # values by grade; or (column, form)
        self.half_life: _Numbers[int] = _Numbers()  # µs
        self.running: _Numbers[tuple[int, int]] = _Numbers()  # (series, decay)
        self.delays: _Numbers[int] = _Numbers()  # µs
        self.totals: _Numbers[tuple[int, int, int, int]] = _Numbers()  # (kind, running, window, delay)

    def plan(self, key: tuple[str, ...], mine: list[tuple[int, Counter]]) -> Plan:
        """Return the plan of counters, each with its place: running columns sorted by kind, as `Running` has them."""
        parts = [self.quotient(counter) for _, counter in mine]
        kinds = [
            decay if decay >= 0 else len(self.half_life.items) if decay == LAST else -1
            for _, decay in self.running.items
        ]
        order = sorted(range(len(kinds)), key=kinds.__getitem__)
        return Plan(
            key=key,
            feedback=tuple(self.feedback.items),
            running=self._running(order, [kinds[k] for k in order]),
            totals=Totals(
                kind=_column(self.totals.items, 0),
                column=np.argsort(order)[_column(self.totals.items, 1)],
                window=_column(self.totals.items, 2),
                delay=_column(self.totals.items, 3),
                delays=np.array(self.delays.items, np.int64),
            ),
            counters=np.array([place for place, _ in mine], np.int64),
            numerator=_column(parts, 0),
            denominator=_column(parts, 1),
            strength=np.array([c.strength for _, c in mine]),
            prior=np.array([c.prior for _, c in mine]),
            since=np.array([c.kind == "since" for _, c in mine]),
            nothing=np.where(_column(self.totals.items, 0) == SINCE, -np.inf, 0.0),
        )

    def quotient(self, counter: Counter) -> tuple[int, int]:
        """Return numerator and denominator (-1: none)."""
        if counter.kind == "ratio":
            over = self.total(counter, counter.argument, "value")
            return self.total(counter, counter.event, "value"), over
        form = "value" if counter.kind in ("sum", "mean") else "hit"
        numerator = self.total(counter, counter.event, form)
        smoothed = counter.kind in ("rate", "mean")
        return numerator, self.total(counter, counter.event, "trial") if smoothed else -1

    def total(self, counter: Counter, event: str, form: str) -> int:
        """Return the number of the total of an event's series. form: `value`, `hit` or `trial`."""
        worth = worth_by_grade(event, self.grades)
        if worth is None:
            self.feedback(event)
        series = self.series((event, form) if worth is None else getattr(worth, form))
        delay = self.delays(counter.span.delay)
        if counter.kind == "since":
            return self.totals((SINCE, self.running((series, LAST)), 0, delay))
        if counter.span.kind == "h":
            column = self.running((series, self.half_life(counter.span.size)))
            return self.totals((DECAYED, column, 0, delay))
        kind = WINDOW if counter.span.kind == "w" else ALL
        return self.totals((kind, self.running((series, SUM)), counter.span.size, delay))

    def _running(self, order: list[int], kinds: list[int]) -> Running:
        forms = ("value", "hit", "trial")
        table = np.zeros((len(self.grades) + 1, len(order)))
        fed = []  # (column, feedback column, form)
        for c, k in enumerate(order):
            item = self.series.items[self.running.items[k][0]]
            if isinstance(item[0], str):
                fed.append((c, self.feedback.items.index(item[0]), forms.index(str(item[1]))))
            else:
                table[:, c] = item
        starts = np.searchsorted(kinds, np.arange(len(self.half_life.items) + 2)).astype(np.int64)
        decay = np.array([self.running.items[k][1] for k in order], np.int64)
        half_life = np.array(self.half_life.items, np.float64)
        columns, feed, form = (_column(fed, k) for k in range(3))
        return Running(table=table, fed=columns, feed=feed, form=form, starts=starts, decay=decay, half_life=half_life)


class _Numbers(Generic[T]):
    """Numbers things in the order in which they are first asked for."""

    def __init__(self) -> None:
        self.items: list[T] = []

    def __call__(self, item: T) -> int:
        if item not in self.items:
            self.items.append(item)
        return self.items.index(item)


def _column(rows: Sequence[tuple[int, ...]], k: int) -> I64:
    return np.array([row[k] for row in rows], np.int64)


@njit(cache=True, nogil=True, error_model="numpy")
def _finish(
    totals: F64, numerator: I64, denominator: I64, strength: F64, prior: F64, since: Bool, as_of: I64, out: F32
) -> None:  # fmt: skip
    """Turn each row of totals, float64[n, b], into counters, float32[n, c] `out`.

    for each row, for each counter
        value ← its total
        where it has a denominator: value ← (value + strength · prior) / (that total + strength)
        where both are 0, without smoothing: NaN, as `Latest` has it
        where its total is a time: value ← the seconds from then to as_of (int64[n], or [1] for all), NaN where there
        was no event
    """
    for i in range(len(out)):
        now = as_of[i if len(as_of) > 1 else 0]
        for c in range(len(numerator)):
            value = totals[i, numerator[c]]
            if denominator[c] >= 0:
                value = (value + strength[c] * prior[c]) / (totals[i, denominator[c]] + strength[c])
            if since[c]:
                value = (now - value) / SECOND if value > -np.inf else np.nan
            out[i, c] = value


@njit(cache=True, nogil=True)
def _spread(values: F32, place: I64, columns: I64, out: F32) -> None:
    """Write to the columns int64[c] of `out` a row of `values` each: place int64[n], -1 the last one."""
    for i in range(len(place)):
        row = values[place[i] if place[i] >= 0 else len(values) - 1]
        for c in range(len(columns)):
            out[i, columns[c]] = row[c]


@njit(cache=True, nogil=True)
def scatter(values: F32, rows: I64, columns: I64, out: F32) -> None:
    """Write float32[n, c] values to the given rows and columns of `out`."""
    for i in range(len(rows)):
        for c in range(len(columns)):
            out[rows[i], columns[c]] = values[i, c]
