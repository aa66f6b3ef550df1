"""The network that ranks beside the booster: fitted on the same rows, pairs and weights, stopped by the same slice."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.errors import PairliftError
from features.final import FinalRanker, make_ranker, ranker_class
from features.schema import F32, F64
from ranker.code_hash import code_hash
from ranker.columns import Columns
from ranker.config import Config
from ranker.training.arms import Arms
from ranker.training.booster import refuse_infinite
from ranker.training.stages import run_stage

logger = logging.getLogger(__name__)

#: what the stage reads of our code, beside the class's own package and what an arm reads
CODE = ("features.final", "features.pairing.slice", "ranker.columns", "ranker.training")


@dataclass(frozen=True, slots=True)
class NetworkArm:
    """A fitted network."""

    ranker: FinalRanker
    scores: F64  # [n] of the test's impressions


def network_stage(arms: Arms, name: str, columns: Columns, seed: int, *, told: bool = False) -> NetworkArm:
    """Fit (or reuse) the network of `[network]` with further columns. Raises PairliftError for an infinite value.

    told: whether the log says that the stage was run or reused.
    """
    config, spec = arms.prepared.config, arms.prepared.spec
    kind, settings = ranker_class(config.network.path), config.network

    def make(folder: Path) -> None:
        names = [*spec.columns, *columns.names]
        train, validation = (arms.slice(part, columns, seed) for part in ("train", "validation"))
        for part, rows in (("training", train.matrix), ("validation", validation.matrix)):
            refuse_infinite(part, rows, names)
        ranker = make_ranker(settings.path, settings.params)
        ranker.fit(names, [*spec.categorical, *columns.categorical], train, validation, seed)
        (folder / "ranker").mkdir()
        ranker.save(folder / "ranker")
        np.save(folder / "scores.npy", checked(kind.load(folder / "ranker"), arms.rows("test", columns)))

    inputs = [arms.prepared.key, arms.digests(columns), columns.categorical, seed, *network_inputs(config)]
    level = logging.INFO if told else logging.DEBUG
    folder = run_stage(config.work / "networks", f"{name}-seed{seed}", inputs, make, level)
    return NetworkArm(kind.load(folder / "ranker"), np.load(folder / "scores.npy"))


def check_network(config: Config) -> None:
    """Raise PairliftError for a `[network]` that cannot be built, where it is asked for: before all that takes long."""
    if config.ranker.model == "network":
        make_ranker(config.network.path, config.network.params)


def network_inputs(config: Config) -> list[Any]:
    """Return all that a fit depends on beside its rows and seed: class, options and code."""
    package = ranker_class(config.network.path).__module__.partition(".")[0]
    return [config.network.path, config.network.params, code_hash(*CODE, package)]


def checked(ranker: FinalRanker, rows: F32) -> F64:
    """Return float64[n] scores of float32[n, c] rows; PairliftError where they are not one finite number for each."""
    scores = np.asarray(ranker.score(rows))
    if scores.shape != (len(rows),) or not np.isfinite(scores).all():
        raise PairliftError(
            f"[network]: {len(rows):,} finite scores were expected of score(), found an array of shape {scores.shape}, "
            f"{np.isfinite(scores).sum():,} of them finite"
        )
    return scores
