"""Counters as of any time: each key's events in time order, with running totals beside every sixteenth.

The value of a counter for (key, as_of) is read off the events of the key with `ts < as_of`: the running columns
as they stood at the last mark, run on over the few events since. Training rows and requests take this one path.
A read costs a binary search and at most `EVERY` events; an event costs 9 bytes, and a mark's share.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from features.counters.keys import has_list, key_codes
from features.counters.places import find_places, first_not_before, places_of
from features.counters.plans import ALL, DECAYED, HIT, LAST, SINCE, TRIAL, Plan, Running, Totals
from features.counters.sorting import keep_wanted, stable_order
from features.counters.spec import check_event
from features.kernels import AHEAD, njit, prefetch
from features.schema import F32, F64, I8, I32, I64, Catalog, EventLog, Requests

#: of kernels that are inlined
SMALL = {"cache": True, "nogil": True, "inline": "always"}
#: a mark stands after each so many events of a key
EVERY = 16
#: reads of so many keys at once are sorted first
MANY = 10_000


class Events(NamedTuple):
    """The arrays of a `Timeline` that the kernels read."""

    offsets: I64  # [k + 1], the events of key i are [offsets[i], offsets[i + 1])
    ts: I64  # [m], µs, never decreasing within a key
    grade: I8  # [m], rank, -1 for none
    feedback: F32  # [m, f], of the plan's feedback columns, NaN where unknown
    marks: F64  # [m // EVERY, c], of the key that begins at o the rows from o // EVERY on


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The events of each key, and the running columns of the plan after each `EVERY` of them; read-only arrays."""

    codes: I64  # [k], sorted, the keys that occur; empty where every code in [0, k) has a place of its own
    offsets: I64  # [k + 1], the events of the key at place i are [offsets[i], offsets[i + 1])
    ts: I64  # [m], µs, never decreasing within a key
    grade: I8  # [m], rank, -1 for none
    feedback: F32  # [m, f], of the plan's feedback columns, NaN where unknown
    #: [m // EVERY, c], of the key that begins at o the rows from o // EVERY on: row o // EVERY + j holds the running
    #: totals after (j + 1) · EVERY of its events (the next key begins behind all of these, so no two keys share a row)
    marks: F64

    def __post_init__(self) -> None:
        # Built or mapped, the arrays are of one type for the kernels.
        for array in (self.codes, *self.events):
            array.flags.writeable = False

    @classmethod
    def build(
        cls,
        plan: Plan,
        log: EventLog,
        catalog: Catalog,
        grades: tuple[str, ...] = (),
        asked: Requests | None = None,
    ) -> "Timeline":
        """Sort the events by key (time order stays) and run the plan over them. Linear in the events.

        asked: the only requests that will be; events of other keys are left out.
        """
        for name in plan.feedback:
            check_event(name, grades, log.feedback_names)
        rows, code, size = key_codes(plan.key, catalog, log.user, log.item, log.surface, log.arm)
        if asked is not None:
            owner = asked.row_request()
            of = asked.user[owner], asked.item, asked.surface[owner], asked.arm[owner]
            keep_wanted(code, key_codes(plan.key, catalog, *of, asked=True)[1])
        if (code < 0).any():
            known = np.flatnonzero(code >= 0)
            rows, code = rows[known], code[known]
        order = stable_order(code, size)
        all_once = len(rows) == len(log) and not has_list(plan.key, catalog)
        moved = order if all_once else rows[order]
        codes, offsets = places_of(code, order)
        feedback = log.feedback[:, [log.feedback_names.index(name) for name in plan.feedback]][moved]
        marks = np.zeros((len(moved) // EVERY, len(plan.running.decay)))
        ts, grade = _moved(moved, log.ts, log.grade)
        events = Events(offsets, ts, grade, np.ascontiguousarray(feedback), marks)
        _mark(events, plan.running, marks)
        return cls(codes=codes, **events._asdict())

    @property
    def events(self) -> Events:
        """The arrays for the kernels."""
        return Events(self.offsets, self.ts, self.grade, self.feedback, self.marks)

    def find(self, code: I64 | I32) -> I64:
        """Return the place of each code, -1 where the key has no event."""
        return find_places(self.codes, self.offsets, code)

    def add(self, plan: Plan, rows: I64, code: I64, as_of: I64, totals: F64) -> None:
        """Add to float64[len(as_of), b] totals what this timeline knows. rows, code: from `key_codes`."""
        places = self.find(code)
        if len(places) < MANY:
            _read(self.events, plan.running, plan.totals, places, rows, as_of, totals)
            return
        # In the order of the keys memory is read in order, and what is out of order is moved in loops of its own.
        order = stable_order(places + 1, len(self.offsets))
        rows, found = rows[order], plan.empty(len(order))
        _read(self.events, plan.running, plan.totals, places[order], np.arange(len(order)), as_of[rows], found)
        merge_totals(found, np.arange(len(order)), rows, plan.totals.kind, totals)

    def add_at(self, plan: Plan, code: I64, as_of: int, totals: F64) -> None:
        """Add likewise what it knows as of one time, in row i of the i-th code."""
        _read_at(self.events, plan.running, plan.totals, self.find(code), as_of, totals)

    def add_windows(self, plan: Plan, rows: I64, code: I64 | I32, as_of: int, totals: F64) -> None:
        """Add likewise what it knows as of one time. plan: of windows alone (`Plan.windowed`)."""
        _read_windows(self.events, plan.running, plan.totals, self.find(code), rows, as_of, totals)

    def windows_hold(self, plan: Plan, rows: I64, code: I64 | I32, as_of: int, n: int) -> F64:
        """Return float64[n]: how many µs longer windows as of one time stay what they are, inf for ever.

        plan, rows, code: as in `add_windows`; no event comes after as_of.
        """
        left = np.full(n, np.inf)
        _windows_hold(self.events, plan.totals, self.find(code), rows, as_of, left)
        return left


# The kernels, in the order in which `build` and `add` call them. Most work on `at`: float64[c], the running columns of
# one key as they stand after some of its events.
#
#   _mark       for each key: at ← nothing; after every 16th event, write `at` to the marks
#   _run        at ← at with the events [begin, stop): for each, a sum adds the event's value, a decayed sum fades by
#               the time since the event before and adds it, and a last time becomes the event's where the value is
#               not 0
#   _read       for each (key, as_of): `_read_key`
#   _read_key   for each delay: find the events before as_of - delay, set `at` to the totals there, and read each total
#               off it; a window is what stands there less what stood before its start (`_sum_before`)
#   _read_at    for each key as of one time: `_read_key`
#   _read_windows   for each key as of one time, the windows alone: what stands before as_of - delay less what stood
#               before its start, each one sum (`_sum_before`), so that no other column is run on
#   _stand      at ← the mark before `stop`, run on to `stop`: at most 15 events, whatever the key has
#
# Columns of one kind lie side by side (`Running.starts`), so the inner loops have no branches on the kind. Small
# kernels are inlined (`SMALL`): a call would count references to every array of its arguments, which costs more than
# what the kernel does.


@njit(cache=True, nogil=True)
def _moved(rows: I64, ts: I64, grade: I8) -> tuple[I64, I8]:
    """Return ts and grade of the rows (in the order of keys, so far apart)."""
    moved_ts, moved_grade = np.empty(len(rows), ts.dtype), np.empty(len(rows), grade.dtype)
    for k in range(len(rows)):
        ahead = rows[min(k + AHEAD, len(rows) - 1)]
        prefetch(ts, np.int64(ahead) * 8)
        prefetch(grade, np.int64(ahead))
        moved_ts[k], moved_grade[k] = ts[rows[k]], grade[rows[k]]
    return moved_ts, moved_grade


@njit(cache=True, nogil=True)
def _mark(events: Events, running: Running, marks: F64) -> None:
    """Fill the marks of all keys."""
    at = np.empty(len(running.decay))
    for k in range(len(events.offsets) - 1):
        start = events.offsets[k]
        _nothing(running, at)
        for j in range((events.offsets[k + 1] - start) // EVERY):
            _run(events, running, start, start + j * EVERY, start + (j + 1) * EVERY, at)
            marks[start // EVERY + j] = at


@njit(**SMALL)
def _run(events: Events, running: Running, start: int, begin: int, stop: int, at: F64) -> None:
    """Run the columns `at` on over the events [begin, stop) of a key whose events begin at `start`."""
    h, starts, table = len(running.half_life), running.starts, running.table
    for e in range(begin, stop):
        g = min(events.grade[e] + 1, len(table) - 1)
        for c in range(starts[0]):
            at[c] += table[g, c]
        passed = float(events.ts[e] - events.ts[e - 1]) if e > start else 0.0
        for k in range(h):
            fade = np.exp2(-passed / running.half_life[k])
            for c in range(starts[k], starts[k + 1]):
                at[c] = at[c] * fade + table[g, c]
        for c in range(starts[h], starts[h + 1]):
            if table[g, c] != 0:
                at[c] = float(events.ts[e])
        for f in range(len(running.fed)):
            c, value = running.fed[f], _fed(events, running, e, f)
            if c < starts[h]:
                at[c] += value
            elif value != 0:
                at[c] = float(events.ts[e])


@njit(cache=True, nogil=True)
def _fed(events: Events, running: Running, e: int, f: int) -> float:
    """Return what the f-th fed column is given by an event."""
    value = events.feedback[e, running.feed[f]]
    if np.isnan(value):
        return 0.0
    if running.form[f] == TRIAL:
        return 1.0
    if running.form[f] == HIT:
        return 1.0 if value != 0 else 0.0
    return float(value)


@njit(**SMALL)
def _nothing(running: Running, at: F64) -> None:
    """Set the columns `at` to those of a key without events: 0, and -inf for the time of the last one."""
    for c in range(len(at)):
        at[c] = -np.inf if running.decay[c] == LAST else 0.0


@njit(cache=True, nogil=True)
def _read(events: Events, running: Running, totals: Totals, places: I64, rows: I64, as_of: I64, out: F64) -> None:
    """Add to float64[n, b] `out`, in row rows[i], what the key at places[i] (-1: none) knows as of as_of[rows[i]]."""
    at, fade = np.empty(len(running.decay)), np.empty(len(running.half_life))
    for i in range(len(places)):
        if places[i] >= 0:
            _read_key(events, running, totals, places[i], as_of[rows[i]], at, fade, out[rows[i]])


@njit(cache=True, nogil=True)
def _read_at(events: Events, running: Running, totals: Totals, places: I64, as_of: int, out: F64) -> None:
    """Add to float64[n, b] `out`, in row i, what the key at places[i] (-1: none) knows as of one time."""
    at, fade = np.empty(len(running.decay)), np.empty(len(running.half_life))
    for i in range(len(places)):
        if places[i] >= 0:
            _read_key(events, running, totals, places[i], as_of, at, fade, out[i])


@njit(cache=True, nogil=True)
def _read_windows(
    events: Events, running: Running, totals: Totals, places: I64, rows: I64, as_of: int, out: F64
) -> None:  # fmt: skip
    """Add to float64[n, b] `out`, in row rows[i], what the key at places[i] (-1: none) knows in each window."""
    last, row_bytes = len(places) - 1, events.marks.shape[1] * 8
    for i in range(len(places)):
        # First the bounds of a key are fetched ahead, and once they are there, what is read of its latest events.
        further = places[min(i + 2 * AHEAD, last)]
        if further >= 0:
            prefetch(events.offsets, np.int64(further) * 8)
        ahead = places[min(i + AHEAD, last)]
        if ahead >= 0:
            first, behind = events.offsets[ahead], events.offsets[ahead + 1]
            prefetch(events.ts, np.int64(behind - 1) * 8)
            prefetch(events.grade, np.int64(behind - 1))
            prefetch(events.ts, np.int64(max(first, behind - 9)) * 8)
            if behind - first >= EVERY:
                mark = first // EVERY + (behind - first) // EVERY - 1
                for c in totals.column:
                    prefetch(events.marks, np.int64(mark * row_bytes + c * 8))
        if places[i] < 0:
            continue
        start, end = events.offsets[places[i]], events.offsets[places[i] + 1]
        for b in range(len(totals.kind)):
            stop = _first_late(events.ts, start, end, as_of - totals.delays[totals.delay[b]])
            begin = _first_late(events.ts, start, stop, as_of - totals.window[b])
            if begin < stop:
                c = totals.column[b]
                out[rows[i], b] += _sum_before(events, running, start, stop, c) - _sum_before(
                    events, running, start, begin, c
                )


@njit(cache=True, nogil=True)
def _windows_hold(events: Events, totals: Totals, places: I64, rows: I64, as_of: int, out: F64) -> None:
    """Lower float64[n] `out`, in row rows[i], to the µs until a window of the key at places[i] loses an event."""
    for i in range(len(places)):
        if places[i] < 0:
            continue
        start, end = events.offsets[places[i]], events.offsets[places[i] + 1]
        for window in totals.window:
            begin = _first_late(events.ts, start, end, as_of - window)
            if begin < end:
                out[rows[i]] = min(out[rows[i]], float(events.ts[begin] + window - as_of))


@njit(**SMALL)
def _first_late(ts: I64, lo: int, hi: int, cut: int) -> int:
    """Return what `first_not_before` does, by steps from the end that double: the latest events are read first."""
    step = 1
    while hi - step >= lo and ts[hi - step] >= cut:
        hi -= step
        step *= 2
    found: int = first_not_before(ts, max(lo, hi - step + 1), hi, cut)
    return found


@njit(**SMALL)
def _read_key(
    events: Events, running: Running, totals: Totals, k: int, as_of: int, at: F64, fade: F64, out: F64
) -> None:
    """Add what key k knows as of a time to float64[b] totals. at, fade: room for running columns and half-lives."""
    start, end = events.offsets[k], events.offsets[k + 1]
    for d in range(len(totals.delays)):
        stop = first_not_before(events.ts, start, end, as_of - totals.delays[d])
        if stop == start:
            continue
        _stand(events, running, k, stop, at)
        passed = float(as_of - events.ts[stop - 1])
        for h in range(len(fade)):
            fade[h] = np.exp2(-passed / running.half_life[h])
        for b in range(len(totals.kind)):
            if totals.delay[b] != d:
                continue
            c = totals.column[b]
            if totals.kind[b] == ALL:
                out[b] += at[c]
            elif totals.kind[b] == DECAYED:
                out[b] += at[c] * fade[running.decay[c]]
            elif totals.kind[b] == SINCE:
                out[b] = max(out[b], at[c])
            else:
                begin = first_not_before(events.ts, start, stop, as_of - totals.window[b])
                out[b] += at[c] - _sum_before(events, running, start, begin, c)


@njit(**SMALL)
def _stand(events: Events, running: Running, k: int, stop: int, at: F64) -> None:
    """Set the columns `at` to their totals over the events of key k before the place `stop`."""
    start = events.offsets[k]
    full = (stop - start) // EVERY
    if full:
        for c in range(len(at)):
            at[c] = events.marks[start // EVERY + full - 1, c]
    else:
        _nothing(running, at)
    _run(events, running, start, start + full * EVERY, stop, at)


@njit(**SMALL)
def _sum_before(events: Events, running: Running, start: int, stop: int, column: int) -> float:
    """Return one sum over the events before the place `stop` of a key whose events begin at `start`."""
    full = (stop - start) // EVERY
    total = events.marks[start // EVERY + full - 1, column] if full else 0.0
    for e in range(start + full * EVERY, stop):
        total += running.table[min(events.grade[e] + 1, len(running.table) - 1), column]
        for f in range(len(running.fed)):
            if running.fed[f] == column:
                total += _fed(events, running, e, f)
    return total


@njit(cache=True, nogil=True)
def merge_totals(found: F64, place: I64, rows: I64, kind: I64, out: F64) -> None:
    """Put rows int64[n] of totals, of kinds int64[b], to the given rows of `out`: sums, or the later time.

    place: int64[n], which row of `found` each is; -1 for none.
    """
    for i in range(len(rows)):
        if place[i] < 0:
            continue
        for b in range(len(kind)):
            if kind[b] == SINCE:
                out[rows[i], b] = max(out[rows[i], b], found[place[i], b])
            else:
                out[rows[i], b] += found[place[i], b]
