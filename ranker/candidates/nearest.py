"""The user tower's nearest items: exact top k of the scalar product with every item vector."""

from functools import partial

import numpy as np

from features.plugin import VectorPlugin
from features.schema import I32
from ranker.candidates.source import NOTHING, Proposal, best, score_of
from ranker.request import Request


class Nearest:
    """Items by user vector · item vector, of any plugin that has vectors.

    A user without a vector (cold) gets nothing from this source; an item without one is never proposed.
    """

    name = "nearest"

    def __init__(self, plugin: VectorPlugin) -> None:
        self._plugin = plugin
        vectors = plugin.item_vectors
        known = ~np.isnan(vectors).any(axis=1)
        self._items: I32 = np.flatnonzero(known).astype(np.int32)
        # All known: keep the plugin's own (mapped) array instead of a copy.
        self._vectors = vectors if known.all() else np.ascontiguousarray(vectors[known])

    def propose(self, request: Request, limit: int) -> Proposal:
        """Return the items nearest to the user's vector as of the request; the score is the scalar product."""
        vector = self._plugin.user_vectors(request.requests(np.empty(0, np.int32)), request.state.histories)[0]
        if np.isnan(vector).any():
            return NOTHING
        score = self._vectors @ vector
        return Proposal(self._items[best(score, limit)], partial(score_of, self._items, score))
