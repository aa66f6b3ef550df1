"""What is said of a booster's columns: the ones that act, by how much and in which direction."""

import json
import math

import lightgbm as lgb
import numpy as np

from ranker.metrics.importance import SAMPLE, explain, importance_lines

NAMES = ["rises", "falls", "kind", "idle", "constant"]


def booster_and_rows() -> tuple[lgb.Booster, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(SAMPLE + 500, 5)).astype(np.float32)
    rows[:, 2] = rng.integers(0, 6, len(rows))
    rows[:, 4] = 1
    label = 3 * rows[:, 0] - rows[:, 1] + (rows[:, 2] % 2)
    rows[rng.random(len(rows)) < 0.1, 0] = np.nan
    data = lgb.Dataset(rows, label, feature_name=NAMES, categorical_feature=["kind"])
    return lgb.train({"verbosity": -1, "num_threads": 1, "feature_contri": [1, 1, 1, 0, 1]}, data, 40), rows


def test_what_acts_is_found_with_its_direction() -> None:
    booster, rows = booster_and_rows()
    told = explain(booster, rows, {"kind"})
    columns = told["columns"]
    assert told["rows"] == SAMPLE
    assert list(columns)[:2] == ["rises", "falls"]
    assert columns["rises"]["direction"] > 0.9
    assert columns["falls"]["direction"] < -0.9
    assert columns["kind"]["direction"] is None
    assert columns["kind"]["mean_abs_shap"] > 0.1
    for name in ("idle", "constant"):
        assert columns[name] == {"gain": 0.0, "splits": 0, "mean_abs_shap": 0.0, "direction": None}
    assert math.isclose(sum(c["gain"] for c in columns.values()), 1.0)
    json.dumps(told, allow_nan=False)


def test_the_values_are_lightgbms_own() -> None:
    booster, rows = booster_and_rows()
    few = rows[:300]  # fewer than the sample: all of them
    told = explain(booster, few, {"kind"})
    shap = booster.predict(few, pred_contrib=True)[:, :-1]
    for k, name in enumerate(NAMES):
        column = told["columns"][name]
        assert math.isclose(column["mean_abs_shap"], np.abs(shap[:, k]).mean())
        assert column["splits"] == booster.feature_importance("split")[k]
    known = ~np.isnan(few[:, 0])
    want = np.corrcoef(few[known, 0], shap[known, 0])[0, 1]
    assert math.isclose(told["columns"]["rises"]["direction"], want, rel_tol=1e-6)


def test_the_table_has_a_line_for_each_column() -> None:
    booster, rows = booster_and_rows()
    stump = lgb.Booster(model_str=booster.model_to_string(num_iteration=1))
    lines = importance_lines(explain(stump, rows, {"kind"}))
    assert len(lines) == 1 + len(NAMES)
    assert lines[0].split() == ["column", "gain", "splits", "|SHAP|", "direction"]
    assert lines[1].split()[0] == "rises"
    assert lines[-1].split()[-1] == "-"
