"""The items nearest to the user: exact top k of query · key over all items, and demand where the product lacks it."""

from copy import copy
from functools import partial

import numpy as np

from features.plugin import RetrievalPlugin, VectorPlugin
from features.schema import I32
from ranker.candidates.demand import Demand
from ranker.candidates.source import NOTHING, Proposal, best, score_of
from ranker.lanes import may_block
from ranker.request import Request


class Nearest:
    """Items by query · key of a plugin that has these, else by user vector · item vector.

    Where the product is over demand (`RetrievalPlugin.over_demand`), items are proposed by

        weight · product + log(1 + decayed count of wanted events as of the request)

    and the score is the product alone: the source `popular` has the rest, and a ranker learns how to mix them. The
    demand is that of the state that it was made from, as for `Popular`.

    A user without a query (cold) gets nothing from this source; an item without a key is never proposed.
    """

    name = "nearest"

    def __init__(self, plugin: VectorPlugin, demand: Demand | None = None, weight: float = 1.0) -> None:
        """demand: not read where the product has demand in it; None adds none."""
        self._weight = weight
        self.blocks = may_block(plugin)  # it runs the plugin's code
        self.demand: Demand | None = None
        if isinstance(plugin, RetrievalPlugin):
            keys, self._queries = plugin.item_keys, plugin.queries
            self.demand = demand if plugin.over_demand else None
        else:
            keys, self._queries = plugin.item_vectors, plugin.user_vectors
        known = ~np.isnan(keys).any(axis=1)
        self._items: I32 = np.flatnonzero(known).astype(np.int32)
        # All known: keep the plugin's own (mapped) array instead of a copy.
        self._keys = keys if known.all() else np.ascontiguousarray(keys[known])

    def by(self, demand: Demand) -> "Nearest":
        """Return the same source over another demand."""
        moved = copy(self)
        moved.demand = demand
        return moved

    def propose(self, request: Request, limit: int) -> Proposal:
        """Return the items nearest to the user as of the request; the score is the product."""
        query = self._queries(request.requests(np.empty(0, np.int32)), request.state.histories)[0]
        if np.isnan(query).any():
            return NOTHING
        product = self._keys @ query  # [k]
        order = product
        if self.demand is not None:
            order = self._weight * product + self.demand.counts(request.as_of).log1p()[self._items]
        return Proposal(self._items[best(order, limit)], partial(score_of, self._items, product))
