"""Wanted events by a value that they share, and their decayed counts as of any time."""

from typing import NamedTuple

import numpy as np

from features.counters.places import first_not_before
from features.kernels import njit
from features.schema import F32, F64, I32, I64, Attribute, offsets_of
from features.state.store import State

NO_VALUES = np.empty(0, np.int64)


class Table(NamedTuple):
    """The m wanted events by (value, item): each such pair has a timeline. The last value is that of all events."""

    starts: I64  # [values + 2], value v has the pairs [starts[v], starts[v + 1])
    item: I32  # [pairs], ascending within a value
    timeline: (
        I64  # [pairs], the row of offsets that is the pair's; of an item's attribute that of the item's own events
    )
    offsets: I64  # [timelines + 1], of ts
    ts: I64  # [m], µs, never decreasing within a timeline
    decayed: F64  # [m], the decayed count behind each event
    expected: F64  # [m], the same by the longer half-life; [0] without one


def made_table(state: State, floor: int, side: str, of: Attribute | None, spans: tuple[int, int]) -> Table:
    """Return the wanted events of a state by value. of: the attribute of a side. spans: both half-lives in µs, 0: none.

    An event is wanted from the grade `floor` on; where none is, all are. About a second for each 3 million events.
    """
    h, n_items = state.histories, state.catalog.all_items
    user, row = h.rows()
    use = (h.grade[row] >= floor) & (h.item[row] >= 0)
    use = use if use.any() else h.item[row] >= 0
    user, row = user[use], row[use]
    event, value, n_values = np.empty(0, np.int64), NO_VALUES, 0
    if side == "surface":
        n_values, value = len(state.catalog.surfaces), h.surface[row].astype(np.int64)
        event, value = np.flatnonzero(value >= 0), value[value >= 0]
    elif of is not None:
        n_values = len(of.values)
        if side == "user":
            event, value = _expanded(of, user)
    event = np.concatenate([event, np.arange(len(row))])  # behind them, each event as one of the whole
    value = np.concatenate([value, np.full(len(row), n_values)])
    key, ts = value * n_items + h.item[row][event], h.ts[row][event]
    order = np.lexsort((ts, key))
    pairs, offsets = _runs(key[order])
    pair_value, item, timeline = pairs // n_items, (pairs % n_items).astype(np.int32), np.arange(len(pairs))
    if side == "item" and of is not None:
        pair_value, item, timeline = _by_value(of, item, n_values)
    ts, starts = ts[order], np.searchsorted(pair_value, np.arange(n_values + 2))
    decayed, expected = (_running(offsets, ts, span) if span else np.empty(0) for span in spans)
    return Table(starts, item, timeline, offsets, ts, decayed, expected)


def lists_of(of: Attribute) -> tuple[I64, I32]:
    """Return the offsets and codes of an attribute as those of a list of values for each item."""
    known = of.codes >= 0
    return (of.offsets, of.codes) if of.kind == "multi" else (offsets_of(known), of.codes[known])


def _expanded(of: Attribute, index: I32) -> tuple[I64, I64]:
    """Return (event, value) of each value that the users int32[n] of events have."""
    if of.kind != "multi":
        value = np.append(of.codes, np.int32(-1))[np.where(index < len(of.codes), index, -1)].astype(np.int64)
        return np.flatnonzero(value >= 0), value[value >= 0]
    inside = (index >= 0) & (index < len(of.offsets) - 1)
    first = np.where(inside, of.offsets[np.where(inside, index, 0)], 0)
    sizes = np.where(inside, of.offsets[np.where(inside, index + 1, 0)], 0) - first
    event = np.repeat(np.arange(len(index)), sizes)
    at = np.arange(len(event)) + np.repeat(first - offsets_of(sizes)[:-1], sizes)
    return event, of.codes[at].astype(np.int64)


def _by_value(of: Attribute, item: I32, n_values: int) -> tuple[I64, I32, I64]:
    """Return (value, item, timeline) of each value of the items int32[timelines] that have events; then the whole's."""
    place, value = _expanded(of, item)
    order = np.lexsort((item[place], value))
    whole = np.arange(len(item))
    place, value = np.concatenate([place[order], whole]), np.concatenate([value[order], np.full(len(item), n_values)])
    return value, item[place], place


def _runs(key: I64) -> tuple[I64, I64]:
    """Return (the different ones of sorted keys, int64[k + 1] where each begins, and the end)."""
    first = np.flatnonzero(np.diff(key, prepend=-1))
    return key[first], np.append(first, len(key)).astype(np.int64)


