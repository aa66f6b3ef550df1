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

Who likes all that is shown, wherever it stands, looks at every place: the hypothesis does not hold of them, and nothing
but negative terms is theirs, which no draw of others makes up for. Such a user moves the figure as far as their share
goes; where their negative terms may outweigh all others, by one of the estimates of examination, there is no figure.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from features.kernels import njit
from features.pairing.examination import Examination, jackknife_half
from features.pairing.groups import Groups
from features.schema import F32, F64, I8, I64
from ranker.metrics.interval import ratio_interval

#: a place that is looked at more seldom, relative to the first, takes no part: few would count for many
LEAST = 0.05


@dataclass(frozen=True, slots=True)
class Debiased:
    """The sums of one score, by user, and with examination estimated without each part of its users."""

    right: F64  # [users], V of the pairs in order, a tie being one half
    total: F64  # [users], V of all pairs
    without: F64  # [PARTS, 2], both sums of all users by each of those estimates

    def reported(self) -> dict[str, Any]:
        """Return the figure and its interval of 95 %, as a report has them; both None with a `remark` that says why.

        About new users, of the test and of the log that examination was estimated from, which are independent parts.
        """
        value, low, high = ratio_interval(self.right, self.total)
        right, total = self.without.T
        ends = widened(low, high, right / np.where(total > 0, total, np.nan))
        if not np.isfinite(ends).all():  # a point whose error nobody knows is no figure
            return {"pair_accuracy": None, "ci95": [None, None], "remark": self.unknown()}
        return {"pair_accuracy": value, "ci95": ends, "remark": ""}

    def unknown(self) -> str:
        """Return why there is no figure."""
        less, more = self.total[self.total < 0], self.total[self.total > 0]
        if not len(less):
            return "it takes pairs of two users or more"
        share = 100 * float(-less.sum() / more.sum()) if len(more) else 100.0
        most = 100 * less.min() / less.sum()
        who = f"{len(less):,} users (one of them {most:.0f} % of it) take" if len(less) > 1 else "one user takes"
        return (
            f"{who} back {share:.0f} % of what all others count for: they like what is shown wherever it stands, so "
            "they look at every place, as others do not; a bot? Leave it out of [events] source"
        )


def widened(low: float, high: float, without: F64) -> list[float]:
    """Return the ends of an interval with what an estimate adds; float64[PARTS] `without`: each without one part."""
    half = float(np.hypot((high - low) / 2, jackknife_half(without)))
    return [(low + high) / 2 - half, (low + high) / 2 + half]


@dataclass(frozen=True, slots=True)
class Debiasing:
    """The groups that scores are judged by, and how much each impression counts for."""

    groups: Groups
    table: F64  # [grades + 1, grades + 1] of `weight_table`
    place: I64  # [n], range of places; -1 where it is not known, or the item was drawn
    counts: F64  # [1 + PARTS, b], inverse of the chance that a range is looked at, as estimated and without each part
    left_out: float  # share of the impressions of known places that take no part
    user: I64  # [g], in [0, n_users)
    n_users: int

    @classmethod
    def of(cls, groups: Groups, table: F64, examination: Examination, position: F32) -> "Debiasing":
        """position: float32[n], the place of each impression; NaN where it is not known, or the item was drawn."""
        users, code = np.unique(groups.requests.user, return_inverse=True)
        chance = np.where(examination.chance < LEAST, np.nan, examination.chance)
        again = np.where(examination.without > 0, examination.without, chance)
        counts = 1 / np.vstack([chance, np.where(np.isnan(chance), np.nan, again)])
        place, known = examination.range_of(position), ~np.isnan(position)
        part = (place >= 0) & ~np.isnan(counts[0, place])
        left_out = float(np.mean(~part[known])) if known.any() else 0.0
        return cls(groups, table, place, counts, left_out, code.astype(np.int64), len(users))

    def measure(self, score: F64) -> Debiased:
        """Return the sums of float64[n] scores; a NaN score counts as minus infinity."""
        clean = np.where(np.isnan(score), -np.inf, score).astype(np.float64)
        sums = [self._sums(clean, counts) for counts in self.counts]
        return Debiased(sums[0][:, 0], sums[0][:, 1], np.array([of.sum(axis=0) for of in sums[1:]]))

    def _sums(self, score: F64, counts: F64) -> F64:
        out, groups = np.zeros((self.n_users, 2)), self.groups
        _add_up(score, groups.requests.offsets, groups.grade, self.place, counts, self.table, self.user, out)
        return out


@njit(cache=True, nogil=True)
def _add_up(score: F64, offsets: I64, grade: I8, place: I64, counts: F64, table: F64, user: I64, out: F64) -> None:
    """Add up V of the pairs in order and of all pairs.

        for each group, for each i of it above the worst grade, for each other j:
            V ← counts_i · (counts_j · W[i's grade, j's grade] + (1 - counts_j) · W[i's grade, worst])
            out[the group's user] += V · ([s_i > s_j] + ½·[s_i = s_j], 1)

    counts: float64[b] by range of places. What has no range, or a count of NaN, is passed over. out: float64[users, 2].
    """
    for g in range(len(offsets) - 1):
        for i in range(offsets[g], offsets[g + 1]):
            if grade[i] < 1 or place[i] < 0 or np.isnan(counts[place[i]]):
                continue
            u, seen = counts[place[i]], table[grade[i] + 1, 1]
            for j in range(offsets[g], offsets[g + 1]):
                if j == i or grade[j] < 0 or place[j] < 0 or np.isnan(counts[place[j]]):
                    continue
                v = counts[place[j]]
                weight = u * (v * table[grade[i] + 1, grade[j] + 1] + (1 - v) * seen)
                out[user[g], 1] += weight
                if score[i] > score[j]:
                    out[user[g], 0] += weight
                elif score[i] == score[j]:
                    out[user[g], 0] += weight / 2
