"""What a ranker says of pairs: whether its probabilities hold, and which columns move them."""

from typing import Any

import numpy as np

from features.pairing.pairs import Pairs
from features.schema import F32, F64
from ranker.training.arms import Arm
from ranker.uplift.measured import Fits

#: groups of pairs that probabilities are compared in, each with the same weight
BINS = 10
#: pairs whose scores are taken apart: exact, and so slow, Shapley values
EXPLAINED = 500


def calibration(fits: Fits, pairs: Pairs) -> dict[str, Any]:
    """Return whether the side that a ranker prefers wins as often as it says, over all its fits and seeds.

    It says `1 / (1 + exp(-margin))`, the probability that RankNet's loss fits (Burges et al. 2005, eq. 1-3), of the
    side with the larger score. `bins`: the pairs from the least to the most certain, in ten parts of one weight:
    what was `predicted` and what `observed`, a tie being one half. `error`: the mean distance of the two, by weight
    (ECE, Naeini et al. 2015).
    """
    margin = np.concatenate([_margins(arm, pairs) for of_seeds in fits for arm in of_seeds])
    weight = np.tile(pairs.weight.astype(np.float64), len(margin) // max(len(pairs), 1))
    if not weight.sum():
        return {"bins": [], "error": float("nan")}
    order = np.argsort(np.abs(margin), kind="stable")
    said = 1 / (1 + np.exp(-np.abs(margin[order])))
    held, weight = (1 + np.sign(margin[order])) / 2, weight[order]
    before = np.cumsum(weight) - weight / 2
    place = np.minimum((BINS * before / weight.sum()).astype(np.int64), BINS - 1)
    sums = [np.bincount(place, values * weight, BINS) for values in (np.ones_like(said), said, held)]
    total, predicted, observed = (of[sums[0] > 0] for of in sums)
    bins = np.stack([predicted / total, observed / total, total / weight.sum()], axis=1).tolist()
    error = float(np.abs(predicted - observed).sum() / weight.sum())
    return {"bins": [dict(zip(("predicted", "observed", "share"), of, strict=True)) for of in bins], "error": error}


def contributions(arm: Arm, rows: F32, pairs: Pairs) -> dict[str, dict[str, float]]:
    """Return how much each column moves the margin of a pair, by column, the largest first.

    Of LightGBM's exact Shapley values (TreeSHAP: Lundberg et al. 2018) of 500 drawn pairs, the winner's less the
    loser's: `size`, their mean distance from 0, and `towards`, their mean, which is above 0 where a column speaks for
    the right order; the latter sum to the mean margin. rows: float32[n, c] of the test. Weighs all pairs alike.
    """
    drawn = pairs.select(np.random.default_rng(0).permutation(len(pairs)) < EXPLAINED)
    asked, place = np.unique(np.concatenate([drawn.winner, drawn.loser]), return_inverse=True)
    if not len(asked):
        return {}
    of_row: F64 = np.asarray(arm.booster.predict(rows[asked], pred_contrib=True))[:, :-1]  # the last one is the mean
    moved = of_row[place[: len(drawn)]] - of_row[place[len(drawn) :]]
    size, towards, names = np.abs(moved).mean(axis=0), moved.mean(axis=0), arm.booster.feature_name()
    return {names[k]: {"size": float(size[k]), "towards": float(towards[k])} for k in np.argsort(-size)}


def _margins(arm: Arm, pairs: Pairs) -> F64:
    return np.asarray(arm.scores[pairs.winner] - arm.scores[pairs.loser])
