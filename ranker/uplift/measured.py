"""One arm of an uplift report on the test: the weight of correctly ordered pairs by user, over fits and seeds."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from features.pairing.groups import Groups
from features.pairing.pairs import Pairs
from features.schema import F64, I64, Bool
from ranker.metrics.interval import relative_uplift
from ranker.metrics.lists import NDCG_AT, shown_metrics
from ranker.metrics.pair_accuracy import right_by_user
from ranker.training.arms import Arm

#: what stands beside PairAccuracy: its key in the report, and its name in the table
LISTED = {f"ndcg@{NDCG_AT}": f"NDCG@{NDCG_AT}", "map": "MAP", "mrr": "MRR", "auc": "AUC within groups"}

#: fitted boosters by fit of the plugin, then by seed
Fits = list[list[Arm]]


@dataclass(frozen=True, slots=True)
class Judged:
    """The pairs that arms are judged by."""

    groups: Groups  # of the test
    pairs: Pairs  # of one kind, shown or sampled, over the rows of `groups`
    user: I64  # [n] of the test's rows, in [0, n_users) or -1 of a user without pairs
    n_users: int  # who have pairs

    @classmethod
    def of(cls, groups: Groups, pairs: Pairs) -> "Judged":
        """Number the users who have pairs."""
        row_user = groups.requests.user[groups.requests.row_request()].astype(np.int64)
        with_pairs, code = np.unique(row_user[pairs.winner], return_inverse=True)
        user = np.full(len(row_user), -1, np.int64)
        user[pairs.winner] = code
        return cls(groups, pairs, user, len(with_pairs))

    def only(self, keep: Bool) -> "Judged":
        """Return the pairs of the mask bool[p], and the users who have some."""
        return Judged.of(self.groups, self.pairs.select(keep))


@dataclass(frozen=True, slots=True)
class Measured:
    """One arm on the judged pairs."""

    right: F64  # [fits, seeds, users] weight of the right pairs, a tie being one half
    catboost: F64  # [fits, seeds, users], a tie being wrong
    total: F64  # [users] weight of all pairs

    @classmethod
    def of(cls, fits: Fits, judged: Judged) -> "Measured":
        """Evaluate every booster."""
        found = [
            [right_by_user(arm.scores, judged.pairs, judged.user, judged.n_users) for arm in of_seeds]
            for of_seeds in fits
        ]
        right, tied = (np.stack([np.stack([f[k] for f in of_seeds]) for of_seeds in found]) for k in (0, 1))
        return cls(right + tied / 2, right, found[0][0][2])

    @property
    def accuracy(self) -> float:
        """PairAccuracy, the mean over fits and seeds."""
        return self._share(self.right)

    @property
    def accuracy_catboost(self) -> float:
        """CatBoost's PairAccuracy, likewise."""
        return self._share(self.catboost)

    @property
    def tie_share(self) -> float:
        """Weight of the tied pairs, likewise."""
        return 2 * (self.accuracy - self.accuracy_catboost)

    @property
    def by_user(self) -> F64:
        """float64[fits, seeds, users] PairAccuracy of each user: every one weighs one."""
        return self.right / self.total

    def _share(self, right: F64) -> float:
        total = float(self.total.sum()) * right.shape[0] * right.shape[1]
        return float(right.sum()) / total if total else float("nan")


def listed(fits: Fits, judged: Judged) -> dict[str, float]:
    """Return NDCG, MAP, MRR and AUC (`ranker.metrics.lists.shown_metrics`), the mean over fits and seeds."""
    shown = not judged.pairs.sampled.any()
    found = [shown_metrics(arm.scores, judged.groups, shown) for of_seeds in fits for arm in of_seeds]
    return {name: float(np.mean([f[name] for f in found])) for name in LISTED}


def compared(without: Measured, with_: Measured) -> dict[str, Any]:
    """Return PairAccuracy of both and the uplift with its interval, as a part of a report has them."""
    interval = relative_uplift(without.right, with_.right)
    return {"without": without.accuracy, "with": with_.accuracy} | interval.reported()


def uplift_of(without: Fits, with_: Fits, judged: Judged) -> dict[str, Any]:
    """Return `pairs`, `users`, and what `compared` says of two arms; NaN where there is nothing to compare."""
    counts = {"pairs": len(judged.pairs), "users": judged.n_users}
    return counts | compared(Measured.of(without, judged), Measured.of(with_, judged))
