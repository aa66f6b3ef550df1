"""The candidate sources of `[sources]`."""

import logging
from collections.abc import Iterable, Sequence
from functools import cache

from features.plugin import FeaturePlugin, VectorPlugin
from features.state.store import State
from ranker.candidates.cooccurrence import Cooccurrence, TakenTogether
from ranker.candidates.demand import Demand
from ranker.candidates.nearest import Nearest
from ranker.candidates.popular import Popular
from ranker.candidates.search import Search
from ranker.candidates.source import CandidateSource
from ranker.config import Config, wanted_floor
from ranker.search.index import TextIndex
from ranker.settings import PopularSettings, SourceSettings

log = logging.getLogger(__name__)

Sources = Sequence[tuple[CandidateSource, SourceSettings]]


def configured_sources(
    config: Config,
    state: State,
    cooccurrence: Cooccurrence,
    plugins: Iterable[FeaturePlugin],
    texts: TextIndex | None = None,
) -> Sources:
    """Return the sources, each with its settings, in the order of their bits. state: of now, for the popular items.

    texts: that `search` looks items up in.
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
        vectors = next((plugin for plugin in plugins if isinstance(plugin, VectorPlugin)), None)
        if vectors is None:
            log.info("source 'nearest' is left out: none of the served plugins has vectors")
        else:
            near = settings.nearest
            source = Nearest(vectors, demand(near.half_life or popular.half_life), near.weight, state)
            found.append((source, near))
    if settings.search and texts is not None:
        found.append((Search(texts), settings.search))
    return found


def with_demand_of(sources: Sources, state: State) -> Sources:
    """Return the sources with the demand of another state; what they share is counted once."""
    anew = cache(lambda demand: demand.by(state))
    found: list[tuple[CandidateSource, SourceSettings]] = []
    for source, settings in sources:
        if isinstance(source, Popular | Nearest) and source.demand is not None:
            found.append((source.by(anew(source.demand)), settings))
        else:
            found.append((source, settings))
    return found
