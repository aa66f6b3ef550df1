"""Figures of lists against slow definitions and scikit-learn, the interval's coverage, and what is said of columns."""

import json
import math
from collections.abc import Callable
from typing import Any

import lightgbm as lgb
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import uplift_variance
from scipy.stats import ttest_rel
from sklearn.metrics import average_precision_score, label_ranking_average_precision_score, ndcg_score, roc_auc_score

from features.pairing.groups import Groups
from features.pairing.pairs import Pairs
from features.schema import F64, Requests
from ranker.metrics.importance import SAMPLE, explain, importance_lines
from ranker.metrics.interval import difference, mean_interval, relative_uplift
from ranker.metrics.lists import list_metrics, shown_metrics
from ranker.metrics.ndcg import ndcg
from ranker.metrics.pair_accuracy import effective_users, pair_accuracy, right_by_user

SCORES = st.sampled_from([np.nan, -np.inf, -1.0, 0.0, 0.5, 2.0])


def make_groups(sizes: list[int], grade: list[int], user: list[int] | None = None) -> Groups:
    """Groups of so many rows, each of its own user by default; grade -1 is drawn."""
    g, offsets = len(sizes), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    of = np.arange(g) if user is None else np.array(user)
    n = int(offsets[-1])
    requests = Requests(
        user=of.astype(np.int32),
        as_of=np.zeros(g, np.int64),
        surface=np.zeros(g, np.int16),
        offsets=offsets,
        item=np.zeros(n, np.int32),
    )
    grades = np.array(grade, np.int8)
    event = np.where(grades < 0, -1, np.arange(n)).astype(np.int64)
    return Groups(
        requests=requests, period=np.zeros(g, np.int8), validation=np.zeros(g, bool), grade=grades, event=event
    )


@st.composite
def scored(draw: st.DrawFn, worst: int = 0) -> tuple[Groups, np.ndarray]:
    """Groups of up to six rows, some empty, of up to three users; scores with many ties."""
    sizes = draw(st.lists(st.integers(0, 6), min_size=1, max_size=6))
    n = sum(sizes)
    grade = draw(st.lists(st.integers(worst, 2), min_size=n, max_size=n))
    user = draw(st.lists(st.integers(0, 2), min_size=len(sizes), max_size=len(sizes)))
    score = draw(st.lists(SCORES, min_size=n, max_size=n))
    return make_groups(sizes, grade, user), np.array(score, float)


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else np.nan


