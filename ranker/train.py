"""From the log to a bundle: the whole training path.

train(config, out)
    prepare               the log through the TOML's SQL into DuckDB (resumed), split, groups, counters, state
    plugin_stage          a plugin, fitted on the towers' period alone                (resumed)
      or load_start       plugins and trees of an earlier bundle, in the present codes
    Arms.of               features of groups, strictly before their as_of; or those of a feature log
    Arms.served_columns   the columns of the plugins
    Arms.fit              the liked part: the booster of the first seed, with its test scores   (resumed)
    wanted_stage          the wanted part, learned from what the sources propose      (resumed)
    _measured             the figures of the test
    Cooccurrence.build    the table of the source `cooccurrence`
    explain               what each column does in the booster
    write_bundle          all of it, as the server loads it
"""

import json
import logging
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np

from features.errors import PairliftError
from features.plugin import FeaturePlugin
from features.schema import GIB
from ranker.bundle import Bundle, check_out, write_bundle
from ranker.candidates.cooccurrence import Cooccurrence
from ranker.columns import Columns, columns_of, full_matrix
from ranker.config import Config, wanted_floor
from ranker.export.pairfile import read_pairs
from ranker.lists.answers import patient
from ranker.lists.peers import Past
from ranker.lists.report import lists_report
from ranker.metrics.importance import explain
from ranker.metrics.lists import shown_metrics
from ranker.metrics.pair_accuracy import pair_accuracy
from ranker.pipeline import Pipeline
from ranker.recording.logged import drift, read_features
from ranker.training.arms import Arm, Arms, of_kind
from ranker.training.earlier_bundle import StartFrom, load_start
from ranker.training.earlier_trees import Start
from ranker.training.plugins import plugin_stage
from ranker.training.prepared import Prepared, prepare
from ranker.training.wanted import digest_of, wanted_stage

logger = logging.getLogger(__name__)


def train(
    config: Config,
    out: Path,
    *,
    features: Path | None = None,
    pairs: Path | None = None,
    start: StartFrom | None = None,
    memory: int = 2 * GIB,
) -> dict[str, Any]:
    """Train the served ranker and write its bundle to `out`; return the figures of its test.

    features: a feature log, whose values are learned from in place of recomputed ones. pairs: a file of pairs of the
    booster's train slice, which are learned from in place of made ones. start: an earlier bundle, whose plugins are
    kept. memory: bytes, of `Cooccurrence.build`.
    """
    check_out(out, config)
    prepared, seed = prepare(config), config.uplift.seeds[0]
    given = None if pairs is None else read_pairs(pairs, prepared.slices()["train"])
    old = None if start is None else load_start(start, prepared)
    plugins = old.plugins if old else {name: plugin_stage(prepared, name, seed) for name in config.ranker.plugins}
    arms = Arms.of(prepared, None if features is None else read_features(features, prepared.catalog), given)
    columns = arms.served_columns(plugins)
    label = "+".join(plugins) or "without"
    arm = arms.fit(label if old is None else f"{label}-{old.mode}", columns, seed, old)
    measured = _measured(arms, columns, arm, old)
    write_bundle(
        out,
        config=config,
        spec=prepared.spec,
        state=prepared.state,
        plugins=plugins,
        booster=arm.booster,
        wanted=wanted_stage(prepared, plugins, digest_of(columns, plugins), seed, memory),
        cooccurrence=Cooccurrence.build(prepared.log, prepared.catalog.n_items, wanted_floor(config), memory=memory),
        measured=measured,
        importance=explain(arm.booster, arms.rows("validation", columns), prepared.spec.categorical),
        split=prepared.split,
        recorded=prepared.recorded,
    )
    logger.info("bundle %s: test PairAccuracy %.4f, %s", out, measured["pair_accuracy"], json.dumps(measured))
    return measured


