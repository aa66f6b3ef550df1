"""Item-to-item co-occurrence: what is taken together with what the user took last."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from features.schema import F32, I8, I32, I64, EventLog

NEIGHBOURS = 100
WITHIN = 10


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
