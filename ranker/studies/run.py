"""A study, run: each arm's plugin fitted with each seed, the boosters over its columns, and the report.

run_study      the log, the arms, the report        (all fits are resumed)
  fit_variant  one fit of one arm, kept as soon as it is there: what the boosters with its columns order right
  best_order   the order that the truth of a generated log gives
"""

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from features.schema import F64, SECOND
from ranker.code_hash import code_hash
from ranker.columns import Columns
from ranker.config import Config
from ranker.metrics.pair_accuracy import right_by_user
from ranker.studies.figures import Measured, study_report
from ranker.studies.truth import read_truth
from ranker.studies.variants import Variant, find_study
from ranker.training.arms import CODE as ARMS
from ranker.training.arms import Arms, of_kind
from ranker.training.plugins import plugin_inputs, plugin_stage
from ranker.training.prepared import Prepared, prepare
from ranker.training.stages import run_stage, stage_seconds
from ranker.uplift.measured import Judged

#: what a kept fit reads of our code, beside what `plugin_inputs` stands for
CODE = ("ranker.studies.run", "ranker.uplift.measured", *ARMS)


@dataclass(frozen=True, slots=True)
class Bench:
    """What all arms share."""

    prepared: Prepared
    arms: Arms
    judged: Judged  # the test's pairs of the kind that is reported

    @classmethod
    def of(cls, config: Config) -> "Bench":
        """Import the log and assemble the rows without plugins."""
        arms = Arms.of(prepare(config))
        return cls(arms.prepared, arms, Judged.of(arms.groups["test"], of_kind(arms.pairs("test"), arms.kind)))

    def right(self, score: F64) -> F64:
        """Return float64[users]: the weight of the pairs that scores of the test's rows order right, ties one half."""
        right, tied, _ = right_by_user(score, self.judged.pairs, self.judged.user, self.judged.n_users)
        return np.asarray(right + tied / 2)

    def boosters(self, label: str, columns: Columns) -> F64:
        """Return float64[seeds, users] of boosters with further columns."""
        seeds = self.prepared.config.uplift.seeds
        return np.stack([self.right(self.arms.fit(label, columns, seed).scores) for seed in seeds])

    def total(self) -> float:
        """Return the weight of all pairs."""
        return float(self.judged.pairs.weight.sum(dtype=np.float64))


def run_study(config: Config, name: str, plugin: str, truth: Path | None = None) -> dict[str, Any]:
    """Return the report of a study. Every fit that was finished before on the same data, settings and code is kept.

    plugin: of the TOML, which is varied; the study `plugins` has all of them. truth: of a generated log.
    """
    study, variants = find_study(config, name, plugin)
    bench, seeds = Bench.of(config), config.uplift.fit_seeds
    best = None if truth is None else best_order(bench, truth)
    without = bench.boosters("without", Columns())
    fits: dict[str, list[Path]] = {variant.name: [] for variant in variants}
    with tqdm(total=len(variants) * len(seeds), desc=f"study {name}", unit="fit") as bar:
        for seed in seeds:  # a whole round of all arms, then the next: the time left soon knows the slow ones
            for variant in variants:
                bar.set_postfix_str(f"{variant.name}, seed {seed}")
                fits[variant.name].append(fit_variant(bench, variant, seed))
                bar.update()
    measured = [_measured(variant, fits[variant.name]) for variant in variants]
    return study_report(config, name, study, measured, without[None], best, bench.total(), bench.arms.kind)


def best_order(bench: Bench, truth: Path) -> F64:
    """Return float64[users]: the weight of pairs that the order by the expected grade has right."""
    events = bench.judged.groups.event
    return bench.right(read_truth(truth, bench.prepared.log.ts[events[events >= 0]], bool(np.all(events >= 0))))


def fit_variant(bench: Bench, variant: Variant, seed: int) -> Path:
    """Fit an arm's plugin and the boosters with its columns, or find them; return the folder of what they reached.

    `right.npy`, float64[seeds, users]; `fit.json`: the seconds that it took, and what the plugin says of its fit.
    """
    config = variant.configured(bench.prepared.config)
    name, label, own = variant.plugin, variant.label(config), replace(bench.prepared, config=config)
    inputs = [*plugin_inputs(own, name, seed), variant.period, config.booster.model_dump(), config.uplift.seeds]

    def make(folder: Path) -> None:
        fitted = plugin_stage(_latest_part(own, variant.period), name, seed, label)
        columns = bench.arms.plugin_columns(name, fitted)
        np.save(folder / "right.npy", bench.boosters(f"study-{label}-fit{seed}", columns))
        seconds = stage_seconds(config.work / "plugins", f"{label}-seed{seed}")
        said = {"seconds": seconds, "report": getattr(fitted, "report", {})}
        (folder / "fit.json").write_text(json.dumps(said, default=str))

    return run_stage(config.work / "studies", f"{label}-seed{seed}", [*inputs, code_hash(*CODE)], make)


def _latest_part(prepared: Prepared, share: float) -> Prepared:
    """Return the log as a plugin sees it that learns from the latest share of the towers' period."""
    if share == 1:
        return prepared
    config, split = prepared.config, prepared.split
    t0 = datetime.fromtimestamp((split.t1 - share * (split.t1 - split.t0)) // SECOND, UTC)
    return prepare(config.model_copy(update={"split": config.split.model_copy(update={"t0": t0})}))


def _measured(variant: Variant, fits: list[Path]) -> Measured:
    said = [json.loads((folder / "fit.json").read_text()) for folder in fits]
    return Measured(variant, np.stack([np.load(folder / "right.npy") for folder in fits]), said)
