"""New leaf values for old trees: what `Booster.refit` does, for an objective of ours.

LightGBM's own `refit` asks its built-in objective for the gradient, and a booster of ours has none.
"""

import logging
from collections.abc import Callable
from typing import Any

import lightgbm as lgb
import numpy as np

from features.pairing.slice import Slice
from features.schema import F32, F64, I64
from ranker.forest.text import read_trees
from ranker.metrics.pair_accuracy import pair_accuracy
from ranker.settings import BoosterSettings
from ranker.training.booster import parameters
from ranker.training.objective import PairLogit

logger = logging.getLogger(__name__)

#: (gradient, Hessian), each float[n], at scores float64[n]
Objective = Callable[[F64], tuple[Any, Any]]
#: trees whose leaves are looked up at a time: int32[n, 64] at most beside the rows
TREES_AT_ONCE = 64


def refit_booster(
    old: lgb.Booster, train: Slice, validation: Slice, settings: BoosterSettings, decay: float
) -> lgb.Booster:
    """Return the trees of `old` with the leaf values of `train`'s pairs; a line in the log compares the two."""
    objective = PairLogit.of(train.pairs, train.group, train.grade, settings.margin, settings.ndcg_at)
    new = refit(old, train.matrix, objective, parameters(settings, len(train.matrix)), decay)
    before, after = (
        pair_accuracy(np.asarray(b.predict(validation.matrix, raw_score=True)), validation.pairs).value
        for b in (old, new)
    )
    say = logger.warning if after < before else logger.info
    say("refit: PairAccuracy on the validation slice %.4f before, %.4f after", before, after)
    return new


def refit(booster: lgb.Booster, rows: F32, objective: Objective, params: dict[str, Any], decay: float) -> lgb.Booster:
    """Return a copy of a booster whose leaves are decay · old + (1 - decay) · new, tree after tree.

    A leaf's new value is shrinkage · -G / (H + lambda_l2), G and H being the sums of gradient and Hessian over the
    leaf's rows at the scores of the trees before it (as LightGBM's RefitTree; lambda_l1 and max_delta_step count too).
    A leaf that no row reaches keeps its value, where LightGBM would shrink it towards 0.
    """
    text = booster.model_to_string(num_iteration=-1)
    new = lgb.Booster(model_str=text)
    shrinkage = [tree.shrinkage for tree in read_trees(text)]
    score = np.zeros(len(rows))
    for first in range(0, len(shrinkage), TREES_AT_ONCE):
        leaves = np.asarray(
            booster.predict(rows, pred_leaf=True, start_iteration=first, num_iteration=TREES_AT_ONCE), np.int64
        ).reshape(len(rows), -1)
        for column, tree in enumerate(range(first, first + leaves.shape[1])):
            gradient, hessian = objective(score)
            leaf = np.ascontiguousarray(leaves[:, column])
            values = _leaf_values(leaf, gradient, hessian, params) * shrinkage[tree]
            old = np.array([booster.get_leaf_output(tree, k) for k in range(len(values))])
            values = np.where(np.isnan(values), old, decay * old + (1 - decay) * values)
            for k, value in enumerate(values.tolist()):
                new.set_leaf_output(tree, k, value)
            score += values[leaf]
    return lgb.Booster(model_str=new.model_to_string(num_iteration=-1))


def _leaf_values(leaf: I64, gradient: Any, hessian: Any, params: dict[str, Any]) -> F64:
    """Return float64[leaves that some row reaches, and those before them]: NaN where no row does."""
    g, h = (np.bincount(leaf, values) for values in (gradient, hessian))
    g = np.sign(g) * np.maximum(np.abs(g) - params.get("lambda_l1", 0.0), 0.0)
    below = h + params.get("lambda_l2", 0.0)
    values = np.divide(-g, below, out=np.zeros(len(g)), where=below > 0)
    most = params.get("max_delta_step", 0.0)
    values = np.clip(values, -most, most) if most > 0 else values
    return np.where(np.bincount(leaf) > 0, values, np.nan)
