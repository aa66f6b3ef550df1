"""A log made ready to learn from: imported, split, grouped and paired, with its counters and its fitted plugins."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from features.counters.spec import Counter, make_counters
from features.errors import PairliftError, did_you_mean
from features.log.dataset import cut_log, import_log
from features.log.loading import load_context, load_log
from features.log.recorded import Recorded, load_recorded
from features.log.sources import source_files
from features.pairing.exposure import Exposure, corrected, load_exposure
from features.pairing.groups import Groups, make_groups
from features.pairing.pairs import Pairs, count_pairs, make_pairs, weight_table
from features.pairing.split import PERIODS, Split, make_split
from features.plugin import FeaturePlugin, FitData, make_plugin, plugin_class
from features.rows import FeatureSpec, make_spec
from features.schema import F64, Catalog, EventLog
from features.state.store import State
from ranker.config import Config
from ranker.fetch import fetch
from ranker.hashes import hash_value
from ranker.training.booster import check_monotone, check_params
from ranker.training.stages import code_hash, run_stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Grouped:
    """An imported log with its groups and the columns that its rows will have. database: what the import wrote."""

    config: Config
    database: Path
    log: EventLog
    catalog: Catalog
    split: Split
    groups: Groups
    counters: tuple[Counter, ...]
    spec: FeatureSpec


@dataclass(frozen=True, slots=True)
class Prepared:
    """A log that is ready to learn from.

    key: hash of all that it was made of. database: what the import wrote. exposure: None weighs no pair anew.
    recorded: which events of recorded logs are in it.
    """

    config: Config
    key: str
    database: Path
    log: EventLog
    catalog: Catalog
    split: Split
    groups: Groups
    weights: F64
    state: State
    spec: FeatureSpec
    exposure: Exposure | None
    recorded: Recorded

    def slices(self) -> dict[str, Groups]:
        """Return the groups of the booster's two slices, `train` and `validation`, and of the `test`."""
        booster, held = self.groups.of("booster", False), self.groups.of("booster", True)
        return {"train": booster, "validation": held, "test": self.groups.of("test")}

    def training_pairs(self, groups: Groups, seed: int) -> Pairs:
        """Return the pairs of groups to learn from: at most train_cap of each, weighed for exposure and age."""
        pairs = make_pairs(groups, self.weights, self.config.pairing.train_cap, seed)
        return corrected(pairs, groups, self.exposure, self.config.pairing)

    def fit_data(self, seed: int) -> FitData:
        """Return what a plugin may see: nothing of t1 or later."""
        groups = self.groups.of("towers")
        pairs = self.training_pairs(groups, seed)
        log = self.log.between(self.split.t0, self.split.t1)
        return FitData(
            log=log,
            catalog=self.catalog,
            groups=groups,
            pairs=pairs,
            grades=self.config.grade_names,
            seed=seed,
            zone=self.config.time.zone,
        )


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


def group_log(config: Config) -> Grouped:
    """Import, and make groups, counters and the names of the columns: all that needs no state."""
    database = import_stage(config) / "log.duckdb"
    log, catalog = load_log(database)
    split = make_split(config.split, log, config.time.zone)
    groups = make_groups(log, config.pairing, split, context=load_context(database, catalog))
    counters = make_counters(config.counters, log.until(split.t1), catalog, config.grade_names)
    spec = make_spec(counters, catalog, config.time.zone, config.features.columns)
    return Grouped(config, database, log, catalog, split, groups, counters, spec)


def prepare(config: Config) -> Prepared:
    """Import, and make groups, counters and the state of the whole log."""
    check_params(config.booster)
    made = group_log(config)
    weights = weight_table(config.pairing.weights, config.grade_names, config.pairing.negatives > 0)
    check_monotone(config.booster, [*made.spec.columns, *_plugin_columns(config)], made.spec.categorical)
    state = State.build(made.log, made.catalog, made.counters, config.grade_names)
    told = [config.pairing.model_dump(), config.split.model_dump(), [c.model_dump() for c in config.counters]]
    told.append(config.features.model_dump())
    key = hash_value([(config.work / "import.key").read_text(), told, code_hash("features")])
    exposure = load_exposure(made.database, config.events, config.pairing)
    prepared = Prepared(
        config, key, made.database, made.log, made.catalog, made.split, made.groups, weights, state, made.spec,
        exposure, load_recorded(made.database),
    )  # fmt: skip
    _refuse_empty(prepared)
    return prepared


