"""What the lists of a ranking are worth: NDCG@k, MAP, MRR and AUC of the groups."""

import numpy as np

from features.kernels import njit
from features.pairing.groups import Groups
from features.schema import F64, I64, Bool
from ranker.metrics.ndcg import ndcg

#: the k of NDCG@k in reports
NDCG_AT = 10


def shown_metrics(score: F64, groups: Groups, shown: bool) -> dict[str, float]:
    """Return `list_metrics` of what was shown alone: drawn candidates are no part of such a list; or of all."""
    rows = ~groups.sampled if shown else np.ones(len(groups.grade), bool)
    return list_metrics(score[rows], groups.rows(rows))


def list_metrics(score: F64, groups: Groups, relevant: int | None = None) -> dict[str, float]:
    """Return `ndcg@10`, `map`, `mrr` and `auc` of float64[n] scores; NaN where there is nothing to order.

    relevant: the lowest rank of a grade that counts as relevant; by default whatever NDCG gives a gain: 1 (all but
    the worst grade), or 0 where drawn candidates are there to be worse. MAP, MRR and AUC are means over the groups that
    have both relevant candidates and others. A list is ranked within one request: an AUC over all of a user's groups
    would compare scores of different `as_of`, which no list does. A NaN score counts as minus infinity. Ties: in MAP
    each has the precision behind the last of them, as in scikit-learn's `average_precision_score`; in MRR the expected
    value over their orders; in AUC one half.
    """
    lowest = int(not groups.sampled.any()) if relevant is None else relevant
    clean = np.where(np.isnan(score), -np.inf, score).astype(np.float64)
    hit, group = groups.grade >= lowest, groups.requests.row_request()
    average, reciprocal, auc = _mean_by(group, clean, hit)
    found = {f"ndcg@{NDCG_AT}": ndcg(score, groups, NDCG_AT)}
    return found | {"map": float(average), "mrr": float(reciprocal), "auc": float(auc)}


def _mean_by(key: I64, score: F64, relevant: Bool) -> F64:
    """Return float64[3]: the mean of `_by_list` over the lists of int64[n] `key` that count; NaN where none does."""
    order = np.lexsort((-score, key))
    starts = np.append(np.flatnonzero(np.diff(key[order], prepend=-1)), len(key))
    found = _by_list(score[order], relevant[order], starts.astype(np.int64))
    counts = ~np.isnan(found[:, 0])
    return np.asarray(found[counts].mean(axis=0)) if counts.any() else np.full(3, np.nan)


@njit(cache=True, nogil=True)
def _by_list(score: F64, relevant: Bool, starts: I64) -> F64:
    """Return float64[lists, 3]: average precision, reciprocal rank and AUC; NaN where a list has one kind of rows.

    Rows are sorted by list, best score first; list k has the rows starts[k] .. starts[k + 1] - 1.

    for each list, for each run of equal scores:
        average precision += hits of the run · hits up to its end / rows up to its end
        reciprocal rank    = the expected 1 / place of a hit, in the first run that has one   `_first_place`
        pairs in order    += hits of the run · (other rows behind it + half of its own others)
    """
    out = np.full((len(starts) - 1, 3), np.nan)
    for k in range(len(starts) - 1):
        first, end = starts[k], starts[k + 1]
        n = np.sum(relevant[first:end])
        others = end - first - n
        if n == 0 or others == 0:
            continue
        precision, place, above, found, at = 0.0, 0.0, 0.0, 0, first
        while at < end:
            tied, hits = 0, 0
            while at + tied < end and score[at + tied] == score[at]:
                hits += relevant[at + tied]
                tied += 1
            if hits > 0 and found == 0:
                place = _first_place(at - first, tied, hits)
            misses_before = at - first - found
            precision += hits * (found + hits) / (at - first + tied)
            above += hits * (others - misses_before - (tied - hits) / 2)
            found, at = found + hits, at + tied
        out[k, 0], out[k, 1], out[k, 2] = precision / n, place, above / (n * others)
    return out


@njit(cache=True, nogil=True)
def _first_place(before: int, tied: int, relevant: int) -> float:
    """Return the expected 1 / place of the first relevant one of `tied` rows in random order, behind `before` rows.

    for t = 0 .. tied - relevant:                     the places where it may stand
        chance = relevant / (tied - t)                that it stands there, if it did not stand before
        expected += P(not before) · chance / (before + t + 1)
    """
    expected, none_yet = 0.0, 1.0
    for t in range(tied - relevant + 1):
        chance = relevant / (tied - t)
        expected += none_yet * chance / (before + t + 1)
        none_yet *= 1.0 - chance
    return expected
