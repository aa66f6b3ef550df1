"""What sources lose that do not compare each item: measured when a bundle is made, and kept in it."""

from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from features.state.store import State
from ranker.candidates.configured import Sources
from ranker.candidates.source import CandidateSource
from ranker.request import Request

#: users who are asked, and for how many items
USERS, WANTED = 64, 200


@runtime_checkable
class ApproximateSource(CandidateSource, Protocol):
    """A source that may leave out a few of the best, for there are many items."""

    def in_full(self) -> Self | None:
        """Return the same source without loss; None where it loses nothing."""


def recalls(sources: Sources, state: State) -> dict[str, dict[str, Any]]:
    """Return recall@WANTED by source: which share of what it would propose in full it proposes.

    Of at most USERS users with events, drawn evenly from the order of their indexes, as of the state's end. Sources
    that lose nothing are not in it, nor those that have nothing for any of them.
    """
    users = np.flatnonzero(state.histories.sizes)
    asked = [Request(int(user), state.end, state=state) for user in users[:: -(-len(users) // USERS) or 1]]
    found: dict[str, dict[str, Any]] = {}
    for source, _ in sources:
        full = source.in_full() if isinstance(source, ApproximateSource) else None
        shares = [] if full is None else [_share(source, full, request) for request in asked]
        known = [share for share in shares if share is not None]
        if known:
            found[source.name] = {f"recall@{WANTED}": float(np.mean(known)), "users": len(known)}
    return found


def _share(source: CandidateSource, full: CandidateSource, request: Request) -> float | None:
    wanted = full.propose(request, WANTED).item
    return float(np.isin(wanted, source.propose(request, WANTED).item).mean()) if len(wanted) else None
