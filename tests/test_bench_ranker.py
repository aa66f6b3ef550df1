"""The generated log of the ranker's benchmark: its best possible order is the best, and its figure is right."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent / "bench" / "peers"))

import ranker_world as rw
from ranker_data import Data

from features.schema import F64
from ranker.metrics.pair_accuracy import pair_accuracy


@pytest.fixture(scope="module")
def world() -> Data:
    return rw.make_world(seed=1, scale=0.05)


@st.composite
def group_and_weights(draw: st.DrawFn) -> tuple[F64, F64]:
    rows = draw(st.integers(2, 5))
    share = st.floats(0.01, 1.0)
    chance = np.array([[draw(share) for _ in range(3)] for _ in range(rows)])
    weights = np.zeros((3, 3))
    for winner, loser in ((1, 0), (2, 0), (2, 1)):
        weights[winner, loser] = draw(st.floats(0.05, 20.0))
    return chance / chance.sum(axis=1, keepdims=True), weights


@given(group_and_weights())
@settings(max_examples=60, deadline=None)
def test_no_order_of_a_group_is_better_than_that_of_the_best_score(drawn: tuple[F64, F64]) -> None:
    chance, weights = drawn
    assert rw.beaten_by_brute_force(chance, weights) < 1e-9


def test_brute_force_tells_an_order_that_is_not_the_best() -> None:
    chance = np.random.default_rng(0).dirichlet([1.0, 1.0, 1.0], 5)
    odd = rw.WEIGHTS * np.array([[1], [20], [1]])  # the best for other weights
    pair = rw.expected_weight(chance)

    def right(score: F64) -> float:
        return float((pair * (score[:, None] > score[None, :])).sum())

    assert right(rw.best_score(chance, odd)) < right(rw.best_score(chance)) - 1e-3


def test_the_expected_accuracy_of_the_best_scores_is_what_answers_give(world: Data) -> None:
    assert world.best is not None
    pairs = world.test.rows.pairs
    value, _, ties = pair_accuracy(world.best.score, pairs)
    assert ties == 0
    assert value == pytest.approx(world.best.bound, abs=5 * 0.5 / np.sqrt(len(pairs) / 10))


def test_the_weights_decide_which_order_is_best(world: Data) -> None:
    assert world.best is not None
    assert world.best_1 is not None
    with_weights = pair_accuracy(world.best.score, world.test.rows.pairs).value
    assert pair_accuracy(world.best_1.score, world.test.rows.pairs).value < with_weights - 0.005


def test_pairs_are_all_of_different_grades_within_a_group(world: Data) -> None:
    part = world.train.first(0.1)
    grade, group, pairs = part.grade, part.rows.group, part.rows.pairs
    expected = {
        (a, b): rw.WEIGHTS[grade[a], grade[b]]
        for g in np.unique(group)
        for a in np.flatnonzero(group == g)
        for b in np.flatnonzero(group == g)
        if grade[a] > grade[b]
    }
    found = dict(zip(zip(pairs.winner.tolist(), pairs.loser.tolist(), strict=True), pairs.weight, strict=True))
    assert found == expected
