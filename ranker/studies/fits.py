"""The fits of a study: an arm's plugin, and what the boosters with its columns order right; each is kept."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from features.pairing.split import Split
from features.schema import F64, SECOND
from ranker.code_hash import code_hash
from ranker.columns import Columns
from ranker.config import Config
from ranker.metrics.pair_accuracy import right_by_user
from ranker.studies.variants import Variant
from ranker.training import arms as arms_module
from ranker.training.abreast import abreast
from ranker.training.arms import Arms, of_kind
from ranker.training.beside import Wanted, fit_beside
from ranker.training.network import network_inputs, network_stage
from ranker.training.plugins import head_losses, plugin_inputs, plugin_seconds, plugin_stage, saved_fit
from ranker.training.prepared import Prepared, prepare
from ranker.training.stages import is_complete, run_stage
from ranker.uplift.measured import Judged

#: what a kept fit reads of our code, beside what `plugin_inputs` stands for
CODE = ("features.final", "ranker.studies.fits", "ranker.uplift.measured", *arms_module.CODE)


@dataclass(frozen=True, slots=True)
class Bench:
    """What all arms share."""

    prepared: Prepared  # the log
    arms: Arms  # the rows
    judged: Judged  # the test's pairs, of the kind that is reported

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
        fitted = abreast([partial(self.arms.fit, label, columns, seed) for seed in seeds])
        return np.stack([self.right(arm.scores) for arm in fitted])

    def networks(self, label: str, columns: Columns) -> F64:
        """Return float64[seeds, users] of networks with further columns."""
        seeds = self.prepared.config.uplift.seeds
        return np.stack([self.right(network_stage(self.arms, label, columns, seed).scores) for seed in seeds])


def fit_variant(bench: Bench, variant: Variant, seed: int) -> Path:
    """Fit an arm's plugin and the rankers with its columns, or find them; return the folder of what they reached.

    `right.npy`, float64[seeds, users]; `fit.json`: the seconds of the plugin's fit, what the plugin says of it, and
    what its heads reach on the events of the test.
    """
    config = variant.configured(bench.prepared.config)
    name, label, own = variant.plugin, variant.label(config), replace(bench.prepared, config=config)

    def make(folder: Path) -> None:
        seen = own if variant.period == 1 else prepare(_latest_part(config, own.split, variant.period))
        earlier = earlier_fit(own, variant, seed, label)
        fitted = plugin_stage(seen, name, seed, label, earlier)
        heads = head_losses(seen, name, fitted, seed, label, earlier)
        columns = bench.arms.plugin_columns(name, fitted)
        if variant.beside:
            other = plugin_stage(own, variant.beside, seed)
            columns = Columns.joined([bench.arms.plugin_columns(variant.beside, other), columns])
        fit = config.uplift.fit_seeds.index(seed)  # as `pairlift uplift` counts them, so that its fits are found
        rank = bench.networks if variant.network else bench.boosters
        np.save(folder / "right.npy", rank(f"{_kept(variant, label)}-fit{fit}", columns))
        said = {"seconds": plugin_seconds(config, name, seed, label), "report": getattr(fitted, "report", {})}
        said["heads"] = heads
        (folder / "fit.json").write_text(json.dumps(said, default=str))

    return run_stage(config.work / "studies", *_stage(bench, variant, seed), make)


def earlier_fit(prepared: Prepared, variant: Variant, seed: int, label: str) -> Path | None:
    """Return the folder of the fit that an arm goes on from, trained anew on a period that ended earlier; None: none.

    It is in `[data] work`, which all processes of a `torchrun` see.
    """
    if not variant.after:
        return None
    of, label = prepare(_split_at(prepared.config, t1=prepared.split.t1 - variant.after)), f"{label}-earlier"
    plugin_stage(of, variant.plugin, seed, label)
    return saved_fit(of.config, variant.plugin, seed, label)


def _stage(bench: Bench, variant: Variant, seed: int) -> tuple[str, list[Any]]:
    """Return the name and the inputs of the stage of `fit_variant`."""
    config = variant.configured(bench.prepared.config)
    label, own = variant.label(config), replace(bench.prepared, config=config)
    inputs = plugin_inputs(own, variant.plugin, seed)
    inputs += [variant.period, variant.after, config.booster.model_dump(), config.uplift.seeds]
    inputs += network_inputs(config) if variant.network else []
    inputs += plugin_inputs(own, variant.beside, seed) if variant.beside else []
    kept = f"{label}-network" if variant.network else _kept(variant, label)
    return f"{kept}-seed{seed}", [*inputs, code_hash(*CODE)]


def _kept(variant: Variant, label: str) -> str:
    """Return the name of an arm's boosters; of a plugin alone that of `pairlift train` and `uplift`."""
    return f"{variant.beside}-and-{label}" if variant.beside else label


def fit_plugins(bench: Bench, wanted: Sequence[tuple[int, Variant]], seconds: float) -> None:
    """Fit the plugins of some (seed, arm) that are not measured yet side by side, where a fit takes long.

    seconds: what it takes.
    """
    fits = {}
    for seed, variant in wanted:
        if is_complete(bench.prepared.config.work / "studies", *_stage(bench, variant, seed)):
            continue
        if variant.after:  # its earlier fit comes first
            continue
        config = variant.configured(bench.prepared.config)
        label = variant.label(config)
        of = _latest_part(config, bench.prepared.split, variant.period)
        fits[seed, label] = Wanted(config=of, name=variant.plugin, seed=seed, label=label)
        if variant.beside:
            fits[seed, variant.beside] = Wanted(config=config, name=variant.beside, seed=seed, label=variant.beside)
    fit_beside(list(fits.values()), seconds)


def _latest_part(config: Config, split: Split, share: float) -> Config:
    """Return the TOML of a plugin that learns from the latest share of the towers' period."""
    if share == 1:
        return config
    return _split_at(config, t0=int(split.t1 - share * (split.t1 - split.t0)))


def _split_at(config: Config, **bounds: int) -> Config:
    """Return the TOML with other boundaries, µs UTC, cut to whole seconds."""
    found = {name: datetime.fromtimestamp(ts // SECOND, UTC) for name, ts in bounds.items()}
    return config.model_copy(update={"split": config.split.model_copy(update=found)})
