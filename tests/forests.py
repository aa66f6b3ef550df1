"""Forests of each kind that LightGBM makes, and values that are odd for a split."""

import lightgbm as lgb
import numpy as np
from hypothesis import strategies as st

COLUMNS = 6


def forest(seed: int, leaves: int = 31, trees: int = 20, n: int = 800, **params: object) -> lgb.Booster:
    """A small forest over numbers, missing values, zeros, ties and two categorical columns."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, COLUMNS)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.15] = np.nan
    rows[:, 1] = np.round(rows[:, 1])
    rows[rng.random(n) < 0.3, 2] = 0.0
    rows[:, 3] = np.nan_to_num(rows[:, 3])  # a column that never misses
    rows[:, 4] = rng.integers(0, 70, n)
    rows[:, 5] = rng.integers(-1, 5, n)
    label = (
        np.nan_to_num(rows[:, 0]) + np.isnan(rows[:, 1]) * 2 + (rows[:, 4] % 3) + (rows[:, 5] == 2) + rng.normal(size=n)
    )
    given = {"objective": "regression", "num_leaves": leaves, "min_data_in_leaf": 2, "verbosity": -1, "num_threads": 1}
    data = lgb.Dataset(rows, label, categorical_feature=[4, 5])
    booster = lgb.train(given | {"min_data_per_group": 2, "cat_smooth": 1} | params, data, trees)
    return lgb.Booster(model_str=booster.model_to_string())


ODD = st.sampled_from(
    [np.nan, 0.0, -0.0, 1e-36, -1e-35, 1.0, 2.0, -0.5, -1.0, 69.0, 70.0, 500.0, np.inf, -np.inf, 3.4e38]
)
FORESTS = {
    "numbers and categories": forest(0),
    "more leaves than a word": forest(1, leaves=200),
    "one leaf": forest(2, n=3, trees=2),
    "zero as missing": forest(3, zero_as_missing=True),
    "missing as zero": forest(4, use_missing=False),
    "only categories": forest(5, feature_contri=[0, 0, 0, 0, 1, 1]),
}
