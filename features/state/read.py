"""The counters of one request: each key is looked up once, and rows that lie far apart are fetched ahead."""

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from features.counters.keys import key_codes
from features.counters.latest import Latest
from features.counters.plans import place
from features.counters.timeline import merge_totals
from features.ids import slot_of
from features.schema import F32, I64, Requests

if TYPE_CHECKING:
    from features.state.store import State

NOTHING = np.empty(0, np.float32)
NOBODY = np.full(1, -1, np.int32)


def fill_request(state: "State", requests: Requests, shared: F32, out: F32) -> None:
    """Fill float32[n, width] with the sums, quotients and times of one request, and `shared` where none of them stands.

    shared: float32[width]; it is completed by the counters that all candidates share.
    """
    kinds, row = state.kinds(), shared.reshape(1, -1)
    for number in kinds.single:
        _fill(state, number, requests, NOTHING, row)
    if not kinds.each:
        out[:] = shared
    for k, number in enumerate(kinds.each):
        _fill(state, number, requests, NOTHING if k else shared, out)


def _fill(state: "State", number: int, requests: Requests, shared: F32, out: F32) -> None:
    """Fill the counters of a plan, and `shared` elsewhere unless it is empty."""
    table = state.table(number) if number in state.kinds().tabled else None
    if table is not None and int(requests.as_of[0]) >= table.end:
        _gather(state, number, table, requests, shared, out)
        return
    if len(shared):
        out[:] = shared
    _read(state, number, requests, out)


def _codes(state: "State", number: int, requests: Requests) -> tuple[I64, I64]:
    """Return (rows, codes) of the keys of the candidates; of one where they share it."""
    key, item = state.plans[number].key, NOBODY if number in state.kinds().single else requests.item
    user, surface = np.full(len(item), requests.user[0]), np.full(len(item), requests.surface[0])
    rows, code, _ = key_codes(key, state.catalog, user, item, surface)
    return rows, code


def _gather(state: "State", number: int, table: Latest, requests: Requests, shared: F32, out: F32) -> None:
    """Fill the counters of a plan from the base's table; those of keys that have later events from the timelines."""
    plan, as_of = state.plans[number], int(requests.as_of[0])
    if plan.key in (("item",), ("user",)) and table.index is None and len(state.segments) == 1:
        table.gather(requests.item if plan.key == ("item",) else requests.user, as_of, shared, out)
        return
    code = _codes(state, number, requests)[1]
    table.gather(table.rows(code), as_of, shared, out)
    later = [segment.timelines[number].find(code) >= 0 for segment in state.segments[1:]]
    rows = np.flatnonzero(np.any(later, axis=0)) if later else ()
    if len(rows):
        times = np.full(len(rows), as_of, np.int64)
        place(state.plan_values(number, plan, np.arange(len(rows)), code[rows], times), rows, plan.counters, out)


def _read(state: "State", number: int, requests: Requests, out: F32) -> None:
    """Fill the counters of a plan from the timelines: candidates share keys, and each key is read once."""
    plan, as_of = state.plans[number], requests.as_of[0]
    rows, code = _codes(state, number, requests)
    known, inverse = _distinct(code)
    found = state.totals(number, plan, np.arange(len(known)), known, np.full(len(known), as_of))
    totals, there = plan.empty(len(out)), inverse >= 0
    merge_totals(found[inverse[there]], rows[there], plan.totals.kind, totals)
    place(plan.finish(totals, np.full(len(out), as_of)), np.arange(len(out)), plan.counters, out)


@njit(cache=True, nogil=True)
def _distinct(code: I64) -> tuple[I64, I64]:
    """Return (codes, each once, int64[n] place of each row's among them; -1 of a missing one)."""
    bits = 2
    while 1 << bits < 2 * len(code):
        bits += 1
    size = 1 << bits
    slots, known, inverse = np.full(size, -1, np.int64), np.empty(len(code), np.int64), np.empty(len(code), np.int64)
    n = 0
    for k in range(len(code)):
        if code[k] < 0:
            inverse[k] = -1
            continue
        at = slot_of(code[k], 64 - bits)
        while slots[at] >= 0 and known[slots[at]] != code[k]:
            at = (at + 1) & (size - 1)
        if slots[at] < 0:
            slots[at], known[n] = n, code[k]
            n += 1
        inverse[k] = slots[at]
    return known[:n].copy(), inverse
