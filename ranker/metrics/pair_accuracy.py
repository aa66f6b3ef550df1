"""PairAccuracy = Σ w·([s_winner > s_loser] + ½·[s_winner = s_loser]) / Σ w: of all pairs, and by user."""

from typing import NamedTuple

import numpy as np

from features.kernels import njit
from features.pairing.pairs import Pairs
from features.schema import F32, F64, I32, I64


class PairAccuracy(NamedTuple):
    """Shares of the weight of all pairs."""

    value: float  # right, and half of the tied: the metric
    catboost: float  # right alone, a tie being wrong, as CatBoost has it: noise that breaks ties "gains" by it
    ties: float  # tied


def pair_accuracy(score: F64, pairs: Pairs) -> PairAccuracy:
    """Return the figures of float64[n] scores by row; without pairs all are NaN. A NaN score counts as -infinity."""
    right, tied, total = _sums_by_user(score, pairs, np.empty(0, np.int64), 1)[0].tolist()
    if not total:
        return PairAccuracy(np.nan, np.nan, np.nan)
    return PairAccuracy((right + tied / 2) / total, right / total, tied / total)


def right_by_user(score: F64, pairs: Pairs, user: I64, n_users: int) -> tuple[F64, F64, F64]:
    """Return float64[n_users] weight of right, tied and all pairs of each user.

    score: float64[n] by row (NaN counts as minus infinity). user: int64[n], the row's user in [0, n_users), or
    whatever for a row that wins no pair.
    """
    right, tied, total = np.ascontiguousarray(_sums_by_user(score, pairs, user, n_users).T)
    return right, tied, total


def _sums_by_user(score: F64, pairs: Pairs, user: I64, n_users: int) -> F64:
    """Return float64[n_users, 3]: see `_sums`. A NaN score counts as minus infinity."""
    clean, out = np.where(np.isnan(score), -np.inf, score).astype(np.float64), np.zeros((n_users, 3))
    _sums(clean, pairs.winner, pairs.loser, pairs.weight, user, out)
    return out


@njit(cache=True, nogil=True)
def _sums(score: F64, winner: I32, loser: I32, weight: F32, user: I64, out: F64) -> None:
    """Add up the weight of right, tied and all pairs.

    for each pair:
        which user's? the winner row's, or the one user of all where `user` is empty
        out[user] += weight · ([s_winner > s_loser], [s_winner = s_loser], 1)

    user: int64[n] by row, or empty. out: float64[users, 3].
    """
    for k in range(len(winner)):
        a, b = score[winner[k]], score[loser[k]]
        at = user[winner[k]] if len(user) else 0
        out[at, 2] += weight[k]
        if a > b:
            out[at, 0] += weight[k]
        elif a == b:
            out[at, 1] += weight[k]


def effective_users(weight: F64) -> float:
    """Return (Σ w)² / Σ w² of the users' pair weights: how many equal users would give so wide an interval."""
    return float(weight.sum() ** 2 / (weight**2).sum()) if weight.any() else 0.0
