"""From the log to a bundle: the whole training path.

import_stage   the log through the TOML's SQL into DuckDB                  (resumed)
prepare        arrays, split, groups, weighted pairs, counters             (seconds: made anew)
plugin_stage   a plugin, fitted on the towers' period alone                (resumed)
matrix         features of groups, strictly before their as_of
arm_stage      a booster of given plugins and seed, with its test scores   (resumed)
train          the arm of the served plugins and the first seed, as a bundle
"""

import hashlib
import json
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np

from features.dataset import import_log, load_log, load_request_codes
from features.errors import PairliftError, did_you_mean
from features.pairs import Groups, Pairs, cap_pairs, make_groups, make_pairs, weight_table
from features.plugin import FeaturePlugin, FitData, make_plugin, plugin_class
from features.rows import FeatureSpec, assemble, make_spec
from features.schema import F32, F64, SAMPLED, Catalog, EventLog
from features.sources import source_files
from features.spec import make_counters
from features.split import PERIODS, Split, make_split
from features.store import State
from ranker.booster import Slice, fit_booster
from ranker.bundle import check_out, columns_of, write_bundle
from ranker.candidates.cooccurrence import Cooccurrence
from ranker.config import Config
from ranker.featurelog import Logged, drift, overlay, read_features
from ranker.fetch import fetch
from ranker.hashes import hash_value
from ranker.objective import pair_accuracy
from ranker.stages import code_hash, run_stage

logger = logging.getLogger(__name__)

SHOWN = "shown"


def of_kind(pairs: Pairs, kind: str) -> Pairs:
    """Return the `shown` or the `sampled` pairs; all of them where there is none of that kind."""
    keep = pairs.sampled if kind == SAMPLED else ~pairs.sampled
    return pairs.select(keep) if keep.any() else pairs


@dataclass(frozen=True, slots=True)
class Prepared:
    """A log that is ready to learn from. key: hash of all that it was made of."""

    config: Config
    key: str
    log: EventLog
    catalog: Catalog
    split: Split
    groups: Groups
    weights: F64
    state: State
    spec: FeatureSpec

    def fit_data(self, seed: int) -> FitData:
        """Return what a plugin may see: nothing of t1 or later."""
        groups = self.groups.of("towers")
        pairs = cap_pairs(make_pairs(groups, self.weights), groups, self.config.pairing.train_cap, seed)
        log = self.log.between(self.split.t0, self.split.t1)
        return FitData(log, self.catalog, groups, pairs, self.config.grade_names, seed)


def import_stage(config: Config) -> Path:
    """Fetch what is missing, import the log, and return the folder of `log.duckdb`."""
    if config.fetch is not None:
        fetch(config.fetch, config.data_root)
    tables = [t for t in (config.events, config.items, config.users) if t is not None]
    files = [source_files(table.source, config.data_root) for table in tables]
    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for found in files for p in found]
    if not all(files):
        stats.append(("a source whose files are not known is read anew", 0, time.time_ns()))
    mapping = config.mapping()
    told = [t.model_dump() if t else None for t in (mapping.events, mapping.items, mapping.users)]
    inputs = [stats, told, [g.model_dump() for g in mapping.grades], mapping.pairing_where, mapping.zone]
    inputs.append(code_hash("features"))
    return run_stage(config.work, "import", inputs, lambda folder: import_log(mapping, folder / "log.duckdb"))


def prepare(config: Config) -> Prepared:
    """Import, and make groups, counters and the state of the whole log."""
    folder = import_stage(config)
    log, catalog = load_log(folder / "log.duckdb")
    split = make_split(config.split, log, config.time.zone)
    groups = make_groups(log, config.pairing, split)
    weights = weight_table(config.pairing.weights, config.grade_names, config.pairing.negatives > 0)
    counters = make_counters(config.counters, log.until(split.t1), catalog, config.grade_names)
    state = State.build(log, catalog, counters, config.grade_names)
    told = [config.pairing.model_dump(), config.split.model_dump(), [c.model_dump() for c in config.counters]]
    told.append(config.features.model_dump())
    key = hash_value([(config.work / "import.key").read_text(), told, code_hash("features")])
    spec = make_spec(counters, catalog, config.time.zone, config.features.columns)
    prepared = Prepared(config, key, log, catalog, split, groups, weights, state, spec)
    _refuse_empty(prepared)
    return prepared


