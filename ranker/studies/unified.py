"""The study `unified`: one model of all surfaces against one for each, and one without what a request starts from.

run_unified     the log, the rows, the report
  scores_of     one fit: all rows, those of one surface, or without the columns of source items and queries   (resumed)
  Judged.only   the test's pairs of one surface

All fits have the same columns of the same plugins, seeds, parameters and stopping rule; a surface's own model learns
from its own rows and is stopped by them. Intervals are about new users and seeds, paired by both.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from features.errors import PairliftError
from features.progress import progress_bar
from features.schema import F64
from ranker.code_hash import code_hash
from ranker.columns import SOURCE_ITEM, Columns
from ranker.config import Config
from ranker.metrics.interval import finite, relative_uplift
from ranker.metrics.pair_accuracy import right_by_user
from ranker.studies.truth import read_truth
from ranker.training import arms as arms_module
from ranker.training.abreast import abreast
from ranker.training.arms import Arms, of_kind
from ranker.training.booster import fit_booster
from ranker.training.plugins import served_plugins
from ranker.training.prepared import prepare
from ranker.training.stages import run_stage
from ranker.uplift.measured import Judged

logger = logging.getLogger(__name__)

#: of the report
FORMAT = 1
#: what a kept fit reads of our code, beside what `Prepared.key` stands for
CODE = ("ranker.studies.truth", "ranker.studies.unified", "ranker.uplift.measured", *arms_module.CODE)
#: arms beside a surface's own: all rows; all rows, without the columns of source items and queries
ONE, UNTOLD = "one", "untold"
#: the whole test, beside its surfaces; and requests that name none
ALL, NONE = "all", "none"


@dataclass(frozen=True, slots=True)
class Bench:
    """The rows that all fits share."""

    arms: Arms
    columns: Columns  # of the served plugins

    @classmethod
    def of(cls, config: Config) -> "Bench":
        """Import the log, fit its plugins and assemble the rows."""
        arms = Arms.of(prepare(config))
        return cls(arms, arms.served_columns(served_plugins(arms.prepared)))

    @property
    def names(self) -> list[str]:
        """The columns in their order."""
        return [*self.arms.base.names, *self.columns.names]

    @property
    def told(self) -> list[str]:
        """Those of source items and queries."""
        spec = self.arms.prepared.spec
        products = [name for name in self.columns.names if name.endswith(f"__{SOURCE_ITEM}")]
        return [*spec.matched, *(products if spec.source_item else [])]

    def only(self, surface: int) -> "Bench":
        """Return the rows of the lists of one surface, by its code."""
        keep = {part: groups.requests.surface == surface for part, groups in self.arms.groups.items()}
        rows = {part: keep[part][groups.requests.row_request()] for part, groups in self.arms.groups.items()}
        groups = {part: groups.select(keep[part]) for part, groups in self.arms.groups.items()}
        base, columns = (
            replace(of, values={part: values[rows[part]] for part, values in of.values.items()})
            for of in (self.arms.base, self.columns)
        )
        return Bench(replace(self.arms, groups=groups, base=base), columns)

    def without(self, names: list[str]) -> "Bench":
        """Return the rows without some columns."""
        base, columns = (_without(of, names) for of in (self.arms.base, self.columns))
        return Bench(replace(self.arms, base=base), columns)

    def scores(self, arm: str, seed: int) -> F64:
        """Return float64[n] of the test's rows by a booster that learns from these rows; it is kept. arm: its name."""
        prepared = self.arms.prepared
        config, spec = prepared.config, prepared.spec
        inputs = [prepared.key, self.arms.digests(self.columns), self.names, arm, config.booster.model_dump(), seed]

        def make(folder: Path) -> None:
            train, validation = (self.arms.slice(part, self.columns, seed) for part in ("train", "validation"))
            categories = [n for n in (*spec.categorical, *self.columns.categorical) if n in self.names]
            booster = fit_booster(self.names, categories, train, validation, config.booster, seed)
            scores = booster.predict(self.arms.rows("test", self.columns), raw_score=True)
            np.save(folder / "scores.npy", np.asarray(scores))

        place, name = config.work / "studies", f"unified-{arm}-seed{seed}"
        folder = run_stage(place, name, [*inputs, code_hash(*CODE)], make, logging.DEBUG)
        return np.asarray(np.load(folder / "scores.npy"))


def _without(columns: Columns, names: list[str]) -> Columns:
    keep = [k for k, name in enumerate(columns.names) if name not in names]
    return Columns(
        tuple(columns.names[k] for k in keep),
        {part: values[:, keep] for part, values in columns.values.items()},
        tuple(name for name in columns.categorical if name not in names),
    )


