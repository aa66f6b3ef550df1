"""The ranker: its quality and time against CatBoost, XGBoost and LightGBM, and the speed of its parts.

Run from the repository: python tests/bench/ranker.py [--trials 30] [--retune] [--seeds 5] [--only quality]

Quality: each learner is tuned with the same number of trials (stored in results/ranker_tuning.json and reused), then
fitted with each seed, stopped early on the same validation slice: on the shipped examples (KuaiRand needs
PAIRLIFT_DATA) and on a generated log whose best possible PairAccuracy is known. Fits are resumed from
.pairlift/bench/ranker. `pair_accuracy` has the pair weights in training, stopping and metric;
`pair_accuracy_weights_1` has 1 in all three, with the parameters that were tuned with weights.

Time: seconds until ours is as good on the validation slice as CatBoost at its best, over CatBoost's own seconds to it,
data sets' construction included, in turns on 2 threads. Peers: pip install 'pairlift[bench]'.
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

THREADS = 2
# OpenMP reads these once, when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
HERE = Path(__file__).parent
# This file's own folder would hide the package of the same name.
sys.path[0] = str(HERE / "peers")

import click  # noqa: E402
import numpy as np  # noqa: E402
from last_line import last_line  # noqa: E402
from ranker_data import Data, example_data  # noqa: E402
from ranker_learners import LEARNERS, Budget, Fit, Params  # noqa: E402
from ranker_quality import fits, printed, shuffled, table  # noqa: E402
from ranker_tuning import Store, tune  # noqa: E402
from ranker_world import beaten_by_brute_force, make_world  # noqa: E402

from features.errors import PairliftError  # noqa: E402

ROOT = HERE.parents[1]
SETS = ("movielens", "kuairand", "generated")
CATBOOST = ("catboost_symmetric", "catboost_lossguide")
STOP_AFTER = 50


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def load(name: str, scale: float) -> Data | None:
    """Return a data set; None, with a word, where its files are missing."""
    if name == "generated":
        return make_world(scale=scale)
    try:
        return example_data(name, ROOT)
    except PairliftError as error:
        print(f"{name} is left out: {error}", file=sys.stderr)
        return None


def check_best() -> None:
    """Refuse to go on where some order of a small group is better than the one that is said to be the best."""
    rng = np.random.default_rng(0)
    for chance in rng.dirichlet([1.0, 1.0, 1.0], (50, 5)):
        weights = np.tril(rng.uniform(0.1, 5, (3, 3)), -1)
        better = beaten_by_brute_force(chance, weights)
        if better > 1e-9:
            raise SystemExit(f"the best possible order is beaten by {better}")


def quality(data: Data, tuned: dict[str, Params], seeds: int, budget: Budget, work: Path) -> list[dict[str, Any]]:
    """Return the tables with weights and with all weights 1."""
    ones = data.weights_1()

    def of(rows: Data, label: str) -> dict[str, list[Path]]:
        return {name: fits(rows, label, name, tuned[name], seeds, budget, work) for name in LEARNERS}

    plain = of(ones, "weights_1")
    weighed = of(data, "weighted")
    weighed["ours_trained_with_weights_1"] = plain["ours"]
    mixed = fits(shuffled(data), "shuffled", "ours", tuned["ours"], seeds, budget, work)
    weighed["ours_trained_with_shuffled_weights"] = mixed
    tables = [table(data, weighed), table(ones, plain)]
    for title, figures in zip((f"{data.name}, weighted", f"{data.name}, all weights 1"), tables, strict=True):
        printed(title, figures, say)
    return tables


def until(fit: Fit, value: float) -> float | None:
    """Return the seconds until a fit was as good on the validation slice; None where it never was."""
    reached = np.flatnonzero(fit.curve[:, 1] >= value)
    return float(fit.curve[reached[0], 0]) if len(reached) else None


def best_seconds(data: Data, tuned: dict[str, Params], repeats: int, budget: Budget) -> dict[str, Any]:
    """Return seconds to CatBoost's best: CatBoost's, ours with CatBoost's parameters, ours with its own.

    CatBoost as it is by default, and with one Newton step a leaf, as LightGBM's, which takes a fraction of the time.
    """
    out: dict[str, Any] = {}
    for peer, own in ((peer, own) for own in ({}, {"leaf_steps": 1}) for peer in CATBOOST):
        same = tuned[peer] | {"switch": tuned["ours"]["switch"]}  # a switch means another thing for each learner
        turns = []
        for seed in range(repeats):
            theirs = LEARNERS[peer](data, tuned[peer] | own, seed, budget)
            taken = float(theirs.curve[theirs.trees - 1, 0])
            reached = [until(LEARNERS["ours"](data, p, seed, budget), theirs.value) for p in (same, tuned["ours"])]
            turns.append([taken, *reached])
        name = f"{peer}_one_step" if own else peer
        out[name] = _ratios(turns)
        say(f"{data.name}, seconds to the best of {name}: {out[name]}")
    return out


def _ratios(turns: list[list[float | None]]) -> dict[str, Any]:
    """Return medians over the turns; a turn in which ours was never as good counts as infinitely slow."""
    out: dict[str, Any] = {"seconds_catboost": [round(float(t[0] or 0), 3) for t in turns]}
    for k, name in ((1, "same_parameters"), (2, "each_tuned")):
        seconds = [t[k] for t in turns]
        ratio = statistics.median(float("inf") if t[k] is None else float(t[k] or 0) / float(t[0] or 1) for t in turns)
        out |= {f"seconds_{name}": seconds, f"ratio_{name}": None if ratio == float("inf") else ratio}
    return out


def headline(seconds: dict[str, Any]) -> float | None:
    """Return the ratio with the same parameters on the last set, the generated one: the worse of both CatBoosts."""
    found = [list(seconds.values())[-1][peer]["ratio_same_parameters"] for peer in CATBOOST]
    return None if None in found else max(found)


def speed() -> dict[str, Any]:
    """Return what peers/ranker_speed.py measures, in a process of its own: it sets the environment of OpenMP."""
    return dict(json.loads(last_line([sys.executable, str(HERE / "peers" / "ranker_speed.py")])))


@click.command()
@click.option("--data", "names", multiple=True, type=click.Choice(SETS), default=SETS, help="data sets [default: all]")
@click.option("--trials", default=30, show_default=True, help="of tuning, for each data set and learner")
@click.option("--retune", is_flag=True, help="forget the stored trials of these data sets")
@click.option("--tuning", default=HERE / "results" / "ranker_tuning.json", type=Path, help="where trials are stored")
@click.option("--seeds", default=5, show_default=True, help="of the final fits")
@click.option("--trees", default=1000, show_default=True, help="at most, in a final fit")
@click.option("--repeats", default=3, show_default=True, help="of what is timed")
@click.option("--scale", default=1.0, show_default=True, help="size of the generated set")
@click.option("--only", type=click.Choice(["quality", "time", "speed"]), help="one part [default: all]")
def main(names: tuple[str, ...], trials: int, retune: bool, tuning: Path, seeds: int, trees: int, repeats: int,
         scale: float, only: str | None) -> None:  # fmt: skip
    """Print tables, then one line of JSON."""
    start = time.perf_counter()
    found: dict[str, Any] = speed() if only in (None, "speed") else {}
    if only != "speed":
        check_best()
        sets = [data for name in names if (data := load(name, scale)) is not None]
        store = Store(tuning)
        for data in sets if retune else ():
            store.forget(data.name)
        tune(sets, store, trials, say)
        budget = Budget(trees, STOP_AFTER, THREADS)
        tuned = {data.name: {name: store.best(data.name, name, trials) for name in LEARNERS} for data in sets}
        if only != "time":
            tables = {d.name: quality(d, tuned[d.name], seeds, budget, ROOT / ".pairlift/bench/ranker") for d in sets}
            found["pair_accuracy"] = {name: weighed for name, (weighed, _) in tables.items()}
            found["pair_accuracy_weights_1"] = {name: plain for name, (_, plain) in tables.items()}
        if only != "quality":
            seconds = {data.name: best_seconds(data, tuned[data.name], repeats, budget) for data in sets}
            found |= {"catboost_best_seconds_ratio": headline(seconds), "catboost_best_seconds": seconds}
        found["tuned"] = tuned
        found["test_pairs"] = {data.name: len(data.test.rows.pairs) for data in sets}
    found["minutes"] = round((time.perf_counter() - start) / 60, 1)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
