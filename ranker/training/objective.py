"""Pairwise logistic loss over explicit weighted pairs: LightGBM's custom objective.

loss = Σ w · log(1 + e^-(s_winner - s_loser - margin · (rank_winner - rank_loser))): with a margin of 0, CatBoost's
PairLogit. LightGBM's row weights scale a row's gradient after the pair sum, so gradient and Hessian by pair are ours:
compiled, linear in the pairs (and the sort of each group, where |ΔNDCG| scales the weights).

PairLogit(score):
    for each chunk of groups (in parallel where there are many pairs):
        centred = score - margin · rank, less the greatest of the group     `_centre`
        odds = e^centred                                                    `_exponentials`; not where it is too small
        weight = w, or w · |ΔNDCG| of the present order                     `_places`, `_scaled`
        for each pair:                                                      `_add`, or `_add_far` from `centred`
            wrong = odds_loser / (odds_winner + odds_loser)                 the chance of the wrong order
            gradient ∓= weight · wrong        of the winner and of the loser
            hessian  += weight · wrong · (1 - wrong)    of both
"""

from dataclasses import dataclass
from math import factorial
from typing import NamedTuple

import numpy as np

from features.kernels import njit, prange
from features.pairing.pairs import Pairs
from features.schema import F32, F64, I8, I32, I64
from ranker.metrics.ndcg import discounts, gains, ideal_dcg
from ranker.training.abreast import end_if_over, in_lane

#: groups are cut into about this many chunks, whatever the threads, so that sums do not depend on them; the rows of
#: a chunk of 2 million rows fit the second cache
CHUNKS = 256
#: below this many pairs a second thread costs more than it brings
PARALLEL_FROM = 500_000
#: e^-500 and its sums are far from the smallest float64; a chunk with scores farther apart goes pair by pair
FAR = 500.0
#: up to so many rows, sorting by insertion is faster than NumPy's sort
INSERTED = 48
_LOG2_E = 1.4426950408889634
#: ln 2 in two parts, the first with zeros at its end, so that its product with an exponent is exact
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
#: a float64 plus this is rounded to an integer, which stands in its last bits
_ROUND = 6755399441055744.0
_C2, _C3, _C4, _C5, _C6, _C7, _C8, _C9, _C10, _C11, _C12, _C13 = (1 / factorial(k) for k in range(2, 14))


class Rows(NamedTuple):
    """The rows of a training set."""

    grade: I8  # [n] rank, which the margin is for; -1 drawn
    margin: float  # for each rank between a winner and a loser
    gain: F64  # [n] over the ideal DCG of the group; empty without |ΔNDCG|
    discounts: F64  # [k] of the places that count; empty without |ΔNDCG|


class PairArrays(NamedTuple):
    """Pairs sorted by group."""

    winner: I32  # [p] row
    loser: I32  # [p] row
    weight: F32  # [p]


class Cuts(NamedTuple):
    """Where groups and chunks begin, each with the end of the last behind."""

    rows: I64  # [g + 1] first row of each group
    pairs: I64  # [g + 1] first pair of each group
    chunks: I64  # [c + 1] first group of each chunk


class Gradients(NamedTuple):
    """What LightGBM wants of a round."""

    gradient: F32  # [n]
    hessian: F32  # [n]


@dataclass(frozen=True, slots=True)
class PairLogit:
    """The objective of one training set, with its pairs sorted by group and the groups cut into chunks."""

    rows: Rows  # in the order of the training set
    pairs: PairArrays  # in the order of their groups
    cuts: Cuts  # of both
    out: Gradients  # filled and returned by every call: fresh ones cost as much as the pairs do

    @classmethod
    def of(
        cls, pairs: Pairs, group: I64, grade: I8 | None = None, margin: float = 0.0, ndcg_at: int | None = None
    ) -> "PairLogit":
        """Prepare the pairs of rows whose groups are int64[n] `group`, never decreasing.

        grade: int8[n] rank of each row's grade, -1 of a drawn one; the variants need it. margin: by how much a
        winner should be above a loser for each rank between them. ndcg_at: the weight of a pair is multiplied by
        what NDCG@k would change by if the two swapped places (LambdaMART, Burges, MSR-TR-2010-82), with gains and
        discounts of `ranker.metrics.ndcg`; tied rows have the mean over all their orders, and a group without a
        gain gives 0.
        """
        if grade is None and (margin or ndcg_at):
            raise ValueError("margin and ndcg_at need the grade of each row")
        starts = np.append(np.flatnonzero(np.diff(group, prepend=group[:1] - 1)), len(group)).astype(np.int64)
        dense = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        if (np.diff(group) < 0).any() or (dense[pairs.winner] != dense[pairs.loser]).any():
            raise ValueError("groups that never decrease, and pairs that stay in one, were expected")
        order = np.argsort(dense[pairs.winner], kind="stable")
        counts = np.bincount(dense[pairs.winner], minlength=len(starts) - 1)
        grade = np.zeros(len(group), np.int8) if grade is None else grade
        gain, places = _gains(grade, starts, dense, ndcg_at) if ndcg_at else (np.empty(0), np.empty(0))
        return cls(
            Rows(grade, float(margin), gain, places),
            PairArrays(pairs.winner[order], pairs.loser[order], pairs.weight[order]),
            _cuts(starts, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)),
            Gradients(np.empty(len(group), np.float32), np.empty(len(group), np.float32)),
        )

    def __call__(self, score: F64, _: object = None) -> Gradients:
        """Return float32[n] gradient and Hessian at float64[n] scores (LightGBM's custom objective)."""
        end_if_over()
        # Numba's threads are not for two callers at a time.
        run = _alone if len(self.pairs.winner) < PARALLEL_FROM or in_lane() else _parallel
        run(self.rows, self.pairs, self.cuts, score, self.out)
        return self.out


