"""NDCG, MAP, MRR and AUC by user against scikit-learn and slow definitions, with ties, NaN, drawn and empty groups."""

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    label_ranking_average_precision_score,
    ndcg_score,
    roc_auc_score,
)

from features.pairing.groups import Groups
from features.pairing.pairs import Pairs
from features.schema import Requests
from ranker.metrics.lists import effective_users, list_metrics, ndcg, right_by_user, shown_metrics
from ranker.training.objective import pair_accuracy

SCORES = st.sampled_from([np.nan, -np.inf, -1.0, 0.0, 0.5, 2.0])


def make_groups(sizes: list[int], grade: list[int], user: list[int] | None = None) -> Groups:
    """Groups of so many rows, each of its own user by default; grade -1 is drawn."""
    g, offsets = len(sizes), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    of = np.arange(g) if user is None else np.array(user)
    n = int(offsets[-1])
    requests = Requests(
        of.astype(np.int32), np.zeros(g, np.int64), np.zeros(g, np.int16), offsets, np.zeros(n, np.int32)
    )
    grades = np.array(grade, np.int8)
    event = np.where(grades < 0, -1, np.arange(n)).astype(np.int64)
    return Groups(requests, np.zeros(g, np.int8), np.zeros(g, bool), grades, event)


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
    told = list_metrics(score, groups, relevant)
    lists = lists_of(groups, score, lowest)
    for score_of in (average_precision_score, lambda hit, s: label_ranking_average_precision_score([hit], [s])):
        want = mean([score_of(hit, s) for hit, s in lists])
        assert told["map"] == pytest.approx(want, nan_ok=True)
    want = mean([roc_auc_score(hit, s) for hit, s in lists])
    assert told["auc"] == pytest.approx(want, nan_ok=True)


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
    told = list_metrics(score, groups)
    assert told["map"] == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1 / 2) / 2)
    assert told["mrr"] == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert told["auc"] == pytest.approx((0 + 1 / 2) / 2)
    assert list_metrics(score, groups, relevant=2)["mrr"] == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_nothing_to_order_is_nan() -> None:
    for groups in (make_groups([], []), make_groups([2, 0], [1, 1]), make_groups([2], [0, 0])):
        told = list_metrics(np.zeros(len(groups.grade)), groups)
        assert list(told) == ["ndcg@10", "map", "mrr", "auc"]
        assert np.isnan(list(told.values())).all()


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