def _plugin_columns(config: Config) -> list[str]:
    """Return the columns of every plugin of the TOML, served or not, where a constraint may name one."""
    if not config.booster.monotone:
        return []
    plugins = {name: make_plugin(name, p.path, p.params) for name, p in config.plugins.items()}
    return [f"{name}__{column}" for name, plugin in plugins.items() for column in plugin.columns]


def _refuse_empty(prepared: Prepared) -> None:
    """Raise where a period, or a slice that is learned from or stopped by, has no groups or no pairs."""
    for period in PERIODS:
        for held in (None,) if period == "test" else (False, True):
            groups = prepared.groups.of(period, held)
            place = f"the {'validation slice of the ' if held else ''}{period} period"
            if not len(groups.requests):
                raise PairliftError(f"[split]: {place} has no graded impressions; move t1, t2 or t3, or see [[grades]]")
            if not count_pairs(groups, prepared.weights).any():
                raise PairliftError(
                    f"{place} has no pairs: no group holds two impressions of different grades. Widen [pairing] "
                    "window, move the split, or, for a log with positives only, set pairing.negatives = 4"
                )


def plugin_stage(prepared: Prepared, name: str, seed: int) -> FeaturePlugin:
    """Fit a plugin of the TOML on the towers' period, or load it where its inputs are unchanged."""
    return _fitted(prepared, name, seed, f"{name}-seed{seed}", lambda: prepared)


def refit_stage(prepared: Prepared, name: str, seed: int) -> FeaturePlugin:
    """Fit a plugin as `plugin_stage` does, on a log from which everything at or after t1 was deleted, on disk."""
    return _fitted(prepared, name, seed, f"{name}-seed{seed}-cut", lambda: _cut(prepared))


def _fitted(prepared: Prepared, name: str, seed: int, label: str, source: Callable[[], Prepared]) -> FeaturePlugin:
    config = prepared.config
    if name not in config.plugins:
        raise PairliftError(f"there is no [plugins.{name}] in {config.path}{did_you_mean(name, config.plugins)}")
    settings = config.plugins[name]
    kind = plugin_class(settings.path)
    plugin = make_plugin(name, settings.path, settings.params)
    inputs = [prepared.key, settings.path, settings.params, seed, code_hash(kind.__module__.partition(".")[0])]

    def make(folder: Path) -> None:
        logger.info("fitting plugin %s (%s)", label, settings.path)
        data = source().fit_data(seed)
        with plugin_errors(name, "fit"):
            plugin.fit(data)
            plugin.save(folder)

    folder = run_stage(config.work / "plugins", label, inputs, make)
    with plugin_errors(name, "load"):
        return kind.load(folder)  # what was saved is what is measured, and what a bundle serves


@contextmanager
def plugin_errors(name: str, call: str) -> Iterator[None]:
    """Tell what a plugin raises as its own, and as a mistake of its author's, with where it was raised in the log."""
    try:
        yield
    except PairliftError:
        raise
    except Exception as error:
        logger.exception("[plugins.%s] raised in %s()", name, call)
        raise PairliftError(f"[plugins.{name}] {call}() raised {type(error).__name__}: {error}") from error


def _cut(prepared: Prepared) -> Prepared:
    """Return it as it would be on a log that ends at t1, with the same numbering of users, items and categories."""
    config, t1 = prepared.config, prepared.split.t1
    inputs = [prepared.key, t1]
    folder = run_stage(
        config.work, "cut", inputs, lambda folder: cut_log(prepared.database, folder / "log.duckdb", t1), logging.DEBUG
    )
    database = folder / "log.duckdb"
    log, _ = load_log(database)
    context = load_context(database, prepared.catalog)
    return replace(
        prepared,
        database=database,
        log=log,
        groups=make_groups(log, config.pairing, prepared.split, context=context),
        exposure=prepared.exposure and prepared.exposure.until(len(log)),
    )
