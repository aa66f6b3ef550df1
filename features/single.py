"""The counters of one request: each key is looked up once, and rows that lie far apart are fetched ahead."""

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from features.keys import key_codes
from features.plans import SINCE, place
from features.schema import F32, F64, I64, Requests

if TYPE_CHECKING:
    from features.store import State

NONE = np.empty(0, np.float32)


def fill_request(state: "State", requests: Requests, shared: F32, out: F32) -> None:
    """Fill float32[n, width] with the sums, quotients and times of one request, and `shared` where none of them stands.

    shared: float32[width]; it is completed by the counters that all candidates share.
    """
    kinds, as_of = state.kinds(), int(requests.as_of[0])
    for number in kinds.single:
        _share(state, number, requests, shared)
    tables = [(number, state.table(number)) for number in kinds.tabled if out.flags.c_contiguous]
    fresh = [number for number, table in tables if as_of >= table.end]
    if not fresh:
        out[:] = shared
    for number in fresh:
        _gather(state, number, requests, shared if number == fresh[0] else NONE, out)
    for number in (*kinds.tabled, *kinds.others):
        if number not in fresh:
            _read(state, number, requests, out)


def _codes(state: "State", number: int, requests: Requests) -> tuple[I64, I64]:
    """Return (rows, codes) of the candidates' keys."""
    n = len(requests.item)
    user, surface = np.full(n, requests.user[0]), np.full(n, requests.surface[0])
    rows, code, _ = key_codes(state.plans[number].key, state.catalog, user, requests.item, surface)
    return rows, code


def _share(state: "State", number: int, requests: Requests, shared: F32) -> None:
    """Fill the counters of a key that is the same for all candidates."""
    plan, as_of = state.plans[number], int(requests.as_of[0])
    if plan.key != ("user",):
        none = np.full(1, -1, np.int32)
        rows, code, _ = key_codes(plan.key, state.catalog, requests.user, none, requests.surface)
        shared[plan.counters] = state.plan_values(number, plan, rows, code, requests.as_of)[0]
        return
    totals = plan.nothing.copy()
    for segment in state.segments:
        segment.timelines[number].add_key(plan, int(requests.user[0]), as_of, totals)
    plan.finish_key(totals, as_of, shared)


def _gather(state: "State", number: int, requests: Requests, shared: F32, out: F32) -> None:
    """Fill the counters of a plan from the base's table; those of keys that have later events from the timelines."""
    plan, table, as_of = state.plans[number], state.table(number), int(requests.as_of[0])
    code = requests.item.astype(np.int64) if plan.key == ("item",) else _codes(state, number, requests)[1]
    table.gather(table.rows(code), as_of, shared, out)
    later = [segment.timelines[number].find(code) >= 0 for segment in state.segments[1:]]
    rows = np.flatnonzero(np.any(later, axis=0)) if later else ()
    if len(rows):
        times = np.full(len(rows), as_of, np.int64)
        place(state.plan_values(number, plan, np.arange(len(rows)), code[rows], times), rows, plan.counters, out)


def _read(state: "State", number: int, requests: Requests, out: F32) -> None:
    """Fill the counters of a plan from the timelines: candidates share keys, and each key is read once."""
    plan = state.plans[number]
    rows, code = _codes(state, number, requests)
    known, inverse = _distinct(code)
    found = state.totals(number, plan, np.arange(len(known)), known, np.full(len(known), requests.as_of[0]))
    totals = plan.empty(len(out))
    _add(found, inverse, rows, plan.totals.kind, totals)
    values = plan.finish(totals, np.full(len(out), requests.as_of[0]))
    place(values, np.arange(len(out)), plan.counters, out)


@njit(cache=True, nogil=True)
def _distinct(code: I64) -> tuple[I64, I64]:
    """Return (codes, each once, int64[n] place of each row's among them; -1 of a missing one)."""
    size = 4
    while size < 2 * len(code):
        size *= 2
    slots, known, inverse = np.full(size, -1, np.int64), np.empty(len(code), np.int64), np.empty(len(code), np.int64)
    n = 0
    for k in range(len(code)):
        if code[k] < 0:
            inverse[k] = -1
            continue
        at = (code[k] ^ (code[k] >> 17)) & (size - 1)
        while slots[at] >= 0 and known[slots[at]] != code[k]:
            at = (at + 1) & (size - 1)
        if slots[at] < 0:
            slots[at], known[n] = n, code[k]
            n += 1
        inverse[k] = slots[at]
    return known[:n].copy(), inverse


@njit(cache=True, nogil=True)
def _add(found: F64, inverse: I64, rows: I64, kind: I64, totals: F64) -> None:
    for k in range(len(inverse)):
        if inverse[k] < 0:
            continue
        for b in range(len(kind)):
            value = found[inverse[k], b]
            if kind[b] == SINCE:
                totals[rows[k], b] = max(totals[rows[k], b], value)
            else:
                totals[rows[k], b] += value
