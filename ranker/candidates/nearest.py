"""The user tower's nearest items: exact top k of the scalar product with every item vector."""

import numpy as np

from features.plugin import VectorPlugin
from features.schema import I32
from ranker.candidates.source import best
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

    def propose(self, request: Request, limit: int) -> I32:
        """Return the items nearest to the user's vector as of the request."""
        none = np.empty(0, np.int32)
        vector = self._plugin.user_vectors(request.requests(none), request.state.histories)[0]
        if np.isnan(vector).any():
            return none
        return self._items[best(self._vectors @ vector, limit)]
