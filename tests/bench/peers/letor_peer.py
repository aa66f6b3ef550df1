"""Our ranker on LETOR files beside LightGBM's own lambdarank: same rows, most trees, seeds and stopping slice.

`ours` is what `pairlift train` fits, by pairs. `ours_ndcg` has `[booster] ndcg_at = 10`, with the smaller
regularisation that its factors ask for. `lambdarank` has the parameters of ours, and `lambdarank_example` those of
LightGBM's example. All are stopped by the last queries of the training file: ours by PairAccuracy, lambdarank by
NDCG@10, as its users do.

The files are those of LightGBM's example (`examples/lambdarank` of its repository, given as a folder) and the sample of
MSLR-WEB10K that rankeval ships, which is fetched.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np

from features.pairing.groups import Groups
from features.schema import F64
from ranker.columns import Columns
from ranker.config import load_config
from ranker.letor import import_letor
from ranker.metrics.interval import difference, relative_uplift
from ranker.metrics.ndcg import ndcg
from ranker.metrics.pair_accuracy import right_by_user
from ranker.settings import BoosterSettings, FetchSettings
from ranker.training.arms import Arms
from ranker.training.booster import FIXED, fit_booster, parameters
from ranker.training.fetch import fetch
from ranker.training.prepared import prepare
from ranker.uplift.measured import Judged

TREES, STOP_AFTER = 2000, 100
MSLR = FetchSettings(
    pip="rankeval==0.8.2", member="rankeval/test/data/", to="rankeval", licence="of MSLR-WEB10K, Microsoft's"
)
#: train.conf of LightGBM's example
EXAMPLE = {
    "learning_rate": 0.1, "num_leaves": 31, "bagging_freq": 1, "bagging_fraction": 0.9, "min_data_in_leaf": 50,
    "min_sum_hessian_in_leaf": 5.0,
}  # fmt: skip
#: for pairs that weigh by |ΔNDCG|, which is far below 1
LIGHT = {"lambda_l2": 0.5, "min_sum_hessian_in_leaf": 1e-3}

#: gives a booster's scores of the test's rows
Fit = Callable[[Arms, int], F64]


def files_of(root: Path, example: Path) -> dict[str, list[Path]]:
    """Return (train, test) of each data set by name; LightGBM's example only where its folder is there."""
    fetch(MSLR, root)
    found = {"mslr_sample": [root / "rankeval" / f"msn1.fold1.{part}.5k.txt" for part in ("train", "test")]}
    if example.is_dir():
        found["lightgbm_example"] = [example / f"rank.{part}" for part in ("train", "test")]
    return found


def beside_lambdarank(files: list[Path], folder: Path, seeds: int) -> dict[str, Any]:
    """Return NDCG@10 and PairAccuracy of each learner, means over seeds, and what ours has more than each lambdarank.

    Their intervals are over the queries: each weighs one for NDCG@10, its pairs for PairAccuracy.
    """
    shutil.rmtree(folder, ignore_errors=True)
    import_letor(files, folder)
    arms = Arms.of(prepare(load_config(folder / "pairlift.toml")))
    test = Judged.of(arms.groups["test"], arms.pairs("test"))
    scores = {name: [fit(arms, seed) for seed in range(seeds)] for name, fit in FITS.items()}
    listed = {name: np.mean([_ndcgs(one, test.groups) for one in of], axis=0) for name, of in scores.items()}
    right = {name: np.stack([_right(one, test) for one in of])[None] for name, of in scores.items()}
    total = test.pairs.weight.sum(dtype=np.float64)
    found: dict[str, Any] = {"documents": len(test.groups.grade), "queries": len(test.groups.requests)}
    for name in FITS:
        pairs = float(right[name].mean(axis=(0, 1)).sum() / total)
        found[name] = {"ndcg@10": float(listed[name].mean()), "pair_accuracy": pairs}
    for ours in ("ours", "ours_ndcg"):
        for other in (name for name in FITS if name.startswith("lambdarank")):
            mean, low, high = difference(listed[ours], listed[other])
            gain = relative_uplift(right[other], right[ours])
            found[f"{ours} less {other}"] = {
                "ndcg@10": mean, "ndcg@10_ci95": [low, high],
                "pair_accuracy_relative": gain.uplift, "pair_accuracy_relative_ci95": [gain.low, gain.high],
            }  # fmt: skip
    return found


def _ndcgs(score: F64, groups: Groups) -> F64:
    """Return float64[q] NDCG@10 of the queries whose documents differ in their labels."""
    each = np.split(np.arange(len(score)), groups.requests.offsets[1:-1])
    found = np.array([ndcg(score[rows], groups.select(np.arange(len(each)) == k), 10) for k, rows in enumerate(each)])
    return found[~np.isnan(found)]


def _right(score: F64, test: Judged) -> F64:
    right, tied, _ = right_by_user(score, test.pairs, test.user, test.n_users)
    return right + tied / 2


def _ours(more: dict[str, Any]) -> Fit:
    def fit(arms: Arms, seed: int) -> F64:
        settings = BoosterSettings(trees=TREES, stop_after=STOP_AFTER, **more)
        train, validation = (arms.slice(part, Columns(), seed) for part in ("train", "validation"))
        booster = fit_booster(list(arms.prepared.spec.columns), [], train, validation, settings, seed)
        return np.asarray(booster.predict(arms.rows("test", Columns()), raw_score=True))

    return fit


def _lambdarank(more: dict[str, Any]) -> Fit:
    def fit(arms: Arms, seed: int) -> F64:
        train, held = (
            lgb.Dataset(arms.rows(part, Columns()), g.grade, group=np.diff(g.requests.offsets))
            for part, g in list(arms.groups.items())[:2]
        )
        held.reference = train
        own = parameters(BoosterSettings(), len(arms.groups["train"].grade)) | more
        booster = lgb.train(
            own | FIXED | {"objective": "lambdarank", "metric": "ndcg", "eval_at": [10], "seed": seed},
            train,
            num_boost_round=TREES,
            valid_sets=[held],
            callbacks=[lgb.early_stopping(STOP_AFTER, verbose=False)],
        )
        rows, best = arms.rows("test", Columns()), booster.best_iteration
        return np.asarray(booster.predict(rows, raw_score=True, num_iteration=best))

    return fit


FITS: dict[str, Fit] = {
    "ours": _ours({}),
    "ours_ndcg": _ours({"ndcg_at": 10, "params": LIGHT}),
    "lambdarank": _lambdarank({}),
    "lambdarank_example": _lambdarank(EXAMPLE),
}


def table(name: str, found: dict[str, Any]) -> str:
    """Return the figures as text."""
    lines = [f"{name}: {found['queries']} queries, {found['documents']:,} documents{'NDCG@10':>14}{'PairAccuracy':>14}"]
    for learner in FITS:
        lines.append(f"  {learner:44}{found[learner]['ndcg@10']:10.4f}{found[learner]['pair_accuracy']:14.4f}")
    for label, less in found.items():
        if " less " in label:
            (a, b), (c, d) = less["ndcg@10_ci95"], less["pair_accuracy_relative_ci95"]
            gain = 100 * less["pair_accuracy_relative"]
            lines.append(
                f"  {label:34} NDCG@10 {less['ndcg@10']:+.4f} [{a:+.4f}, {b:+.4f}], PairAccuracy {gain:+.2f} % "
                f"[{100 * c:+.2f}, {100 * d:+.2f}]"
            )
    return "\n".join(lines)
