"""A log made ready to learn from: imported, split, grouped and paired, with its counters."""

import logging
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from features.counters.spec import Counter, make_counters
from features.errors import PairliftError, did_you_mean
from features.given import check_list, counted, given_of_log
from features.log.loading import load_given, load_log, load_texts
from features.log.recorded import Recorded, load_recorded
from features.pairing.exposure import Exposure, Places, corrected, explored, load_places, make_exposure
from features.pairing.groups import Groups, make_groups
from features.pairing.negatives import availability
from features.pairing.pairs import Pairs, count_pairs, make_pairs, weight_table
from features.pairing.split import PERIODS, Split, make_split
from features.plain import left_out
from features.plugin import FitData, LaterEvents, make_plugin, plugin_class
from features.rows import FeatureSpec, make_spec
from features.schema import F64, Catalog, EventLog
from features.state.store import State
from ranker.candidates.at_most import AtMost
from ranker.candidates.filters import filters_of
from ranker.candidates.named import check_against, check_sources
from ranker.code_hash import code_hash
from ranker.columns import categories_of, columns_of
from ranker.config import Config, counted_of, unasked_of, wanted_floor
from ranker.hashes import hash_value
from ranker.matching.matching import fit_matches, matched_columns
from ranker.request import with_queries
from ranker.reranking.diversity import check_diversity
from ranker.reranking.rules import Rules
from ranker.training.booster import WANTED_TABLE, check_monotone, check_params
from ranker.training.importing import import_stage, imported_key

logger = logging.getLogger(__name__)