def _refuse_empty(prepared: Prepared) -> None:
    """Raise where a period, or a slice that is learned from or stopped by, has no groups or no pairs."""
    for period in PERIODS:
        for held in (None,) if period == "test" else (False, True):
            groups = prepared.groups.of(period, held)
            place = f"the {'validation slice of the ' if held else ''}{period} period"
            if not len(groups.requests):
                raise PairliftError(f"[split]: {place} has no graded impressions; move t1, t2 or t3, or see [[grades]]")
            if not len(make_pairs(groups, prepared.weights)):
                raise PairliftError(
                    f"{place} has no pairs: no group holds two impressions of different grades. Widen [pairing] "
                    "window, move the split, or, for a log with positives only, set pairing.negatives = 4"
                )


def plugin_stage(prepared: Prepared, name: str, seed: int) -> FeaturePlugin:
    """Fit a plugin of the TOML on the towers' period, or load it where its inputs are unchanged."""
    config = prepared.config
    if name not in config.plugins:
        raise PairliftError(f"there is no [plugins.{name}] in {config.path}{did_you_mean(name, config.plugins)}")
    settings = config.plugins[name]
    kind = plugin_class(settings.path)
    plugin = make_plugin(name, settings.path, settings.params)
    inputs = [prepared.key, settings.path, settings.params, seed, code_hash(kind.__module__.partition(".")[0])]

    def make(folder: Path) -> None:
        logger.info("fitting plugin %s (%s)", name, settings.path)
        plugin.fit(prepared.fit_data(seed))
        plugin.save(folder)

    # What was saved is what is measured, and what a bundle serves.
    return kind.load(run_stage(config.work / "plugins", name, inputs, make))


def matrix(prepared: Prepared, groups: Groups, plugins: dict[str, FeaturePlugin]) -> F32:
    """Return float32[n, columns]: features and plugin columns of each impression, as of its group."""
    blocks = [assemble(prepared.state, prepared.spec, groups.requests)]
    blocks += [plugin.values(groups.requests, prepared.state.histories) for plugin in plugins.values()]
    return np.concatenate(blocks, axis=1)


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
    """The rows that all arms share, and the fits over them."""

    prepared: Prepared
    groups: dict[str, Groups]
    base: dict[str, F32]
    logged: Logged | None = None

    @classmethod
    def of(cls, prepared: Prepared, logged: Logged | None = None) -> "Arms":
        """Assemble the rows of the booster's two slices and of the test, without plugins.

        logged: a feature log, whose values take the place of those of the impressions that it has.
        """
        groups = {
            "train": prepared.groups.of("booster", False),
            "validation": prepared.groups.of("booster", True),
            "test": prepared.groups.of("test"),
        }
        base = {name: matrix(prepared, g, {}) for name, g in groups.items()}
        arms = cls(prepared, groups, base, logged)
        return replace(arms, base=arms.overlaid(base, list(prepared.spec.columns)))

    @property
    def kind(self) -> str:
        """`shown` where the test has such pairs, else `sampled`: what is reported first, and stopped by."""
        return SAMPLED if self.pairs("test").sampled.all() else SHOWN

    def plugin_columns(self, name: str, plugin: FeaturePlugin) -> dict[str, F32]:
        """Return float32[n, c] of the plugin of a name for each slice."""
        histories = self.prepared.state.histories
        values = {part: plugin.values(g.requests, histories) for part, g in self.groups.items()}
        return self.overlaid(values, [f"{name}__{column}" for column in plugin.columns])

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
        """Return the pairs of a slice; a cap is for training alone."""
        pairs = make_pairs(self.groups[name], self.prepared.weights)
        cap = self.prepared.config.pairing.train_cap if name == "train" else None
        return cap_pairs(pairs, self.groups[name], cap, seed)

    def fit(self, name: str, names: list[str], columns: dict[str, F32], seed: int) -> Arm:
        """Fit (or reuse) the arm `name` with the further columns `names`, whose values are `columns` by slice."""
        config = self.prepared.config
        digest = _digest((columns if names else {}) | (self.base if self.logged else {}))
        told = [self.prepared.key, names, digest, config.booster.model_dump(), seed]
        told.append(code_hash("ranker"))

        def make(folder: Path) -> None:
            slices = {}
            for part in ("train", "validation"):
                rows = np.concatenate([self.base[part], columns[part]], axis=1) if names else self.base[part]
                pairs = self.pairs(part, seed)
                if part == "validation":  # stop by the kind of pairs that is reported
                    pairs = of_kind(pairs, self.kind)
                slices[part] = Slice(rows, self.groups[part].requests.row_request(), pairs)
            spec = self.prepared.spec
            booster = fit_booster(
                [*spec.columns, *names], list(spec.categorical), slices["train"], slices["validation"],
                config.booster, seed,
            )  # fmt: skip
            booster.save_model(str(folder / "booster.txt"))
            test = np.concatenate([self.base["test"], columns["test"]], axis=1) if names else self.base["test"]
            np.save(folder / "scores.npy", np.asarray(booster.predict(test, raw_score=True)))

        folder = run_stage(config.work / "arms", f"{name}-seed{seed}", told, make, logging.DEBUG)
        return Arm(lgb.Booster(model_file=str(folder / "booster.txt")), np.load(folder / "scores.npy"))


