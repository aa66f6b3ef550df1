"""Item-to-item co-occurrence: what is taken together with what the user took last."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from features.hashing import bits_for, looked_up, probe
from features.kernels import LINE, njit, prefetch
from features.schema import F32, F64, GIB, I8, I32, I64, Bool, EventLog
from ranker.candidates.seeds import taken_last
from ranker.candidates.source import Proposal, best
from ranker.request import Request

#: how many neighbours the table keeps of an item
NEIGHBOURS = 100
#: how many events of a user before and after an event are together with it
WITHIN = 20
#: how many of the items that a user took last are looked up
SEEDS = 20
#: how many seeds ahead of the one whose row is read; it has about 1 µs of work
SOON = 3
#: blocks of items that are counted at the same time
THREADS = 2
#: about how many blocks there are at least, so that no thread waits for another, and at most
BLOCKS, MOST_BLOCKS = 16, 1000
#: bytes of an event of `Taken`, of its place in a block, and of an item for the counts of one thread
BYTES_OF_AN_EVENT, BYTES_OF_A_PLACE, BYTES_OF_A_ROW = 5, 4, 8


@dataclass(frozen=True, slots=True)
class Cooccurrence:
    """The items that are taken together with each item."""

    neighbour: I32  # [n_items, k], nearest first; -1 where there are fewer
    score: F32  # [n_items, k]

    @classmethod
    def build(
        cls, log: EventLog, n_items: int, floor: int, k: int = NEIGHBOURS, memory: int = 2 * GIB
    ) -> "Cooccurrence":
        """Count, for each item, the items that follow or precede it within `WITHIN` events of the same user.

        Only events of a grade >= `floor` count. The score of b as a neighbour of a is
        count(a, b) / (count(a)^¾ · count(b)^¼), the asymmetric cosine of Aiolli (RecSys 2013) with α = ¾: the plain
        one has ½ for b too, and prefers rare neighbours, of which few are wanted later. Ties stand in the order of the
        items. memory: bytes, beside the log and the table: items are done in blocks that fit it (5 to 9 bytes an event,
        8 a user and 40 an item are needed in any case).
        """
        taken = _taken(log.user, log.item, log.grade, floor)
        seen = np.bincount(taken.item, minlength=n_items)
        starts: I64 = np.concatenate([[0], np.cumsum(seen)])
        norm = (np.maximum(seen, 1) ** 0.25).astype(np.float32)
        del seen
        table = cls(np.full((n_items, k), -1, np.int32), np.zeros((n_items, k), np.float32))
        fixed = BYTES_OF_AN_EVENT * len(taken.item) + (12 + BYTES_OF_A_ROW * THREADS) * n_items
        # Even where nothing is left: each block goes through all events, and the least block is a small part of them.
        most = max((memory - fixed) // (BYTES_OF_A_PLACE * THREADS), len(taken.item) // MOST_BLOCKS)

        def fill(block: tuple[int, int]) -> None:
            at = _places(taken.item, starts, *block)
            _fill(taken, at, starts, norm, block[0], block[1], table.neighbour, table.score)

        # The kernels release the GIL; each thread writes rows of its own.
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(fill, _blocks(starts, min(most, len(taken.item) // BLOCKS))))
        return table

    def recoded(self, items: I32, places: I32) -> "Cooccurrence":
        """Return it as it was counted, for another catalogue.

        items: int32[n], which of its items each of the other catalogue was; places: int32[n_items], which of those each
        of its own is; -1 for none. An item that it did not have has no neighbours; one that is gone is nobody's.
        """
        neighbour, score = np.where(self.neighbour >= 0, places[self.neighbour], np.int32(-1)), self.score
        if (places < 0).any():  # who is left moves up: -1 stands behind all neighbours
            order = np.argsort(neighbour < 0, axis=1, kind="stable")
            neighbour, score = (np.take_along_axis(of, order, 1) for of in (neighbour, score))
            score[neighbour < 0] = 0
        known = (items >= 0)[:, None]
        return Cooccurrence(
            np.where(known, neighbour[items], np.int32(-1)), np.where(known, score[items], np.float32(0))
        )


class Taken(NamedTuple):
    """Taken events by user, those of a user in time order."""

    item: I32  # [m]
    first: Bool  # [m], whether it is the first of its user


@njit(cache=True, nogil=True)
def _taken(user: I32, item: I32, grade: I8, floor: int) -> Taken:
    """Sort the events of a grade >= floor by user. Linear in the events: a counting sort.

    count the events of each user; their running sum is where each user's part begins
    put each event at the next free place of its user's part
    """
    starts, n = np.zeros(user.max() + 2 if len(user) else 1, np.int64), 0
    for e in range(len(user)):
        if grade[e] >= floor:
            starts[user[e] + 1] += 1
            n += 1
    for u in range(len(starts) - 1):
        starts[u + 1] += starts[u]
    sorted_item, first = np.empty(n, np.int32), np.zeros(n, np.bool_)
    for u in range(len(starts) - 1):
        if starts[u] < n:
            first[starts[u]] = True
    for e in range(len(user)):
        if grade[e] >= floor:
            sorted_item[starts[user[e]]] = item[e]
            starts[user[e]] += 1
    return Taken(sorted_item, first)


def _blocks(starts: I64, most: int) -> Iterator[tuple[int, int]]:
    """Yield (low, high) of consecutive items that together have at most so many events, or one item each."""
    low, n_items = 0, len(starts) - 1
    while low < n_items:
        high = max(low + 1, int(np.searchsorted(starts, starts[low] + most, side="right")) - 1)
        yield low, high
        low = high


@njit(cache=True, nogil=True)
def _places(item: I32, starts: I64, low: int, high: int) -> I32:
    """Return int32[starts[high] - starts[low]]: the places in `item` of each of the items [low, high), item by item.

    the places of item a go to [starts[a], starts[a + 1]), counted from starts[low]
    for each event of one of these items: its place goes to the next free place of its item's part
    """
    at, free = np.empty(starts[high] - starts[low], np.int32), starts[low:high] - starts[low]
    for p in range(len(item)):
        if low <= item[p] < high:
            at[free[item[p] - low]] = p
            free[item[p] - low] += 1
    return at


@njit(cache=True, nogil=True)
def _fill(taken: Taken, at: I32, starts: I64, norm: F32, low: int, high: int, neighbour: I32, score: F32) -> None:
    """Write the rows [low, high) of the table. at: of `_places`.

    for each item a:
        count[b] += 1 for each b beside each place of a
        insert each b that was met into the row of a, if it is among the best k
    norm: float32[n_items], the fourth root of each item's count.
    """
    count, met = np.zeros(len(norm), np.int32), np.empty(len(norm), np.int32)
    for a in range(low, high):
        n = 0
        for p in at[starts[a] - starts[low] : starts[a + 1] - starts[low]]:
            n = _meet(taken, a, p, count, met, n)
        kept, own = 0, norm[a] * norm[a] * norm[a]
        for b in met[:n]:
            kept = _insert(b, np.float32(count[b]) / (own * norm[b]), neighbour[a], score[a], kept)
            count[b] = 0


@njit(cache=True, nogil=True)
def _meet(taken: Taken, a: int, p: int, count: I32, met: I32, n: int) -> int:
    """Count the items other than a that are within WITHIN places of p; return how many are in `met`.

    left = right = p
    move left down by up to WITHIN places, but not beyond the user's first event
    move right up by up to WITHIN places, but not beyond the user's last event
    for each item b of taken[left .. right] but a:
        append b to `met` (which has n), where this is the first time that a met it
        count[b] += 1
    """
    left, right = p, p
    while left > p - WITHIN and not taken.first[left]:
        left -= 1
    while right < p + WITHIN and right + 1 < len(taken.item) and not taken.first[right + 1]:
        right += 1
    for b in taken.item[left : right + 1]:
        if b != a:
            if count[b] == 0:
                met[n] = b
                n += 1
            count[b] += 1
    return n


@njit(cache=True, nogil=True)
def _insert(b: int, value: float, neighbour: I32, score: F32, kept: int) -> int:
    """Put b where it belongs among the `kept` best of a row: by score, then by item; return how many there are now.

    k = the first free place, or the last one of a full row
    if the row is full and b is behind its last entry: leave the row as it is
    while the entry before k is behind b: move it to k, and k one to the left
    write b at k
    """
    k = min(kept, len(neighbour) - 1)
    if kept > k and (value < score[k] or (value == score[k] and b > neighbour[k])):
        return kept
    while k > 0 and (value > score[k - 1] or (value == score[k - 1] and b < neighbour[k - 1])):
        neighbour[k], score[k] = neighbour[k - 1], score[k - 1]
        k -= 1
    neighbour[k], score[k] = b, value
    return min(kept + 1, len(neighbour))


class TakenTogether:
    """Neighbours of the request's source item and of the items that the user took last.

    A neighbour's score is the sum over these seeds of its co-occurrence with the seed / sqrt(1 + the seed's
    place), the source item standing first and the latest event next. The table is as of the end of the log,
    so for an earlier `as_of` it knows more than it should: it proposes, and no feature reads it.
    """

    name = "cooccurrence"

    def __init__(self, table: Cooccurrence, floor: int) -> None:
        """floor: rank of the lowest grade that counts as taken."""
        self._table = table
        self._floor = floor

    def propose(self, request: Request, limit: int) -> Proposal:
        """Return the items most often taken together with the seeds, and their sums; none for a user without any."""
        seeds = self._seeds(request)
        items, sums, slots = _sums(self._table.neighbour, self._table.score, seeds)
        return Proposal(items[best(sums, limit, items)], partial(looked_up, slots, sums))

    def _seeds(self, request: Request) -> I32:
        return taken_last(request, self._floor, len(self._table.neighbour), SEEDS)


@njit(cache=True, nogil=True)
def _sums(neighbour: I32, score: F32, seeds: I32) -> tuple[I32, F64, I64]:
    """Return (int32[m] the neighbours of the seeds, each once; float64[m] their sums; a hash table of their places)."""
    width = neighbour.shape[1]
    bits, n = bits_for(len(seeds) * width), 0
    slots = np.full((1 << bits, 2), -1, np.int64)
    items, sums = np.empty(len(seeds) * width, np.int32), np.zeros(len(seeds) * width)
    for s in range(-SOON, len(seeds)):
        if s + SOON < len(seeds):
            for byte in range(0, width * 4, LINE):
                prefetch(neighbour, seeds[s + SOON] * width * 4 + byte)
                prefetch(score, seeds[s + SOON] * width * 4 + byte)
        if s < 0:
            continue
        weight = np.sqrt(1.0 + s)
        for j in range(width):
            b = np.int64(neighbour[seeds[s], j])
            if b < 0:
                break
            at = probe(slots, b, 64 - bits)
            if slots[at, 1] < 0:
                slots[at, 0], slots[at, 1], items[n] = b, n, b
                n += 1
            sums[slots[at, 1]] += score[seeds[s], j] / weight
    return items[:n].copy(), sums[:n].copy(), slots
