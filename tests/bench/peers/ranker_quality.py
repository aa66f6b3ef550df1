"""Quality of the ranker's benchmark: final fits by seed, resumed, and PairAccuracy by learner with intervals.

An interval draws users with replacement, and seeds, the same draw for all learners; `users_only` keeps the seeds.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ranker_data import Data
from ranker_learners import LEARNERS, Budget, Params

from features.pairing.pairs import Pairs
from features.schema import F64
from ranker.code_hash import code_hash
from ranker.hashes import hash_file
from ranker.metrics.pair_accuracy import right_by_user
from ranker.training import booster, objective
from ranker.training.stages import run_stage

DRAWS, AT_ONCE = 2_000, 100


def fits(data: Data, label: str, learner: str, params: Params, seeds: int, budget: Budget, work: Path) -> list[Path]:
    """Return a folder for each seed: `scores.npy` of the test rows and `result.json` (validation, trees, seconds)."""
    code = [hash_file(Path(module.__file__ or "")) for module in ((booster, objective) if learner == "ours" else ())]
    inputs = [_digest(data), params, budget, code, code_hash("ranker_learners")]

    def one(seed: int) -> Path:
        def make(folder: Path) -> None:
            fit = LEARNERS[learner](data, params, seed, budget)
            np.save(folder / "scores.npy", fit.score(data.test.rows.matrix))
            result = {"validation": fit.value, "trees": fit.trees, "seconds": fit.seconds}
            (folder / "result.json").write_text(json.dumps(result))

        return run_stage(work, f"{data.name}-{label}-{learner}-{seed}", [inputs, seed], make)

    return [one(seed) for seed in range(seeds)]


def _digest(data: Data) -> str:
    digest = hashlib.sha256()
    for part in data.parts().values():
        for array in (part.rows.matrix, part.rows.pairs.winner, part.rows.pairs.weight):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def shuffled(data: Data) -> Data:
    """Return the data set with the weights of the training pairs dealt out anew: a control."""
    p = data.train.rows.pairs
    weight = np.random.default_rng(0).permutation(p.weight)
    rows = replace(data.train.rows, pairs=Pairs(p.winner, p.loser, weight, p.sampled))
    return replace(data, train=replace(data.train, rows=rows))


def table(data: Data, found: dict[str, list[Path]]) -> dict[str, Any]:
    """Return the figures of each learner on the test pairs of `data`, and ours less each with its interval."""
    scores = {name: [np.load(folder / "scores.npy") for folder in folders] for name, folders in found.items()}
    if data.best is not None:
        scores["best_possible"] = [data.best.score] * len(scores["ours"])
    right, tied, total = _weights(data, scores)
    both, fixed = _drawn(right, total)
    out: dict[str, Any] = {}
    for k, name in enumerate(scores):
        by_seed = right[k].sum(axis=1) / total.sum()
        out[name] = {"value": float(by_seed.mean()), "ci95": _interval(both[k]), "seed_sd": float(by_seed.std())}
        out[name]["tie_share"] = float(tied[k].mean() / total.sum())
        if name != "ours":  # which stands first
            out[name] |= {
                "ours_minus": float(out["ours"]["value"] - by_seed.mean()),
                "ours_minus_ci95": _interval(both[0] - both[k]),
                "ours_minus_ci95_users_only": _interval(fixed[0] - fixed[k]),
            }
        if name in found:
            result = [json.loads((folder / "result.json").read_text()) for folder in found[name]]
            out[name] |= {key: [round(t[key], 4) for t in result] for key in ("validation", "trees", "seconds")}
    if data.best is not None:
        out["best_possible"]["expected"] = data.best.bound
    return out


def _weights(data: Data, scores: dict[str, list[F64]]) -> tuple[F64, F64, F64]:
    """Return right float64[learners, seeds, users], tied float64[learners, seeds], all float64[users] pair weight."""
    part, users = data.test, int(data.test.user.max()) + 1
    found = [[right_by_user(s, part.rows.pairs, part.user, users) for s in of_seeds] for of_seeds in scores.values()]
    right = np.stack([np.stack([r + t / 2 for r, t, _ in by_seed]) for by_seed in found])
    tied = np.array([[t.sum() for _, t, _ in by_seed] for by_seed in found])
    return right, tied, found[0][0][2]


def _drawn(right: F64, total: F64) -> tuple[F64, F64]:
    """Return float64[learners, DRAWS] PairAccuracy of drawn users and seeds, and of drawn users with all seeds.

    right: float64[learners, seeds, users], weight of the right pairs. total: float64[users].
    """
    learners, seeds, users = right.shape
    rng = np.random.default_rng(0)
    columns = np.concatenate([right.reshape(-1, users), total[None]]).T
    both, fixed = [], []
    for _ in range(0, DRAWS, AT_ONCE):
        count = np.stack([np.bincount(rng.integers(0, users, users), minlength=users) for _ in range(AT_ONCE)])
        of_seed = np.stack([np.bincount(rng.integers(0, seeds, seeds), minlength=seeds) for _ in range(AT_ONCE)])
        summed = count.astype(float) @ columns
        value = (summed[:, :-1] / summed[:, -1:]).reshape(AT_ONCE, learners, seeds)
        both.append((value * of_seed[:, None, :]).sum(axis=2).T / seeds)
        fixed.append(value.mean(axis=2).T)
    return np.concatenate(both, axis=1), np.concatenate(fixed, axis=1)


def _interval(values: F64) -> list[float]:
    return [float(bound) for bound in np.percentile(values, [2.5, 97.5])]


def printed(title: str, result: dict[str, Any], say: Callable[[str], None]) -> None:
    """Print a table."""
    say(f"{title}: PairAccuracy [95 %], ours less it [95 %], trees, seconds (medians)")
    for name, t in result.items():
        line = f"  {name:28}{t['value']:.4f} [{t['ci95'][0]:.4f}, {t['ci95'][1]:.4f}]"
        if "ours_minus" in t:
            low, high = t["ours_minus_ci95"]
            line += f"  {t['ours_minus']:+.4f} [{low:+.4f}, {high:+.4f}]"
        if "trees" in t:
            line += f"  {np.median(t['trees']):5.0f} {np.median(t['seconds']):6.1f} s"
        say(line)
