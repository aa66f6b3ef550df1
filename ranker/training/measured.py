"""What a training is measured by: pairs of the test's lists, and whole lists of Recommend as of the cut.

Of the lists that are measured, everything that is fitted or counted is of before t2, also what the bundle itself has
as of the end of the log.
"""

import logging
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from features.errors import PairliftError
from features.pairing.groups import Groups
from features.pairing.pairs import Pairs
from features.plugin import FeaturePlugin
from features.schema import F32, F64, GIB, SAMPLED
from ranker.bundle import Bundle
from ranker.candidates.approximate import recalls
from ranker.candidates.configured import configured_sources
from ranker.candidates.cooccurrence import Cooccurrence
from ranker.columns import categories_of, columns_of
from ranker.config import Config, wanted_floor
from ranker.lists.answers import patient
from ranker.lists.asked import Asked
from ranker.lists.diverse import order_cost
from ranker.lists.found import KS, sources_report
from ranker.lists.peers import Past
from ranker.lists.report import brief_report, lists_report
from ranker.lists.shared import learner_of
from ranker.metrics.importance import explain
from ranker.metrics.interval import finite
from ranker.metrics.lists import shown_metrics
from ranker.metrics.pair_accuracy import pair_accuracy
from ranker.metrics.shown import Shown
from ranker.metrics.simple import events_before
from ranker.pipeline import Pipeline
from ranker.training.arms import Arm, Arms, of_kind
from ranker.training.booster import at_cap
from ranker.training.earlier_trees import Start
from ranker.training.parts import Parts, fit_parts
from ranker.training.plugins import served_plugins
from ranker.training.prepared import Prepared, prepare
from ranker.training.proposed import Proposed
from ranker.training.wanted import NO_SOURCES, Wanted, asked_in_slices, fitted_until, sources_until

logger = logging.getLogger(__name__)

#: users whose lists `train` asks for
USERS = 1000
#: requests of the test whose candidates the columns of the wanted part are explained on
EXPLAINED = 50


def pair_figures(parts: Parts, old: Start | None) -> dict[str, Any]:
    """Return the figures of what orders Rank on the test: of the booster, or of the network and the booster beside it.

    old: what the trees started from, where there is something.
    """
    arms, columns, arm, network = parts.arms, parts.columns, parts.liked, parts.network
    test, scores = of_kind(arms.pairs("test"), arms.kind), arm.scores if network is None else network.scores
    found = pair_accuracy(scores, test)
    measured: dict[str, Any] = {"pair_accuracy": found.value, "pair_accuracy_catboost": found.catboost}
    measured |= {"tie_share": found.ties, "pairs_kind": arms.kind, "trees": arm.trees}
    new = arm.trees - (old.booster.num_trees() if old is not None else 0)
    kept = old is not None and (old.mode == "refit" or not new)
    measured["at_cap"] = not kept and at_cap(arms.prepared.config.booster, new)
    measured["seed"] = arms.prepared.config.uplift.seeds[0]
    if network is not None:
        measured["booster_pair_accuracy"] = pair_accuracy(arm.scores, test).value
        measured["network_parameters"] = network.ranker.report.get("parameters")
    held = of_kind(arms.pairs("validation"), arms.kind)
    measured |= _of_validation(parts, held)
    measured["pairs"] = {"validation": len(held), "test": len(test)}
    measured |= _simple(arms, scores)
    listed = shown_metrics(scores, arms.groups["test"], shown=not test.sampled.any())
    measured |= {name: None if np.isnan(value) else value for name, value in listed.items()}
    if old is not None:
        before = np.asarray(old.booster.predict(arms.rows("test", columns), raw_score=True))
        measured |= {old.mode: old.version, "old_pair_accuracy": pair_accuracy(before, test).value}
    return measured


def _of_validation(parts: Parts, held: Pairs) -> dict[str, float]:
    """Return the PairAccuracy of pairs of the validation slice, likewise."""
    rows, network = parts.arms.rows("validation", parts.columns), parts.network
    of_trees = pair_accuracy(np.asarray(parts.liked.booster.predict(rows, raw_score=True)), held).value
    if network is None:
        return {"validation_accuracy": of_trees}
    of_network = pair_accuracy(network.ranker.score(rows), held).value
    return {"validation_accuracy": of_network, "booster_validation_accuracy": of_trees}


def _simple(arms: Arms, scores: F64) -> dict[str, Any]:
    """Return what orders that learn nothing reach on the same pairs; and what the places say, where they are known.

    scores: float64[n] of the test's rows.
    """
    prepared, groups, pairs = arms.prepared, arms.groups["test"], arms.pairs("test")
    popularity = events_before(prepared.log, prepared.state, groups)
    found: dict[str, Any] = {"popularity": pair_accuracy(popularity, of_kind(pairs, arms.kind)).value}
    if arms.kind == SAMPLED:
        return found | {"sampler": prepared.config.pairing.sampler}
    shown = shown_of(prepared, groups, pairs)
    return found | {"shown_order": shown and shown.reported({"ours": scores, "popularity": popularity})}


def shown_of(prepared: Prepared, groups: Groups, pairs: Pairs) -> Shown | None:
    """Return what the places of a slice say, examination being estimated of events before the test."""
    config, log, end = prepared.config, prepared.log, prepared.split.t2
    return Shown.of(groups, pairs, prepared.weights, prepared.places, log, end, config.pairing)