def lists_of(groups: Groups, score: np.ndarray, lowest: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(relevant, finite score) of each group that has both kinds of rows."""
    key = groups.requests.row_request()
    clean = np.where(score > -np.inf, score, -1e9)  # scikit-learn takes no infinities; NaN > -inf is false
    found = [(groups.grade[key == k] >= lowest, clean[key == k]) for k in np.unique(key)]
    return [(hit, s) for hit, s in found if 0 < hit.sum() < len(hit)]


@given(scored(worst=-1), st.sampled_from([None, 1, 2]))
@settings(max_examples=150, deadline=None)
def test_map_and_auc_equal_scikit_learn(case: tuple[Groups, np.ndarray], relevant: int | None) -> None:
    groups, score = case
    lowest = relevant if relevant is not None else 1 - bool((groups.grade < 0).any())
    result = list_metrics(score, groups, relevant)
    lists = lists_of(groups, score, lowest)
    for score_of in (average_precision_score, lambda hit, s: label_ranking_average_precision_score([hit], [s])):
        want = mean([score_of(hit, s) for hit, s in lists])
        assert result["map"] == pytest.approx(want, nan_ok=True)
    want = mean([roc_auc_score(hit, s) for hit, s in lists])
    assert result["auc"] == pytest.approx(want, nan_ok=True)


@given(scored(), st.sampled_from([None, 2]))
@settings(max_examples=100, deadline=None)
def test_mrr_is_the_mean_over_all_orders_of_the_ties(case: tuple[Groups, np.ndarray], relevant: int | None) -> None:
    groups, score = case
    lists = lists_of(groups, score, relevant or 1)
    want = mean([oracles.reciprocal_rank(s.tolist(), hit.tolist()) for hit, s in lists])
    assert list_metrics(score, groups, relevant)["mrr"] == pytest.approx(want, nan_ok=True)


def test_figures_worked_out_by_hand() -> None:
    groups = make_groups([3, 2, 2], [0, 1, 2, 0, 1, 1, 2], user=[0, 0, 1])
    score = np.array([3.0, 2.0, 1.0, 1.0, 1.0, 5.0, 4.0])  # the last group is all relevant: it says nothing
    result = list_metrics(score, groups)
    assert result["map"] == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1 / 2) / 2)
    assert result["mrr"] == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert result["auc"] == pytest.approx((0 + 1 / 2) / 2)
    assert list_metrics(score, groups, relevant=2)["mrr"] == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_nothing_to_order_is_nan() -> None:
    for groups in (make_groups([], []), make_groups([2, 0], [1, 1]), make_groups([2], [0, 0])):
        result = list_metrics(np.zeros(len(groups.grade)), groups)
        assert list(result) == ["ndcg@10", "map", "mrr", "auc"]
        assert np.isnan(list(result.values())).all()


def test_drawn_candidates_are_no_part_of_a_list_that_was_shown() -> None:
    groups = make_groups([4], [-1, 0, 1, -1])
    score = np.array([9.0, 1.0, 2.0, 8.0])
    assert shown_metrics(score, groups, shown=True)["mrr"] == 1
    assert shown_metrics(score, groups, shown=False)["mrr"] == 1 / 3  # the worst grade, too, is better than drawn


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_ndcg_equals_scikit_learn(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 9, 5)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    groups = make_groups(sizes.tolist(), rng.integers(0, 3, offsets[-1]).tolist())
    score = rng.integers(0, 4, offsets[-1]).astype(float)  # ties
    want = []
    for g in range(5):
        rows = slice(offsets[g], offsets[g + 1])
        gain = 2.0 ** groups.grade[rows] - 1
        if gain.max() > gain.min():
            want.append(ndcg_score([gain], [score[rows]], k=k))
    assert ndcg(score, groups, k) == pytest.approx(mean(want), nan_ok=True)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_right_by_user_adds_up_to_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(10), 6)
    winner, loser = (6 * np.arange(10)[:, None] + rng.integers(0, 6, (10, 8)) for _ in range(2))
    pairs = Pairs(
        winner.ravel().astype(np.int32), loser.ravel().astype(np.int32), rng.random(80).astype(np.float32),
        np.zeros(80, bool),
    )  # fmt: skip
    score = rng.choice([0.0, 1.0, 2.0, np.nan], 60)
    right, tied, total = right_by_user(score, pairs, user, 11)
    whole = pair_accuracy(score, pairs)
    assert right.sum() / total.sum() == pytest.approx(whole.catboost)
    assert (right + tied / 2).sum() / total.sum() == pytest.approx(whole.value)
    assert tied.sum() / total.sum() == pytest.approx(whole.ties)
    one = pairs.select(user[pairs.winner] == 3)
    assert right[3] / total[3] == pytest.approx(pair_accuracy(score, one).catboost)
    assert total[10] == 0


def test_effective_users() -> None:
    assert effective_users(np.array([2.0, 2.0, 2.0])) == pytest.approx(3)
    assert effective_users(np.array([1e6, 1.0])) == pytest.approx(1, abs=1e-5)


TRUTH = 0.01
#: how users' pairs are spread: alike, and with a tail of which a few users have most
SPREADS: dict[str, Callable[[np.random.Generator, int], F64]] = {
    "alike": lambda rng, n: np.full(n, 20.0),
    "lognormal": lambda rng, n: 8 * np.exp(rng.normal(0, 1.2, n)),
    "pareto": lambda rng, n: 3 * np.minimum(rng.pareto(1.2, n) + 1, 300),
}


def draw(
    rng: np.random.Generator, fits: int, seeds: int, users: int, spread: str, luck: float, shared: float
) -> tuple[F64, F64]:
    """Return an experiment whose uplift is TRUTH. luck: sd of one fit over the users' error; shared: with users."""
    pairs = SPREADS[spread](rng, users)
    own = np.sqrt(0.02 * pairs + (0.03 * pairs) ** 2)
    right = pairs * rng.normal(0.6, 0.08, users).clip(0.2, 0.9)
    one = np.sqrt((own**2).sum()) / right.sum()

    def noise(f: int, s: int, u: int) -> Any:
        return rng.normal(size=(f, s, u))

    without = right * (1 + 0.3 * one * noise(1, seeds, 1)) + shared * own * noise(1, seeds, users)
    gain = TRUTH + luck * one * noise(fits, 1, 1) + 0.3 * one * noise(1, seeds, 1)
    with_ = right * (1 + gain) + own * noise(1, 1, users)
    with_ += shared * own * (noise(fits, 1, users) + noise(1, seeds, users) + noise(fits, seeds, users))
    return without, with_


def covered(
    interval: Callable[[F64, F64], tuple[float, float]], worlds: int = 500, seeds: int = 5, **world: Any
) -> float:
    """Return the share of experiments whose interval holds the truth."""
    found = []
    for k in range(worlds):
        low, high = interval(*draw(np.random.default_rng(k), seeds=seeds, **world))
        found.append(low <= TRUTH <= high)
    return float(np.mean(found))


def ours(without: F64, with_: F64) -> tuple[float, float]:
    found = relative_uplift(without, with_)
    return found.low, found.high


def bootstrapped(without: F64, with_: F64) -> tuple[float, float]:
    """The percentile bootstrap of users, fits and seeds: what stood here before, with the fits drawn too."""
    rng, ratios = np.random.default_rng(0), []
    counts = [rng.multinomial(n, np.full(n, 1 / n), 400).astype(float) for n in with_.shape]
    for f, s, u in zip(*counts, strict=True):
        ratios.append((f @ (with_ @ u) @ s) / len(f) / ((without @ u)[0] @ s) - 1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def of_these_fits(without: F64, with_: F64) -> tuple[float, float]:
    """The interval that takes the mean of the fits for one fit: it leaves out their luck."""
    return ours(without, with_.mean(axis=0, keepdims=True))


@pytest.mark.parametrize("shared", [0.3, 1.0])
@pytest.mark.parametrize("luck", [0, 0.25, 0.5, 1, 2, 4])
def test_the_interval_covers_the_truth(luck: float, shared: float) -> None:
    """Of 800 experiments: the share's own sd is .008."""
    for fits, users, spread in ((3, 40, "lognormal"), (3, 150, "alike"), (5, 100, "lognormal")):
        share = covered(ours, worlds=800, fits=fits, users=users, spread=spread, luck=luck, shared=shared)
        assert 0.93 <= share <= 0.98, (fits, users, spread)


@pytest.mark.parametrize("luck", [0, 1, 4])
def test_the_interval_covers_where_few_users_have_most_pairs_and_where_fits_are_two(luck: float) -> None:
    assert 0.93 <= covered(ours, fits=3, users=200, spread="pareto", luck=luck, shared=0.3) <= 0.99
    assert 0.93 <= covered(ours, seeds=10, fits=5, users=300, spread="lognormal", luck=luck, shared=0.3) <= 0.98
    assert 0.90 <= covered(ours, fits=2, users=100, spread="lognormal", luck=luck, shared=0.3) <= 0.985


def test_what_the_interval_is_for() -> None:
    """A bootstrap of three fits covers too little, an interval without their luck far too little."""
    world: dict[str, Any] = {"fits": 3, "users": 100, "spread": "lognormal", "luck": 4, "shared": 0.3}
    assert covered(bootstrapped, worlds=200, **world) < 0.88
    assert covered(of_these_fits, worlds=200, **world) < 0.75
    assert covered(ours, worlds=200, **world) > 0.93


@pytest.mark.parametrize(("fits", "luck"), [(3, 0.0), (3, 1.0), (2, 0.0)])
def test_the_parts_are_those_of_the_slow_definition(fits: int, luck: float) -> None:
    for k in range(3):
        without, with_ = draw(np.random.default_rng(k), fits, 3, 6, "lognormal", luck, 0.5)
        uplift, variance = uplift_variance(without, with_)
        found = relative_uplift(without, with_)
        assert found.uplift == pytest.approx(uplift)
        assert found.variance == pytest.approx(variance)
        assert found.error**2 == pytest.approx(sum(variance.values()))


@given(st.integers(0, 1000), st.sampled_from([0.0, 1.0, 4.0]), st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_the_interval_does_not_depend_on_order_or_on_the_weights_unit(seed: int, luck: float, unit: float) -> None:
    rng = np.random.default_rng(seed)
    without, with_ = draw(rng, 3, 4, 30, "lognormal", luck, 0.5)
    f, s, u = (rng.permutation(n) for n in with_.shape)
    first = relative_uplift(without, with_)
    second = relative_uplift(unit * without[:, s][..., u], unit * with_[f][:, s][..., u])
    np.testing.assert_allclose(list(_numbers(first)), list(_numbers(second)), rtol=1e-6, atol=1e-12)


def _numbers(found: Any) -> list[float]:
    return [found.uplift, found.low, found.high, found.error, found.df, found.detectable, *found.variance.values()]


def test_a_comparison_of_two_plugins_has_the_luck_of_both() -> None:
    """Fits of two plugins are independent: their parts add up, and either alone has its own."""
    rng = np.random.default_rng(3)
    _, one = draw(rng, 4, 5, 400, "alike", 4, 0.1)
    without, other = draw(rng, 4, 5, 400, "alike", 4, 0.1)
    both = relative_uplift(one, other).variance["fits"]
    alone = [relative_uplift(without, arm).variance["fits"] for arm in (one, other)]
    assert both == pytest.approx(sum(alone), rel=0.2)
    assert np.isnan(relative_uplift(without, without).variance["fits"])


def test_one_fit_or_one_seed_tells_nothing_of_its_luck() -> None:
    without, with_ = draw(np.random.default_rng(1), 3, 5, 100, "alike", 4, 0.3)
    whole = relative_uplift(without, with_)
    one_fit = relative_uplift(without, with_[:1])
    one_seed = relative_uplift(without[:, :1], with_[:, :1])
    assert (whole.fits, one_fit.fits) == (3, 1)
    assert np.isnan(one_fit.variance["fits"]) and np.isnan(one_seed.variance["seeds"])  # noqa: PT018
    assert one_fit.error < whole.error / 2
    assert one_seed.high > one_seed.low


def test_the_interval_of_a_real_gain_and_of_nothing() -> None:
    base = np.random.default_rng(0).uniform(1, 2, (1, 5, 100))
    gain = relative_uplift(base, np.repeat(base * 1.02, 3, axis=0))
    assert gain.uplift == pytest.approx(0.02)
    assert gain.low == pytest.approx(gain.high) == pytest.approx(0.02)
    assert np.isnan(relative_uplift(base * 0, base).uplift)
    alone = relative_uplift(base[..., :1], base[..., :1])
    assert (alone.uplift, np.isnan(alone.low)) == (0, True)  # one user tells nothing of others


def test_the_smallest_uplift_that_is_seen_is_seen_with_a_chance_of_80_per_cent() -> None:
    world: dict[str, Any] = {"fits": 5, "seeds": 5, "users": 200, "spread": "alike", "luck": 0.5, "shared": 0.3}
    smallest = np.mean([relative_uplift(*draw(np.random.default_rng(k), **world)).detectable for k in range(50)])
    seen = 0
    for k in range(400):
        without, with_ = draw(np.random.default_rng(k), **world)
        seen += relative_uplift(without, with_ * ((1 + smallest) / (1 + TRUTH))).low > 0
    assert 0.7 < seen / 400 < 0.9


def test_the_report_has_the_parts() -> None:
    found = relative_uplift(*draw(np.random.default_rng(0), 3, 5, 50, "alike", 1, 0.3))
    result = found.reported()
    assert result["ci95"] == [found.low, found.high]
    assert sum(result["variance"].values()) == pytest.approx(result["standard_error"] ** 2)
    assert set(result) == {"relative_uplift", "ci95", "standard_error", "variance", "degrees_of_freedom"}


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
    result = explain(booster, rows, {"kind"})
    columns = result["columns"]
    assert result["rows"] == SAMPLE
    assert list(columns)[:2] == ["rises", "falls"]
    assert columns["rises"]["direction"] > 0.9
    assert columns["falls"]["direction"] < -0.9
    assert columns["kind"]["direction"] is None
    assert columns["kind"]["mean_abs_shap"] > 0.1
    for name in ("idle", "constant"):
        assert columns[name] == {"gain": 0.0, "splits": 0, "mean_abs_shap": 0.0, "direction": None}
    assert math.isclose(sum(c["gain"] for c in columns.values()), 1.0)
    json.dumps(result, allow_nan=False)


def test_the_values_are_lightgbms_own() -> None:
    booster, rows = booster_and_rows()
    few = rows[:300]  # fewer than the sample: all of them
    result = explain(booster, few, {"kind"})
    shap = booster.predict(few, pred_contrib=True)[:, :-1]
    for k, name in enumerate(NAMES):
        column = result["columns"][name]
        assert math.isclose(column["mean_abs_shap"], np.abs(shap[:, k]).mean())
        assert column["splits"] == booster.feature_importance("split")[k]
    known = ~np.isnan(few[:, 0])
    want = np.corrcoef(few[known, 0], shap[known, 0])[0, 1]
    assert math.isclose(result["columns"]["rises"]["direction"], want, rel_tol=1e-6)


def test_the_table_has_a_line_for_each_column() -> None:
    booster, rows = booster_and_rows()
    stump = lgb.Booster(model_str=booster.model_to_string(num_iteration=1))
    lines = importance_lines(explain(stump, rows, {"kind"}))
    assert len(lines) == 1 + len(NAMES)
    assert lines[0].split() == ["column", "gain", "splits", "|SHAP|", "direction"]
    assert lines[1].split()[0] == "rises"
    assert lines[-1].split()[-1] == "-"


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=2, max_size=20))
@settings(max_examples=50, deadline=None)
def test_the_interval_of_a_difference_is_that_of_the_paired_t_test(rows: list[tuple[float, float]]) -> None:
    a, b = np.array(rows).T
    mean, low, high = difference(a, b)
    assert mean == pytest.approx((a - b).mean())
    want = ttest_rel(a, b).confidence_interval(0.95) if (a - b).std() > 1e-9 else (mean, mean)
    assert (low, high) == pytest.approx(tuple(want), abs=1e-7)  # of two rows it is 13 of these standard deviations wide


def test_the_interval_of_a_mean_covers_what_it_says_and_says_when_it_cannot() -> None:
    rng = np.random.default_rng(0)
    found = [mean_interval(rng.normal(1, 2, 12))[1:] for _ in range(2000)]
    assert np.mean([low < 1 < high for low, high in found]) == pytest.approx(0.95, abs=0.015)
    assert mean_interval(np.array([3.0]))[0] == 3
    assert np.isnan(mean_interval(np.array([3.0]))[1:]).all()
    assert np.isnan(mean_interval(np.empty(0))).all()
