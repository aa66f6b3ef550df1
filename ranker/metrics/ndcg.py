"""NDCG@k, its gains and its discounts (Burges et al., ICML 2005): of the metric and of the objective's |ΔNDCG|."""

import numpy as np

from features.pairing.groups import Groups
from features.schema import F64, I8, I64


def gains(grade: I8) -> F64:
    """Return float64[n] 2^rank - 1 of grades, one rank more of each where a drawn one (-1) is among them."""
    return np.asarray(2.0 ** (grade + bool((grade < 0).any())) - 1.0)


def discounts(k: int) -> F64:
    """Return float64[k] 1 / log2(place + 2) of the places 0 .. k - 1, the best first; those behind count 0."""
    return np.asarray(1.0 / np.log2(np.arange(k) + 2.0))


def ideal_dcg(gain: F64, group: I64, k: int) -> F64:
    """Return float64[groups] DCG@k of the best order of each group. group: int64[n], never decreasing."""
    discount = _by_place(_places(group), k)
    return np.asarray(np.bincount(group, discount * gain[np.lexsort((-gain, group))]))


def ndcg(score: F64, groups: Groups, k: int) -> float:
    """Return the mean NDCG@k over the groups that have two different gains; NaN where no group counts.

    Candidates of equal score share the mean of their discounts, as in scikit-learn's `ndcg_score`. A NaN score counts
    as minus infinity.
    """
    group = groups.requests.row_request()
    gain = gains(groups.grade)
    n = len(groups.requests)
    clean = np.where(np.isnan(score), -np.inf, score)
    order = np.lexsort((-clean, group))
    gained = np.bincount(group, _tied_discounts(group, clean[order], k) * gain[order], minlength=n)
    # A group counts where its best gain is above its worst: where some gain is below the best of the group.
    best = np.zeros(n)
    np.maximum.at(best, group, gain)
    counts = np.flatnonzero(np.bincount(group[gain < best[group]], minlength=n))
    return float(np.mean(gained[counts] / ideal_dcg(gain, group, k)[counts])) if len(counts) else float("nan")


def _places(group: I64) -> I64:
    """Return int64[n]: the place of each row in its group, from 0."""
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    return np.arange(len(group)) - np.repeat(starts, np.diff(np.append(starts, len(group))))


def _by_place(place: I64, k: int) -> F64:
    known = discounts(min(k, int(place.max(initial=-1)) + 1))
    return np.append(known, 0.0)[np.minimum(place, len(known))]


def _tied_discounts(group: I64, score: F64, k: int) -> F64:
    """Return each row's discount (rows sorted by group, best first), averaged over the ties of a group."""
    discount = _by_place(_places(group), k)
    new = np.ones(len(group), bool)
    new[1:] = (group[1:] != group[:-1]) | (score[1:] != score[:-1])
    tie = np.cumsum(new) - 1
    return np.asarray((np.bincount(tie, discount) / np.bincount(tie))[tie])
