"""The network that ranks: what it reads of rows, the loss it learns by, and that what is served is what was fitted."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from features.errors import PairliftError
from features.final import FinalRanker, make_ranker, ranker_class
from features.pairing.pairs import Pairs
from features.pairing.slice import Slice
from features.schema import F32, F64
from neural.final import NetworkRanker
from neural.final.inputs import LEAST, Inputs
from neural.final.model import Network
from neural.final.settings import NetworkRankerSettings
from neural.final.train import Paired, _phase

#: options that fit in a second
SMALL: dict[str, Any] = {
    "width": 16,
    "networks": 1,
    "epochs": 12,
    "learning_rate": 0.01,
    "batch_rows": 256,
    "threads": 1,
}
#: of a slice: two vectors of two numbers, a number with gaps, one that is always missing, one of one value, a category
COLUMNS = ["u0", "u1", "i0", "i1", "gaps", "never", "one", "kind"]
CATEGORICAL = ["kind"]


def a_slice(seed: int, n: int = 3000) -> Slice:
    """Groups of six rows whose worth is u · i + gaps (0 where it is missing) + 1 of every third kind, and noise."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, len(COLUMNS))).astype(np.float32)
    rows[rng.random(n) < 0.2, 4] = np.nan
    rows[:, 5], rows[:, 6] = np.nan, 7
    rows[:, 7] = rng.integers(0, 12, n)
    worth = true_worth(rows) + rng.normal(0, 0.3, n)
    a, b = (np.arange(n).reshape(-1, 6)[:, part].ravel() for part in (slice(0, 3), slice(3, 6)))
    winner, loser = np.where(worth[a] > worth[b], (a, b), (b, a)).astype(np.int32)
    weight = rng.uniform(0.5, 2, len(winner)).astype(np.float32)
    mixed = rng.permutation(len(winner))  # pairs come in any order
    pairs = Pairs(winner[mixed], loser[mixed], weight[mixed], np.zeros(len(winner), bool))
    return Slice(rows, np.repeat(np.arange(n // 6) * 3, 6), pairs)


def true_worth(rows: F32) -> F64:
    """Return float64[n] without the noise."""
    product = (rows[:, 0:2] * rows[:, 2:4]).sum(1, dtype=np.float64)
    return product + np.nan_to_num(rows[:, 4]) + (rows[:, 7] % 3 == 1)


def fitted(train: Slice, seed: int = 0, **options: Any) -> NetworkRanker:
    ranker = NetworkRanker(**SMALL | options)
    ranker.fit(COLUMNS, CATEGORICAL, train, a_slice(99), seed)
    return ranker


def accuracy(ranker: FinalRanker, seed: int = 7) -> float:
    """Return the share of pairs of a new slice that it orders right."""
    rows = a_slice(seed)
    score = ranker.score(rows.matrix)
    return float((score[rows.pairs.winner] > score[rows.pairs.loser]).mean())


@pytest.fixture(scope="module")
def ranker() -> NetworkRanker:
    return fitted(a_slice(0))


# What is read of a row


def test_a_number_is_its_place_among_the_training_rows_and_a_missing_one_the_mean() -> None:
    rng = np.random.default_rng(0)
    rows = rng.lognormal(0, 3, (500, 5)).astype(np.float32)
    rows[:450, 1] = 0  # mostly zero, with a tail
    rows[rng.random(500) < 0.3, 2] = np.nan
    rows[:, 3], rows[:, 4] = 5, np.nan
    inputs = Inputs.of(list("abcde"), [], rows)
    asked = np.concatenate([rows, rng.lognormal(0, 4, (200, 5)).astype(np.float32)])
    asked[-3:] = [[np.inf] * 5, [-np.inf] * 5, [np.nan] * 5]
    numbers, codes = inputs.encode(asked)
    assert codes.shape == (len(asked), 0)
    for a, count in enumerate(inputs.count):
        edges = inputs.edges[a, :count].astype(np.float64)
        known = rows[~np.isnan(rows[:, a]), a]
        if len(known):
            assert (edges[0], edges[-1]) == (known.min(), known.max())
        place = np.interp(asked[:, a], edges, np.linspace(0, 1, count)) if count > 1 else np.zeros(len(asked))
        of_training = place[:500][~np.isnan(rows[:, a])]
        spread = of_training.std() if len(of_training) and of_training.std() > 0 else 1.0
        middle = of_training.mean() if len(of_training) else 0.0
        expected = np.where(np.isnan(asked[:, a]), 0, (place - middle) / spread)
        np.testing.assert_allclose(numbers[:, a], expected, rtol=1e-4, atol=1e-4)
    assert len(np.unique(numbers[:500, 1])) > 30  # the tail is told apart
    assert inputs.lacking.tolist() == [2, 4]
    np.testing.assert_array_equal(numbers[:, 5:], np.isnan(asked[:, [2, 4]]))


def test_of_columns_that_are_absent_together_one_says_so() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    rows[:9, [1, 2]] = np.nan
    rows[5:12, 3] = np.nan
    assert Inputs.of(list("abcd"), [], rows).lacking.tolist() == [1, 3]


def test_a_rare_a_new_and_a_missing_category_are_unknown() -> None:
    kind = np.repeat([0, 1, 2, 5], [LEAST, LEAST - 1, LEAST + 3, LEAST])
    other = np.repeat([0, 3], [len(kind) - LEAST, LEAST])
    rows = np.stack([kind, other], axis=1).astype(np.float32)
    rows[0, 1] = np.nan
    inputs = Inputs.of(["kind", "other"], ["kind", "other"], rows)
    asked = np.array([[0, 0], [1, 1], [2, 3], [5, 2], [6, 4], [-1, np.nan], [np.nan, -1], [np.inf, 0]], np.float32)
    numbers, codes = inputs.encode(asked)
    assert numbers.shape == (8, 0)
    assert codes.tolist() == [[1, 4], [0, 0], [2, 5], [3, 0], [0, 0], [0, 0], [0, 0], [0, 4]]
    assert inputs.n_slots == 6


# The loss


def test_batches_have_every_pair_once_and_the_loss_is_that_of_the_booster() -> None:
    rows = a_slice(3, 600)
    keep = rows.group[rows.pairs.winner] % 2 == 0  # half of the groups have no pairs
    rows = replace(rows, pairs=rows.pairs.select(keep))
    inputs = Inputs.of(COLUMNS, CATEGORICAL, rows.matrix)
    paired, settings = Paired.of(rows, inputs), NetworkRankerSettings(**SMALL | {"batch_rows": 50, "dropout": 0.0})
    torch.manual_seed(0)
    network = Network(inputs.n_numbers, len(inputs.code), inputs.n_slots, settings)
    phase = _phase("network", network, paired, paired, settings)
    with torch.no_grad():
        s = paired.scores(network, slice(None)).numpy().astype(np.float64)
        for rng in (None, np.random.default_rng(1)):
            plan = phase.plan(rng)
            assert len(plan) > 4
            assert sorted(np.concatenate(plan).tolist()) == list(range(50))
            found, pairs = 0.0, []
            for chosen in plan:
                row, *of_pairs = paired.pairs_of(chosen)
                winner, loser, weight = (x.numpy() for x in of_pairs)
                assert len(row) <= 50 + 6
                pairs += list(zip(row[winner], row[loser], weight, strict=True))
                found += phase.loss(chosen).item()
            own = list(zip(rows.pairs.winner, rows.pairs.loser, rows.pairs.weight, strict=True))
            assert sorted(pairs) == sorted(own)
            w = rows.pairs.weight.astype(np.float64)
            direct = (w * np.log1p(np.exp(s[rows.pairs.loser] - s[rows.pairs.winner]))).sum()
            # Divided by what a batch weighs on average.
            assert found == pytest.approx(direct / (w.sum() / len(phase.plan(None))), rel=1e-5)
    right = (np.sign(s[rows.pairs.winner] - s[rows.pairs.loser]) + 1) / 2
    assert paired.accuracy(network) == pytest.approx((w * right).sum() / w.sum())


def test_it_learns_products_gaps_and_categories_and_nothing_of_mixed_pairs(ranker: NetworkRanker) -> None:
    rows = a_slice(7)
    no_product = rows.matrix.copy()
    no_product[:, :2] = 0
    best, sum_alone = (
        float((worth[rows.pairs.winner] > worth[rows.pairs.loser]).mean())
        for worth in (true_worth(rows.matrix), true_worth(no_product))
    )
    assert sum_alone + 0.1 < best - 0.09 < accuracy(ranker) <= best
    train = a_slice(0)
    turned = np.random.default_rng(0).random(len(train.pairs)) < 0.5
    one, other = train.pairs.winner, train.pairs.loser
    mixed = replace(train.pairs, winner=np.where(turned, other, one), loser=np.where(turned, one, other))
    assert abs(accuracy(fitted(replace(train, pairs=mixed))) - 0.5) < 0.05


def test_of_pairs_that_contradict_each_other_the_heavy_ones_win() -> None:
    train = a_slice(0)
    p = train.pairs
    both = Pairs(
        np.concatenate([p.winner, p.loser]),
        np.concatenate([p.loser, p.winner]),
        np.concatenate([p.weight, 5 * p.weight]),
        np.zeros(2 * len(p), bool),
    )
    against = replace(train, pairs=both)
    validation = a_slice(99)
    v = validation.pairs
    ranker = NetworkRanker(**SMALL)
    turned = replace(validation, pairs=replace(v, winner=v.loser, loser=v.winner))
    ranker.fit(COLUMNS, CATEGORICAL, against, turned, 0)
    assert accuracy(ranker) < 0.25


def test_the_epoch_that_is_best_on_the_validation_slice_is_kept(ranker: NetworkRanker) -> None:
    epochs, rows = ranker.report["epochs"], a_slice(99)
    score = ranker.score(rows.matrix)
    right = rows.pairs.weight[score[rows.pairs.winner] > score[rows.pairs.loser]].sum() / rows.pairs.weight.sum()
    assert right == pytest.approx(max(epoch["validation"] for epoch in epochs), abs=1e-3)
    assert {point["phase"] for point in ranker.curve} == {"network 1 of 1"}
    stopped = fitted(a_slice(0, 60), epochs=200, patience=2).report["epochs"]
    assert len(stopped) < 100


# What is served


def test_a_seed_gives_the_same_bits_and_several_networks_are_their_mean(ranker: NetworkRanker) -> None:
    rows = a_slice(7).matrix
    np.testing.assert_array_equal(fitted(a_slice(0)).score(rows), ranker.score(rows))
    assert (fitted(a_slice(0), seed=1000).score(rows) != ranker.score(rows)).any()
    two = fitted(a_slice(0), networks=2).score(rows)
    alone = [ranker.score(rows), fitted(a_slice(0), seed=1000).score(rows)]
    np.testing.assert_allclose(two, np.mean(alone, axis=0), rtol=1e-4, atol=1e-5)


def test_a_row_does_not_depend_on_the_others_and_is_saved_and_loaded(ranker: NetworkRanker, tmp_path: Path) -> None:
    assert isinstance(ranker, FinalRanker)
    rows = a_slice(8).matrix[:40]
    rows[0], rows[1, 7] = np.nan, 99
    score = ranker.score(rows)
    assert score.dtype == np.float64
    assert np.isfinite(score).all()
    np.testing.assert_allclose([ranker.score(row[None])[0] for row in rows], score, rtol=1e-4, atol=1e-5)
    assert ranker.score(rows[:0]).shape == (0,)
    for step in ("first", "second"):
        (tmp_path / step).mkdir()
        ranker.save(tmp_path / step)
        loaded = type(ranker).load(tmp_path / step)
        np.testing.assert_array_equal(loaded.score(rows), score)
        assert (loaded.report, loaded.settings) == (ranker.report, ranker.settings)
    files = [sorted(p.relative_to(tmp_path / s) for p in (tmp_path / s).rglob("*")) for s in ("first", "second")]
    assert files[0] == files[1]


def test_serving_imports_no_torch(ranker: NetworkRanker, tmp_path: Path) -> None:
    ranker.save(tmp_path)
    np.save(tmp_path / "rows.npy", a_slice(8).matrix)
    code = f"""
import sys, numpy as np
from pathlib import Path
from features.final import ranker_class
folder = Path({str(tmp_path)!r})
score = ranker_class("neural.final:NetworkRanker").load(folder).score(np.load(folder / "rows.npy"))
assert np.isfinite(score).all() and "torch" not in sys.modules
"""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("columns", [["kind"], ["u0", "i0"], ["never"]])
def test_rows_of_categories_alone_of_numbers_alone_and_of_nothing_are_learned_from(columns: list[str]) -> None:
    train, validation = (
        replace(part, matrix=part.matrix[:, [COLUMNS.index(name) for name in columns]])
        for part in (a_slice(0, 600), a_slice(99, 600))
    )
    ranker = NetworkRanker(**SMALL | {"epochs": 2})
    ranker.fit(columns, [name for name in columns if name in CATEGORICAL], train, validation, 0)
    assert np.isfinite(ranker.score(validation.matrix)).all()


# What is told


def test_wrong_options_and_other_formats_are_told_and_an_unfitted_one_says_so(
    ranker: NetworkRanker, tmp_path: Path
) -> None:
    with pytest.raises(PairliftError, match=r"\[network\]: widht: unknown key \(did you mean 'width'"):
        make_ranker("neural.final:NetworkRanker", {"widht": 3})
    with pytest.raises(PairliftError, match=r"lacks score of features.final.FinalRanker"):
        ranker_class("features.baselines:ALS")
    with pytest.raises(PairliftError, match="NetworkRanker is not fitted"):
        NetworkRanker().score(np.zeros((1, 1), np.float32))
    with pytest.raises(PairliftError, match="NetworkRanker is not fitted"):
        NetworkRanker().save(tmp_path)
    ranker.save(tmp_path)
    about = tmp_path / "network.json"
    about.write_text(about.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(PairliftError, match="a network of format 1 was expected, found 2; train anew"):
        NetworkRanker.load(tmp_path)


def test_a_loss_that_is_not_finite_is_told() -> None:
    train = a_slice(0, 600)
    weight = train.pairs.weight.copy()
    weight[5] = np.nan
    wrong = replace(train, pairs=replace(train.pairs, weight=weight))
    with pytest.raises(PairliftError, match=r"a finite loss was expected, found nan in epoch 1 of 12.*\[network\]"):
        fitted(wrong)
