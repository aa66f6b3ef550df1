"""A study, run: all its fits, by rounds of one fit of each arm, and the report.

run_study      the log, the arms, the report
  fit_variant  one fit of one arm                              (resumed)
  best_order   the order that the truth of a generated log gives
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from features.errors import PairliftError
from features.progress import progress_bar
from features.schema import F64
from ranker.columns import Columns
from ranker.config import Config
from ranker.studies.figures import Measured, Shared, study_report
from ranker.studies.fits import Bench, fit_plugins, fit_variant
from ranker.studies.truth import read_truth
from ranker.studies.variants import Variant, find_study
from ranker.training.abreast import MOST


def run_study(config: Config, name: str, plugin: str, truth: Path | None = None) -> dict[str, Any]:
    """Return the report of a study. Every fit that was finished before on the same data, settings and code is kept.

    plugin: of the TOML, which is varied; the study `plugins` has all of them. truth: of a generated log.
    """
    study, variants = find_study(config, name, plugin)
    bench, seeds = Bench.of(config), config.uplift.fit_seeds
    shared = Shared(
        without=bench.boosters("without", Columns())[None],
        total=float(bench.judged.pairs.weight.sum(dtype=np.float64)),
        kind=bench.arms.kind,
        best=None if truth is None else best_order(bench, truth),
    )
    fits: dict[str, list[Path]] = {variant.name: [] for variant in variants}
    # A whole round of all arms, then the next: the time left soon knows the slow ones.
    wanted, at_a_time = [(seed, variant) for seed in seeds for variant in variants], max(len(variants), MOST)
    with progress_bar(total=len(wanted), desc=f"study {name}", unit="fit") as bar:
        for k, (seed, variant) in enumerate(wanted):
            took = max((_seconds(folder) for of in fits.values() for folder in of), default=0.0)
            fit_plugins(bench, wanted[k : (k // at_a_time + 1) * at_a_time], took)
            bar.set_postfix_str(f"{variant.name}, seed {seed}")
            fits[variant.name].append(fit_variant(bench, variant, seed))
            bar.update()
    return study_report(config, name, study, [_measured(v, fits[v.name]) for v in variants], shared)


def best_order(bench: Bench, truth: Path) -> F64:
    """Return float64[users]: the weight of pairs that the order by the expected grade has right.

    Raises PairliftError where pairs have weights of the TOML's, for then another order may be better.
    """
    if bench.prepared.config.pairing.weights:
        raise PairliftError(
            "--truth: the expected grade is the best order where a pair weighs the difference of its grades' ranks, "
            "but [pairing.weights] gives others; leave one of the two out"
        )
    events = bench.judged.groups.event
    return bench.right(read_truth(truth, bench.prepared.log.ts[events], shown=bool(np.all(events >= 0))))


def _seconds(folder: Path) -> float:
    return float(json.loads((folder / "fit.json").read_text())["seconds"])


def _measured(variant: Variant, fits: list[Path]) -> Measured:
    said = [json.loads((folder / "fit.json").read_text()) for folder in fits]
    return Measured(variant, np.stack([np.load(folder / "right.npy") for folder in fits]), said)
