"""Fit a LightGBM ranker on weighted pairs, stopped early by the PairAccuracy of the validation slice."""

from dataclasses import dataclass
from typing import Any

import lightgbm as lgb
import numpy as np

from features.errors import PairliftError
from features.pairs import Pairs
from features.schema import F32, F64, I64
from ranker.config import BoosterSettings
from ranker.objective import PairLogit, pair_accuracy

#: Slow enough to converge smoothly, with row and column sampling so that a seed means something.
DEFAULTS: dict[str, Any] = {
    "learning_rate": 0.03,
    "num_leaves": 15,
    "min_data_in_leaf": 50,
    "min_sum_hessian_in_leaf": 1.0,
    "lambda_l2": 5.0,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "cat_smooth": 20.0,
    "max_bin": 255,
}
_OURS = ("objective", "metric", "seed", "early_stopping_round", "num_iterations")


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows to learn from or to stop by. matrix: float32[n, c]; group: int64[n], never decreasing; pairs count rows."""

    matrix: F32
    group: I64
    pairs: Pairs


def fit_booster(
    columns: list[str],
    categorical: list[str],
    train: Slice,
    validation: Slice,
    settings: BoosterSettings,
    seed: int,
) -> lgb.Booster:
    """Return the booster of the best validation round (`num_trees()` tells which).

    The same seed, rows and parameters give the same booster. Raises PairliftError for a parameter that is
    ours to set, or one that LightGBM refuses.
    """
    objective = PairLogit.of(train.pairs, train.group)
    params = _params(settings, seed) | {"objective": objective}

    def accuracy(score: F64, _: lgb.Dataset) -> tuple[str, float, bool]:
        return "pair_accuracy", pair_accuracy(score, validation.pairs)[0], True

    label = np.zeros(len(train.matrix), np.float32)
    data = lgb.Dataset(train.matrix, label, feature_name=columns, categorical_feature=categorical, free_raw_data=True)
    held = lgb.Dataset(validation.matrix, np.zeros(len(validation.matrix), np.float32), reference=data)
    try:
        booster = lgb.train(
            params,
            data,
            num_boost_round=settings.trees,
            valid_sets=[held],
            feval=accuracy,
            callbacks=[lgb.early_stopping(settings.stop_after, verbose=False)],
        )
    except lgb.basic.LightGBMError as error:
        raise PairliftError(f"[booster.params]: LightGBM says: {error}") from error
    # Only the trees up to the best round are kept, so that whoever reads the model predicts the same.
    return lgb.Booster(model_str=booster.model_to_string(num_iteration=booster.best_iteration))


def _params(settings: BoosterSettings, seed: int) -> dict[str, Any]:
    for name in _OURS:
        if name in settings.params:
            raise PairliftError(f"[booster.params] {name}: Pairlift sets this; see [booster] trees and stop_after")
    fixed = {"metric": "none", "seed": seed, "verbosity": -1, "deterministic": True, "force_row_wise": True}
    return DEFAULTS | settings.params | fixed
