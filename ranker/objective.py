"""Pairwise logistic loss over explicit weighted pairs, and the PairAccuracy that goes with it.

loss = Σ w · log(1 + e^-(s_winner - s_loser)), as CatBoost's PairLogit. LightGBM's row weights scale a row's gradient
after the pair sum, so gradient and Hessian by pair are ours: compiled, linear in the pairs.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit, prange

from features.pairs import Pairs
from features.schema import F32, F64, I32, I64

#: pairs are cut into about this many chunks at group borders, whatever the threads: sums do not depend on them
CHUNKS = 64
#: below this many pairs a second thread costs more than it brings
PARALLEL_FROM = 500_000


@njit(cache=True, nogil=True)
def _add(score: F64, winner: I32, loser: I32, weight: F32, start: int, stop: int, gradient: F64, hessian: F64) -> None:
    for k in range(start, stop):
        a, b = winner[k], loser[k]
        wrong = 1.0 / (1.0 + np.exp(score[a] - score[b]))
        g = weight[k] * wrong
        h = g * (1.0 - wrong)
        gradient[a] -= g
        gradient[b] += g
        hessian[a] += h
        hessian[b] += h


@njit(cache=True, parallel=True, nogil=True)
def _add_chunks(score: F64, winner: I32, loser: I32, weight: F32, bounds: I64, gradient: F64, hessian: F64) -> None:
    for c in prange(len(bounds) - 1):
        # Chunks end at group borders, so no two of them write to one row.
        _add(score, winner, loser, weight, bounds[c], bounds[c + 1], gradient, hessian)


@njit(cache=True, nogil=True)
def _shares(score: F64, winner: I32, loser: I32, weight: F32) -> tuple[float, float, float]:
    right, tied, total = 0.0, 0.0, 0.0
    for k in range(len(winner)):
        a, b = score[winner[k]], score[loser[k]]
        total += weight[k]
        if a > b:
            right += weight[k]
        elif a == b:
            tied += weight[k]
    return right, tied, total


def pair_accuracy(score: F64, pairs: Pairs) -> tuple[float, float]:
    """Return (PairAccuracy, tie share): Σ w·[s_winner > s_loser] / Σ w, a tie being wrong, as in CatBoost.

    A NaN score counts as minus infinity. Without pairs both are NaN.
    """
    clean = np.where(np.isnan(score), -np.inf, score).astype(np.float64)
    right, tied, total = _shares(clean, pairs.winner, pairs.loser, pairs.weight)
    return (right / total, tied / total) if total else (np.nan, np.nan)


@dataclass(frozen=True, slots=True)
class PairLogit:
    """The objective of one training set, with its pairs sorted by group and cut at group borders."""

    pairs: Pairs
    bounds: I64
    n_rows: int

    @classmethod
    def of(cls, pairs: Pairs, group: I64) -> "PairLogit":
        """Prepare the pairs of rows whose groups are int64[n] `group`; a row is in one group."""
        of_pair = group[pairs.winner]
        order = np.argsort(of_pair, kind="stable")
        ordered = Pairs(pairs.winner[order], pairs.loser[order], pairs.weight[order], pairs.sampled[order])
        starts = np.flatnonzero(np.diff(of_pair[order], prepend=-1))
        wanted = np.linspace(0, len(starts), CHUNKS + 1).astype(np.int64)
        bounds = np.unique(np.append(starts, len(order))[wanted]).astype(np.int64)
        return cls(ordered, bounds, len(group))

    def __call__(self, score: F64, _: object = None) -> tuple[F64, F64]:
        """Return float64[n] gradient and Hessian at float64[n] scores (LightGBM's custom objective)."""
        gradient, hessian = np.zeros(self.n_rows), np.zeros(self.n_rows)
        p = self.pairs
        if len(p) < PARALLEL_FROM:
            _add(score, p.winner, p.loser, p.weight, 0, len(p), gradient, hessian)
        else:
            _add_chunks(score, p.winner, p.loser, p.weight, self.bounds, gradient, hessian)
        return gradient, hessian
