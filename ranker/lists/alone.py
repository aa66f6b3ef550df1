"""What each source proposes by itself, behind the filters, to requests whose users' later wants are known."""

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np

from features.progress import progress_bar
from features.schema import I32, offsets_of
from features.state.store import State
from ranker.blend.learned import Told
from ranker.candidates.configured import Sources
from ranker.candidates.filters import Filters
from ranker.candidates.gathering import is_for, kept_alone, limit_alone
from ranker.candidates.source import NOTHING, CandidateSource, Proposal, proposed
from ranker.lists.asked import Asked
from ranker.request import NO_ITEMS, Request

log = logging.getLogger(__name__)


def told_of(
    sources: Sources,
    parts: Sequence[Asked],
    state: State,
    filters: Filters,
    length: int,
    failed: Counter[str] | None = None,
) -> Told:
    """Ask each of s sources for `length` items for each request of all parts, one behind another.

    failed: counts, by source, the failures; of these the list is empty. None: an error is raised.
    """
    size = sum(map(len, parts))
    lists = np.full((len(sources), size, length), -1, np.int32)
    requests = enumerate(Request.of(who.requests, k, state) for who in parts for k in range(len(who)))
    for row, request in progress_bar(requests, total=size, desc="sources", unit=" requests", leave=False):
        for s, (source, settings) in enumerate(sources):
            own = _alone(source, request, length, filters, failed) if is_for(settings, request) else NO_ITEMS
            lists[s, row, : len(own)] = own
    return Told(
        lists=lists,
        user=np.concatenate([who.requests.user for who in parts]),
        known=np.concatenate([who.history > 0 for who in parts]),
        surface=np.concatenate([who.requests.surface for who in parts]),
        offsets=offsets_of(np.concatenate([who.wanted for who in parts])),
        item=np.concatenate([who.item for who in parts]),
    )


def _alone(source: CandidateSource, request: Request, m: int, filters: Filters, failed: Counter[str] | None) -> I32:
    """Return int32[<= m]: what one source proposes that the filters keep, in its own order."""
    return kept_alone(asked_of(source, request, limit_alone(m, request, filters), failed), m, request, filters)


def asked_of(source: CandidateSource, request: Request, limit: int, failed: Counter[str] | None) -> Proposal:
    """Return what a source proposes; nothing where it fails, which is counted, and told the first time.

    failed: None raises the error.
    """
    try:
        return proposed(source, request, limit)
    except Exception:
        if failed is None:
            raise
        if not failed[source.name]:
            log.exception("source '%s' failed; further failures are counted", source.name)
        failed[source.name] += 1
        return NOTHING