def drift_report(config: Config, features: Path) -> list[dict[str, Any]]:
    """Recompute what a feature log has, from the whole log of events, and compare: see `featurelog.drift`."""
    prepared = prepare(config)
    logged = read_features(features, prepared.catalog)
    plugins = {name: plugin_stage(prepared, name, config.uplift.seeds[0]) for name in config.ranker.plugins}
    columns = columns_of(prepared.spec, plugins)
    if sorted(columns) != sorted(logged.columns):
        odd = sorted(set(columns) ^ set(logged.columns))
        raise PairliftError(f"{features} and {config.path} disagree about the columns: {', '.join(odd[:5])}")
    blocks = [assemble(prepared.state, prepared.spec, logged.requests)]
    blocks += [plugin.values(logged.requests, prepared.state.histories) for plugin in plugins.values()]
    values = np.concatenate(blocks, axis=1)
    return drift(logged, values[:, [columns.index(name) for name in logged.columns]])


def _digest(columns: dict[str, F32]) -> str:
    digest = hashlib.sha256()
    for name, values in columns.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def train(config: Config, out: Path, features: Path | None = None) -> dict[str, Any]:
    """Train the served ranker and write its bundle to `out`; return the figures of its test.

    features: a feature log, whose values are learned from in place of recomputed ones.
    """
    check_out(out, config)
    prepared = prepare(config)
    seed = config.uplift.seeds[0]
    plugins = {name: plugin_stage(prepared, name, seed) for name in config.ranker.plugins}
    arms = Arms.of(prepared, None if features is None else read_features(features, prepared.catalog))
    names = columns_of(prepared.spec, plugins)[len(prepared.spec.columns) :]
    blocks = [arms.plugin_columns(name, plugin) for name, plugin in plugins.items()]
    columns = {part: np.concatenate([b[part] for b in blocks], axis=1) for part in arms.groups} if blocks else {}
    arm = arms.fit("+".join(plugins) or "without", names, columns, seed)
    accuracy, ties = pair_accuracy(arm.scores, of_kind(arms.pairs("test"), arms.kind))
    measured = {"pair_accuracy": accuracy, "pairs_kind": arms.kind, "tie_share": ties, "trees": arm.trees, "seed": seed}
    cooccurrence = Cooccurrence.build(prepared.log, prepared.catalog.n_items)
    write_bundle(out, config, prepared.spec, prepared.state, plugins, arm.booster, cooccurrence, measured)
    logger.info("bundle %s: test PairAccuracy %.4f, %s", out, accuracy, json.dumps(measured))
    return measured
