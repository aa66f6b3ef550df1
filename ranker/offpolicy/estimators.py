"""Off-policy estimators over the rows of logged lists: what another policy's lists would have got.

A row is an item at a place of a list. Its ratio is the chance that the other policy shows it there, over that of the
policy that was logged. What a row counts for depends on what its reward depends on (McInerney et al. 2020,
"Counterfactual evaluation of slate recommendations with sequential reward interactions"):

    item_position   its own ratio, of chances of the item at its place whatever else was shown (IIPS)
    cascade         the product of the ratios down to it, of chances given the items above: users look from above (RIPS)
    list            the product of all ratios of the list: anything may depend on anything (SIPS)

and with r the rewards, w the weights, m a model of the reward, all sums over the rows of g lists:

    IPS     Σ w·r / g
    SNIPS   the same at each place, over the mean weight there (Swaminathan and Joachims 2015, "The self-normalized
            estimator for counterfactual learning")
    DR      Σ (w·r - (now·m(row) - before·E m(what the other shows there))) / g, where now is the product down to the
            row and before that down to the one above (Jiang and Li 2016, "Doubly robust off-policy value evaluation";
            Dudík et al. 2014; Kiyohara et al. 2022 for lists). The term in brackets is zero on average for any model
            that did not see the row, so it takes noise away and adds no bias. Of single items it is the known DR.

Each estimator gives a value for each row, whose sum over g is the estimate: intervals and differences are of their sums
by user. `obp`'s estimators are those they are tested against.
"""

from typing import Literal, NamedTuple

import numpy as np

from features.kernels import njit
from features.schema import F64, I32, I64
from ranker.metrics.interval import ratio_interval

Kind = Literal["item_position", "cascade", "list"]


class Weights(NamedTuple):
    """What n rows count for."""

    weight: F64  # [n]
    now: F64  # [n], the ratio, or the product of the ratios down to each row
    before: F64  # [n], the product down to the one above; 1 for the first


def weights(kind: Kind, ratio: F64, offsets: I64) -> Weights:
    """Return the weights of float64[n] ratios, list l having the rows offsets[l] to offsets[l + 1], from above."""
    if kind == "item_position":
        return Weights(ratio, ratio, np.ones(len(ratio)))
    now, before = _products(ratio, offsets)
    sizes = np.diff(offsets)
    whole = now[offsets[1:][sizes > 0] - 1]
    return Weights(now if kind == "cascade" else np.repeat(whole, sizes[sizes > 0]), now, before)


@njit(cache=True, nogil=True)
def _products(ratio: F64, offsets: I64) -> tuple[F64, F64]:
    """Return float64[n] the product of the ratios of a list down to each row, and down to the one above."""
    now, before = np.empty(len(ratio)), np.empty(len(ratio))
    for g in range(len(offsets) - 1):
        product = 1.0
        for row in range(offsets[g], offsets[g + 1]):
            before[row] = product
            product *= ratio[row]
            now[row] = product
    return now, before


def ips(weight: F64, reward: F64) -> F64:
    """Return float64[n], the values of the rows by inverse propensity scoring."""
    return weight * reward


def snips(weight: F64, reward: F64, place: I64) -> F64:
    """Return float64[n] likewise, normalised at each place: int64[n], 0 first. NaN at a place where no row counts.

    A row has the mean of its place and how far it moves that, to first order, so that the spread of the values by user
    is that of the estimate.
    """
    shown, total, got = (np.bincount(place, by) for by in (np.ones(len(place)), weight, weight * reward))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, each = got / total, total / shown
        return np.asarray(mean[place] + weight * (reward - mean[place]) / each[place])


def dr(of: Weights, reward: F64, modelled: F64, expected: F64) -> F64:
    """Return float64[n], the doubly robust values. modelled: float64[n], of the row's item; expected: of what the other
    policy shows at that place.
    """
    return of.weight * reward - (of.now * modelled - of.before * expected)


def value_of(values: F64, offsets: I64, user: I32 | I64) -> tuple[float, float, float]:
    """Return Σ values / g of the lists, and the ends of its interval of 95 %, about new users. user: int64[g]."""
    _, code = np.unique(user, return_inverse=True)
    by_list = np.add.reduceat(np.append(values, 0.0), offsets[:-1]) * (np.diff(offsets) > 0)
    sums: F64 = np.bincount(code, by_list).astype(np.float64)
    return ratio_interval(sums, np.bincount(code).astype(np.float64))


def effective_lists(weight: F64, place: I64) -> float:
    """Return how many lists of weight 1 say as much: (Σ w)² / Σ w² at the place where that is the least; 0 of none."""
    total, squares = np.bincount(place, weight), np.bincount(place, weight**2)
    return float(np.divide(total**2, squares, out=np.zeros(len(total)), where=squares > 0).min(initial=np.inf))


def mean_weight(weight: F64, offsets: I64, user: I32 | I64) -> tuple[float, float, float]:
    """Return the mean weight of a row and its interval: 1 is due, where the log could have shown all that the other
    policy would.
    """
    _, code = np.unique(user, return_inverse=True)
    owner = np.repeat(code, np.diff(offsets))
    sums: F64 = np.bincount(owner, weight).astype(np.float64)
    return ratio_interval(sums, np.bincount(owner).astype(np.float64))