def _gains(grade: I8, starts: I64, dense: I64, k: int) -> tuple[F64, F64]:
    """Return float64[n] gains over the ideal DCG@k of their group, 0 where that is 0, and the discounts of k places."""
    gain = gains(grade)
    ideal = ideal_dcg(gain, dense, k)[dense]
    places = min(k, int(np.diff(starts).max()))
    return np.divide(gain, ideal, out=np.zeros(len(gain)), where=ideal > 0), discounts(places)


def _cuts(starts: I64, pair_starts: I64) -> Cuts:
    """Cut groups into chunks of about as many rows and pairs."""
    work = starts + pair_starts
    borders = np.unique(np.searchsorted(work, np.linspace(0, work[-1], CHUNKS + 1))).astype(np.int64)
    return Cuts(starts, pair_starts, borders)


@njit(cache=True, nogil=True)
def _alone(rows: Rows, pairs: PairArrays, cuts: Cuts, score: F64, out: Gradients) -> None:
    for c in range(len(cuts.chunks) - 1):
        _fill(rows, pairs, cuts, c, score, out)


@njit(cache=True, parallel=True, nogil=True)
def _parallel(rows: Rows, pairs: PairArrays, cuts: Cuts, score: F64, out: Gradients) -> None:
    for c in prange(len(cuts.chunks) - 1):
        # Chunks end at group borders, so no two of them write to one row.
        _fill(rows, pairs, cuts, c, score, out)


@njit(cache=True, nogil=True)
def _fill(rows: Rows, pairs: PairArrays, cuts: Cuts, c: int, score: F64, out: Gradients) -> None:
    """Run the chunk c."""
    first, end = cuts.chunks[c], cuts.chunks[c + 1]
    p, q = cuts.pairs[first], cuts.pairs[end]
    of_chunk = PairArrays(pairs.winner[p:q], pairs.loser[p:q], pairs.weight[p:q])
    _chunk(rows, of_chunk, cuts.rows[first : end + 1], score, out)


@njit(cache=True, nogil=True)
def _chunk(rows: Rows, pairs: PairArrays, starts: I64, score: F64, out: Gradients) -> None:
    """Fill the gradient and Hessian of one chunk: see the module. pairs: of the chunk. starts: of its groups."""
    first, n = starts[0], starts[-1] - starts[0]
    winner, loser, weight = pairs
    centred, g, h = np.empty(n), np.zeros(n), np.zeros(n)
    far = _centre(score, rows.grade, rows.margin, starts, centred) < -FAR
    if not far:
        _exponentials(centred)
    if len(rows.discounts):
        place, within = np.empty(n), np.empty(n)
        _places(score, starts, rows.discounts, place, within)
        scaled = _scaled(winner, loser, weight, rows.gain, place, within, first)
        if far:
            _add_far(centred, winner, loser, scaled, first, g, h)
        else:
            _add(centred, winner, loser, scaled, first, g, h)
    elif far:
        _add_far(centred, winner, loser, weight, first, g, h)
    else:
        _add(centred, winner, loser, weight, first, g, h)
    for row in range(n):
        out.gradient[first + row], out.hessian[first + row] = g[row], h[row]


@njit(cache=True, nogil=True)
def _centre(score: F64, grade: I8, margin: float, starts: I64, centred: F64) -> float:
    """Fill `centred` with scores less margin and the greatest of their group; return the lowest of all."""
    lowest, first = 0.0, starts[0]
    for g in range(len(starts) - 1):
        top = -np.inf
        for row in range(starts[g], starts[g + 1]):
            centred[row - first] = score[row] - margin * grade[row]
            top = max(top, centred[row - first])
        for row in range(starts[g] - first, starts[g + 1] - first):
            centred[row] -= top
            lowest = min(lowest, centred[row])
    return lowest