def importance_of_parts(bundle: Bundle, prepared: Prepared, liked: F32) -> dict[str, Any]:
    """Return `ranker.metrics.importance.explain` of each part: of the liked one on float32[n, c] rows, of the wanted
    one on what the sources propose to some requests of the test.

    bundle: of `bundle_at_cut`. Where a network is the liked part, `booster` stands in its place, the one beside it.
    """
    part = "liked" if bundle.network is None else "booster"
    categories = categories_of(bundle.spec, bundle.plugins)
    found = {part: explain(bundle.booster, liked, categories)}
    if bundle.wanted is not None and len(rows := _proposed_rows(bundle, prepared)):
        found["wanted"] = explain(bundle.wanted, rows, categories)
    return found


def _proposed_rows(bundle: Bundle, prepared: Prepared) -> F32:
    """Return float32[n, c + s] of what the sources propose to at most EXPLAINED requests of the test."""
    groups = prepared.groups.of("test")
    some = np.zeros(len(groups.requests), bool)
    some[np.linspace(0, len(some) - 1, EXPLAINED).astype(int) if len(some) else []] = True
    requests = groups.select(some).requests
    who = Asked(requests=requests, history=np.zeros(len(requests), np.int64))  # what they wanted is not read
    sources = configured_sources(bundle.config, bundle.state, bundle.cooccurrence, bundle.plugins, bundle.fitted)
    quotas = None if bundle.shares is None else bundle.shares.quotas(sources)
    return Proposed.of(prepared, bundle.plugins, sources, who, None, every=True, quotas=quotas).matrix


def list_figures(bundle: Bundle, prepared: Prepared, most: int = USERS) -> dict[str, Any] | None:
    """Return `brief_report` of at most so many users; None, and a warning, where nobody wanted anything in the test.

    bundle: of `bundle_at_cut`.
    """
    if not prepared.config.sources.on:
        logger.warning("%s", NO_SOURCES)
        return None
    pipeline = Pipeline(patient(bundle))
    try:
        return brief_report(pipeline, past_of(prepared), most=most, seed=prepared.config.uplift.seeds[0])
    except PairliftError as error:
        logger.warning("%s", error)
        return None
    finally:
        pipeline.close()


def recall_figures(bundle: Bundle) -> dict[str, Any]:
    """Return what sources that search many items by vectors lose by it, `approximate`; nothing where none does.

    bundle: of `bundle_at_cut`: its vectors and its state are those that are served.
    """
    sources = configured_sources(bundle.config, bundle.state, bundle.cooccurrence, bundle.plugins, bundle.fitted)
    found = recalls(sources, bundle.state)
    return {"approximate": found} if found else {}


def measure_lists(config: Config, most: int | None = None, memory: int = 2 * GIB) -> dict[str, Any]:
    """Train as `train` does, and return what the lists of the test's users are worth: see `ranker.lists.report`.

    most: users that are asked about, in place of `[lists] users`. memory: bytes, of `Cooccurrence.build`.
    """
    if not config.sources.on:
        raise PairliftError(f"{NO_SOURCES}; switch one on")
    prepared, seed = prepare(config), config.uplift.seeds[0]
    parts = fit_parts(Arms.of(prepared), served_plugins(prepared), memory=memory)
    pipeline = Pipeline(patient(parts_at_cut(parts, memory)))
    try:
        report = lists_report(pipeline, past_of(prepared), most=most or config.lists.users, seed=seed)
        return report | _diversity_cost(pipeline, parts)
    finally:
        pipeline.close()


def _diversity_cost(pipeline: Pipeline, parts: Parts) -> dict[str, Any]:
    """Return what diversity costs the order of the test's pairs, by the liked part; nothing where it is off."""
    diversity, arms = pipeline.reranking.diversity, parts.arms
    if diversity is None:
        return {}
    scores = parts.liked.scores if parts.network is None else parts.network.scores
    pairs = of_kind(arms.pairs("test"), arms.kind)
    return {"diversity": finite(order_cost(diversity, arms.groups["test"], scores, pairs))}


def measure_sources(config: Config, most: int | None = None, memory: int = 2 * GIB) -> dict[str, Any]:
    """Fit the served plugins and return what each source finds, see `ranker.lists.found`; no ranker is trained.

    most, memory: as of `measure_lists`.
    """
    if not config.sources.on:
        raise PairliftError(f"{NO_SOURCES}; switch one on")
    prepared, seed = prepare(config), config.uplift.seeds[0]
    plugins, slices = served_plugins(prepared), asked_in_slices(prepared)
    ends = (prepared.split.t1, prepared.split.t2)
    earlier, sources = (sources_until(prepared, plugins, end, memory) for end in ends)
    learner, _ = learner_of(earlier, slices, prepared.state, config, KS[-1], Counter())
    past, most = past_of(prepared), most or config.lists.users
    return sources_report(sources, learner, past, prepared.state, config, most=most, seed=seed)


def parts_at_cut(parts: Parts, memory: int = 2 * GIB) -> Bundle:
    """Return `bundle_at_cut` of what was fitted."""
    at_cut = bundle_at_cut(parts.prepared, parts.plugins, parts.liked, Wanted(parts.wanted, parts.shares), memory)
    network = None if parts.network is None else parts.network.ranker
    return replace(at_cut, network=network, prerank=parts.prerank)


def bundle_at_cut(
    prepared: Prepared,
    plugins: dict[str, FeaturePlugin],
    arm: Arm,
    wanted: Wanted,
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
        wanted=wanted.booster,
        shares=wanted.shares,
        cooccurrence=table,
        fitted=fitted_until(prepared, prepared.split.t2),
    )


def past_of(prepared: Prepared) -> Past:
    """Return the log as lists are judged on it."""
    return Past(
        log=prepared.log,
        histories=prepared.state.histories,
        catalog=prepared.catalog,
        groups=prepared.groups,
        split=prepared.split,
        floor=wanted_floor(prepared.config),
        again=not prepared.config.sources.exclude_seen,
    )
