"""Arms: boosters of given columns and seed, fitted on the rows that all of them share, with their test scores."""

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np

from features.errors import PairliftError
from features.log.loading import load_request_codes
from features.pairing.groups import Groups
from features.pairing.pairs import Pairs, make_pairs
from features.plugin import FeaturePlugin
from features.rows import assemble
from features.schema import F32, F64, SAMPLED
from ranker.bundle import columns_of
from ranker.recording.logged import Logged, overlay
from ranker.training.booster import Slice, fit_booster
from ranker.training.prepare import Prepared, plugin_errors
from ranker.training.restart import Start
from ranker.training.stages import code_hash, run_stage

logger = logging.getLogger(__name__)

SHOWN = "shown"


def of_kind(pairs: Pairs, kind: str) -> Pairs:
    """Return the `shown` or the `sampled` pairs; all of them where there is none of that kind."""
    keep = pairs.sampled if kind == SAMPLED else ~pairs.sampled
    return pairs.select(keep) if keep.any() else pairs


@dataclass(frozen=True, slots=True)
class Arm:
    """A fitted ranker. scores: float64[n] of the test's impressions."""

    booster: lgb.Booster
    scores: F64

    @property
    def trees(self) -> int:
        """Trees up to the best validation round."""
        return int(self.booster.num_trees())


@dataclass(frozen=True, slots=True)
class Arms:
    """The rows that all arms share, and the fits over them.

    logged: a feature log whose values take the place of computed ones. given: pairs of the train slice that are
    learned from in place of made ones.
    """

    prepared: Prepared
    groups: dict[str, Groups]
    base: dict[str, F32]
    logged: Logged | None = None
    given: Pairs | None = None

    @classmethod
    def of(cls, prepared: Prepared, logged: Logged | None = None, given: Pairs | None = None) -> "Arms":
        """Assemble the rows of the booster's two slices and of the test, without plugins."""
        groups = prepared.slices()
        base = {name: assemble(prepared.state, prepared.spec, g.requests) for name, g in groups.items()}
        arms = cls(prepared, groups, base, logged, given)
        return replace(arms, base=arms.overlaid(base, list(prepared.spec.columns)))

    @property
    def kind(self) -> str:
        """`shown` where the test has such pairs, else `sampled`: what is reported first, and stopped by."""
        return SAMPLED if self.pairs("test").sampled.all() else SHOWN

    def plugin_columns(self, name: str, plugin: FeaturePlugin) -> dict[str, F32]:
        """Return float32[n, c] of the plugin of a name for each slice, from histories that end at its last `as_of`."""
        whole, values = self.prepared.state.histories, {}
        for part, g in self.groups.items():
            with plugin_errors(name, "values"):
                values[part] = plugin.values(g.requests, whole.until(int(g.requests.as_of.max(initial=0))))
            expected, found = (len(g.requests.item), len(plugin.columns)), np.shape(values[part])
            if found != expected:
                raise PairliftError(
                    f"[plugins.{name}] values(): an array of shape {expected} was expected, found {found}"
                )
        return self.overlaid(values, [f"{name}__{column}" for column in plugin.columns])

    def served_columns(self, plugins: dict[str, FeaturePlugin]) -> tuple[list[str], dict[str, F32]]:
        """Return the names, and by slice the float32[n, c] values, of the columns of all plugins; none for none."""
        names = columns_of(self.prepared.spec, plugins)[len(self.prepared.spec.columns) :]
        blocks = [self.plugin_columns(name, plugin) for name, plugin in plugins.items()]
        return names, {p: np.concatenate([b[p] for b in blocks], axis=1) for p in self.groups} if blocks else {}

    def overlaid(self, values: dict[str, F32], columns: list[str]) -> dict[str, F32]:
        """Return the values with those of the feature log in their place, where there is one."""
        if self.logged is None:
            return values
        codes = load_request_codes(self.prepared.config.work / "import" / "log.duckdb")
        out, rows = {}, 0
        for part, matrix_ in values.items():
            out[part], n = overlay(self.logged, codes, self.prepared.log, self.groups[part], matrix_, columns)
            rows += n
        if not rows:
            raise PairliftError(
                "no impression of the log is in the feature log: is [events] request_id mapped, and is it what "
                "requests to the server carried?"
            )
        logger.info("%d of %d impressions as they were served", rows, sum(map(len, values.values())))
        return out

    def pairs(self, name: str, seed: int = 0) -> Pairs:
        """Return the pairs of a slice: all of them, with the weights of the grades, but where they are learned from."""
        if name != "train":
            return make_pairs(self.groups[name], self.prepared.weights)
        return self.prepared.training_pairs(self.groups[name], seed) if self.given is None else self.given

    def rows(self, part: str, columns: dict[str, F32]) -> F32:
        """Return float32[n, c]: the rows of a slice, with further columns where there are any."""
        return np.concatenate([self.base[part], columns[part]], axis=1) if columns else self.base[part]

    def slice(self, part: str, columns: dict[str, F32], seed: int) -> Slice:
        """Return what is learned from, or stopped by: the pairs of the kind that is reported."""
        pairs = self.pairs(part, seed)
        pairs = of_kind(pairs, self.kind) if part == "validation" else pairs
        groups = self.groups[part]
        return Slice(self.rows(part, columns), groups.requests.row_request(), pairs, groups.grade)

    def fit(self, name: str, names: list[str], columns: dict[str, F32], seed: int, start: Start | None = None) -> Arm:
        """Fit (or reuse) the arm `name` with the further columns `names`, whose values are `columns` by slice.

        start: an earlier booster to start from.
        """
        config, spec = self.prepared.config, self.prepared.spec
        columns = columns if names else {}
        digest = _digest(columns | (self.base if self.logged else {}))
        if self.given is not None:
            digest += _digest({"rows": np.stack([self.given.winner, self.given.loser]), "weight": self.given.weight})
        told = [self.prepared.key, names, digest, config.booster.model_dump(), seed, start and start.key]
        told.append(code_hash("ranker"))

        def make(folder: Path) -> None:
            train, validation = (self.slice(part, columns, seed) for part in ("train", "validation"))
            fit = fit_booster if start is None else start.fit
            booster = fit([*spec.columns, *names], list(spec.categorical), train, validation, config.booster, seed)
            booster.save_model(str(folder / "booster.txt"))
            np.save(folder / "scores.npy", np.asarray(booster.predict(self.rows("test", columns), raw_score=True)))

        folder = run_stage(config.work / "arms", f"{name}-seed{seed}", told, make, logging.DEBUG)
        return Arm(lgb.Booster(model_file=str(folder / "booster.txt")), np.load(folder / "scores.npy"))


def _digest(columns: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, values in columns.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
