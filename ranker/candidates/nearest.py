"""The items nearest to the user: the highest of query · key over all items, and demand where the product lacks it."""

from copy import copy

import numpy as np

from features.dots import row_dots
from features.plugin import RetrievalPlugin, VectorPlugin
from features.schema import F32, I32, I64
from ranker.candidates.coarse import Coarse
from ranker.candidates.demand import Demand
from ranker.candidates.source import NOTHING, Proposal, best
from ranker.lanes import may_block
from ranker.request import Request

#: up to so many items, each one's product is computed in full; of more, first a coarse one
EXACT = 65_536
#: of a source without demand
NO_DEMAND = np.empty(0, np.float32)


class Nearest:
    """Items by query · key of a plugin that has these, else by user vector · item vector.

    Where the product is over demand (`RetrievalPlugin.over_demand`), items are proposed by

        weight · product + log(1 + decayed count of wanted events as of the request)

    and the score is the product alone: the source `popular` has the rest, and a ranker learns how to mix them. The
    demand is that of the state that it was made from, as for `Popular`; see `Demand.log1p` for its rounding.

    Of more than EXACT items, those that a coarse product of 8-bit keys leaves are multiplied in full (`Coarse`): all
    but very few of the nearest are among them. A user without a query (cold) gets nothing from this source; an item
    without a key is never proposed.
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
        self._keys = np.ascontiguousarray(keys, np.float32)  # the plugin's own (mapped) array, where that is one
        self._rows = np.arange(len(keys))
        self._coarse = Coarse.of(self._keys) if len(keys) > EXACT else None

    def by(self, demand: Demand) -> "Nearest":
        """Return the same source over another demand."""
        moved = copy(self)
        moved.demand = demand
        return moved

    def propose(self, request: Request, limit: int) -> Proposal:
        """Return the items nearest to the user as of the request; the score is the product."""
        query: F32 = self._queries(request.requests(np.empty(0, np.int32)), request.state.histories)[0]
        if np.isnan(query).any():
            return NOTHING
        wanted = NO_DEMAND if self.demand is None else self.demand.log1p(request.as_of)
        rows = self._rows
        if self._coarse is not None and limit < self._coarse.blocks // 2:  # else it leaves about all
            rows = self._coarse.highest(query, self._weight if len(wanted) else 1.0, wanted, limit)
        order = self._products(query, rows)
        if len(wanted):
            order = self._weight * order + wanted[rows]
        found = rows[best(order, limit)].astype(np.int32)
        return Proposal(found, lambda item: self._score(query, item))

    def _score(self, query: F32, item: I32) -> F32:
        """Return float32[n] products of any items; NaN of one without a key, or that is none."""
        return self._products(query, np.where(item < len(self._keys), item, -1).astype(np.int64))

    def _products(self, query: F32, rows: I64) -> F32:
        return row_dots(self._keys, rows, np.array([0, len(rows)]), query[None])
