"""LiMAML as it is served: meta embeddings from histories as of a time, by NumPy and numba."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from features.arrays import load_arrays
from features.dots import row_dots
from features.schema import F32, I32, I64, Requests, offsets_of
from features.state.histories import Histories
from features.state.kept import KeptStates, key_of
from features.state.lag import Lag
from features.state.refreshed import Ahead, RefreshedStates, refreshed
from neural.expected import ItemSignals
from neural.histories import TokenSpec, ranges, visible
from neural.limaml.inner import MetaParameters
from neural.limaml.tasks import support_ranks
from neural.runtime import EXPECTED, Vectors, load_spec, shown

#: folder of a fit: the `MetaParameters`
META = "meta_block"
#: users whose events are in memory at a time
CHUNK = 1024


class MetaRuntime:
    """The meta block with the vectors. Any number of threads may share it.

    A user's meta embedding is kept until other events of the user are visible; `refresh` computes those of many ahead.
    """

    def __init__(
        self, block: MetaParameters, spec: TokenSpec, vectors: Vectors, expected: ItemSignals, lag: Lag
    ) -> None:
        self.block, self.spec, self.vectors, self.expected, self.lag = block, spec, vectors, expected, lag
        self.kept = KeptStates()
        self.refreshed: RefreshedStates | None = None
        self._known = np.append(vectors.known_items, False)
        self._unknown_user = len(vectors.users) - 1
        self._candidates = np.where(self._known[:, None], vectors.items, np.float32(np.nan))

    @property
    def item_vectors(self) -> F32:
        """float32[n_items, d]; NaN for an item of which nothing is known."""
        return self._candidates[:-1]

    def embeddings(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[g, d], the users' meta embeddings as of each request.

        NaN where neither an event before `as_of` (less the lag) nor an attribute of the user is known.
        """
        start, stop = visible(histories, requests.user, requests.as_of, self.lag, self.spec.length)
        user = self.vectors.user_tokens(requests.user)
        if len(requests) == 1:
            return self._one_embedding(histories, int(requests.user[0]), int(start[0]), int(stop[0]), int(user[0]))
        distinct, place = np.unique(np.stack([start, stop, user]), axis=1, return_inverse=True)
        return self._computed(histories, *distinct)[place.ravel()]

    def _one_embedding(self, histories: Histories, user: int, start: int, stop: int, token: int) -> F32:
        """Return float32[1, d]: the kept one, where there is one. token: row of `Vectors.users`."""
        key = key_of(histories, user, start, stop) if start < stop else (token, -1, -1)
        ahead = self.refreshed
        embedding = None if ahead is None else ahead.find(histories, key)
        if embedding is None:
            embedding = self.kept.find(histories, key)
        if embedding is None:
            embedding = self._computed(histories, *(np.array([x]) for x in (start, stop, token)))
            self.kept.keep(histories, key, embedding)
        return embedding

    def refresh(self, ahead: Ahead) -> RefreshedStates:
        """Compute meta embeddings of users ahead: see `features.plugin.AheadPlugin`."""
        cut = int(self.lag.cut(np.array([ahead.as_of]))[0])

        def compute(histories: Histories, user: I32, start: I64, stop: I64) -> F32:
            return self._computed(histories, start, stop, self.vectors.user_tokens(user))

        width = self.vectors.items.shape[1]
        self.refreshed = refreshed(ahead, cut, self.spec.length, width, compute, self.refreshed)
        return self.refreshed

    def _computed(self, histories: Histories, start: I64, stop: I64, user: I64) -> F32:
        """Return float32[u, d] of the rows start .. stop - 1 each. user: rows of `Vectors.users`."""
        out = np.empty((len(start), self.vectors.items.shape[1]), np.float32)
        for at in shown(_chunks(len(start)), len(start)):
            row = ranges(start[at], stop[at])
            item = self.spec.item_row(histories.item[row])
            rank = support_ranks(histories.grade[row], self._known[item], self.spec.n_grades)
            offset = self.expected.before(item, histories.ts[row])[:, 0]
            bounds = offsets_of(stop[at] - start[at])
            users = self.vectors.users[user[at]]
            out[at] = self.block.embeddings(users, self.vectors.items, item, rank, offset, bounds)
        out[(start == stop) & (user == self._unknown_user)] = np.nan
        return out

    def dot(self, requests: Requests, embeddings: F32) -> F32:
        """Return float32[n]: each candidate's vector times its request's meta embedding."""
        return row_dots(self._candidates, requests.item, requests.offsets, embeddings)


def _chunks(n: int) -> Iterator[I64]:
    return (np.arange(first, min(first + CHUNK, n)) for first in range(0, n, CHUNK))


def load_meta(folder: Path, lag: Lag) -> MetaRuntime:
    """Open what a fit wrote into a folder."""
    block = load_arrays(folder / META, MetaParameters)
    expected = load_arrays(folder / EXPECTED, ItemSignals)
    return MetaRuntime(block, load_spec(folder), Vectors.load(folder), expected, lag)