def measure_lists(config: Config, most: int | None = None, memory: int = 2 * GIB) -> dict[str, Any]:
    """Train as `train` does, and return what the lists of the test's users are worth: see `ranker.lists.report`.

    most: users that are asked about, in place of `[lists] users`. memory: bytes, of `Cooccurrence.build`.
    """
    prepared, seed = prepare(config), config.uplift.seeds[0]
    plugins = {name: plugin_stage(prepared, name, seed) for name in config.ranker.plugins}
    arms = Arms.of(prepared)
    columns = arms.served_columns(plugins)
    arm = arms.fit("+".join(plugins) or "without", columns, seed)
    wanted = wanted_stage(prepared, plugins, digest_of(columns, plugins), seed, memory)
    pipeline = Pipeline(patient(bundle_at_cut(prepared, plugins, arm, wanted, memory)))
    past = Past(
        log=prepared.log,
        histories=prepared.state.histories,
        catalog=prepared.catalog,
        groups=prepared.groups,
        split=prepared.split,
        floor=wanted_floor(config),
    )
    try:
        return lists_report(pipeline, past, most=most or config.lists.users, seed=seed)
    finally:
        pipeline.close()


def bundle_at_cut(
    prepared: Prepared,
    plugins: dict[str, FeaturePlugin],
    arm: Arm,
    wanted: lgb.Booster | None,
    memory: int = 2 * GIB,
) -> Bundle:
    """Return a bundle in memory of which everything that is learned is of before t2; its state is the whole log's.

    A request reads of that state what lies before its as_of, so lists can be asked for as of any time from t2 on.
    """
    floor, before = wanted_floor(prepared.config), prepared.log.until(prepared.split.t2)
    table = Cooccurrence.build(before, prepared.catalog.n_items, floor, memory=memory)
    return Bundle(
        folder=prepared.config.work,
        version="at-cut",
        config=prepared.config,
        columns=tuple(columns_of(prepared.spec, plugins)),
        spec=prepared.spec,
        state=prepared.state,
        plugins=plugins,
        booster=arm.booster,
        wanted=wanted,
        cooccurrence=table,
    )


def _measured(arms: Arms, columns: Columns, arm: Arm, old: Start | None) -> dict[str, Any]:
    """Return the figures of an arm's test, and of the trees that it started from where there are some."""
    test = of_kind(arms.pairs("test"), arms.kind)
    found = pair_accuracy(arm.scores, test)
    measured: dict[str, Any] = {"pair_accuracy": found.value, "pair_accuracy_catboost": found.catboost}
    measured |= {"tie_share": found.ties, "pairs_kind": arms.kind, "trees": arm.trees}
    measured["seed"] = arms.prepared.config.uplift.seeds[0]
    listed = shown_metrics(arm.scores, arms.groups["test"], shown=not test.sampled.any())
    measured |= {name: None if np.isnan(value) else value for name, value in listed.items()}
    if old is not None:
        before = np.asarray(old.booster.predict(arms.rows("test", columns), raw_score=True))
        measured |= {old.mode: old.version, "old_pair_accuracy": pair_accuracy(before, test).value}
    return measured


def drift_report(config: Config, features: Path) -> list[dict[str, Any]]:
    """Recompute what a feature log has, from the whole log of events, and compare: see `ranker.recording.logged`."""
    prepared = prepare(config)
    logged = read_features(features, prepared.catalog)
    plugins = {name: plugin_stage(prepared, name, config.uplift.seeds[0]) for name in config.ranker.plugins}
    columns = columns_of(prepared.spec, plugins)
    if sorted(columns) != sorted(logged.columns):
        odd = sorted(set(columns) ^ set(logged.columns))
        raise PairliftError(f"{features} and {config.path} disagree about the columns: {', '.join(odd[:5])}")
    values = full_matrix(prepared.state, prepared.spec, plugins, logged.requests)
    order = [columns.index(name) for name in logged.columns]
    return drift(logged, values[:, order], columns[len(prepared.spec.columns) :])
