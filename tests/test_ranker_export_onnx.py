"""The ONNX form of a forest gives LightGBM's raw scores, whatever the forest and the rows."""

import lightgbm as lgb
import numpy as np
import onnx
import pytest
from forests import COLUMNS, FORESTS, ODD
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import PairliftError
from ranker.export.onnx import make_onnx, run_onnx
from ranker.forest.scorer import Scorer, probe_rows

MODELS = {name: make_onnx(booster).SerializeToString() for name, booster in FORESTS.items()}


@pytest.mark.parametrize("name", FORESTS)
def test_scores_at_every_threshold_are_the_boosters(name: str) -> None:
    rows = probe_rows(Scorer.compile(FORESTS[name]), 3000)
    want = FORESTS[name].predict(rows, raw_score=True)
    assert np.ptp(want) > 0 or name == "one leaf"
    np.testing.assert_allclose(run_onnx(MODELS[name], rows), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FORESTS)
@given(st.lists(st.lists(ODD | st.floats(-5, 80, width=32), min_size=COLUMNS, max_size=COLUMNS), min_size=1))
@settings(max_examples=15, deadline=None)
def test_scores_are_the_boosters(name: str, values: list[list[float]]) -> None:
    rows = np.array(values, np.float32)
    want = FORESTS[name].predict(rows, raw_score=True)
    np.testing.assert_allclose(run_onnx(MODELS[name], rows), want, rtol=1e-12, atol=1e-12)


def test_the_graph_is_valid_and_takes_no_rows() -> None:
    model = onnx.load_from_string(MODELS["numbers and categories"])
    onnx.checker.check_model(model, full_check=True)
    assert run_onnx(MODELS["numbers and categories"], np.empty((0, COLUMNS), np.float32)).shape == (0,)


def test_what_has_no_onnx_form_is_told() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 2))
    linear = lgb.train({"linear_tree": True, "verbosity": -1}, lgb.Dataset(rows, rows[:, 0]), 3)
    with pytest.raises(PairliftError, match="no ONNX form: it has linear trees"):
        make_onnx(linear)
