"""Tuning of the ranker's benchmark: the same space and number of trials for every learner, all trials stored.

Optuna's TPE, seeded by trial, chooses by the best validation PairAccuracy; the first trial is the same point for all
learners. Where the validation slice is small, a trial is the mean of several seeds: with one, the luckiest of 30 trials
wins (seen on KuaiRand's 1,824 pairs: .662 in the trial, .638 to .649 with other seeds). A trial has at most TREES trees
and no limit of time, so that what is stored does not depend on the machine.
"""

import json
import statistics
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from ranker_data import Data
from ranker_learners import LEARNERS, START, Budget, Params

SPACE: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(0.03, 0.2, log=True),
    "leaves": IntDistribution(4, 48, log=True),
    "min_data": IntDistribution(5, 200, log=True),
    "l2": FloatDistribution(1.0, 50.0, log=True),
    "columns": FloatDistribution(0.4, 1.0),
    "rows": FloatDistribution(0.5, 1.0),
    "switch": CategoricalDistribution([False, True]),
}
TREES, STOP_AFTER = 300, 20
#: trials learn from at most so many rows of the training slice, its first groups
ROWS = 40_000
#: seeds of a trial, where the validation slice has fewer pairs than FEW_PAIRS
SEEDS, FEW_PAIRS = 3, 10_000
#: trials run beside each other on one thread each
AT_ONCE = 2


#: what `value` of a trial is; trials of another (those without a word had ties wrong) are kept and not compared with
METRIC = "PairAccuracy, ties as one half"


class Store:
    """Trials in a JSON file, {data: {learner: [{params, value, trees, seconds, metric}]}}, kept as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.trials: dict[str, dict[str, list[dict[str, Any]]]] = json.loads(path.read_text()) if path.exists() else {}

    def of(self, data: str, learner: str) -> list[dict[str, Any]]:
        """Return the trials of a learner so far."""
        return [t for t in self.trials.get(data, {}).get(learner, []) if t.get("metric") == METRIC]

    def add(self, data: str, learner: str, trial: dict[str, Any]) -> None:
        """Keep a trial, on disk too."""
        with self.lock:
            self.trials.setdefault(data, {}).setdefault(learner, []).append(trial | {"metric": METRIC})
            self.path.write_text(_lines(self.trials))

    def forget(self, data: str) -> None:
        """Drop the trials of a data set."""
        self.trials.pop(data, None)

    def best(self, data: str, learner: str, trials: int) -> Params:
        """Return the parameters of the best of the first trials."""
        found = max(self.of(data, learner)[:trials], key=lambda t: t["value"])
        return dict(found["params"])


def _lines(trials: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Return JSON with one trial a line."""
    by_data = []
    for data, learners in sorted(trials.items()):
        figures = [
            f"  {json.dumps(learner)}: [\n" + ",\n".join(f"   {json.dumps(t)}" for t in found) + "\n  ]"
            for learner, found in sorted(learners.items())
        ]
        by_data.append(f" {json.dumps(data)}: {{\n" + ",\n".join(figures) + "\n }")
    return "{\n" + ",\n".join(by_data) + "\n}\n"


def tune(sets: list[Data], store: Store, trials: int, say: Callable[[str], None]) -> None:
    """Run the trials that the store lacks, those of the slowest learners first."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    order = sorted(LEARNERS, key=lambda name: not name.startswith("catboost"))
    studies = [(data, learner) for learner in order for data in reversed(sets)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in [pool.submit(_study, data, learner, store, trials, say) for data, learner in studies]:
            done.result()


def _study(data: Data, learner: str, store: Store, trials: int, say: Callable[[str], None]) -> None:
    share = ROWS / len(data.train.grade)
    few = replace(data, train=data.train.first(share))
    seeds = SEEDS if len(data.validation.rows.pairs) < FEW_PAIRS else 1
    study = optuna.create_study(direction="maximize")
    for kept in store.of(data.name, learner):
        study.add_trial(optuna.trial.create_trial(params=kept["params"], distributions=SPACE, value=kept["value"]))
    while len(study.trials) < trials:
        k = len(study.trials)
        study.sampler = optuna.samplers.TPESampler(seed=k)
        if k == 0:
            study.enqueue_trial(START)
        trial = study.ask(SPACE)
        tried = [LEARNERS[learner](few, trial.params, seed, Budget(TREES, STOP_AFTER, 1)) for seed in range(seeds)]
        value = statistics.mean(fit.value for fit in tried)
        study.tell(trial, value)
        figures: dict[str, Any] = {"value": round(value, 6), "trees": [fit.trees for fit in tried]}
        figures["seconds"] = round(sum(fit.seconds for fit in tried), 2)
        store.add(data.name, learner, {"params": trial.params, **figures})
        say(f"{data.name} {learner} trial {k + 1}: {figures}")
