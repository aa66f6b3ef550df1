"""PairAccuracy as it would be, had every place been looked at as the first one is.

A pair of a log says who got the better feedback, not who is better: an item far down that nobody looked at loses to
whatever stood on top. Under the examination hypothesis (`features.pairing.examination`), what is not looked at has the
worst grade, and whether one place is looked at does not hang on another. With u = 1 / e_i and v = 1 / e_j of the places
of i and j, an impression of grade a stands for u of that grade and 1 - u of the worst one, 0: on average that is how
often it would have had each, had its place been looked at. So

    V_ij = u · v · W[a, b] + u · (1 - v) · W[a, 0]        for every ordered i, j of a group with a above the worst

is, on average, the weight of the pair "i above j" of that other log, and

    debiased = Σ V · ([s_i > s_j] + ½·[s_i = s_j]) / Σ V

has both of its sums unbiased. Against an item without feedback (b = 0) it is the inverse-propensity weight of Joachims,
Swaminathan and Schnabel ("Unbiased Learning-to-Rank with Biased Feedback", WSDM 2017); what they leave out, as feedback
is rare, is the term of two items with feedback, which is negative where the loser's place is seldom looked at: it takes
back pairs that were counted against items that are good and were not seen. Weights are not clipped, which would bring
the bias back: places that are looked at less than `LEAST` as often as the first are left out, and their share is told,
so the figure is about the pairs of all others.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from features.pairing.groups import Groups
from features.schema import F64, I8, I64
from ranker.metrics.interval import ratio_interval

#: a place that is looked at more seldom, relative to the first, takes no part: few would count for many
LEAST = 0.05


@dataclass(frozen=True, slots=True)
class Debiased:
    """The sums of one score by user."""

    right: F64  # [users], V of the pairs in order, a tie being one half
    total: F64  # [users], V of all pairs

    def reported(self) -> dict[str, Any]:
        """Return the figure and its interval of 95 %, about new users, as a report has them."""
        value, low, high = ratio_interval(self.right, self.total)
        return {"pair_accuracy": value, "ci95": [low, high]}


@dataclass(frozen=True, slots=True)
class Debiasing:
    """The groups that scores are judged by, and how much each impression counts for."""

    groups: Groups
    table: F64  # [grades + 1, grades + 1] of `weight_table`
    counts: F64  # [n], inverse of the chance that the place was looked at; NaN takes no part
    left_out: float  # share of the impressions of known chance that are looked at too seldom
    user: I64  # [g], in [0, n_users)
    n_users: int

    @classmethod
    def of(cls, groups: Groups, table: F64, chance: F64) -> "Debiasing":
        """chance: float64[n], that each impression's place was looked at; NaN where it is not known, or was drawn."""
        users, code = np.unique(groups.requests.user, return_inverse=True)
        seldom, known = chance < LEAST, int((~np.isnan(chance)).sum())
        share = float(seldom.sum() / known) if known else 0.0
        counts = 1 / np.where(seldom, np.nan, chance)
        return cls(groups, table, counts, share, code.astype(np.int64), len(users))

    def measure(self, score: F64) -> Debiased:
        """Return the sums of float64[n] scores; a NaN score counts as minus infinity."""
        clean, out = np.where(np.isnan(score), -np.inf, score).astype(np.float64), np.zeros((self.n_users, 2))
        groups = self.groups
        _sums(clean, groups.requests.offsets, groups.grade, self.counts, self.table, self.user, out)
        return Debiased(out[:, 0], out[:, 1])


@njit(cache=True, nogil=True)
def _sums(score: F64, offsets: I64, grade: I8, counts: F64, table: F64, user: I64, out: F64) -> None:
    """Add up V of the pairs in order and of all pairs.

        for each group, for each i of it above the worst grade, for each other j:
            V ← counts_i · (counts_j · W[i's grade, j's grade] + (1 - counts_j) · W[i's grade, worst])
            out[the group's user] += V · ([s_i > s_j] + ½·[s_i = s_j], 1)

    Impressions whose count is NaN are passed over. out: float64[users, 2].
    """
    for g in range(len(offsets) - 1):
        for i in range(offsets[g], offsets[g + 1]):
            if grade[i] < 1 or np.isnan(counts[i]):
                continue
            for j in range(offsets[g], offsets[g + 1]):
                if j == i or grade[j] < 0 or np.isnan(counts[j]):
                    continue
                both, seen = table[grade[i] + 1, grade[j] + 1], table[grade[i] + 1, 1]
                v = counts[i] * (counts[j] * both + (1 - counts[j]) * seen)
                out[user[g], 1] += v
                if score[i] > score[j]:
                    out[user[g], 0] += v
                elif score[i] == score[j]:
                    out[user[g], 0] += v / 2
