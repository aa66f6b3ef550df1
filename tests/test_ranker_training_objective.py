"""Gradient, Hessian and PairAccuracy against finite differences, slow definitions and CatBoost."""

from dataclasses import replace

import catboost
import numba
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import make_world

from features.pairing.groups import Groups, make_groups
from features.pairing.pairs import Pairs, make_pairs, weight_table
from features.pairing.split import make_split
from features.settings import PairingSettings, SplitSettings
from ranker.metrics.pair_accuracy import pair_accuracy
from ranker.training import objective
from ranker.training.objective import PairLogit


def loss(score: np.ndarray, pairs: Pairs, grade: np.ndarray | None = None, margin: float = 0.0) -> float:
    apart = score[pairs.winner] - score[pairs.loser]
    if grade is not None:
        apart = apart - margin * (grade[pairs.winner].astype(float) - grade[pairs.loser])
    return float(np.sum(pairs.weight * np.logaddexp(0, -apart)))


@st.composite
def pairs_and_scores(
    draw: st.DrawFn, values: st.SearchStrategy[float] | None = None
) -> tuple[Pairs, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (not all from a better grade to a worse one), and group, score and grade of their rows."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, draw(st.integers(1, 8)))
    group = np.repeat(np.arange(len(sizes)), sizes)
    winner, loser = np.nonzero((group[:, None] == group[None, :]) & (rng.random((len(group), len(group))) < 0.5))
    keep = rng.permutation(np.flatnonzero(winner != loser))
    weight = rng.choice([0.5, 1, 2, 1e-6], len(keep)).astype(np.float32)
    pairs = Pairs(winner[keep].astype(np.int32), loser[keep].astype(np.int32), weight, np.zeros(len(keep), bool))
    worst = draw(st.integers(-1, 1))
    grade = rng.integers(worst, 3, len(group)).astype(np.int8)
    score = rng.choice([-1.0, 0.0, 0.5, 30.0], len(group))  # ties are many
    if values is not None:
        score = np.array(draw(st.lists(values, min_size=len(group), max_size=len(group))))
    return pairs, group, score, grade


VARIANTS = st.sampled_from([(0.0, None), (0.7, None), (0.0, 2), (0.25, 9)])


def derivatives(made: PairLogit, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient and Hessian before they are rounded to float32."""
    n = len(score)
    out = objective.Gradients(np.full(n, np.nan), np.full(n, np.nan))  # type: ignore[arg-type]
    return replace(made, out=out)(score)  # type: ignore[return-value]


def effective(pairs: Pairs, group: np.ndarray, score: np.ndarray, grade: np.ndarray, k: int | None) -> Pairs:
    """The pairs with the weights that they have at these scores, by the slow definition of |ΔNDCG|."""
    if k is None:
        return pairs
    gain = 2.0 ** (grade + bool((grade < 0).any())) - 1
    change = []
    for a, b in zip(pairs.winner, pairs.loser, strict=True):
        rows = np.flatnonzero(group == group[a]).tolist()
        change.append(oracles.delta_ndcg(score[rows].tolist(), gain[rows].tolist(), k, rows.index(a), rows.index(b)))
    return replace(pairs, weight=pairs.weight * np.array(change))


@given(pairs_and_scores(), VARIANTS)
@settings(max_examples=60, deadline=None)
def test_gradient_and_hessian_are_the_derivatives(
    case: tuple[Pairs, np.ndarray, np.ndarray, np.ndarray], variant: tuple[float, int | None]
) -> None:
    pairs, group, score, grade = case
    margin, k = variant
    gradient, hessian = derivatives(PairLogit.of(pairs, group, grade, margin, k), score)
    fixed = effective(pairs, group, score, grade, k)  # |ΔNDCG| is a weight: no derivative is taken of it
    slope = PairLogit.of(fixed, group, grade, margin)
    step = 1e-4
    for row in range(len(score)):
        up, down = score.copy(), score.copy()
        up[row] += step
        down[row] -= step
        difference = loss(up, fixed, grade, margin) - loss(down, fixed, grade, margin)
        assert gradient[row] == pytest.approx(difference / (2 * step), abs=1e-5)
        second = (derivatives(slope, up)[0][row] - derivatives(slope, down)[0][row]) / (2 * step)
        assert hessian[row] == pytest.approx(second, abs=1e-5)


@given(pairs_and_scores(st.sampled_from([-3000.0, -2999.0, -700.0, -0.5, 0.0, 900.0])), VARIANTS)
@settings(max_examples=60, deadline=None)
def test_gradient_and_hessian_equal_their_definition_at_scores_of_any_size(
    case: tuple[Pairs, np.ndarray, np.ndarray, np.ndarray], variant: tuple[float, int | None]
) -> None:
    pairs, group, score, grade = case
    made = PairLogit.of(pairs, group, grade, *variant)
    fixed = effective(pairs, group, score, grade, variant[1])
    result = zip(fixed.winner.tolist(), fixed.loser.tolist(), fixed.weight.tolist(), strict=True)
    want = oracles.pair_logit(score.tolist(), grade.tolist(), list(result), variant[0])
    np.testing.assert_allclose(derivatives(made, score), want, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(made(score), np.array(derivatives(made, score)).astype(np.float32))


@given(pairs_and_scores(), VARIANTS)
@settings(max_examples=20, deadline=None)
def test_any_number_of_threads_gives_the_same_bits(
    case: tuple[Pairs, np.ndarray, np.ndarray, np.ndarray], variant: tuple[float, int | None]
) -> None:
    pairs, group, score, grade = case
    made = PairLogit.of(pairs, group, grade, *variant)
    assert made.cuts.pairs[-1] == len(pairs)
    alone = np.array(made(score))
    before = numba.get_num_threads()
    for threads in (1, before):
        numba.set_num_threads(threads)
        got = np.full((2, len(score)), np.nan, np.float32)
        objective._parallel(made.rows, made.pairs, made.cuts, score, objective.Gradients(got[0], got[1]))
        np.testing.assert_array_equal(got, alone)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_a_group_that_is_too_large_to_insert_is_sorted_alike(seed: int) -> None:
    score = np.random.default_rng(seed).integers(0, 40, 3 * objective.INSERTED).astype(float)
    order = np.empty(len(score), np.int64)
    objective._sort(score, order)
    np.testing.assert_array_equal(score[order], np.sort(score)[::-1])
    assert sorted(order.tolist()) == list(range(len(score)))


@given(st.lists(st.floats(-objective.FAR, 0), min_size=1, max_size=40))
def test_exponentials_are_numpys(values: list[float]) -> None:
    x = np.array(values)
    want = np.exp(x)
    objective._exponentials(x)
    np.testing.assert_allclose(x, want, rtol=5e-16)


def test_pairs_across_groups_and_variants_without_grades_are_refused() -> None:
    one = Pairs(np.array([0], np.int32), np.array([2], np.int32), np.ones(1, np.float32), np.zeros(1, bool))
    with pytest.raises(ValueError, match="stay in one"):
        PairLogit.of(one, np.array([0, 0, 1]))
    with pytest.raises(ValueError, match="never decrease"):
        PairLogit.of(one, np.array([1, 0, 1]))
    for variant in ({"margin": 1.0}, {"ndcg_at": 3}):
        with pytest.raises(ValueError, match="need the grade"):
            PairLogit.of(one, np.array([0, 0, 0]), **variant)  # type: ignore[arg-type]


@given(pairs_and_scores(), st.sampled_from([0.5, 3.0]))
@settings(max_examples=60, deadline=None)
def test_pair_accuracy_equals_its_definition(
    case: tuple[Pairs, np.ndarray, np.ndarray, np.ndarray], scale: float
) -> None:
    pairs, _, score, _ = case
    result = list(zip(pairs.winner.tolist(), pairs.loser.tolist(), pairs.weight.tolist(), strict=True))
    if not result:
        assert np.isnan(pair_accuracy(score, pairs)).all()
        return
    accuracy, catboost_, ties = found = pair_accuracy(score, pairs)
    assert accuracy == pytest.approx(oracles.pair_accuracy(score.tolist(), result))
    assert catboost_ == pytest.approx(accuracy - ties / 2, abs=1e-9)
    swapped = Pairs(pairs.loser, pairs.winner, pairs.weight, pairs.sampled)
    assert pair_accuracy(score, swapped).value == pytest.approx(1 - accuracy)
    assert pair_accuracy(np.exp(score / 10) * scale, pairs) == pytest.approx(found)
    scaled = Pairs(pairs.winner, pairs.loser, pairs.weight * np.float32(scale), pairs.sampled)
    assert pair_accuracy(score, scaled)[0] == pytest.approx(accuracy, rel=1e-6)


def test_a_nan_score_is_last() -> None:
    one = Pairs(np.array([0, 1], np.int32), np.array([1, 0], np.int32), np.array([1, 3], np.float32), np.zeros(2, bool))
    assert pair_accuracy(np.array([0.0, np.nan]), one) == (0.25, 0.25, 0.0)
    assert pair_accuracy(np.array([np.nan, np.nan]), one) == (0.5, 0.0, 1.0)


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
    found = pair_accuracy(score, pairs)
    assert found.ties > 0
    assert found.catboost == pytest.approx(theirs["PairAccuracy"][-1], rel=1e-6)
    assert loss(score, pairs) / pairs.weight.sum() == pytest.approx(theirs["PairLogit"][-1], rel=1e-5)
