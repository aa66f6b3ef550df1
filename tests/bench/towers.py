"""How good the towers' defaults are: one option at a time from them, on data that no test figure comes from.

Run from the repository: python tests/bench/towers.py [--minutes 40] [--data movielens]

The log is cut at t2 before anything is made of it, so no test group exists here. A trial fits the tower on the towers'
period and measures, on the booster's validation slice, the PairAccuracy (ties one half) of a booster with the tower's
dot over one without, both fitted on the booster's train slice: the relative gain of the mean of BOOSTER_SEEDS seeds.
`held` is the tower's own PairAccuracy on the last part of its period. A trial trains one network, without teachers.

Each trial is kept in results/towers_trials.json as it ends and is not run again, so `--minutes` may cut the study short
and the next run goes on; take that file away where the towers' code has changed. `--show` runs nothing. One thread.
KuaiRand-Pure needs PAIRLIFT_DATA, and is made smaller: every USERS_OF-th user trains the tower, with as much less
`max_steps`.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from features.errors import PairliftError
from features.pairing.groups import Groups, make_groups
from features.pairing.pairs import Pairs, make_pairs
from features.pairing.slice import Slice
from features.plugin import FitData
from features.rows import assemble
from features.schema import F32, F64
from features.state.store import State
from neural.two_tower import TwoTower
from ranker.config import Config, load_config
from ranker.examples import example_text
from ranker.training.booster import fit_booster
from ranker.training.prepared import Prepared, prepare

ROOT = Path(__file__).parents[2]
TRIALS = Path(__file__).parent / "results" / "towers_trials.json"
BOOSTER_SEEDS = (0, 1, 2)
#: seeds of the towers' fits: of the defaults, whose spread is the noise, and of all others
SEEDS = {"defaults": (0, 1, 2), "others": (0,)}
#: of each data set, every so-manieth user trains the tower
USERS_OF = {"movielens": 1, "kuairand": 3}
#: what was tried, by how likely it was to matter
TRIED: tuple[dict[str, Any], ...] = (
    {},
    {"learning_rate": 2e-3},
    {"learning_rate": 8e-3},
    {"table_decay": 0.3},
    {"table_decay": 3.0},
    {"id_shrink": 5.0},
    {"id_shrink": 60.0},
    {"history": 64},
    {"width": 32},
    {"finetune_epochs": 3},
    {"layers": 1},
    {"dropout": 0.1},
    {"dropout": 0.3},
    {"pretrain_epochs": 5},
    {"history": 256},
    {"width": 128},
)


@dataclass(frozen=True)
class Study:
    """A data set up to t2: the rows of the booster's two slices, and its PairAccuracy without a tower."""

    prepared: Prepared
    parts: dict[str, Groups]
    base: dict[str, F32]
    without: float

    def accuracy(self, columns: dict[str, F32]) -> float:
        """Return the mean PairAccuracy, ties one half, on the validation slice of boosters with further columns."""
        spec, config, found = self.prepared.spec, self.prepared.config, []
        names = [f"tower__{k}" for k in range(next(iter(columns.values())).shape[1])]
        for seed in BOOSTER_SEEDS:
            train, held = (self.slice(part, columns[part], seed) for part in ("train", "validation"))
            booster = fit_booster([*spec.columns, *names], list(spec.categorical), train, held, config.booster, seed)
            found.append(ties_half(np.asarray(booster.predict(held.matrix, raw_score=True)), held.pairs))
        return float(np.mean(found))

    def slice(self, part: str, columns: F32, seed: int) -> Slice:
        """Return one slice of the booster's period with further columns."""
        groups = self.parts[part]
        learned = part == "train"
        pairs = self.prepared.training_pairs(groups, seed) if learned else make_pairs(groups, self.prepared.weights)
        rows = np.concatenate([self.base[part], columns], axis=1)
        return Slice(rows, groups.requests.row_request(), pairs, groups.grade)


def ties_half(score: F64, pairs: Pairs) -> float:
    """Return Σ w·([winner above loser] + ½·[equal]) / Σ w."""
    ahead = np.sign(score[pairs.winner] - score[pairs.loser])
    return float((pairs.weight * (ahead + 1) / 2).sum(dtype=np.float64) / pairs.weight.sum(dtype=np.float64))


def until_t2(config: Config) -> Prepared:
    """Return the log without its test: no event of t2 or later is in it, so no test group can be made of it."""
    whole = prepare(config)
    log = whole.log.until(whole.split.t2)
    state = State.build(log, whole.catalog, whole.state.counters, config.grade_names)
    seen = replace(whole, log=log, groups=make_groups(log, config.pairing, whole.split), state=state)
    assert not len(seen.groups.of("test").requests)
    return seen


