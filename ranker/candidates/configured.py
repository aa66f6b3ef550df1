"""The candidate sources of `[sources]`."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

from features.plugin import FeaturePlugin, VectorPlugin
from features.state.store import State
from ranker.candidates.cooccurrence import Cooccurrence, TakenTogether
from ranker.candidates.demand import Demand
from ranker.candidates.named import NOT_FITTED, Fitted, OpenedSource, Served, StateSource, make_source, plugins_of
from ranker.candidates.nearest import Nearest
from ranker.candidates.popular import Popular
from ranker.candidates.source import CandidateSource
from ranker.config import Config, wanted_floor
from ranker.settings import PopularSettings, SourceSettings

log = logging.getLogger(__name__)

Sources = Sequence[tuple[CandidateSource, SourceSettings]]


def configured_sources(
    config: Config,
    state: State,
    cooccurrence: Cooccurrence,
    plugins: Mapping[str, FeaturePlugin],
    fitted: Fitted = NOT_FITTED,
) -> Sources:
    """Return the sources, each with its settings, in the order of their bits.

    state: of now, for what is counted over all events. plugins: those that are served, by name. fitted: of
    `fit_sources`.
    """
    settings, floor = config.sources, wanted_floor(config)
    found: list[tuple[CandidateSource, SourceSettings]] = []
    popular = settings.popular or PopularSettings()
    demand = cache(lambda half_life: Demand(state, floor, half_life))
    if settings.popular:
        found.append((Popular(demand(popular.half_life)), settings.popular))
    if settings.cooccurrence:
        found.append((TakenTogether(cooccurrence, floor), settings.cooccurrence))
    if settings.nearest:
        vectors = next((plugin for plugin in plugins.values() if isinstance(plugin, VectorPlugin)), None)
        if vectors is None:
            log.info("source 'nearest' is left out: none of the served plugins has vectors")
        else:
            near = settings.nearest
            source = Nearest(vectors, demand(near.half_life or popular.half_life), near.weight, state, near.exact)
            found.append((source, near))
    return [*found, *_named_sources(config, state, plugins, fitted)]


def _named_sources(
    config: Config, state: State, plugins: Mapping[str, FeaturePlugin], fitted: Fitted
) -> Iterator[tuple[CandidateSource, SourceSettings]]:
    """Give the sources of `[sources.NAME]`, opened; without those whose plugin is not there."""
    for name, settings in config.sources.named.items():
        source = make_source(name, settings)
        if lacking := [plugin for plugin in plugins_of(source) if plugin not in plugins]:
            log.info("source '%s' is left out: the plugin %s is not served", name, ", ".join(lacking))
            continue
        if isinstance(source, OpenedSource):
            arrays = fitted.get(name, {})
            source.open(Served(arrays=arrays, plugins=plugins, state=state, floor=wanted_floor(config)))
        yield source, settings


def with_demand_of(sources: Sources, state: State, failed: Callable[[str, Exception], None]) -> Sources:
    """Return the sources with what another state counts; the demand that they share is counted once.

    failed: is told (source's name, error) of one that cannot count: it stays as it is, and the others go on.
    """
    anew = cache(lambda demand: demand.by(state))
    found: list[tuple[CandidateSource, SourceSettings]] = []
    for source, settings in sources:
        try:
            found.append((_over(source, state, anew), settings))
        except Exception as error:
            failed(source.name, error)
            found.append((source, settings))
    return found


def _over(source: CandidateSource, state: State, anew: Callable[[Demand], Demand]) -> CandidateSource:
    if isinstance(source, Popular | Nearest) and source.demand is not None:
        return source.by(anew(source.demand))
    return source.over(state) if isinstance(source, StateSource) else source
