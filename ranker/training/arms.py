"""Arms: boosters of given columns and seed, fitted on the rows that all of them share, with their test scores."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import lightgbm as lgb
import numpy as np

from features.errors import PairliftError
from features.log.loading import load_request_codes
from features.pairing.groups import Groups
from features.pairing.pairs import Pairs, make_pairs
from features.pairing.slice import Slice
from features.plugin import FeaturePlugin
from features.rows import assemble
from features.schema import F32, F64, SAMPLED
from ranker.code_hash import code_hash
from ranker.columns import Columns, plugin_categories, plugin_columns, plugin_values
from ranker.hashes import hash_arrays
from ranker.recording.logged import Logged, overlay
from ranker.training.booster import fit_booster
from ranker.training.earlier_trees import Start
from ranker.training.plugins import plugin_errors
from ranker.training.prepared import Prepared
from ranker.training.stages import run_stage

logger = logging.getLogger(__name__)

SHOWN = "shown"
#: what a fit reads of our code, beside what `Prepared.key` stands for
CODE = ("features.pace", "ranker.columns", "ranker.forest.text", "ranker.metrics", "ranker.training")


@dataclass(frozen=True, slots=True)
class Arm:
    """A fitted ranker."""

    booster: lgb.Booster  # of the trees up to the best validation round
    scores: F64  # [n] of the test's impressions

    @property
    def trees(self) -> int:
        """Trees up to the best validation round."""
        return int(self.booster.num_trees())


@dataclass(frozen=True, slots=True)
class Arms:
    """The rows that all arms share, and the fits over them."""

    prepared: Prepared  # the log
    groups: dict[str, Groups]  # by slice: train, validation, test
    base: Columns  # counters, attributes and context
    logged: Logged | None = None  # a feature log, whose values take the place of computed ones
    given: Pairs | None = None  # pairs of the train slice that are learned from in place of made ones

    @classmethod
    def of(cls, prepared: Prepared, logged: Logged | None = None, given: Pairs | None = None) -> "Arms":
        """Assemble the rows of the booster's two slices and of the test, without plugins."""
        groups = prepared.slices()
        rows = {name: assemble(prepared.state, prepared.spec, g.requests) for name, g in groups.items()}
        arms = cls(prepared, groups, Columns(prepared.spec.columns, rows), logged, given)
        return replace(arms, base=arms.overlaid(arms.base))

    def served_columns(self, plugins: Mapping[str, FeaturePlugin]) -> Columns:
        """Return the columns of all plugins, in the booster's order."""
        return Columns.joined(self.plugin_columns(name, plugin) for name, plugin in plugins.items())

    def plugin_columns(self, name: str, plugin: FeaturePlugin) -> Columns:
        """Return the columns of a plugin, the values of each slice from histories that end at its last `as_of`."""
        whole, values = self.prepared.state.histories, {}
        for part, g in self.groups.items():
            histories = whole.until(int(g.requests.as_of.max(initial=0)))
            with plugin_errors(name, "values"):
                values[part] = plugin_values(name, plugin, g.requests, histories, self.prepared.spec)
        names, categories = plugin_columns(name, plugin, self.prepared.spec), plugin_categories(name, plugin)
        return self.overlaid(Columns(tuple(names), values, tuple(categories)))

    def overlaid(self, columns: Columns) -> Columns:
        """Return the columns with the values of the feature log in their place, where there is one."""
        if self.logged is None:
            return columns
        codes = load_request_codes(self.prepared.config.work / "import" / "log.duckdb")
        values, rows = {}, 0
        for part, matrix in columns.values.items():
            groups, names = self.groups[part], list(columns.names)
            values[part], n = overlay(self.logged, codes, self.prepared.log, groups, matrix, names)
            rows += n
        if not rows:
            raise PairliftError(
                "no impression of the log is in the feature log: is [events] request_id mapped, and is it what "
                "requests to the server carried?"
            )
        logger.info("%d of %d impressions as they were served", rows, sum(map(len, values.values())))
        return replace(columns, values=values)

    def fit(self, name: str, columns: Columns, seed: int, start: Start | None = None, progress: str = "") -> Arm:
        """Fit (or reuse) the arm `name`, which has further columns.

        start: an earlier booster to start from. progress: the name of a bar, see `fit_booster`.
        """
        config, spec = self.prepared.config, self.prepared.spec
        inputs = [self.prepared.key, self.digests(columns), config.booster.model_dump(), seed, start and start.key]
        inputs += [columns.categorical, code_hash(*CODE)]

        def make(folder: Path) -> None:
            train, validation = (self.slice(part, columns, seed) for part in ("train", "validation"))
            fit = fit_booster if start is None else start.fit
            names, categories = [*spec.columns, *columns.names], [*spec.categorical, *columns.categorical]
            booster = fit(names, categories, train, validation, config.booster, seed, progress=progress)
            booster.save_model(str(folder / "booster.txt"))
            np.save(folder / "scores.npy", np.asarray(booster.predict(self.rows("test", columns), raw_score=True)))

        folder = run_stage(config.work / "arms", f"{name}-seed{seed}", inputs, make, logging.DEBUG)
        return Arm(lgb.Booster(model_file=str(folder / "booster.txt")), np.load(folder / "scores.npy"))

    def digests(self, columns: Columns) -> list[str]:
        """Return hashes of all values that the log and its settings do not determine: see `Prepared.key`."""
        found = [hash_arrays(columns.values, columns.names)]
        if self.logged is not None:
            found.append(hash_arrays(self.base.values, self.base.names))
        if self.given is not None:
            pairs = {"rows": np.stack([self.given.winner, self.given.loser]), "weight": self.given.weight}
            found.append(hash_arrays(pairs))
        return found

    def slice(self, part: str, columns: Columns, seed: int) -> Slice:
        """Return what is learned from, or stopped by: the pairs of the kind that is reported."""
        pairs = self.pairs(part, seed)
        pairs = of_kind(pairs, self.kind) if part == "validation" else pairs
        groups = self.groups[part]
        return Slice(self.rows(part, columns), groups.requests.row_request(), pairs, groups.grade)

    def pairs(self, name: str, seed: int = 0) -> Pairs:
        """Return the pairs of a slice: all of them, with the weights of the grades, but where they are learned from."""
        if name != "train":
            return make_pairs(self.groups[name], self.prepared.weights)
        return self.prepared.training_pairs(self.groups[name], seed) if self.given is None else self.given

    def rows(self, part: str, columns: Columns) -> F32:
        """Return float32[n, c]: the rows of a slice, with further columns where there are any."""
        return self.base.rows(part, columns)

    @property
    def kind(self) -> str:
        """`shown` where the test has such pairs, else `sampled`: what is reported first, and stopped by."""
        return SAMPLED if self.pairs("test").sampled.all() else SHOWN


def of_kind(pairs: Pairs, kind: str) -> Pairs:
    """Return the `shown` or the `sampled` pairs; all of them where there is none of that kind."""
    keep = pairs.sampled if kind == SAMPLED else ~pairs.sampled
    return pairs.select(keep) if keep.any() else pairs
