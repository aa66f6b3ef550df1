"""Fits by name: constraints by column, parameters by any of LightGBM's names, warm starts, refits, moved categories."""

from dataclasses import replace
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
from forests import COLUMNS as WIDTH
from forests import FORESTS, ODD, forest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import PairliftError
from features.pairing.pairs import Pairs
from features.pairing.slice import Slice
from ranker.forest.scorer import Scorer, checked_scorer
from ranker.metrics.pair_accuracy import PairAccuracy, pair_accuracy
from ranker.settings import BoosterSettings
from ranker.training import booster as booster_module
from ranker.training.booster import (
    _Stop,
    added,
    at_cap,
    check_monotone,
    check_params,
    fit_booster,
    mean_of,
    parameters,
)
from ranker.training.category_codes import moved_codes, recode
from ranker.training.leaf_refit import refit, refit_booster
from ranker.training.objective import PairLogit

COLUMNS = ["up", "wavy", "kind"]


def a_slice(seed: int, n: int = 1200, flip: float = 1.0) -> Slice:
    """Groups of six rows whose worth grows in `up`, swings in `wavy`, and depends on the category `kind`."""
    rng = np.random.default_rng(seed)
    rows = rng.uniform(-1, 1, (n, 3)).astype(np.float32)
    rows[:, 2] = rng.integers(0, 12, n)
    rows[rng.random(n) < 0.1, 0] = np.nan
    worth = flip * np.nan_to_num(rows[:, 0]) + np.sin(6 * rows[:, 1]) + (rows[:, 2] % 3 == 1)
    worth = worth + rng.normal(0, 0.5, n)
    group = np.repeat(np.arange(n // 6), 6)
    a, b = np.arange(n).reshape(-1, 6)[:, :3].ravel(), np.arange(n).reshape(-1, 6)[:, 3:].ravel()
    winner, loser = np.where(worth[a] > worth[b], (a, b), (b, a)).astype(np.int32)
    weight = rng.uniform(0.5, 2, len(winner)).astype(np.float32)
    return Slice(rows, group.astype(np.int64), Pairs(winner, loser, weight, np.zeros(len(winner), bool)))


def fit(config: BoosterSettings, train: int = 0, start: lgb.Booster | None = None, flip: float = 1.0) -> lgb.Booster:
    return fit_booster(COLUMNS, ["kind"], a_slice(train, flip=flip), a_slice(99, flip=flip), config, 0, start=start)


def booster_settings(trees: int = 60, **result: object) -> BoosterSettings:
    params = {"num_leaves": 7, "learning_rate": 0.1, "num_threads": 1} | dict(result.pop("params", {}))  # type: ignore[call-overload]
    return BoosterSettings(trees=trees, stop_after=20, params=params, **result)  # type: ignore[arg-type]


def worst_step(booster: lgb.Booster, column: int) -> float:
    """The largest fall of the score as one column grows and the others stay."""
    rows = np.nan_to_num(a_slice(5).matrix[:200])
    grid = []
    for value in np.linspace(-1, 1, 40):
        rows[:, column] = value
        grid.append(np.asarray(booster.predict(rows, raw_score=True)))
    return float(np.diff(np.stack(grid), axis=0).min())


@pytest.mark.parametrize("column", [0, 1])
def test_a_constraint_by_name_holds_in_the_scores(column: int) -> None:
    free = fit(booster_settings())
    held = fit(booster_settings(monotone={COLUMNS[column]: 1, "of another arm": 1}))
    assert worst_step(free, column) < -0.01
    assert worst_step(held, column) >= 0
    assert worst_step(fit(booster_settings(monotone={COLUMNS[column]: -1})), column) < 0


def test_a_wrong_constraint_is_told() -> None:
    with pytest.raises(PairliftError, match="did you mean 'wavy'"):
        check_monotone(booster_settings(monotone={"wawy": 1}), COLUMNS, ("kind",))
    with pytest.raises(PairliftError, match="'kind': it is a category"):
        check_monotone(booster_settings(monotone={"kind": 1}), COLUMNS, ("kind",))
    with pytest.raises(PairliftError, match=r"\[booster.monotone\] \"column\" = 1"):
        check_params(booster_settings(params={"mc": [1, 0, 0]}))
    with pytest.raises(ValueError, match="-1 or 1"):
        booster_settings(monotone={"up": 2})


def test_a_parameter_may_have_any_of_lightgbms_names() -> None:
    result = BoosterSettings(params={"eta": 0.5, "max_leaves": 3})
    got = parameters(result, 10_000)
    assert (got["learning_rate"], got["num_leaves"]) == (0.5, 3)
    assert not {"eta", "max_leaves"} & got.keys()
    one, other = (
        fit(BoosterSettings(trees=3, params={name: 3, "num_threads": 1})) for name in ("num_leaves", "max_leaves")
    )
    assert one.model_to_string() == other.model_to_string()
    with pytest.raises(PairliftError, match="another name of learning_rate"):
        check_params(BoosterSettings(params={"eta": 0.5, "shrinkage_rate": 0.1}))


@pytest.mark.parametrize(
    "params",
    [
        {"data_sample_strategy": "goss"},
        {"boosting": "goss"},
        {"linear_tree": True},
        {"feature_contri": [0.1, 1.0, 1.0]},
        {"interaction_constraints": [[0, 1], [2]]},
        {"max_bin_by_feature": [10, 20, 30]},
    ],
)
def test_any_parameter_goes_through(params: dict[str, object]) -> None:
    booster, plain = fit(booster_settings(trees=8, params=params)), fit(booster_settings(trees=8))
    assert booster.num_trees() > 1
    rows = a_slice(99).matrix
    assert (booster.predict(rows) != plain.predict(rows)).any()


@pytest.mark.parametrize("name", ["num_class", "sigmoid", "cat_feature", "unbalance", "early_stopping_min_delta"])
def test_a_parameter_that_would_do_nothing_is_refused(name: str) -> None:
    with pytest.raises(PairliftError, match="it has no effect here"):
        check_params(booster_settings(params={name: 1}))


def test_the_best_round_has_a_whole_window_behind_it() -> None:
    """On a flat curve the early means are of few rounds: they have the most luck, and would win half of the time."""
    rng = np.random.default_rng(0)
    picked = []
    for seed in range(12):
        slices = [a_slice(2 * seed + k, n=600) for k in range(2)]
        noise = [replace(s, matrix=rng.random(s.matrix.shape).astype(np.float32)) for s in slices]
        result = BoosterSettings(trees=120, stop_after=30, params={"num_leaves": 4, "num_threads": 1})
        picked.append(fit_booster(COLUMNS, [], *noise, result, seed).num_trees())
    assert min(picked) >= booster_module.SMOOTH


def test_one_lucky_round_does_not_stop_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracies of the rounds as they come: a spike at 30 on a curve that rises until 60. Without a mean it wins."""
    curve = [0.5 + 0.001 * min(k, 60) + (0.2 if k == 30 else 0.0) for k in range(200)]
    rounds = iter(curve)
    monkeypatch.setattr(booster_module, "pair_accuracy", lambda *_: PairAccuracy(next(rounds), 0.0, 0.0))
    result = BoosterSettings(trees=200, stop_after=40, params={"num_leaves": 4, "num_threads": 1})
    means = [np.mean(curve[k - booster_module.SMOOTH + 1 : k + 1]) for k in range(booster_module.SMOOTH - 1, 200)]
    best = fit_booster(COLUMNS, [], a_slice(0, n=600), a_slice(1, n=600), result, 0).num_trees()
    assert best == int(np.argmax(means[:90])) + booster_module.SMOOTH
    assert best != 31


@pytest.mark.parametrize("trees", [1, 7, 24])
def test_fewer_rounds_than_a_window_are_all_kept(trees: int) -> None:
    result = BoosterSettings(trees=trees, stop_after=3, params={"num_leaves": 4, "num_threads": 1})
    assert fit_booster(COLUMNS, [], a_slice(0, n=600), a_slice(1, n=600), result, 0).num_trees() == trees


def test_it_is_known_whether_the_most_trees_ended_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    for trees in (3, 30, 60, 400):
        result, rounds = BoosterSettings(trees=trees, stop_after=20, params={"learning_rate": 0.2}), []
        stop = _Stop.__call__
        monkeypatch.setattr(
            _Stop, "__call__", lambda own, env, stop=stop, seen=rounds: seen.append(1) or stop(own, env)
        )
        best = fit_booster(COLUMNS, [], a_slice(0, n=600), a_slice(1, n=600), result, 0).num_trees()
        monkeypatch.undo()
        assert at_cap(result, best) == (len(rounds) == trees), (trees, best, len(rounds))
    assert len(rounds) < 400


def test_a_warm_start_keeps_the_old_trees_and_adds_to_them() -> None:
    old = fit(booster_settings(trees=5))
    warm = fit(booster_settings(), train=1, start=old)
    assert warm.num_trees() > old.num_trees()
    held = a_slice(99)
    first = warm.predict(held.matrix, raw_score=True, num_iteration=old.num_trees())
    np.testing.assert_array_equal(first, old.predict(held.matrix, raw_score=True))
    accuracy = [
        pair_accuracy(np.asarray(b.predict(held.matrix, raw_score=True)), held.pairs).value for b in (old, warm)
    ]
    assert accuracy[1] > accuracy[0]
    assert lgb.Booster(model_str=warm.model_to_string()).num_trees() == warm.num_trees()


def test_the_new_trees_of_a_warm_start_learn_what_the_old_ones_left() -> None:
    # A tree of a warm start is the tree that would have come next.
    plain = booster_settings(trees=6, params={"bagging_fraction": 1.0, "feature_fraction": 1.0})
    whole = fit(plain)
    half = lgb.Booster(model_str=whole.model_to_string(num_iteration=3))
    warm = fit(plain.model_copy(update={"trees": whole.num_trees() - 3}), start=half)
    rows = a_slice(3).matrix
    np.testing.assert_allclose(warm.predict(rows, raw_score=True), whole.predict(rows, raw_score=True), rtol=1e-6)


def test_a_warm_start_that_helps_nothing_gives_the_old_trees() -> None:
    old = fit(booster_settings(trees=200))
    train = a_slice(7, flip=-1.0)  # what it would learn now is wrong on the validation slice
    got = fit_booster(
        COLUMNS, ["kind"], train, a_slice(99), booster_settings(params={"learning_rate": 1.0}), 0, start=old
    )
    assert got.num_trees() == old.num_trees()


def test_the_model_is_plain_lightgbm_text(tmp_path) -> None:  # type: ignore[no-untyped-def]
    booster = fit(booster_settings())
    booster.save_model(str(tmp_path / "booster.txt"))
    rows = np.nan_to_num(a_slice(3).matrix)
    want = booster.predict(rows, raw_score=True)
    np.testing.assert_array_equal(lgb.Booster(model_file=str(tmp_path / "booster.txt")).predict(rows), want)
    treelite = pytest.importorskip("treelite")
    model = treelite.frontend.load_lightgbm_model(str(tmp_path / "booster.txt"))
    np.testing.assert_allclose(treelite.gtil.predict(model, rows).ravel(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("result", [{"margin": 0.5}, {"ndcg_at": 3}, {"ndcg_at": 1}])
def test_a_variant_of_the_objective_changes_the_fit(result: dict[str, float]) -> None:
    rows = a_slice(0)
    grade = np.zeros(len(rows.matrix), np.int8)
    np.add.at(grade, rows.pairs.winner, 1 + (np.arange(len(rows.pairs)) % 2).astype(np.int8))

    def text(chosen: BoosterSettings) -> str:
        given = replace(rows, grade=grade)
        booster = fit_booster(COLUMNS, ["kind"], given, a_slice(99), chosen, 0)
        return booster.model_to_string()

    assert text(booster_settings(10, **result)) != text(booster_settings(10))
    assert text(booster_settings(10, margin=0.0)) == fit(booster_settings(10)).model_to_string()


@pytest.mark.parametrize("part", ["training", "validation"])
@pytest.mark.parametrize("odd", [np.inf, -np.inf])
def test_an_infinite_feature_is_refused_by_name(part: str, odd: float) -> None:
    slices = {"training": a_slice(0), "validation": a_slice(99)}
    slices[part].matrix[[7, 11], 1] = odd
    with pytest.raises(PairliftError, match=f"'wavy' is infinite in 2 of 1,200 {part} rows \\(first: row 7\\)"):
        fit_booster(COLUMNS, ["kind"], slices["training"], slices["validation"], booster_settings(), 0)


def test_infinite_and_missing_values_of_a_request_score_as_lightgbm_has_them() -> None:
    booster = fit(booster_settings(20))
    rows = a_slice(3).matrix[:200]
    rng = np.random.default_rng(0)
    rows[rng.random(rows.shape) < 0.5] = np.nan
    rows[rng.random(rows.shape) < 0.3] = np.inf
    rows[rng.random(rows.shape) < 0.3] = -np.inf
    scorer = checked_scorer(booster)
    assert scorer is not None
    np.testing.assert_array_equal(scorer.score(rows), np.asarray(booster.predict(rows, raw_score=True)))
    largest = np.where(np.isinf(rows), np.sign(rows) * np.float32(1e30), rows)
    np.testing.assert_array_equal(scorer.score(rows), scorer.score(largest))


@pytest.mark.parametrize("name", ["use_quantized_grad", "num_grad_quant_bins"])
def test_quantised_gradients_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(PairliftError, match=rf"{name}: Pairlift sets this: it stays off.*its issue 5994\): leave it"):
        fit(booster_settings(params={name: True}))


def test_what_lightgbm_says_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise lgb.basic.LightGBMError("Check failed")

    monkeypatch.setattr("ranker.training.booster.lgb.train", fails)
    with pytest.raises(PairliftError, match=r"\[booster.params\]: LightGBM says: Check failed$"):
        fit(booster_settings())
    with pytest.raises(PairliftError, match=r"Check failed; are .* impressions of the booster's period enough"):
        fit(BoosterSettings(trees=3))


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"num_leavs": 7}, "did you mean 'num_leaves'"),
        ({"num_leafs": 7}, "did you mean 'num_leaves'"),
        ({"n_estimators": 3}, r"Pairlift sets this: see \[booster\] trees"),
        ({"random_state": 3}, r"Pairlift sets this: see \[uplift\] seeds"),
        ({"early_stopping": 3}, r"Pairlift sets this: see \[booster\] stop_after"),
        ({"deterministic": False}, "Pairlift sets this: it is the same in every fit"),
        ({"force_row_wise": False}, "Pairlift sets this: it is the same in every fit"),
        ({"force_col_wise": True}, "Pairlift sets this: it is the same in every fit"),
        ({"sigmoid": 2.0}, "it has no effect here"),
        ({"min_data": 3, "eta": 0.1}, ""),
    ],
)
def test_booster_parameters_are_lightgbms_and_not_ours(params: dict[str, Any], says: str) -> None:
    if says:
        with pytest.raises(PairliftError, match=says):
            check_params(BoosterSettings(params=params))
    else:
        check_params(BoosterSettings(params=params))


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


@given(
    st.lists(st.sampled_from(sorted(FORESTS)), min_size=1, max_size=3),
    st.lists(st.lists(ODD | st.floats(-5, 80, width=32), min_size=WIDTH, max_size=WIDTH), min_size=1, max_size=20),
)
@settings(max_examples=20, deadline=None)
def test_the_mean_of_forests_scores_the_mean_of_their_scores(names: list[str], values: list[list[float]]) -> None:
    boosters, rows = [FORESTS[name] for name in names], np.array(values, np.float32)
    mean = mean_of(boosters)
    assert mean.num_trees() == sum(booster.num_trees() for booster in boosters)
    score = np.asarray(mean.predict(rows, raw_score=True))
    want = np.mean([booster.predict(rows, raw_score=True) for booster in boosters], axis=0)
    np.testing.assert_allclose(score, want, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(Scorer.compile(mean).score(rows), score)


def test_the_mean_of_forests_is_a_booster_like_any_other(tmp_path) -> None:  # type: ignore[no-untyped-def]
    boosters = [fit_booster(COLUMNS, ["kind"], a_slice(s), a_slice(99), booster_settings(20), s) for s in range(3)]
    texts = [booster.model_to_string() for booster in boosters]
    mean, rows = mean_of(boosters), a_slice(3).matrix
    assert [booster.model_to_string() for booster in boosters] == texts, "theirs are as they were"
    assert checked_scorer(mean) is not None
    mean.save_model(str(tmp_path / "booster.txt"))
    kept = lgb.Booster(model_file=str(tmp_path / "booster.txt"))
    assert kept.feature_name() == COLUMNS
    np.testing.assert_array_equal(kept.predict(rows), mean.predict(rows))
    alone = mean_of(boosters[:1])
    np.testing.assert_array_equal(alone.predict(rows), boosters[0].predict(rows))
    why = np.mean([booster.predict(rows, pred_contrib=True) for booster in boosters], axis=0)
    np.testing.assert_allclose(mean.predict(rows, pred_contrib=True), why, rtol=1e-9, atol=1e-9)
    gain = sum(booster.feature_importance("gain") for booster in boosters)
    np.testing.assert_allclose(mean.feature_importance("gain"), gain, rtol=1e-5)


def test_the_mean_of_linear_trees_is_of_their_lines_too() -> None:
    boosters = [forest(seed, trees=4, leaves=5, linear_tree=True) for seed in range(3)]
    rows = np.random.default_rng(0).normal(size=(200, WIDTH)).astype(np.float32)
    rows[::7, 0] = np.nan
    want = np.mean([booster.predict(rows) for booster in boosters], axis=0)
    np.testing.assert_allclose(mean_of(boosters).predict(rows), want, rtol=1e-9)


def test_forests_that_take_missing_values_in_other_ways_are_compiled_together() -> None:
    # As of fits of many rows, where a value is missing so seldom that not every fit's sample has it.
    mean = mean_of([FORESTS[name] for name in ("numbers and categories", "zero as missing", "missing as zero")])
    assert checked_scorer(mean, 2000) is not None


def test_a_booster_is_added_by_a_weight_where_its_columns_come_first() -> None:
    fewer = fit_booster(COLUMNS, ["kind"], a_slice(0), a_slice(99), booster_settings(20), 0)

    def wider(seed: int) -> Slice:
        made = a_slice(seed)
        further = np.random.default_rng(seed).normal(size=(len(made.matrix), 1)).astype(np.float32)
        return replace(made, matrix=np.concatenate([made.matrix, further], axis=1))

    more = fit_booster([*COLUMNS, "further"], ["kind"], wider(1), wider(99), booster_settings(20), 1)
    rows = wider(3).matrix
    total = added(more, fewer, 0.25)
    assert total.feature_name() == [*COLUMNS, "further"]
    for contributions in (False, True):
        one = np.asarray(more.predict(rows, raw_score=True, pred_contrib=contributions))
        other = np.asarray(fewer.predict(rows[:, :3], raw_score=True, pred_contrib=contributions))
        if contributions:  # the last is the base
            other = np.insert(other, 3, 0.0, axis=1)
        found = total.predict(rows, raw_score=True, pred_contrib=contributions)
        np.testing.assert_allclose(found, one + 0.25 * other, rtol=1e-9, atol=1e-9)
    assert checked_scorer(total) is not None
