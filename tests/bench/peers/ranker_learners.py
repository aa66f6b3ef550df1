"""The learners that the ranker's benchmark compares, behind one function: `fit`.

All see the same rows, pairs (where they take any), categories and missing values, and stop early by the weighted
PairAccuracy of the same validation slice. `ours` is `ranker.training.booster.fit_booster`, what users run. CatBoost
is given the same pair weights, and the grade as label for its category statistics. XGBoost and LightGBM's lambdarank
take no weights of pairs: they get grades and groups, and all pairs of a group (no truncation).
"""

import time
from collections.abc import Callable
from threading import Lock
from typing import Any, NamedTuple
from unittest import mock

import catboost
import lightgbm as lgb
import numpy as np
import pandas as pd
import xgboost as xgb
from ranker_data import Data, Part

from features.schema import F32, F64
from ranker.metrics.pair_accuracy import PairAccuracy, pair_accuracy
from ranker.settings import BoosterSettings
from ranker.training import booster

#: Parameters in the learners' common words; `leaves` of symmetric trees are rounded to a power of two. `switch` is one
#: choice of each learner's own: thresholds drawn at random (ours, regression: CatBoost draws them by itself), gradients
#: normalised by group (XGBoost, lambdarank), categories one-hot in place of target statistics (CatBoost). Where it is
#: given, `leaf_steps` is CatBoost's `leaf_estimation_iterations` (10 by default, most of its time; LightGBM has 1).
Params = dict[str, Any]
START: Params = {
    "learning_rate": 0.03, "leaves": 15, "min_data": 50, "l2": 5.0, "columns": 0.7, "rows": 0.8, "switch": False,
}  # fmt: skip

_ONE_AT_A_TIME = Lock()


class Budget(NamedTuple):
    """How long a learner may go on: the most trees, rounds without a better validation, threads."""

    trees: int
    stop_after: int
    threads: int


class Fit(NamedTuple):
    """A fitted learner. score: of a matrix. curve: float64[rounds, 2], seconds since the start and validation value."""

    score: Callable[[F32], F64]
    curve: F64
    seconds: float

    @property
    def trees(self) -> int:
        """Trees up to the best validation round."""
        return int(np.argmax(self.curve[:, 1])) + 1

    @property
    def value(self) -> float:
        """The best validation PairAccuracy."""
        return float(self.curve[:, 1].max())


class Watch:
    """Seconds and validation PairAccuracy of each round, since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.points: list[tuple[float, float]] = []

    def tell(self, value: float) -> float:
        """Note the value of a round that ends now."""
        self.points.append((time.perf_counter() - self.start, value))
        return value

    def fit(self, score: Callable[[F32], F64]) -> Fit:
        """Return the fit that ends now."""
        return Fit(score, np.array(self.points), time.perf_counter() - self.start)


def _lightgbm(params: Params, threads: int) -> dict[str, Any]:
    return {
        "learning_rate": params["learning_rate"],
        "num_leaves": params["leaves"],
        "min_data_in_leaf": params["min_data"],
        "lambda_l2": params["l2"],
        "feature_fraction": params["columns"],
        "bagging_fraction": params["rows"],
        "bagging_freq": 1,
        "num_threads": threads,
    }


def ours(data: Data, params: Params, seed: int, budget: Budget) -> Fit:
    """Pairlift's booster."""
    own = _lightgbm(params, budget.threads) | {"extra_trees": params["switch"]}
    settings = BoosterSettings(trees=budget.trees, stop_after=budget.stop_after, params=own)
    watch = Watch()

    def watched(score: F64, pairs: Any) -> PairAccuracy:
        found = pair_accuracy(score, pairs)
        watch.tell(found.value)
        return found

    # fit_booster calls this once a round, to stop by: the clock is read there, and nothing else is changed.
    with _ONE_AT_A_TIME, mock.patch.object(booster, "pair_accuracy", watched):
        model = booster.fit_booster(
            data.columns, data.categorical, data.train.rows, data.validation.rows, settings, seed
        )
    return watch.fit(lambda matrix: np.asarray(model.predict(matrix, raw_score=True)))


def _peer_of_lightgbm(data: Data, own: Params, params: Params, seed: int, budget: Budget) -> Fit:
    watch = Watch()
    options: dict[str, Any] = {"feature_name": data.columns, "categorical_feature": data.categorical}
    train = lgb.Dataset(data.train.rows.matrix, data.train.grade, group=data.train.sizes, **options)
    held = data.validation
    validation = lgb.Dataset(held.rows.matrix, held.grade, group=held.sizes, reference=train)

    def accuracy(score: F64, _: lgb.Dataset) -> tuple[str, float, bool]:
        return "pair_accuracy", watch.tell(pair_accuracy(score, held.rows.pairs).value), True

    model = lgb.train(
        {"cat_smooth": booster.DEFAULTS["cat_smooth"]}
        | _lightgbm(params, budget.threads)
        | own
        | booster.FIXED
        | {"seed": seed},
        train,
        num_boost_round=budget.trees,
        valid_sets=[validation],
        feval=accuracy,
        callbacks=[lgb.early_stopping(budget.stop_after, verbose=False)],
    )
    best = model.best_iteration
    return watch.fit(lambda matrix: np.asarray(model.predict(matrix, raw_score=True, num_iteration=best)))


def lambdarank(data: Data, params: Params, seed: int, budget: Budget) -> Fit:
    """LightGBM's lambdarank on the grades."""
    own = {
        "objective": "lambdarank",
        "lambdarank_norm": params["switch"],
        "lambdarank_truncation_level": int(data.train.sizes.max()),
    }
    return _peer_of_lightgbm(data, own, params, seed, budget)