@njit(cache=True, nogil=True)
def _running(offsets: I64, ts: I64, half_life: int) -> F64:
    """Return float64[m]: the decayed count of a timeline as it stands behind each of its events."""
    decayed = np.empty(len(ts))
    for t in range(len(offsets) - 1):
        at = 0.0
        for k in range(offsets[t], offsets[t + 1]):
            at = at * np.exp2(-(ts[k] - ts[max(k - 1, offsets[t])]) / half_life) + 1.0
            decayed[k] = at
    return decayed


@njit(cache=True, nogil=True)
def _counted(table: Table, pair: int, half_life: int, longer: int, as_of: int) -> tuple[float, float]:
    """Return the decayed counts of a pair as of a time, by both half-lives; 0 where there is no second."""
    t = table.timeline[pair]
    stop = first_not_before(table.ts, table.offsets[t], table.offsets[t + 1], as_of)
    if stop == table.offsets[t]:
        return 0.0, 0.0
    age = as_of - table.ts[stop - 1]
    count = table.decayed[stop - 1] * np.exp2(-age / half_life)
    return count, table.expected[stop - 1] * np.exp2(-age / longer) if longer else 0.0


@njit(cache=True, nogil=True)
def total_of(table: Table, half_life: int, as_of: int) -> float:
    """Return the sum of the counts of all items."""
    total, whole = 0.0, len(table.starts) - 2
    for pair in range(table.starts[whole], table.starts[whole + 1]):
        total += _counted(table, pair, half_life, 0, as_of)[0]
    return total


@njit(cache=True, nogil=True)
def _pair(table: Table, value: int, item: int) -> int:
    """Return the pair of a value and an item, found by halving; -1 where there is none."""
    start, stop = table.starts[value], table.starts[value + 1]
    at = start + np.searchsorted(table.item[start:stop], item)
    return at if at < stop and table.item[at] == item else -1


@njit(cache=True, nogil=True)
def scores_of(
    table: Table, spans: tuple[int, int], values: I64, weights: F64, factor: F64, as_of: int, item: I32
) -> F32:
    """Return float32[n] scores of `PopularBy`; NaN of an item without an event before as_of.

        c = factor · the item's count in the whole
        for each value: c += weight · the item's count there

    spans: the half-life and the longer one, 0 for none, in µs.
    """
    score, whole = np.full(len(item), np.nan, np.float32), len(table.starts) - 2
    for k in range(len(item)):
        pair = _pair(table, whole, item[k])
        if pair < 0:
            continue
        count, longer = _counted(table, pair, spans[0], spans[1], as_of)
        if count == 0:
            continue
        count, longer = factor[k] * count, factor[k] * longer
        for j in range(len(values)):
            pair = _pair(table, values[j], item[k])
            if pair >= 0:
                own, own_longer = _counted(table, pair, spans[0], spans[1], as_of)
                count, longer = count + weights[j] * own, longer + weights[j] * own_longer
        score[k] = _scored(count, longer, spans)
    return score


# The items of a value and of the whole both ascend, so that none is looked for: in a fifth of the time.
@njit(cache=True, nogil=True)
def value_scores(
    table: Table, spans: tuple[int, int], value: int, weight: float, factor: float, as_of: int
) -> F32:  # fmt: skip
    """Return float32[n] of all items of one value: what `scores_of` has with it alone, and one factor for all.

    weight: of the value; 0 of that of the whole, and where the values are of items.
    """
    first, whole = table.starts[value], table.starts[len(table.starts) - 2]
    score = np.full(table.starts[value + 1] - first, np.nan, np.float32)
    for k in range(len(score)):
        while table.item[whole] < table.item[first + k]:
            whole += 1
        count, longer = _counted(table, whole, spans[0], spans[1], as_of)
        if count == 0:
            continue
        count, longer = factor * count, factor * longer
        if weight > 0:
            own, own_longer = _counted(table, first + k, spans[0], spans[1], as_of)
            count, longer = count + weight * own, longer + weight * own_longer
        score[k] = _scored(count, longer, spans)
    return score


@njit(cache=True, nogil=True)
def _scored(count: float, longer: float, spans: tuple[int, int]) -> float:
    if not spans[1]:
        return float(np.log1p(count))
    expected = longer * spans[0] / spans[1]
    return float((count - expected) / np.sqrt(expected + 1))


@njit(cache=True, nogil=True)
def factors_of(offsets: I64, codes: I32, values: I64, weights: F64, share: float, item: I32) -> F64:
    """Return float64[n]: what an event of each item counts, the weights of the item's own values and the share.

    offsets, codes: of a list of values for each item.
    """
    factor = np.full(len(item), share)
    for k in range(len(item)):
        if 0 <= item[k] < len(offsets) - 1:
            for code in codes[offsets[item[k]] : offsets[item[k] + 1]]:
                for j in range(len(values)):
                    factor[k] += weights[j] if values[j] == code else 0.0
    return factor
