"""Item-to-item co-occurrence: what is taken together with what the user took last."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from features.histories import Histories
from features.schema import F32, I8, I32, I64, EventLog
from ranker.candidates.source import best
from ranker.request import Request

NEIGHBOURS = 100
WITHIN = 10
#: how many of the items that the user took last speak, and how many last events are searched for them
SEEDS = 20
RECENT = 500


@dataclass(frozen=True, slots=True)
class Cooccurrence:
    """neighbour: int32[n_items, k], nearest first, -1 where there are fewer; score: float32[n_items, k]."""

    neighbour: I32
    score: F32

    @classmethod
    def build(cls, log: EventLog, n_items: int, k: int = NEIGHBOURS) -> "Cooccurrence":
        """Count, for each item, the items that follow or precede it within `WITHIN` events of the same user.

        Only events whose grade is above the worst count (all, where the log has one grade). The score is
        count(a, b) / sqrt(count(a) · count(b)), the cosine of Sarwar et al. (WWW 2001).
        """
        item, user = _taken(log)
        first: list[I32] = []
        second: list[I32] = []
        for step in range(1, WITHIN + 1):
            same = user[step:] == user[:-step]
            first.append(item[:-step][same])
            second.append(item[step:][same])
        a, b = np.concatenate(first), np.concatenate(second)
        keep = a != b
        ones = np.ones(int(keep.sum()), np.float32)
        counts = csr_matrix((ones, (a[keep], b[keep])), shape=(n_items, n_items))
        counts = (counts + counts.T).tocsr()
        norm = np.sqrt(np.maximum(np.bincount(item, minlength=n_items), 1)).astype(np.float32)
        return cls(*_top(counts, norm, k))


def _taken(log: EventLog) -> tuple[I32, I32]:
    grade: I8 = log.grade
    floor = 0 if grade.max(initial=-1) <= 0 else 1
    rows: I64 = np.flatnonzero(grade >= floor)
    rows = rows[np.argsort(log.user[rows], kind="stable")]
    return log.item[rows], log.user[rows]


def _top(counts: csr_matrix, norm: F32, k: int) -> tuple[I32, F32]:
    n = counts.shape[0]
    neighbour, score = np.full((n, k), -1, np.int32), np.zeros((n, k), np.float32)
    for a in range(n):
        row = slice(counts.indptr[a], counts.indptr[a + 1])
        other = counts.indices[row]
        value = counts.data[row] / (norm[a] * norm[other])
        best = np.lexsort((other, -value))[:k]
        neighbour[a, : len(best)], score[a, : len(best)] = other[best], value[best]
    return neighbour, score


class TakenTogether:
    """Neighbours of the request's source item and of the items that the user took last.

    A neighbour's score is the sum over these seeds of its co-occurrence with the seed / (1 + the seed's
    place), the source item standing first and the latest event next. The table is as of the end of the log,
    so for an earlier `as_of` it knows more than it should: it proposes, and no feature reads it.
    """

    name = "cooccurrence"

    def __init__(self, table: Cooccurrence, histories: Histories, floor: int) -> None:
        """floor: the lowest grade that counts as taken (0 where the log has one grade, else 1)."""
        self._table = table
        self._histories = histories
        self._floor = floor

    def propose(self, request: Request, limit: int) -> I32:
        """Return the items most often taken together with the seeds; none for a user without any."""
        seeds = self._seeds(request)
        neighbour = self._table.neighbour[seeds]
        weight = self._table.score[seeds] / (1 + np.arange(len(seeds)))[:, None]
        known = neighbour >= 0
        items, place = np.unique(neighbour[known], return_inverse=True)
        return items[best(np.bincount(place, weight[known], len(items)).astype(np.float64), limit)]

    def _seeds(self, request: Request) -> I32:
        histories = request.histories(self._histories)
        start, stop = histories.before(np.array([request.user], np.int32), np.array([request.as_of]))
        rows = slice(max(int(start[0]), int(stop[0]) - RECENT), int(stop[0]))
        taken = histories.item[rows][histories.grade[rows] >= self._floor]
        latest = taken[::-1]
        if request.source_item >= 0:
            latest = np.concatenate([np.array([request.source_item], np.int32), latest])
        latest = latest[latest < len(self._table.neighbour)]  # a new item has no neighbours
        first = np.sort(np.unique(latest, return_index=True)[1])  # an item taken twice speaks once, where it is latest
        return latest[first][:SEEDS]