def load(data: str, folder: Path) -> Study:
    """Import a data set and fit its boosters without a tower."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairlift.toml").write_text(example_text(data))
    prepared = until_t2(load_config(folder / "pairlift.toml"))
    parts = {"train": prepared.groups.of("booster", False), "validation": prepared.groups.of("booster", True)}
    base = {name: assemble(prepared.state, prepared.spec, g.requests) for name, g in parts.items()}
    study = Study(prepared, parts, base, float("nan"))
    return replace(study, without=study.accuracy({name: rows[:, :0] for name, rows in base.items()}))


def fit_data(prepared: Prepared, seed: int, every: int) -> FitData:
    """Return what a plugin may see, of every so-manieth user alone."""
    data = prepared.fit_data(seed)
    if every == 1:
        return data
    log = data.log.select(data.log.user % every == 0)
    groups = data.groups.select(data.groups.requests.user % every == 0)
    return replace(data, log=log, groups=groups, pairs=prepared.training_pairs(groups, seed))


def trial(study: Study, changed: dict[str, Any], seed: int, every: int) -> dict[str, Any]:
    """Fit one tower and measure what it brings."""
    started = time.monotonic()
    plugin = TwoTower(**{"teachers": 0, "max_steps": TwoTower().settings.max_steps // every, **changed})
    plugin.fit(fit_data(study.prepared, seed, every))
    seconds = time.monotonic() - started
    histories = study.prepared.state.histories
    columns = {name: plugin.values(groups.requests, histories) for name, groups in study.parts.items()}
    found = study.accuracy(columns)
    return {
        "uplift": found / study.without - 1,
        "pair_accuracy": found,
        "without": study.without,
        "dot_alone": ties_half(np.nan_to_num(columns["validation"][:, 0], nan=-np.inf), _pairs(study)),
        "held": max(epoch["validation"] for epoch in plugin.report["epochs"]),
        "epochs": len(plugin.report["epochs"]),
        "seconds": round(seconds, 1),
    }


def _pairs(study: Study) -> Pairs:
    return make_pairs(study.parts["validation"], study.prepared.weights)


def name_of(changed: dict[str, Any]) -> str:
    """Return `option=value`, or `defaults`."""
    return " ".join(f"{key}={value}" for key, value in changed.items()) or "defaults"


def wanted() -> list[tuple[dict[str, Any], int]]:
    """Return (what is changed, seed) of all trials, in their order: the noise of the defaults first."""
    kinds = [(changed, SEEDS["others" if changed else "defaults"]) for changed in TRIED]
    return [(changed, seed) for changed, seeds in kinds for seed in seeds]


def kept() -> dict[str, Any]:
    """Return the trials that stand."""
    found: dict[str, Any] = json.loads(TRIALS.read_text()) if TRIALS.exists() else {}
    return found


def run(names: list[str], until: float) -> dict[str, Any]:
    """Run what is lacking, the data sets by turns, until the time is over; return all trials."""
    studies: dict[str, Study] = {}
    for changed, seed in wanted():
        for data in names:
            place = f"{data} {name_of(changed)} seed={seed}"
            if place in kept() or time.monotonic() > until:
                continue
            if data not in studies:
                studies[data] = load(data, ROOT / ".pairlift" / "bench" / "towers" / data)
            result = trial(studies[data], changed, seed, USERS_OF[data])
            result["date"] = time.strftime("%Y-%m-%d", time.gmtime())
            print(f"{place}: {100 * result['uplift']:+.2f} %, {result['seconds']} s", file=sys.stderr)
            keep(kept() | {place: result})
    return kept()


def keep(done: dict[str, Any]) -> None:
    """Write the trials in one step: a run may be ended at any time."""
    with tempfile.NamedTemporaryFile("w", dir=TRIALS.parent, suffix=".partial", delete=False) as file:
        file.write(json.dumps(done, indent=1) + "\n")
    Path(file.name).replace(TRIALS)


def summary(found: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return, by data set and trial, the gain of the mean over seeds; and what of it is lacking."""
    result: dict[str, Any] = {"lacking": []}
    for data in names:
        table: dict[str, Any] = {}
        for changed, seed in wanted():
            at = f"{data} {name_of(changed)} seed={seed}"
            if at in found:
                table.setdefault(name_of(changed), []).append(found[at])
            else:
                result["lacking"].append(at)
        result[data] = {name: _mean(trials) for name, trials in table.items()}
    return result


def _mean(trials: list[dict[str, Any]]) -> dict[str, Any]:
    gains = [t["uplift"] for t in trials]
    means = {key: float(np.mean([t[key] for t in trials])) for key in ("uplift", "dot_alone", "held", "seconds")}
    return means | {"fits": len(gains), "fit_sd": float(np.std(gains, ddof=1)) if len(gains) > 1 else None}


def show(result: dict[str, Any], names: list[str]) -> None:
    """Print a table: the gain on the booster's validation slice, and how far it lies from the defaults' mean."""
    print(f"{'':20}" + "".join(f"{data:>28}" for data in names))
    for changed in TRIED:
        cells = []
        for data in names:
            row, base = result[data].get(name_of(changed)), result[data].get("defaults")
            gap = f"({100 * (row['uplift'] - base['uplift']):+.2f})" if row and base else ""
            cells.append(f"{100 * row['uplift']:+.2f} % {gap} held {row['held']:.4f}" if row else "-")
        print(f"{name_of(changed):20}" + "".join(f"{cell:>28}" for cell in cells))
    for data in names:
        spread = result[data].get("defaults", {}).get("fit_sd")
        print(f"{data}: standard deviation of one fit of the defaults: {100 * (spread or float('nan')):.2f} %")


def main() -> None:
    """Run the study, or go on with it; print its table, then the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no trial later than this")
    parser.add_argument("--data", choices=list(USERS_OF), help="one data set; default: both")
    parser.add_argument("--show", action="store_true", help="show the trials that are there, and run none")
    options = parser.parse_args()
    names = [options.data] if options.data else list(USERS_OF)
    try:
        found = run(names, -1 if options.show else time.monotonic() + 60 * options.minutes)
    except PairliftError as error:
        sys.exit(str(error))
    result = summary(found, names)
    show(result, names)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
