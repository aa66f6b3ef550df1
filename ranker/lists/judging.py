"""Whether learned shares hold, and how much more new items count: judged by users that told neither.

Users are dealt to FOLDS folds. In each of as many turns one fold is learned of, by the second the weight of new items
is chosen, and the third judges: how much more of what its users wanted is among their first candidates than in the
configured order, by the same number of candidates for every user. So each user judges once, what two thirds of the
others gave. What is served is learned of all users, with the middle one of the turns' weights.

New items are few among what the log has, for what was shown was chosen by others; so one that was wanted may count as
several. It is the least of NEW_WEIGHTS with which the users of the choosing fold find more, and new items no less by
more than noise. Where there is none, that turn has the configured order.
"""

from collections.abc import Mapping
from dataclasses import replace
from statistics import median_low

import numpy as np

from features.schema import F64, I32, Bool
from ranker.blend.learned import Blend, Kind, Learner, blended
from ranker.blend.shares import ANY, NONE, Estimate, Judged
from ranker.candidates.gathering import own_places
from ranker.lists.worth import hits
from ranker.metrics.interval import mean_interval

#: as how many a new item counts, as they are tried
NEW_WEIGHTS = (1.0, 4.0, 16.0)
#: of users
FOLDS = 3


def judged(learner: Learner, budget: int | None, seed: int = 0) -> Learner:
    """Return the learner with what its orders are worth.

    budget: candidates of each request; None: as many as quotas of their own would give. seed: of the folds.
    """
    fold = folds(learner.told.user, seed)
    return replace(learner, judged={known: _judged(learner, known, budget, fold) for known in (True, False)})


def folds(user: I32, seed: int) -> I32:
    """Return int32[r], which fold the user of each request is in."""
    dealt = np.random.default_rng(seed).integers(0, FOLDS, int(user.max(initial=-1)) + 1)
    return np.asarray(dealt.astype(np.int32)[user])


def _judged(learner: Learner, known: bool, budget: int | None, fold: I32) -> Judged:
    rows, k = learner.of_kind(known), budget or _length(learner, known)
    found, chosen = np.full((2, len(rows)), np.nan), list[float]()
    for turn in range(FOLDS):
        learn, choose, judge = (rows & (fold == (turn + ahead) % FOLDS) for ahead in range(3))
        gains = _gains(learner, known, learn, choose | judge, k)
        chosen.append(_choice(learner.told.user, gains, choose))
        none = np.where(np.isfinite(gains[NEW_WEIGHTS[0]]), 0.0, np.nan)
        found[:, judge] = gains.get(chosen[-1], none)[:, judge]
    gain, new = (_interval(learner.told.user, of, rows) for of in found)
    return Judged(known, median_low(chosen), k, gain, new)


def _length(learner: Learner, known: bool) -> int:
    kind = Kind(known, ANY)
    own = own_places(learner.settings, ANY)
    return max(1, round(learner.items(kind, learner.weights()[kind], own)))


def _gains(learner: Learner, known: bool, learn: Bool, rows: Bool, k: int) -> dict[float, F64]:
    """Return float64[2, r] by weight of new items: recall@k less that of the configured order; of new items second.

    learn: bool[r], requests that are learned of. rows: bool[r], those of others, which count; NaN elsewhere, and where
    nothing was wanted.
    """
    weights = {kind: weight for kind, weight in learner.weights(learn).items() if kind.known == known}
    configured = _recalls(learner, known, {kind: learner.configured(kind) for kind in weights}, rows, k)

    def learned(new_weight: float) -> dict[Kind, Blend]:
        return {kind: learner.learned(kind, weight, new_weight) for kind, weight in weights.items()}

    tried = NEW_WEIGHTS if learner.new_hit.any() else NEW_WEIGHTS[:1]  # else they are all the same
    return {of: _recalls(learner, known, learned(of), rows, k) - configured for of in tried}


def _recalls(learner: Learner, known: bool, blends: Mapping[Kind, Blend], rows: Bool, k: int) -> F64:
    """Return float64[2, r]: which share of what was wanted, and of the new items of it, the first k have."""
    told, found = learner.told._replace(known=np.full(len(rows), known)), np.full((2, len(rows)), np.nan)
    lists = blended(told.at(rows), learner.surfaces, blends, k, learner.floor(known, k))
    for part, of in enumerate((told, learner.fresh)):
        some = of.at(rows)
        wanted = np.diff(some.offsets)
        count = hits(lists, some.offsets, some.item).sum(axis=1)
        found[part, rows] = np.where(wanted > 0, count / np.maximum(wanted, 1), np.nan)
    return found


def _choice(user: I32, gains: Mapping[float, F64], rows: Bool) -> float:
    """Return the least weight that finds more in the mean, and new items no less by more than noise; or NONE."""
    for new_weight, (gain, new) in gains.items():
        found, of_new = (_interval(user, of, rows) for of in (gain, new))
        if found and found[0] > 0 and not (of_new and of_new[2] < 0):
            return new_weight
    return NONE


def _interval(user: I32, gain: F64, rows: Bool) -> Estimate | None:
    """Return the mean of users' means of float64[r] and its interval; None of fewer than two users.

    rows: bool[r], which count.
    """
    some = rows & np.isfinite(gain)
    count, total = np.bincount(user[some]), np.bincount(user[some], gain[some])
    return mean_interval(total[count > 0] / count[count > 0]) if (count > 0).sum() > 1 else None
