"""The compiled scorer is LightGBM's `Booster.predict`, bit for bit, whatever the forest and the rows."""

import logging

import lightgbm as lgb
import numpy as np
import pytest
from forests import COLUMNS, FORESTS, ODD
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.forest.scorer import Scorer, _down, checked_scorer, probe_rows
from ranker.forest.text import UnsupportedError


@pytest.mark.parametrize("name", FORESTS)
@given(st.lists(st.lists(ODD | st.floats(-5, 80, width=32), min_size=COLUMNS, max_size=COLUMNS), max_size=40))
@settings(max_examples=25, deadline=None)
def test_scores_are_the_boosters(name: str, values: list[list[float]]) -> None:
    rows = np.array(values, np.float32).reshape(-1, COLUMNS)
    want = FORESTS[name].predict(rows, raw_score=True) if len(rows) else np.empty(0)
    np.testing.assert_array_equal(Scorer.compile(FORESTS[name]).score(rows), want)


@pytest.mark.parametrize("name", FORESTS)
def test_scores_at_every_threshold_are_the_boosters(name: str) -> None:
    scorer = Scorer.compile(FORESTS[name])
    rows = probe_rows(scorer, 5000)  # more than one pass, and a remainder
    np.testing.assert_array_equal(scorer.score(rows), FORESTS[name].predict(rows, raw_score=True))
    for n in (1, 63, 64, 65, 511, 512, 513):
        np.testing.assert_array_equal(scorer.score(rows[:n]), scorer.score(rows)[:n])


@given(st.floats(-1e38, 1e38, width=64))
@settings(max_examples=300)
def test_a_rounded_threshold_splits_the_same_float32s(threshold: float) -> None:
    limit = _down(threshold)
    for x in (limit, np.nextafter(limit, np.float32(np.inf)), np.nextafter(limit, np.float32(-np.inf))):
        assert bool(x <= limit) == bool(float(x) <= threshold)


def test_what_is_not_compiled_falls_back_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    rows = np.random.default_rng(0).normal(size=(200, 2))
    linear = lgb.train({"linear_tree": True, "verbosity": -1}, lgb.Dataset(rows, rows[:, 0]), 3)
    classes = lgb.train(
        {"objective": "multiclass", "num_class": 3, "verbosity": -1}, lgb.Dataset(rows, np.arange(200) % 3), 3
    )
    averaged = lgb.train(
        {"boosting": "rf", "bagging_fraction": 0.5, "bagging_freq": 1, "verbosity": -1},
        lgb.Dataset(rows, rows[:, 0]),
        3,
    )
    for booster, why in ((linear, "linear trees"), (classes, "several classes"), (averaged, "averages its trees")):
        with pytest.raises(UnsupportedError, match=why):
            Scorer.compile(booster)
        with caplog.at_level(logging.WARNING):
            assert checked_scorer(booster) is None
        assert why in caplog.text


def test_a_scorer_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert checked_scorer(FORESTS["numbers and categories"]) is not None
    monkeypatch.setattr("ranker.forest.scorer._down", lambda threshold: np.float32(threshold) + np.float32(1e-3))
    assert checked_scorer(FORESTS["numbers and categories"]) is None
    assert "please report this" in caplog.text


def test_another_number_of_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="6 columns were expected"):
        Scorer.compile(FORESTS["one leaf"]).score(np.zeros((2, 5), np.float32))
