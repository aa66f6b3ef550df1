"""How the candidates of a request come about: the one path of training (`candidates_of`) and of `Pipeline.recommend`.

    own_quotas  how many places each source has, where that was not learned (`ranker.blend`)
    limits      how much each source is asked for: its places, and what the filters will or may remove
    proposed    each source's Proposal (a server asks them in lanes with deadlines)
    gathered    merge, filters, places; those that a source leaves empty go to the others
    source_values   each source's own score of every candidate, also of those that another source proposed

In a server a source that fails or is late has the proposal `NOTHING`; in training its error ends the training.
"""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from features.schema import F32, I32
from ranker.candidates.configured import Sources
from ranker.candidates.filters import KEPT, Filters, filters_of, history
from ranker.candidates.merge import Places, dedupe, within_places
from ranker.candidates.source import Proposal, proposed
from ranker.columns import NUMBERS, finite
from ranker.config import Config
from ranker.request import Candidates, Request
from ranker.settings import QUOTA, SourceSettings

#: how many candidates each source may have for a request, counted behind the filters
Quotas = Callable[[Request], Places]

#: a source is asked for its quota and for what the filters are sure to remove, but for no more than quota times this
MOST_ASKED = 5
#: places of a source whose settings have no quota
UNBOUNDED = 2**31 - 1


def candidates_of(
    sources: Sources, request: Request, config: Config, quotas: Quotas | None = None
) -> tuple[Candidates, F32]:
    """Return the n candidates of a request as a server gathers them, and float32[n, s] `source_values` of them.

    Sources are asked as by `proposals_of`. quotas: None for the sources' own.
    """
    filters, places = filters_of(config, request.state), (quotas or own_quotas(sources))(request)
    proposals = proposals_of(sources, request, filters, places)
    candidates, _ = gathered(proposals, filters, places, request)
    return candidates, source_values(proposals, candidates.item)


def proposals_of(sources: Sources, request: Request, filters: Filters, places: Places) -> list[Proposal]:
    """Return what each source proposes, one after another without deadlines; what they raise is raised."""
    asked = zip(sources, limits(sources, request, filters, places), strict=True)
    return [proposed(source, request, limit) for (source, _), limit in asked]


def own_quotas(sources: Sources) -> Quotas:
    """Return the quotas that the sources' settings have, QUOTA where they have none."""

    @cache
    def of_surface(surface: str) -> Places:
        return own_places([settings for _, settings in sources], surface)

    return lambda request: of_surface(surface_of(request))


def own_places(settings: Sequence[SourceSettings], surface: str) -> Places:
    """Return the places that sources have for a surface, empty for none, by their settings alone."""
    quota = [of.most(surface) or QUOTA for of in settings]
    there = [own for own, of in zip(quota, settings, strict=True) if serves(of, surface)]
    return Places(quota, most_of(settings, surface), sum(there))


def most_of(settings: Sequence[SourceSettings], surface: str) -> list[int]:
    """Return of each source how many places it may have at most, by its settings."""
    return [of.most(surface) or UNBOUNDED for of in settings]


def limits(sources: Sources, request: Request, filters: Filters, places: Places) -> list[int]:
    """Return how many items each source is asked for: its quota and a surplus, up to quota times `MOST_ASKED`.

    0 of a source that is not for the surface of the request.
    """
    asked = zip(sources, places.quota, strict=True)
    most = [MOST_ASKED * own if is_for(settings, request) else 0 for (_, settings), own in asked]
    if filters.conditions:  # how much these remove is not known before
        return most
    # The user's history and the exclusions will be removed: without more to choose from, a user who has seen all that
    # is popular would get nothing of it. Of a user without history many sources know nothing, and leave their places.
    surplus, seen = len(request.exclude) + 1, len(history(request))
    if filters.exclude_seen:
        surplus += seen
    wide = [own if seen else max(own, min(of, places.total)) for own, of in zip(places.quota, places.most, strict=True)]
    return [min(own + surplus, limit) for own, limit in zip(wide, most, strict=True)]


def limit_alone(m: int, request: Request, filters: Filters) -> int:
    """Return how many items to ask one source for that is measured alone, so that m are left behind the filters.

    All that the user has seen is made up for; what conditions remove as in `limits`, for it is not known before.
    """
    return max(m + len(history(request)) + 1, MOST_ASKED * m if filters.conditions else 0)


def kept_alone(proposal: Proposal, m: int, request: Request, filters: Filters) -> I32:
    """Return int32[<= m]: what one source proposes that the filters keep, in its own order."""
    candidates, _ = gathered([proposal], filters, Places([m], [m], m), request)
    return candidates.item[np.argsort(candidates.place[:, 0])]


def is_for(settings: SourceSettings, request: Request) -> bool:
    """Return whether a source is for lists of the request's surface."""
    return serves(settings, surface_of(request))


def serves(settings: SourceSettings, surface: str) -> bool:
    """Return whether a source is for lists of a surface, empty for none."""
    return settings.surfaces is None or surface in settings.surfaces


def surface_of(request: Request) -> str:
    """Return the name of the request's surface, empty where it names none."""
    return request.state.catalog.surfaces[request.surface] if request.surface >= 0 else ""


def gathered(
    proposals: Sequence[Proposal], filters: Filters, places: Places, request: Request
) -> tuple[Candidates, list[tuple[str, int]]]:
    """Return the candidates by item, and (filter, how many items it removed) of each filter.

    proposals: one for each source, in the order of their bits. places: of each source, counted behind the filters.
    """
    candidates, names = dedupe(proposals), filters.names
    verdict = filters.judged(candidates.item, request)
    counts = np.bincount(verdict - KEPT, minlength=len(names) + 1)[1:].tolist()
    return within_places(candidates, verdict == KEPT, places), list(zip(names, counts, strict=True))


def source_columns(sources: Sources) -> tuple[str, ...]:
    """Return the names of the columns of `source_values`."""
    return tuple(f"source__{source.name}" for source, _ in sources)


def source_values(proposals: Sequence[Proposal], item: I32) -> F32:
    """Return float32[n, s]: each source's own score of int32[n] items, NaN where it has none or says nothing."""
    scores = [None if proposal.score is None else scores_of(proposal.score, item) for proposal in proposals]
    return score_columns(scores, len(item))


def score_columns(scores: Sequence[F32 | None], n: int) -> F32:
    """Return float32[n, s] of what `scores_of` gives for s sources; None: a column of NaN."""
    values = np.full((n, len(scores)), np.nan, np.float32)
    for number, own in enumerate(scores):
        if own is not None:
            values[:, number] = own
    return finite(values)


def scores_of(score: Callable[[I32], F32], item: I32) -> F32:
    """Return float32[n], what a source says of int32[n] items; ValueError for another shape or no real numbers."""
    found = np.asarray(score(item))
    if found.shape != item.shape:
        raise ValueError(f"scores of shape {item.shape} were expected, found {found.shape}")
    if found.dtype.kind not in NUMBERS:
        raise ValueError(f"scores that are real numbers were expected, found the type {found.dtype}")
    if found.dtype == np.float32:
        return found
    with np.errstate(over="ignore"):
        return found.astype(np.float32)
