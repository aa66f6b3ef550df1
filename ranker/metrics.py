"""What a ranking is worth: weighted PairAccuracy by user, and NDCG@k."""

import numpy as np

from features.pairs import Groups, Pairs
from features.schema import F64, I64


def right_by_user(score: F64, pairs: Pairs, user: I64, n_users: int) -> tuple[F64, F64, F64]:
    """Return float64[n_users] weight of right, tied and all pairs of each user.

    score: float64[n] by row (NaN counts as minus infinity). user: int64[n], the row's user in [0, n_users).
    """
    clean = np.where(np.isnan(score), -np.inf, score)
    winner, loser = clean[pairs.winner], clean[pairs.loser]
    owner = user[pairs.winner]
    weight = pairs.weight.astype(np.float64)

    def by_user(value: F64) -> F64:
        return np.bincount(owner, value, minlength=n_users).astype(np.float64)

    return by_user(weight * (winner > loser)), by_user(weight * (winner == loser)), by_user(weight)


def ndcg(score: F64, groups: Groups, k: int = 10) -> float:
    """Return the mean NDCG@k over the groups that have two different gains.

    Gain 2^rank - 1 of the grade's rank (one more of each where a drawn candidate, of rank 0, is among them), discount
    1 / log2(place + 1) (Burges et al., ICML 2005). Candidates of equal score share the mean of their discounts, as in
    scikit-learn's `ndcg_score`. NaN where no group counts.
    """
    group = groups.requests.row_request()
    gain = 2.0 ** (groups.grade + bool(groups.sampled.any())) - 1.0
    n = len(groups.requests)
    clean = np.where(np.isnan(score), -np.inf, score)
    order = np.lexsort((-clean, group))
    gained = np.bincount(group, _discounts(group[order], clean[order], k) * gain[order], minlength=n)
    ideal_order = np.lexsort((-gain, group))
    ideal = np.bincount(
        group, _discounts(group, np.arange(len(group), dtype=float), k) * gain[ideal_order], minlength=n
    )
    # A group counts where its best gain is above its worst: where some gain is below the best of the group.
    best = np.zeros(n)
    np.maximum.at(best, group, gain)
    counts = np.bincount(group[gain < best[group]], minlength=n) > 0
    return float(np.mean(gained[counts] / ideal[counts])) if counts.any() else float("nan")


def _discounts(group: I64, score: F64, k: int) -> F64:
    """Return each row's discount (rows sorted by group, best first), averaged over the ties of a group."""
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    place = np.arange(len(group)) - np.repeat(starts, np.diff(np.append(starts, len(group))))
    discount = np.where(place < k, 1.0 / np.log2(place + 2.0), 0.0)
    new = np.ones(len(group), bool)
    new[1:] = (group[1:] != group[:-1]) | (score[1:] != score[:-1])
    tie = np.cumsum(new) - 1
    return np.asarray((np.bincount(tie, discount) / np.bincount(tie))[tie])


def effective_users(weight: F64) -> float:
    """Return (Σ w)² / Σ w² of the users' pair weights: how many equal users would give so wide an interval."""
    return float(weight.sum() ** 2 / (weight**2).sum()) if weight.any() else 0.0