def run_unified(config: Config, truth: Path | None = None) -> dict[str, Any]:
    """Return the report of the study. truth: of a generated log."""
    if config.events.surface is None:
        raise PairliftError(f"{config.path}: the study unified compares surfaces, and [events] surface names none")
    bench = Bench.of(config)
    arms, catalog = bench.arms, bench.arms.prepared.catalog
    pairs = of_kind(arms.pairs("test"), arms.kind)
    requests = arms.groups["test"].requests
    surface = requests.surface[requests.row_request()]
    learned, lacking = _surfaces(bench)
    if len(learned) < 2:
        raise PairliftError(f"the study unified needs two surfaces with pairs in each period, found {len(learned)}")
    found = _scores(bench, learned)
    best = None if truth is None else _best(bench, truth)
    judged, names = Judged.of(arms.groups["test"], pairs), [*catalog.surfaces, NONE]
    known = np.isin(surface[pairs.winner], learned)
    masks = {ALL: known} | {names[code]: surface[pairs.winner] == code for code in learned}
    report: dict[str, Any] = finite(
        {
            "format": FORMAT,
            "study": "unified",
            "asks": "does one model of all surfaces order as well as one for each?",
            "data": config.name,
            "pairs_kind": arms.kind,
            "plugins": config.ranker.plugins,
            "told": bench.told,
            "seeds": list(config.uplift.seeds),
            "lacking": [names[code] for code in lacking],
            "arms": [_measured(name, judged.only(keep), found, best) for name, keep in masks.items()],
        }
    )
    return report


def _surfaces(bench: Bench) -> tuple[list[int], list[int]]:
    """Return the codes of surfaces that a model of their own can be fitted for and judged, and of the others."""
    there = np.unique(bench.arms.groups["test"].requests.surface).tolist()
    enough = {code: all(len(bench.only(code).arms.pairs(part)) for part in bench.arms.groups) for code in there}
    return [code for code in there if enough[code]], [code for code in there if not enough[code]]


def _scores(bench: Bench, surfaces: list[int]) -> dict[str, F64]:
    """Return float64[seeds, n] by arm: `one`, `own` and, where there are such columns, `untold`."""
    config = bench.arms.prepared.config
    requests = bench.arms.groups["test"].requests
    surface = requests.surface[requests.row_request()]
    benches = {ONE: bench} | {f"surface{code}": bench.only(code) for code in surfaces}
    if bench.told:
        benches[UNTOLD] = bench.without(bench.told)
    seeds, found = config.uplift.seeds, dict[str, F64]()
    own = np.zeros((len(seeds), len(surface)))
    with progress_bar(total=len(benches) * len(seeds), desc="study unified", unit="fit") as bar:
        for arm, rows in benches.items():
            scores = np.stack(list(abreast([partial(rows.scores, arm, seed) for seed in seeds])))
            if arm in (ONE, UNTOLD):
                found[arm] = scores
            else:
                own[:, surface == int(arm.removeprefix("surface"))] = scores
            bar.update(len(seeds))
    return found | {"own": own}


def _best(bench: Bench, truth: Path) -> F64:
    """Return float64[n]: the expected grade of the test's rows."""
    prepared, event = bench.arms.prepared, bench.arms.groups["test"].event
    if prepared.config.pairing.weights:
        raise PairliftError("--truth: the expected grade is the best order without [pairing.weights]; leave one out")
    return read_truth(truth, prepared.log.ts[event], shown=bool(np.all(event >= 0)))


def _measured(name: str, judged: Judged, found: Mapping[str, F64], best: F64 | None) -> dict[str, Any]:
    """Return a surface's figures: PairAccuracy of each arm, and what the one model has over the others."""
    total = float(judged.pairs.weight.sum(dtype=np.float64))
    right = {arm: np.stack([_right(judged, score) for score in scores])[None] for arm, scores in found.items()}
    accuracy = {arm: float(of.mean(axis=(0, 1)).sum()) / total for arm, of in right.items()}
    over = {arm: relative_uplift(of, right[ONE]).reported() for arm, of in right.items() if arm != ONE}
    return {
        "arm": name,
        "users": judged.n_users,
        "pairs": len(judged.pairs),
        "pair_accuracy": accuracy,
        "best": None if best is None else float(_right(judged, best).sum()) / total,
        "over": over,
        **{key: over["own"][key] for key in ("relative_uplift", "ci95")},
    }


def _right(judged: Judged, score: F64) -> F64:
    right, tied, _ = right_by_user(score, judged.pairs, judged.user, judged.n_users)
    return np.asarray(right + tied / 2)
