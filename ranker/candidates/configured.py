"""The candidate sources of `[sources]`."""

import logging
from collections.abc import Iterable, Sequence

from features.plugin import FeaturePlugin, VectorPlugin
from features.state.store import State
from ranker.candidates.cooccurrence import Cooccurrence, TakenTogether
from ranker.candidates.nearest import Nearest
from ranker.candidates.popular import Popular
from ranker.candidates.source import CandidateSource
from ranker.config import Config, wanted_floor
from ranker.settings import SourceSettings

log = logging.getLogger(__name__)

Sources = Sequence[tuple[CandidateSource, SourceSettings]]


def configured_sources(
    config: Config, state: State, cooccurrence: Cooccurrence, plugins: Iterable[FeaturePlugin]
) -> Sources:
    """Return the sources, each with its settings, in the order of their bits. state: of now, for the popular items."""
    settings, floor = config.sources, wanted_floor(config)
    found: list[tuple[CandidateSource, SourceSettings]] = []
    if settings.popular:
        found.append((Popular(state, floor, settings.popular.half_life), settings.popular))
    if settings.cooccurrence:
        found.append((TakenTogether(cooccurrence, floor), settings.cooccurrence))
    if settings.nearest:
        vectors = next((plugin for plugin in plugins if isinstance(plugin, VectorPlugin)), None)
        if vectors is None:
            log.info("source 'nearest' is left out: none of the served plugins has vectors")
        else:
            found.append((Nearest(vectors), settings.nearest))
    return found
