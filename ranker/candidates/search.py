"""Full-text search: the items whose text has what the user typed, by BM25."""

from functools import partial

import numpy as np

from features.schema import Bool
from features.state.store import NEVER
from ranker.candidates.source import NOTHING, Proposal, best
from ranker.request import Request
from ranker.search.index import NONE, TextIndex
from ranker.search.tokens import tokens


class Search:
    """Items by the BM25 score of their text for the request's query; nothing without a query, or for an unknown one.

    The texts are those of the catalogue: an item that came with recorded events is not found. For a request of the past
    an item whose first event came later is not there yet, else a training would meet items before they exist; one
    without any event is found at any time.
    """

    name = "search"

    def __init__(self, index: TextIndex) -> None:
        self._index = index
        tokens("é")  # what tells the scripts apart is made now, and not in the first request

    def propose(self, request: Request, limit: int) -> Proposal:
        """Return the items with the highest scores; the score of others is 0, and NaN of one without text."""
        terms = self._index.terms(request.query)
        if not len(terms):
            return NOTHING
        item, score = self._index.top(terms, limit, _later(request))
        return Proposal(item[best(score, limit, item)], partial(self._index.score, terms))


def _later(request: Request) -> Bool:
    """Return bool[n_items]: whose first event is not before as_of; without rows where that is none's."""
    state = request.state
    if request.as_of >= state.end:
        return NONE
    first = state.first_seen[: state.catalog.n_items]
    return np.asarray((first >= request.as_of) & (first != NEVER))
