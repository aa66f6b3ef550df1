"""Fit a LightGBM ranker on weighted pairs, stopped early by the PairAccuracy of the validation slice."""

from dataclasses import dataclass
from typing import Any

import lightgbm as lgb
import numpy as np

from features.errors import PairliftError, did_you_mean
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
_OURS = ("objective", "metric", "seed", "early_stopping_round", "num_iterations", "verbosity")
#: a slice of fewer rows has smaller leaves, unless the TOML says how large
FULL_SIZE = 5_000


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
    params = _params(settings, seed, len(train.matrix)) | {"objective": objective}

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
        hint = "" if settings.params else f"; are {len(train.matrix)} impressions of the booster's period enough?"
        raise PairliftError(f"[booster.params]: LightGBM says: {error}{hint}") from error
    # Only the trees up to the best round are kept, so that whoever reads the model predicts the same.
    return lgb.Booster(model_str=booster.model_to_string(num_iteration=booster.best_iteration))


def _params(settings: BoosterSettings, seed: int, rows: int) -> dict[str, Any]:
    check_params(settings)
    defaults = DEFAULTS
    if rows < FULL_SIZE:
        defaults = DEFAULTS | {"min_data_in_leaf": max(2, rows // 100), "min_sum_hessian_in_leaf": 1e-3}
    fixed = {"metric": "none", "seed": seed, "verbosity": -1, "deterministic": True, "force_row_wise": True}
    return defaults | settings.params | fixed


def check_params(settings: BoosterSettings) -> None:
    """Refuse a name in `[booster.params]` that LightGBM does not know, or that is ours to set, alias or not."""
    aliases: dict[str, list[str]] = lgb.basic._ConfigAliases._get_all_param_aliases()
    meaning = {name: known for known, names in aliases.items() for name in (known, *names)}
    for name in settings.params:
        if name not in meaning:
            raise PairliftError(f"[booster.params] {name}: LightGBM has no such parameter{did_you_mean(name, meaning)}")
        if meaning[name] in _OURS:
            raise PairliftError(f"[booster.params] {name}: Pairlift sets this; see [booster] trees and stop_after")
