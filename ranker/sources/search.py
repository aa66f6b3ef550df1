"""Full-text search: the items whose text has what the user typed, by BM25."""

from functools import partial
from typing import Any

import numpy as np

from features.errors import PairliftError
from features.schema import Bool, Catalog
from features.settings import Settings
from features.state.store import NEVER
from ranker.candidates.named import Arrays, Served, SourceData
from ranker.candidates.source import NOTHING, Proposal, best
from ranker.request import Request
from ranker.sources.bm25 import NO_TERMS, NONE, TextIndex, index_of
from ranker.sources.tokens import tokens

#: a text that is not ASCII when its accents have fallen off, either
UNSPACED_TOO = "\u00e9\u6f22"


class SearchSettings(Settings):
    """Items whose [items.text] has words of the request's `query`, by BM25. A query of the log, from which the order of
    such lists is learned, is the [events.context] named query. It has no options.
    """


class Search:
    """Items by the BM25 score of their text for the request's query; nothing without a query, or for an unknown one.

    The texts are those of the catalogue: an item that came with recorded events is not found. For a request of the past
    an item whose first event came later is not there yet, else a training would meet items before they exist; one
    without any event is found at any time.
    """

    options = SearchSettings
    name = "search"

    def __init__(self, **params: Any) -> None:
        SearchSettings(**params)

    def check(self, catalog: Catalog) -> None:
        """Raise PairliftError for items without texts."""
        if not any(attribute.kind == "text" for attribute in catalog.item_attributes):
            raise PairliftError("needs [items.text], the texts that are searched")

    def fit(self, data: SourceData) -> Arrays:
        """Return the arrays of `TextIndex`: the same at every cut, for the texts have no time."""
        return index_of(data.catalog)._asdict()

    def open(self, served: Served) -> None:
        """Take the index."""
        self._index = TextIndex(**served.arrays)
        # What tells the scripts apart is made now, and kernels are compiled, and not in the first search.
        tokens(UNSPACED_TOO)
        self._index.score(NO_TERMS, self._index.top(NO_TERMS, 1)[0])

    def propose(self, request: Request, limit: int) -> Proposal:
        """Return the items with the highest scores; the score of others is 0, and NaN of one without text."""
        terms = self._index.terms(request.query) if request.query else NO_TERMS
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