@njit(cache=True, nogil=True)
def _exponentials(x: F64) -> None:
    """Replace each x in [-500, 0] by e^x, within two units of the last place.

        n = x / ln 2, rounded;  r = x - n · ln 2, |r| <= ln 2 / 2
        e^x = 2^n · e^r, e^r by Taylor's polynomial

    Without branches or calls, and with no array both read and written as bits in one loop, the compiler takes four or
    eight numbers at a time: libm takes one.
    """
    rounded, power = np.empty(len(x)), np.empty(len(x))
    integer, bits = rounded.view(np.int64), power.view(np.int64)
    for k in range(len(x)):
        rounded[k] = x[k] * _LOG2_E + _ROUND
    for k in range(len(x)):
        bits[k] = (integer[k] << 52) + np.int64(1023 << 52)
    for k in range(len(x)):
        n = rounded[k] - _ROUND
        r = (x[k] - n * _LN2_HIGH) - n * _LN2_LOW
        p = ((((_C13 * r + _C12) * r + _C11) * r + _C10) * r + _C9) * r + _C8
        p = (((((p * r + _C7) * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2
        x[k] = (p * r * r + r + 1.0) * power[k]


@njit(cache=True, nogil=True)
def _places(score: F64, starts: I64, discounts: F64, place: F64, within: F64) -> None:
    """Fill each row's discount by the order of its group, and how far apart those of its ties are.

    for each group, its rows sorted by score, for each run of equal scores at the places at .. end - 1:
        place of each row  = mean of discounts[at:end]                   (0 behind the last that counts)
        within of each row = mean |discount_i - discount_j|, i < j in at .. end - 1

    Rows of equal score take the mean of their places' discounts; `within` is the mean |difference| of two of them.
    Both are expected values over all orders of the ties, so that no order of the rows is preferred.
    """
    rows = np.empty(starts[-1] - starts[0], np.int64)
    for g in range(len(starts) - 1):
        s = score[starts[g] : starts[g + 1]]
        here, order = starts[g] - starts[0], rows[: len(s)]
        _sort(s, order)
        at = 0
        while at < len(order):
            end, total, apart = at, 0.0, 0.0
            while end < len(order) and s[order[end]] == s[order[at]]:
                end += 1
            for k in range(at, min(end, len(discounts))):
                total += discounts[k]
                apart += discounts[k] * (end - 1 + at - 2 * k)
            size = end - at
            for k in range(at, end):
                place[here + order[k]] = total / size
                within[here + order[k]] = apart / (size * (size - 1) / 2) if size > 1 else 0.0
            at = end


@njit(cache=True, nogil=True)
def _sort(score: F64, order: I64) -> None:
    """Fill `order` with the rows of a group, the highest score first; ties in any order."""
    if len(score) > INSERTED:
        order[:] = np.argsort(-score)
        return
    for row in range(len(score)):
        at = row
        while at > 0 and score[order[at - 1]] < score[row]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = row


@njit(cache=True, nogil=True)
def _scaled(winner: I32, loser: I32, weight: F32, gain: F64, place: F64, within: F64, first: int) -> F64:
    """Return the weights times |ΔNDCG|: what the metric changes by where the two rows swap their places."""
    scaled = np.empty(len(winner))
    for k in range(len(winner)):
        a, b = winner[k], loser[k]
        apart = abs(place[a - first] - place[b - first])
        # Different places have different discounts, save behind the last that counts, where `within` is 0 too.
        apart = apart if apart > 0 else within[a - first]
        scaled[k] = weight[k] * abs(gain[a] - gain[b]) * apart
    return scaled


@njit(cache=True, nogil=True)
def _add(odds: F64, winner: I32, loser: I32, weight: F64, first: int, gradient: F64, hessian: F64) -> None:
    """Add up the pairs of rows that count from `first`. odds: e^score, up to a factor for each group."""
    for k in range(len(winner)):
        a, b = winner[k] - first, loser[k] - first
        wrong = odds[b] / (odds[a] + odds[b])
        _push(a, b, weight[k], wrong, gradient, hessian)


@njit(cache=True, nogil=True)
def _add_far(score: F64, winner: I32, loser: I32, weight: F64, first: int, gradient: F64, hessian: F64) -> None:
    """Do what `_add` does with one exponential a pair, for scores of any size."""
    for k in range(len(winner)):
        a, b = winner[k] - first, loser[k] - first
        wrong = 1.0 / (1.0 + np.exp(score[a] - score[b]))
        _push(a, b, weight[k], wrong, gradient, hessian)


@njit(cache=True, nogil=True, inline="always")
def _push(a: int, b: int, weight: float, wrong: float, gradient: F64, hessian: F64) -> None:
    """Add what a pair of the rows a and b has, whose order is wrong with that chance."""
    g = weight * wrong
    h = g * (1.0 - wrong)
    gradient[a] -= g
    gradient[b] += g
    hessian[a] += h
    hessian[b] += h
