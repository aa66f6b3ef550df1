"""Old trees on fresh rows: leaves refitted as LightGBM does it, and categories whose codes have moved."""

import lightgbm as lgb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ranker_booster import a_slice, fit
from test_ranker_booster import settings as booster_settings
from test_ranker_scorer import FORESTS

from ranker.training.objective import PairLogit, pair_accuracy
from ranker.training.recode import moved_codes, recode
from ranker.training.refit import refit, refit_booster


@pytest.mark.parametrize("decay", [0.0, 0.6, 1.0])
def test_a_refit_is_lightgbms_own_where_it_has_one(decay: float) -> None:
    rng = np.random.default_rng(0)
    rows, fresh = rng.normal(size=(2, 600, 3)).astype(np.float32)
    params = {
        "objective": "regression", "boost_from_average": False, "lambda_l2": 3.0, "lambda_l1": 0.5, "num_leaves": 6,
        "max_delta_step": 0.4, "verbosity": -1, "num_threads": 1, "min_data_in_leaf": 40,
    }  # fmt: skip
    booster = lgb.train(params, lgb.Dataset(rows, rows @ [1, 2, -1]), 70)  # more trees than are looked up at a time
    label = (fresh @ [2, 1, 1]).astype(np.float32)
    want = booster.refit(fresh, label, decay_rate=decay)
    got = refit(booster, fresh, lambda score: (score - label, np.ones(len(label))), params, decay)
    probe = rng.normal(size=(200, 3))
    np.testing.assert_allclose(got.predict(probe), want.predict(probe), rtol=1e-5, atol=1e-6)
    assert (decay == 1.0) == np.allclose(got.predict(probe), booster.predict(probe), rtol=1e-6)


def test_leaves_of_pairs_are_those_of_a_plain_sum() -> None:
    old, fresh = fit(booster_settings(trees=4)), a_slice(3, n=120)
    params = {"lambda_l2": 2.0}
    decay = 0.3
    new = refit(old, fresh.matrix, PairLogit.of(fresh.pairs, fresh.group), params, decay)
    leaf = old.predict(fresh.matrix, pred_leaf=True)
    score = np.zeros(len(fresh.matrix))
    empty = 0
    for tree in range(old.num_trees()):
        g, h = np.zeros(8), np.zeros(8)
        for a, b, w in zip(fresh.pairs.winner, fresh.pairs.loser, fresh.pairs.weight, strict=True):
            wrong = 1 / (1 + np.exp(score[a] - score[b]))
            for row, sign in ((a, -1), (b, 1)):
                g[leaf[row, tree]] += sign * w * wrong
                h[leaf[row, tree]] += w * wrong * (1 - wrong)
        for k in range(7):
            was, is_ = old.get_leaf_output(tree, k), new.get_leaf_output(tree, k)
            if not (leaf[:, tree] == k).any():
                empty += 1
                assert is_ == was
                continue
            assert is_ == pytest.approx(decay * was + (1 - decay) * 0.1 * -g[k] / (h[k] + 2.0), rel=1e-4, abs=1e-7)
        score += [new.get_leaf_output(tree, int(k)) for k in leaf[:, tree]]
    np.testing.assert_allclose(new.predict(fresh.matrix, raw_score=True), score, rtol=1e-9)
    assert empty < 7 * old.num_trees()


def test_a_leaf_that_no_row_reaches_keeps_its_value() -> None:
    old, fresh = fit(booster_settings(trees=3)), a_slice(3, n=6)
    new = refit(old, fresh.matrix, PairLogit.of(fresh.pairs, fresh.group), {}, 0.0)
    reached = old.predict(fresh.matrix, pred_leaf=True)
    kept = [(t, k) for t in range(old.num_trees()) for k in range(7) if k not in reached[:, t]]
    assert kept
    for tree, k in kept:
        assert new.get_leaf_output(tree, k) == old.get_leaf_output(tree, k)


def test_a_refit_follows_what_has_changed(caplog: pytest.LogCaptureFixture) -> None:
    old = fit(booster_settings(trees=60))
    train, held = a_slice(5, flip=-1.0), a_slice(6, flip=-1.0)  # `up` now goes down
    with caplog.at_level("INFO"):
        new = refit_booster(old, train, held, booster_settings(), 0.2)
    before, after = (pair_accuracy(np.asarray(b.predict(held.matrix)), held.pairs).value for b in (old, new))
    assert after > before + 0.02
    assert f"{before:.4f} before, {after:.4f} after" in caplog.text
    assert [t["num_leaves"] for t in new.dump_model()["tree_info"]] == [
        t["num_leaves"] for t in old.dump_model()["tree_info"]
    ]


@given(st.permutations(range(70)), st.sets(st.integers(0, 69), max_size=20), st.integers(0, 50))
@settings(max_examples=15, deadline=None)
def test_moved_categories_are_scored_as_before(order: list[int], gone: set[int], more: int) -> None:
    booster = FORESTS["numbers and categories"]
    old = [str(k) for k in range(70)]
    new = sorted([v for v in (old[k] for k in order) if int(v) not in gone] + [f"{k}x" for k in range(more)])
    moved = moved_codes(old, new)
    got = recode(booster, {booster.feature_name()[4]: moved})
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 6)).astype(np.float32)
    rows[:, 4] = rng.choice([k for k in range(70) if k not in gone], 300)
    rows[:, 5] = rng.integers(-1, 6, 300)
    rows[::9, 4] = np.nan
    there = rows.copy()
    known = ~np.isnan(rows[:, 4])
    there[known, 4] = moved[rows[known, 4].astype(int)]
    np.testing.assert_array_equal(got.predict(there), booster.predict(rows))
    unknown = rows.copy()
    unknown[:, 4] = np.nan
    there[:, 4] = next((k for k, v in enumerate(new) if v.endswith("x")), np.nan)  # a new value is like no value
    np.testing.assert_array_equal(got.predict(there), booster.predict(unknown))


def test_nothing_moved_is_the_same_booster() -> None:
    booster = FORESTS["numbers and categories"]
    assert recode(booster, {}) is booster
    assert moved_codes(("a", "c"), ("a", "b", "c")).tolist() == [0, 2]
    assert moved_codes(("a", "c"), ("c",)).tolist() == [-1, 0]
