"""Gradient, Hessian, PairAccuracy and NDCG against finite differences, slow definitions, CatBoost and scikit-learn."""

import catboost
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score
from world import make_world

from features.pairs import Groups, Pairs, make_groups, make_pairs, weight_table
from features.schema import Requests
from features.settings import PairingSettings, SplitSettings
from features.split import make_split
from ranker import objective
from ranker.metrics import effective_users, ndcg, right_by_user
from ranker.objective import PairLogit, pair_accuracy


def loss(score: np.ndarray, pairs: Pairs) -> float:
    margin = score[pairs.winner] - score[pairs.loser]
    return float(np.sum(pairs.weight * np.logaddexp(0, -margin)))


@st.composite
def pairs_and_scores(draw: st.DrawFn) -> tuple[Pairs, np.ndarray, np.ndarray]:
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, draw(st.integers(1, 8)))
    group = np.repeat(np.arange(len(sizes)), sizes)
    winner, loser = np.nonzero((group[:, None] == group[None, :]) & (rng.random((len(group), len(group))) < 0.5))
    keep = rng.permutation(np.flatnonzero(winner != loser))
    weight = rng.choice([0.5, 1, 2, 1e-6], len(keep)).astype(np.float32)
    pairs = Pairs(winner[keep].astype(np.int32), loser[keep].astype(np.int32), weight, np.zeros(len(keep), bool))
    return pairs, group, rng.choice([-1.0, 0.0, 0.5, 30.0], len(group))  # ties are many


@given(pairs_and_scores())
@settings(max_examples=60, deadline=None)
def test_gradient_and_hessian_are_the_derivatives(case: tuple[Pairs, np.ndarray, np.ndarray]) -> None:
    pairs, group, score = case
    gradient, hessian = PairLogit.of(pairs, group)(score)
    step = 1e-4
    for row in range(len(score)):
        up, down = score.copy(), score.copy()
        up[row] += step
        down[row] -= step
        assert gradient[row] == pytest.approx((loss(up, pairs) - loss(down, pairs)) / (2 * step), abs=1e-5)
        objective_ = PairLogit.of(pairs, group)
        second = (objective_(up)[0][row] - objective_(down)[0][row]) / (2 * step)
        assert hessian[row] == pytest.approx(second, abs=1e-5)


@given(pairs_and_scores())
@settings(max_examples=20, deadline=None)
def test_chunks_in_parallel_give_the_same_bits(case: tuple[Pairs, np.ndarray, np.ndarray]) -> None:
    pairs, group, score = case
    alone = PairLogit.of(pairs, group)(score)
    gradient, hessian = np.zeros(len(score)), np.zeros(len(score))
    p = PairLogit.of(pairs, group)
    assert p.bounds[-1] == len(pairs)
    ordered = p.pairs
    objective._add_chunks(score, ordered.winner, ordered.loser, ordered.weight, p.bounds, gradient, hessian)
    np.testing.assert_array_equal(alone, (gradient, hessian))


@given(pairs_and_scores(), st.sampled_from([0.5, 3.0]))
@settings(max_examples=60, deadline=None)
def test_pair_accuracy_equals_its_definition(case: tuple[Pairs, np.ndarray, np.ndarray], scale: float) -> None:
    pairs, _, score = case
    told = list(zip(pairs.winner.tolist(), pairs.loser.tolist(), pairs.weight.tolist(), strict=True))
    if not told:
        assert np.isnan(pair_accuracy(score, pairs)).all()
        return
    accuracy, ties = pair_accuracy(score, pairs)
    assert accuracy == pytest.approx(oracles.pair_accuracy(score.tolist(), told))
    swapped = Pairs(pairs.loser, pairs.winner, pairs.weight, pairs.sampled)
    assert pair_accuracy(score, swapped)[0] == pytest.approx(1 - accuracy - ties)
    assert pair_accuracy(np.exp(score / 10) * scale, pairs) == pytest.approx((accuracy, ties))
    scaled = Pairs(pairs.winner, pairs.loser, pairs.weight * np.float32(scale), pairs.sampled)
    assert pair_accuracy(score, scaled)[0] == pytest.approx(accuracy, rel=1e-6)


def test_a_nan_score_is_last() -> None:
    one = Pairs(np.array([0, 1], np.int32), np.array([1, 0], np.int32), np.array([1, 3], np.float32), np.zeros(2, bool))
    assert pair_accuracy(np.array([0.0, np.nan]), one) == (0.25, 0.0)
    assert pair_accuracy(np.array([np.nan, np.nan]), one) == (0.0, 1.0)


def _world() -> tuple[Groups, Pairs]:
    world = make_world(5)
    groups = make_groups(world.log, PairingSettings(), make_split(SplitSettings(), world.log, "UTC"))
    return groups, make_pairs(
        groups, weight_table({"like > skip": 2.0, "listen > skip": 1.0, "like > listen": 0.5}, world.grades, False)
    )


def test_pair_accuracy_and_loss_equal_catboost() -> None:
    groups, pairs = _world()
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 4, (len(groups.grade), 3)).astype(np.float32)  # few values: ties
    pool = catboost.Pool(
        rows, label=groups.grade, group_id=groups.requests.row_request(),
        pairs=np.stack([pairs.winner, pairs.loser], 1), pairs_weight=pairs.weight,
    )  # fmt: skip
    model = catboost.CatBoost(
        {"loss_function": "PairLogit", "custom_metric": ["PairAccuracy"], "iterations": 5, "verbose": False,
         "allow_writing_files": False, "thread_count": 1}
    )  # fmt: skip
    model.fit(pool)
    score = np.asarray(model.predict(pool))
    theirs = model.eval_metrics(pool, ["PairAccuracy", "PairLogit"])
    accuracy, ties = pair_accuracy(score, pairs)
    assert ties > 0
    assert accuracy == pytest.approx(theirs["PairAccuracy"][-1], rel=1e-6)
    assert loss(score, pairs) / pairs.weight.sum() == pytest.approx(theirs["PairLogit"][-1], rel=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_ndcg_equals_scikit_learn(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 9, 5)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    n = int(offsets[-1])
    requests = Requests(
        np.zeros(5, np.int32), np.zeros(5, np.int64), np.zeros(5, np.int16), offsets, np.zeros(n, np.int32)
    )
    grade = rng.integers(0, 3, n).astype(np.int8)
    groups = Groups(requests, np.zeros(5, np.int8), np.zeros(5, bool), grade, np.zeros(n, np.int64))
    score = rng.integers(0, 4, n).astype(float)  # ties
    want = []
    for g in range(5):
        rows = slice(offsets[g], offsets[g + 1])
        gain = 2.0 ** grade[rows] - 1
        if gain.max() > gain.min():
            want.append(ndcg_score([gain], [score[rows]], k=k))
    got = ndcg(score, groups, k)
    assert np.isnan(got) if not want else got == pytest.approx(np.mean(want))


def test_right_by_user_adds_up_to_the_whole() -> None:
    groups, pairs = _world()
    score = np.random.default_rng(1).integers(0, 3, len(groups.grade)).astype(float)
    user = groups.requests.user[groups.requests.row_request()].astype(np.int64)
    right, tied, total = right_by_user(score, pairs, user, 40)
    accuracy, ties = pair_accuracy(score, pairs)
    assert right.sum() / total.sum() == pytest.approx(accuracy)
    assert tied.sum() / total.sum() == pytest.approx(ties)


def test_effective_users() -> None:
    assert effective_users(np.array([2.0, 2.0, 2.0])) == pytest.approx(3)
    assert effective_users(np.array([1e6, 1.0])) == pytest.approx(1, abs=1e-5)
