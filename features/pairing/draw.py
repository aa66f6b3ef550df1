"""Compiled draws: negatives for a group, and a group's pairs, all of them or an even draw that makes no others.

A group's pairs are numbered by winner, then by loser, in the order of the rows.
"""

import numpy as np

from features.kernels import njit
from features.schema import F32, F64, I8, I32, I64

_DRAWS_BEFORE_GIVING_UP = 20


@njit(cache=True, nogil=True)
def draw_events(
    item: I32, offsets: I64, since: I64, known: I64, log_item: I32, out: I32, out_offsets: I64, seed: int
) -> None:
    """Fill `out` with items that group g was not shown, those of events drawn evenly from a part of the log's past.

        for each group g, for each place k of out[out_offsets[g] : out_offsets[g + 1]]
            up to 20 times: draw an event of since[g] .. known[g] - 1; take its item unless the group itself has it
            else out[k] = -1

    item: int32[n], offsets: int64[g + 1], the groups' own items. since, known: int64[g]. log_item: int32[events].
    An event drawn evenly from those before as_of is an item drawn by its popularity then.
    """
    np.random.seed(seed)
    for g in range(len(known)):
        own = item[offsets[g] : offsets[g + 1]]
        _draw(log_item[since[g] : known[g]], own, out[out_offsets[g] : out_offsets[g + 1]])


@njit(cache=True, nogil=True)
def draw_available(
    item: I32, offsets: I64, as_of: I64, begin: I64, end: I64, out: I32, out_offsets: I64, seed: int
) -> None:
    """Fill `out` with items that group g was not shown, each of those with begin <= as_of < end as likely as another.

        available ← none
        for each group g, in time order
            add the items that began by as_of to `available`; take out those that ended
            for each place of g: up to 20 times: draw from `available`, unless the group itself has it; else -1

    item: int32[n], offsets: int64[g + 1], the groups' own items. as_of: int64[g], never decreasing. begin, end:
    int64[items], µs. Linear in items and draws: an item that is taken out is replaced by the last one.
    """
    np.random.seed(seed)
    coming, going = np.argsort(begin, kind="mergesort"), np.argsort(end, kind="mergesort")
    available, place = np.empty(len(begin), np.int32), np.full(len(begin), -1, np.int64)
    count, came, went = 0, 0, 0
    for g in range(len(as_of)):
        while came < len(coming) and begin[coming[came]] <= as_of[g]:
            if end[coming[came]] > as_of[g]:
                available[count], place[coming[came]] = coming[came], count
                count += 1
            came += 1
        while went < len(going) and end[going[went]] <= as_of[g]:
            at = place[going[went]]
            if at >= 0:
                count -= 1
                available[at] = available[count]
                place[available[at]], place[going[went]] = at, -1
            went += 1
        _draw(available[:count], item[offsets[g] : offsets[g + 1]], out[out_offsets[g] : out_offsets[g + 1]])


@njit(cache=True, nogil=True)
def _draw(among: I32, own: I32, out: I32) -> None:
    """Fill int32[k] `out`: up to 20 times for each place, draw evenly from `among` unless it is of `own`; else -1."""
    for k in range(len(out)):
        out[k] = -1
        if len(among) == 0:
            continue
        for _ in range(_DRAWS_BEFORE_GIVING_UP):
            candidate = among[np.random.randint(0, len(among))]
            if candidate not in own:
                out[k] = candidate
                break


@njit(cache=True, nogil=True)
def write_pairs(
    offsets: I64, grade: I8, table: F64, starts: I64, seed: int, winner: I32, loser: I32, weight: F32
) -> None:
    """Fill int32[p] winner, loser and float32[p] weight; the pairs of group g are `starts[g] .. starts[g + 1] - 1`.

        for each group that is to have pairs
            list, for each grade that it holds, the rows that a winner of this grade beats
            number its pairs: the first winner with each row that it beats, the second winner, …
            choose the numbers: all where so many are wanted, else an even draw
            walk through them in order, the winner in hand moving on where its rows are used up

    offsets: int64[g + 1], grade: int8[n], the groups' impressions. table: of `weight_table`. Linear in the pairs that
    are written and, for each level that a group holds, in its rows.
    """
    np.random.seed(seed)
    losers = np.empty((len(table), np.max(np.diff(offsets))), np.int32)  # [level, k]: k-th row that the level beats
    count = np.empty(len(table), np.int64)  # [level]: how many it beats
    for g in range(len(offsets) - 1):
        if starts[g + 1] == starts[g]:
            continue
        _beaten(grade, offsets[g], offsets[g + 1], table, losers, count)
        total = 0
        for a in range(offsets[g], offsets[g + 1]):
            total += count[grade[a] + 1]
        numbers = _numbers(total, starts[g + 1] - starts[g])
        a, first = offsets[g], 0  # the winner in hand, and the number of its first pair
        for k in range(len(numbers)):
            while numbers[k] - first >= count[grade[a] + 1]:
                first += count[grade[a] + 1]
                a += 1
            b = losers[grade[a] + 1, numbers[k] - first]
            to = starts[g] + k
            winner[to], loser[to], weight[to] = a, b, table[grade[a] + 1, grade[b] + 1]


@njit(cache=True, nogil=True)
def _beaten(grade: I8, start: int, stop: int, table: F64, losers: I32, count: I64) -> None:
    """Write the rows that a winner of each level present beats to losers[level, :count[level]], ascending.

        for each row whose level has not come yet
            for each row of the group: list it under that level where the table weighs such a pair

    A level (grade + 1, a row of the table) that no row of `start .. stop - 1` has keeps the count -1.
    """
    count[:] = -1
    for a in range(start, stop):
        level = grade[a] + 1
        if count[level] >= 0:
            continue
        count[level] = 0
        for b in range(start, stop):
            if table[level, grade[b] + 1] > 0:
                losers[level, count[level]] = b
                count[level] += 1


@njit(cache=True, nogil=True)
def _numbers(total: int, count: int) -> I64:
    """Return `count` of the numbers [0, total), ascending: all, or an even draw. O(count) memory.

    few ← as many distinct numbers as are wanted, or as are left out where that are fewer
    return few, or all but few
    """
    if count == total:
        return np.arange(total)
    few: I64 = _distinct(total, min(count, total - count))
    if 2 * count <= total:
        return few
    keep = np.ones(total, np.bool_)
    keep[few] = False
    return np.flatnonzero(keep)


@njit(cache=True, nogil=True)
def _distinct(total: int, count: int) -> I64:
    """Return `count` distinct numbers of [0, total), ascending, every such set as likely as another.

        make a hash table of at least 2 * count slots
        count times: draw a number until it is not in the table yet; put it in
        sort what the table holds

    A number that came before is drawn again: seldom, for at most half of the range is asked for.
    """
    size = 2
    while size < 2 * count:
        size *= 2
    slots = np.full(size, -1, np.int64)  # what is drawn evenly is its own hash
    for _ in range(count):
        while True:
            number = np.random.randint(0, total)
            at = number & (size - 1)
            while slots[at] >= 0 and slots[at] != number:
                at = (at + 1) & (size - 1)
            if slots[at] < 0:
                slots[at] = number
                break
    drawn: I64 = np.sort(slots[slots >= 0])
    return drawn