#: what is read of our code after the import, here and where the rows of `Prepared` are assembled
CODE = (
    "features.counters",
    "features.dots",
    "features.errors",
    "features.given",
    "features.hashing",
    "features.ids",
    "features.log",
    "features.newcomers",
    "features.pace",
    "features.pairing",
    "features.plain",
    "features.plugin",
    "features.kernels",
    "features.rows",
    "features.schema",
    "features.settings",
    "features.state",
    "ranker.candidates.cooccurrence",
    "ranker.columns",
    "ranker.matching",
    "ranker.request",
    "ranker.sources.bm25",
    "ranker.sources.tokens",
    "ranker.training.prepared",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouped:
    """An imported log with its groups and the columns that its rows will have."""

    config: Config  # the TOML
    database: Path  # what the import wrote
    log: EventLog  # all events, in time order
    catalog: Catalog  # the users, items and categories behind its codes
    split: Split  # t0 to t3
    groups: Groups  # of all periods
    counters: tuple[Counter, ...]  # of [[counters]], each prior of a quotient filled in
    spec: FeatureSpec  # the columns of a row, without plugins


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared(Grouped):
    """A log that is ready to learn from."""

    key: str  # hash of all that it was made of
    weights: F64  # [grades + 1, grades + 1] of pairs, by the winner's and the loser's grade, drawn ones first
    state: State  # of the whole log
    places: Places | None  # where events stood; None where the TOML maps neither position nor propensity
    exposure: Exposure | None  # None weighs no pair anew
    recorded: Recorded  # which events of recorded logs are in it
    texts: tuple[str, ...]  # which of [events.columns] are text

    def slices(self) -> dict[str, Groups]:
        """Return the groups of the booster's two slices, `train` and `validation`, and of the `test`."""
        train, validation = (self.groups.of("booster", part) for part in (False, True))
        return {"train": train, "validation": validation, "test": self.groups.of("test")}

    def training_pairs(self, groups: Groups, seed: int) -> Pairs:
        """Return the pairs of groups to learn from: at most train_cap of each, weighed for exposure and age.

        Only those of drawn lists where `[pairing] explored_only` says so.
        """
        asked = self.config.pairing
        pairs = make_pairs(groups, self.weights, asked.train_cap, seed)
        if asked.explored_only and self.places is not None:
            pairs = explored(pairs, groups, self.places)
        return corrected(pairs, groups, self.exposure, asked)

    def fit_data(self, seed: int) -> FitData:
        """Return what a plugin may see: nothing of t1 or later. Raises PairliftError where that is nothing."""
        for validation in (False, True):
            _refuse_no_pairs(self, "towers", validation)  # of a plugin that is not served: see `_refuse_empty`
        groups = self.groups.of("towers")
        pairs = self.training_pairs(groups, seed)
        # Of candidates counters alone read what was said: to a plugin it is no feedback.
        log = self.log.between(self.split.t0, self.split.t1).with_feedback(len(self.config.events.feedback))
        return FitData(
            log=log,
            catalog=self.catalog,
            groups=groups,
            pairs=pairs,
            grades=self.config.grade_names,
            seed=seed,
            wanted=wanted_floor(self.config),
            zone=self.config.time.zone,
        )

    def later_events(self) -> LaterEvents:
        """Return the events of the test, to be predicted as of what came before them: what no fit may see."""
        log = self.log.until(self.split.t3).with_feedback(len(self.config.events.feedback))
        return LaterEvents(log=log, since=self.split.t2)


def prepare(config: Config, database: Path | None = None) -> Prepared:
    """Import, and make groups, counters and the state of the whole log. database: where it was imported just now."""
    check_params(config.booster)
    check_params(config.lists, WANTED_TABLE)
    classes = {name: plugin_class(config.plugins[name].path) for name in config.ranker.plugins}
    check_sources(config.sources, classes)
    check_diversity(config.lists.diversity, classes)
    made = group_log(config, database)
    check_against(config.sources, made.catalog)
    _check_familiar(made)
    _check_monotone(config, made.spec)
    places = load_places(made.database, config.events)
    prepared = Prepared(
        **{field.name: getattr(made, field.name) for field in fields(made)},
        key=log_key(config),
        weights=weight_table(config.pairing.weights, config.grade_names, config.pairing.negatives > 0),
        state=State.build(made.log, made.catalog, made.counters, config.grade_names),
        places=places,
        exposure=make_exposure(places, config.events, config.pairing),
        recorded=load_recorded(made.database),
        texts=load_texts(made.database),
    )
    _refuse_empty(prepared)
    filters_of(config, prepared.state)  # what does not fit the items is said now, and not behind the fits
    AtMost.of(config.lists.at_most, prepared.catalog)
    Rules.of(config.rules, prepared.catalog)
    return prepared


def group_log(config: Config, database: Path | None = None) -> Grouped:
    """Import, and make groups, counters and the columns' names: what needs no state. database: as in `prepare`."""
    database = database or import_stage(config) / "log.duckdb"
    log, catalog = load_log(database)
    split = make_split(config.split, log, config.time.zone)
    log, groups = paired_log(config, database, log, catalog, split)
    f, add = config.features, config.features.counters == "add"
    counters = make_counters(config.counters, log.until(split.t1), catalog, config.grade_names, add=add)
    spec = _spec(config, counters, log.between(split.t0, split.t1), catalog)
    keys = {part for counter in counters for part in counter.key}
    if f.columns is None and (missed := left_out(catalog, spec.columns, keys)):
        logger.info("%s", missed)
    return Grouped(
        config=config,
        database=database,
        log=log,
        catalog=catalog,
        split=split,
        groups=groups,
        counters=counters,
        spec=spec,
    )


def _spec(config: Config, counters: tuple[Counter, ...], log: EventLog, catalog: Catalog) -> FeatureSpec:
    """Return the columns of the rows, with what those of source items and queries read. log: the events of [t0, t1)."""
    f, from_items = config.features, config.events.source_item is not None
    matched = matched_columns(config, catalog)
    spec = make_spec(counters, catalog, config.time.zone, f.columns, f.listed, f.add, matched, from_items)
    matching = fit_matches(config, spec.matched, log, catalog)
    return replace(spec, unasked=unasked_of(config, catalog), matching=matching)


def paired_log(
    config: Config, database: Path, log: EventLog, catalog: Catalog, split: Split
) -> tuple[EventLog, Groups]:
    """Return the log of a database with the events that counters ask for of candidates, and its groups.

    log: of the database, its context in the codes of `catalog`, which those of candidates are of too.
    """
    check_list(config.features.listed, catalog)
    given = load_given(database, catalog)
    log = counted(log, given, counted_of(config, catalog), catalog, config.grade_names)
    given = given_of_log(given, log.request, catalog, config.features.listed)
    available = availability(log, catalog, config.pairing)
    groups = make_groups(log, config.pairing, split, given=given, available=available)
    return log, replace(groups, requests=with_queries(groups.requests, catalog))


def _check_familiar(made: Grouped) -> None:
    """Refuse what `[uplift] familiar` names and the items do not have, before anything is fitted."""
    known = [a.name for a in made.catalog.item_attributes if a.kind in ("categorical", "multi")]
    for name in made.config.uplift.familiar:
        if name not in known:
            raise PairliftError(
                f"[uplift] familiar: '{name}' is not a text or a list of [items.columns]{did_you_mean(name, known)}"
            )


def _check_monotone(config: Config, spec: FeatureSpec) -> None:
    """Refuse a constraint of no column, or of a category; it may name one of any plugin of the TOML, served or not."""
    if config.booster.monotone:
        plugins = {name: make_plugin(name, p.path, p.params) for name, p in config.plugins.items()}
        check_monotone(config.booster, columns_of(spec, plugins), categories_of(spec, plugins))


def log_key(config: Config) -> str:
    """Return a hash of what was imported, of the settings that are read after it, and of the code."""
    settings: list[Any] = [
        config.pairing.model_dump(),
        config.split.model_dump(),
        config.model_dump(include={"counters"}),
    ]
    settings.append(config.features.model_dump())
    if config.events.source_item is not None:
        settings.append(wanted_floor(config))  # whose events co-occurrence counts
    return hash_value([imported_key(config), settings, code_hash(*CODE)])


def _refuse_empty(prepared: Prepared) -> None:
    """Raise where a period, or a slice that is learned from or stopped by, has no groups or no pairs.

    The towers' period is read by plugins alone.
    """
    for period in PERIODS if prepared.config.ranker.plugins else PERIODS[1:]:
        for validation in (None,) if period == "test" else (False, True):
            _refuse_no_pairs(prepared, period, validation)


def _refuse_no_pairs(prepared: Prepared, period: str, validation: bool | None) -> None:
    groups = prepared.groups.of(period, validation)
    place = f"the {'validation slice of the ' if validation else ''}{period} period"
    if not len(groups.requests):
        raise PairliftError(f"[split]: {place} has no graded impressions; move t1, t2 or t3, or see [[grades]]")
    if not count_pairs(groups, prepared.weights).any():
        raise PairliftError(
            f"{place} has no pairs: no group holds two impressions of different grades. Widen [pairing] "
            "window, move the split, or, for a log with positives only, set pairing.negatives = 4"
        )