def regression(data: Data, params: Params, seed: int, budget: Budget) -> Fit:
    """LightGBM's least squares on the grade."""
    return _peer_of_lightgbm(data, {"objective": "regression", "extra_trees": params["switch"]}, params, seed, budget)


def xgboost(data: Data, params: Params, seed: int, budget: Budget) -> Fit:
    """XGBoost's rank:pairwise on the grades, its trees grown leaf-wise."""
    watch = Watch()
    kinds = ["c" if k in data.coded else "q" for k in range(len(data.columns))]

    def matrix(part: Part, of: xgb.QuantileDMatrix | None = None) -> xgb.QuantileDMatrix:
        return xgb.QuantileDMatrix(
            part.rows.matrix, part.grade, qid=part.rows.group, ref=of, max_bin=255,
            feature_types=kinds, enable_categorical=True, nthread=budget.threads,
        )  # fmt: skip

    train = matrix(data.train)
    held = data.validation
    options = {
        "objective": "rank:pairwise", "learning_rate": params["learning_rate"], "grow_policy": "lossguide",
        "max_leaves": params["leaves"], "max_depth": 0, "min_child_weight": params["min_data"] / 20,
        "reg_lambda": params["l2"], "colsample_bytree": params["columns"], "subsample": params["rows"],
        "lambdarank_pair_method": "topk", "lambdarank_num_pair_per_sample": int(data.train.sizes.max()),
        "lambdarank_normalization": params["switch"], "tree_method": "hist", "max_bin": 255, "seed": seed,
        "nthread": budget.threads, "disable_default_eval_metric": True,
    }  # fmt: skip
    model = xgb.train(
        options,
        train,
        num_boost_round=budget.trees,
        evals=[(matrix(held, train), "validation")],
        custom_metric=lambda s, _: ("pair_accuracy", watch.tell(pair_accuracy(s, held.rows.pairs).value)),
        callbacks=[xgb.callback.EarlyStopping(budget.stop_after, maximize=True)],
        verbose_eval=False,
    )
    upto = (0, model.best_iteration + 1)

    def score(rows: F32) -> F64:
        test = xgb.DMatrix(rows, feature_types=kinds, enable_categorical=True)
        return np.asarray(model.predict(test, iteration_range=upto, output_margin=True), np.float64)

    return watch.fit(score)


def _frame(data: Data, matrix: F32) -> pd.DataFrame:
    """Return the rows as CatBoost takes categories: whole numbers, -1 where missing."""
    frame = pd.DataFrame(matrix, columns=data.columns, copy=False)
    for name in data.categorical:
        frame[name] = frame[name].fillna(-1).astype(np.int64)
    return frame


def _pool(data: Data, part: Part) -> catboost.Pool:
    pairs = part.rows.pairs
    return catboost.Pool(
        _frame(data, part.rows.matrix), part.grade, cat_features=data.categorical, group_id=part.rows.group,
        pairs=np.column_stack([pairs.winner, pairs.loser]), pairs_weight=pairs.weight,
    )  # fmt: skip


class _Clock:
    """CatBoost's callback: the seconds of each round."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def after_iteration(self, _: object) -> bool:
        """Read the clock."""
        self.watch.tell(0.0)
        return True


def _catboost(data: Data, own: Params, params: Params, seed: int, budget: Budget) -> Fit:
    watch = Watch()
    train, validation = _pool(data, data.train), _pool(data, data.validation)
    model = catboost.CatBoost({
        "loss_function": "PairLogit", "eval_metric": "PairAccuracy:hints=skip_train~true",
        "learning_rate": params["learning_rate"], "l2_leaf_reg": params["l2"], "rsm": params["columns"],
        "bootstrap_type": "Bernoulli", "subsample": params["rows"], "iterations": budget.trees,
        "od_type": "Iter", "od_wait": budget.stop_after, "random_seed": seed, "thread_count": budget.threads,
        "allow_writing_files": False, "logging_level": "Silent", "one_hot_max_size": 1000 if params["switch"] else 2,
        **own, **({"leaf_estimation_iterations": params["leaf_steps"]} if "leaf_steps" in params else {}),
    })  # fmt: skip
    model.fit(train, eval_set=validation, callbacks=[_Clock(watch)])
    values = next(v for k, v in model.get_evals_result()["validation"].items() if k.startswith("PairAccuracy"))
    watch.points = [(at, value) for (at, _), value in zip(watch.points, values, strict=False)]
    return watch.fit(lambda matrix: np.asarray(model.predict(_frame(data, matrix))))


def catboost_symmetric(data: Data, params: Params, seed: int, budget: Budget) -> Fit:
    """CatBoost's PairLogit with its own symmetric trees."""
    return _catboost(data, {"depth": max(round(np.log2(params["leaves"])), 1)}, params, seed, budget)


def catboost_lossguide(data: Data, params: Params, seed: int, budget: Budget) -> Fit:
    """CatBoost's PairLogit with trees grown leaf-wise, as LightGBM's are."""
    own = {
        "grow_policy": "Lossguide", "max_leaves": params["leaves"], "depth": 16,
        "min_data_in_leaf": params["min_data"],
    }  # fmt: skip
    return _catboost(data, own, params, seed, budget)


LEARNERS: dict[str, Callable[[Data, Params, int, Budget], Fit]] = {
    "ours": ours,
    "catboost_symmetric": catboost_symmetric,
    "catboost_lossguide": catboost_lossguide,
    "xgboost_pairwise": xgboost,
    "lightgbm_lambdarank": lambdarank,
    "lightgbm_regression": regression,
}
