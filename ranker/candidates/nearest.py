"""The items nearest to the user: the highest of query · key over all items, and demand where the product lacks it."""

import logging
from copy import copy

import numpy as np

from features.dots import row_dots
from features.plugin import RetrievalPlugin, VectorPlugin
from features.schema import F32, I32, I64, one_request
from features.state.store import State
from ranker.candidates.coarse import BLOCK, Coarse
from ranker.candidates.demand import Demand
from ranker.candidates.probed import NO_OFFSET, Probed
from ranker.candidates.source import NOTHING, Proposal, best
from ranker.lanes import may_block
from ranker.request import Request
from ranker.settings import EXACT

#: users by whose queries the blocks that need to be read are measured, and how many of them must have one
ASKED, KNOWN = 64, 16
#: a first pass for more than one of so many items would leave about all
LEAVES = 2 * BLOCK
#: keys are probed where no more than this share of the blocks is read for MEASURED items
PAYS, MEASURED = 1 / 2, 500

log = logging.getLogger(__name__)


class Nearest:
    """Items by query · key of a plugin that has these, else by user vector · item vector.

    Where the product is over demand (`RetrievalPlugin.over_demand`), items are proposed by

        weight · product + log(1 + decayed count of wanted events as of the request)

    and the score is the product alone: the source `popular` has the rest, and a ranker learns how to mix them. The
    demand is that of the state that it was made from, as for `Popular`; see `Demand.log1p` for its rounding.

    Of more items than `exact`, those that a coarse product of 8-bit keys leaves are multiplied in full: all but very
    few of the nearest are among them (`Coarse`), or most where only blocks that may have them are read (`Probed`). A
    user without a query (cold) gets nothing from this source; an item without a key is never proposed.
    """

    name = "nearest"

    def __init__(
        self,
        plugin: VectorPlugin,
        demand: Demand | None = None,
        weight: float = 1.0,
        state: State | None = None,
        exact: int = EXACT,
    ) -> None:
        """demand: not read where the product has demand in it; None adds none. state: whose users' queries tell which
        blocks of many keys need to be read; None: all are. exact: up to so many items, each one's product is computed
        in full.
        """
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
        self._coarse: Coarse | Probed | None = None
        if len(keys) > exact:
            self._coarse = (self._probed(state, exact) if state is not None else None) or Coarse.of(self._keys)

    def _probed(self, state: State, exact: int) -> Probed | None:
        """Return the keys in blocks; None where these do not pay, or too few users have a query to tell."""
        known = np.isfinite(self._keys.sum(axis=1)).sum()
        queries = self._of_some(state) if known > exact else []
        if len(queries) < KNOWN:
            return None
        probed, wanted = Probed.of(self._keys, queries), self._wanted(state.end)
        weight = self._weight if len(wanted) else 1.0
        read = [probed.search(query, weight, wanted, MEASURED)[1] / len(probed.spread) for query in queries]
        log.info("source 'nearest': a request reads %.1f %% of %d items", 100 * np.mean(read), len(self._keys))
        return probed if np.mean(read) <= PAYS else None

    def _of_some(self, state: State) -> list[F32]:
        """Return the queries, float32[d], of at most ASKED users with events, as of the state's end; none if it fails.

        The users are drawn evenly from the order of their indexes.
        """
        users = np.flatnonzero(state.histories.sizes)
        some = users[:: -(-len(users) // ASKED) or 1]
        asked = [one_request(int(user), state.end, 0, np.empty(0, np.int32)) for user in some]
        try:
            queries = [self._queries(request, state.histories)[0] for request in asked]
        except Exception:
            log.warning("source 'nearest': it reads all items for each request, for its plugin failed", exc_info=True)
            return []
        return [query for query in queries if np.isfinite(query).all()]

    def by(self, demand: Demand) -> "Nearest":
        """Return the same source over another demand."""
        moved = copy(self)
        moved.demand = demand
        return moved

    def in_full(self) -> "Nearest | None":
        """Return the same source without a first pass; None where it has none."""
        if self._coarse is None:
            return None
        other = copy(self)
        other._coarse = None
        return other

    def propose(self, request: Request, limit: int) -> Proposal:
        """Return the items nearest to the user as of the request; the score is the product."""
        query: F32 = self._queries(request.requests(np.empty(0, np.int32)), request.state.histories)[0]
        if np.isnan(query).any():
            return NOTHING
        wanted, rows = self._wanted(request.as_of), self._rows
        if self._coarse is not None and limit < len(rows) // LEAVES:
            rows = self._coarse.highest(query, self._weight if len(wanted) else 1.0, wanted, limit)
        order = self._products(query, rows)
        if len(wanted):
            order = self._weight * order + wanted[rows]
        found = rows[best(order, limit)].astype(np.int32)
        return Proposal(found, lambda item: self._score(query, item))

    def _wanted(self, as_of: int) -> F32:
        return NO_OFFSET if self.demand is None else self.demand.log1p(as_of)

    def _score(self, query: F32, item: I32) -> F32:
        """Return float32[n] products of any items; NaN of one without a key, or that is none."""
        return self._products(query, np.where(item < len(self._keys), item, -1).astype(np.int64))

    def _products(self, query: F32, rows: I64) -> F32:
        return row_dots(self._keys, rows, np.array([0, len(rows)]), query[None])
