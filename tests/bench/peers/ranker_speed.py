"""Speed of the ranker's parts on generated data: the gradient, an iteration of boosting, the scorer.

Run from the repository: python tests/bench/peers/ranker_speed.py [--rows 2000000] [--rounds 15]
Every ratio is of medians of one process, whose calls take turns, so that a busy moment hits all alike.
"""

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

THREADS = 2
#: what OpenMP reads once, when it is loaded; waiting threads sleep, for LightGBM's and numba's share the cores
ENVIRONMENT = {"OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "passive"}
if __name__ == "__main__":
    os.environ.update(ENVIRONMENT | {k: v for k, v in os.environ.items() if k.startswith("OMP_")})

import click  # noqa: E402
import lightgbm as lgb  # noqa: E402
import numpy as np  # noqa: E402

from features.kernels import njit, prange  # noqa: E402
from features.pairing.groups import Groups  # noqa: E402
from features.pairing.pairs import Pairs, make_pairs, weight_table  # noqa: E402
from features.schema import Requests  # noqa: E402
from ranker.forest.scorer import checked_scorer  # noqa: E402
from ranker.training.booster import DEFAULTS, FIXED  # noqa: E402
from ranker.training.objective import PairLogit  # noqa: E402

COLUMNS = 60
ROUNDS = 15
WARM = 3
GRADES = ("skip", "listen", "like")
WEIGHTS = {"listen > skip": 1.0, "like > skip": 3.0, "like > listen": 2.0}
#: as in a feed: most of what is shown is skipped
CHANCES = (0.82, 0.12, 0.06)
TREE: dict[str, Any] = {"num_leaves": 63, "learning_rate": 0.1, "max_bin": 255, "num_threads": THREADS} | FIXED


@dataclass(frozen=True, slots=True)
class Rows:
    """matrix: float32[n, 60]; sizes: int64[g] of the groups; group: int64[n]; grade: int8[n]."""

    matrix: np.ndarray
    sizes: np.ndarray
    group: np.ndarray
    grade: np.ndarray
    pairs: Pairs


def make_rows(n: int, seed: int = 0) -> Rows:
    """Return groups of 2 to 60 rows (10 on average), whose grades depend on half of the columns, with noise."""
    rng = np.random.default_rng(seed)
    sizes = np.clip(rng.geometric(1 / 9, n // 8) + 1, 2, 60)
    sizes = sizes[np.cumsum(sizes) <= n]
    group = np.repeat(np.arange(len(sizes)), sizes)
    matrix = rng.standard_normal((len(group), COLUMNS), np.float32)
    worth = matrix[:, :20] @ np.linspace(-0.6, 0.6, 20, dtype=np.float32)
    worth += np.sin(2 * matrix[:, 20]) * matrix[:, 21] + np.abs(matrix[:, 22]) * (matrix[:, 23] > 0)
    worth += rng.gumbel(0, 1.5, len(group)).astype(np.float32)
    matrix[:, 30:45] = np.floor(np.exp(matrix[:, 30:45]))  # counts: few values, skewed
    matrix[:, 5][rng.random(len(group)) < 0.1] = np.nan
    grade, pairs = graded(worth, sizes)
    return Rows(matrix, sizes, group, grade, pairs)


def graded(worth: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, Pairs]:
    """Return int8[n] grades in the order of the worth, and all pairs of the groups."""
    grade = np.searchsorted(np.quantile(worth, np.cumsum(CHANCES)[:2]), worth).astype(np.int8)
    g, n, offsets = len(sizes), len(worth), np.concatenate([[0], np.cumsum(sizes)])
    requests = Requests(
        user=np.zeros(g, np.int32),
        as_of=np.zeros(g, np.int64),
        surface=np.zeros(g, np.int16),
        offsets=offsets,
        item=np.zeros(n, np.int32),
    )
    period, held = np.zeros(g, np.int8), np.zeros(g, bool)
    groups = Groups(requests=requests, period=period, validation=held, grade=grade, event=np.arange(n))
    return grade, make_pairs(groups, weight_table(WEIGHTS, GRADES, False))


def medians(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return each call's median seconds, in turns, after some that warm up."""
    took: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(WARM + rounds):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            if turn >= WARM:
                took[name].append(time.perf_counter() - begun)
    return {name: statistics.median(t) for name, t in took.items()}


@njit(parallel=True, nogil=True)
def _stream(
    score: np.ndarray, winner: np.ndarray, loser: np.ndarray, weight: np.ndarray, bounds: np.ndarray,
    gradient: np.ndarray, hessian: np.ndarray,
) -> None:  # fmt: skip
    for c in prange(len(bounds) - 1):
        for k in range(bounds[c], bounds[c + 1]):
            a, b = winner[k], loser[k]
            wrong = score[a] - score[b]
            g = weight[k] * wrong
            h = g * (1.0 - wrong)
            gradient[a] -= g
            gradient[b] += g
            hessian[a] += h
            hessian[b] += h


def gradient_vs_stream(rows: Rows, rounds: int = ROUNDS) -> dict[str, float]:
    """Return the gradient's time over that of its gathers and scatter-adds: `_stream`, over the same chunks.

    The floor leaves out the exponential and the division, and adds onto arrays that it was given; so that their
    zeros cost nothing, they are set outside of the clock.
    """
    made = PairLogit.of(rows.pairs, rows.group)
    _, pair_starts, borders = made.cuts
    rng = np.random.default_rng(0)
    score = rng.normal(size=len(rows.group))
    check_gradient(made, score)
    gradient, hessian = np.zeros(len(score)), np.zeros(len(score))
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: made(score),
        "stream": lambda: _stream(score, *made.pairs, pair_starts[borders], gradient, hessian),
        "margin": lambda: margin(score),
        "ndcg": lambda: ndcg(score),
    }
    margin = PairLogit.of(rows.pairs, rows.group, rows.grade, margin=0.5)
    ndcg = PairLogit.of(rows.pairs, rows.group, rows.grade, ndcg_at=10)
    t = medians(calls, rounds)
    return {
        "gradient_vs_stream": t["ours"] / t["stream"],
        "gradient_ms": t["ours"] * 1e3,
        "gradient_margin_ms": t["margin"] * 1e3,
        "gradient_ndcg_ms": t["ndcg"] * 1e3,
    }


def check_gradient(made: PairLogit, score: np.ndarray) -> None:
    """Compare with NumPy's sums."""
    gradient, hessian = made(score)
    winner, loser, weight = made.pairs
    wrong = 1 / (1 + np.exp(score[winner] - score[loser]))
    g, n = weight * wrong, len(score)
    h = g * (1 - wrong)
    want = np.bincount(loser, g, n) - np.bincount(winner, g, n), np.bincount(loser, h, n) + np.bincount(winner, h, n)
    np.testing.assert_allclose(gradient, want[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(hessian, want[1], rtol=1e-6, atol=1e-6)


def iterations(rows: Rows, rounds: int = ROUNDS) -> dict[str, float]:
    """Return an iteration's time of ours over that of built-in lambdarank.

    All on one Dataset, as `fit_booster` calls LightGBM.
    """
    data = lgb.Dataset(rows.matrix, rows.grade.astype(np.float32), group=rows.sizes, params={"max_bin": 255})
    data.construct()
    made = PairLogit.of(rows.pairs, rows.group)
    theirs = lgb.Booster(TREE | {"objective": "lambdarank"}, data)
    ours = lgb.Booster(TREE | {"objective": "none"}, data)
    calls: dict[str, Callable[[], object]] = {
        "lambdarank": theirs.update,
        "ours": lambda: ours.update(fobj=made),
    }
    t = medians(calls, rounds)
    return {
        "iteration_vs_lambdarank": t["ours"] / t["lambdarank"],
        "iteration_seconds": t["ours"],
        "lambdarank_seconds": t["lambdarank"],
        "leaves_per_tree": _leaves(ours),
        "lambdarank_leaves_per_tree": _leaves(theirs),
    }


def _leaves(booster: lgb.Booster) -> float:
    trees = booster.trees_to_dataframe()
    return float(trees["split_feature"].isna().sum() / booster.num_trees())


FOREST_TREES, CANDIDATES = 300, 500
#: requests whose rows are scored in turns: a processor learns the branches of rows that come again and again
REQUESTS = 64
CATEGORICAL = range(45, 55)


def make_forest(categories: bool, n: int = 40_000) -> tuple[lgb.Booster, np.ndarray]:
    """Return a forest of 300 trees with 63 leaves, as a server loads it, and float32[64, 500, 60] candidates for it.

    Fitted on pairs, as what is served is: a regression on grades that are mostly 0 has more foreseeable branches.
    """
    rows, fresh = make_rows(n, seed=2), make_rows((REQUESTS + 1) * CANDIDATES, seed=3)
    rng = np.random.default_rng(0)
    worth, matrix = rows.grade + rng.random(len(rows.grade)), rows.matrix
    if categories:
        for column in CATEGORICAL:
            values = int(rng.integers(10, 300))
            code = np.minimum(rng.geometric(3 / values, len(matrix)) - 1, values - 1)
            matrix[:, column] = code
            worth += rng.normal(0, 0.3, values)[code]
            fresh.matrix[:, column] = rng.choice(code, len(fresh.matrix))
    made = PairLogit.of(graded(worth, rows.sizes)[1], rows.group)
    none = np.zeros(len(matrix), np.float32)
    data = lgb.Dataset(matrix, none, categorical_feature=list(CATEGORICAL) if categories else [])
    booster = lgb.train(TREE | {"objective": made, "cat_smooth": DEFAULTS["cat_smooth"]}, data, FOREST_TREES)
    return lgb.Booster(model_str=booster.model_to_string()), fresh.matrix[: REQUESTS * CANDIDATES].reshape(
        REQUESTS, CANDIDATES, -1
    )


def scorer_speedup(categories: bool, rounds: int = 201) -> dict[str, float]:
    """Return `Booster.predict`'s time over ours for 500 rows on one thread, both from float32 rows, scores equal."""
    booster, requests = make_forest(categories)
    scorer = checked_scorer(booster)
    if scorer is None:
        raise SystemExit("the scorer does not take this forest")
    for rows in requests:
        np.testing.assert_array_equal(scorer.score(rows), np.asarray(booster.predict(rows, raw_score=True)))
    ours, theirs = itertools.cycle(requests), itertools.cycle(requests)
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: scorer.score(next(ours)),
        "booster": lambda: booster.predict(next(theirs), raw_score=True, num_threads=1),
    }
    t = medians(calls, rounds)
    name = "scorer_categorical" if categories else "scorer"
    splits = booster.trees_to_dataframe()["decision_type"].dropna()
    return {
        f"{name}_speedup": t["booster"] / t["ours"],
        f"{name}_ms": t["ours"] * 1e3,
        f"{name}_booster_ms": t["booster"] * 1e3,
        f"{name}_leaves_per_tree": _leaves(booster),
        f"{name}_share_of_categorical_splits": float((splits == "==").mean()),
    }


def measure(n: int = 2_000_000, rounds: int = ROUNDS) -> dict[str, float]:
    """Return every figure of this file. For the record, in a process with ENVIRONMENT: run this file."""
    result = scorer_speedup(False) | scorer_speedup(True)
    rows = make_rows(n)
    result |= {"speed_rows": float(len(rows.group)), "speed_pairs": float(len(rows.pairs))}
    return result | gradient_vs_stream(rows, rounds) | iterations(rows, rounds)


@click.command()
@click.option("--rows", default=2_000_000, show_default=True, help="rows of the gradient and of the iterations")
@click.option("--rounds", default=ROUNDS, show_default=True, help="calls of each, in turns")
def main(rows: int, rounds: int) -> None:
    """Print a table, and one line of JSON."""
    result = measure(rows, rounds)
    for name, value in result.items():
        print(f"  {name:40}{value:14,.4f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
