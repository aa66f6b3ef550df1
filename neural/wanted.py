"""What plugins have in common that know a user by the latest wanted events alone: ids in their order, and no more.

NumPy and numba: training and serving find a user's wanted events with this code.
"""

from collections.abc import Callable
from copy import copy
from typing import Self

import numpy as np

from features.dots import row_dots
from features.errors import PairliftError
from features.kernels import njit
from features.schema import F32, I8, I32, I64, Bool, Requests
from features.state.histories import Histories
from features.state.kept import KeptStates, key_of
from features.state.lag import Lag
from neural.histories import length_buckets
from neural.runtime import BUDGET

#: float32[b, t, d] vectors of the latest wanted items, padded on the left with finite numbers, and int64[b] how many of
#: them there are, at least 1, to float32[b, d] vectors of the users
Encode = Callable[[F32, I64], F32]


def floor_of(grade: I8, wanted: int) -> int:
    """Return the rank of the lowest grade that is wanted: `wanted`, or -1 (all events are) where no event has it."""
    return wanted if (grade >= wanted).any() else -1


@njit(cache=True, nogil=True)
def count_wanted(start: I64, stop: I64, item: I32, grade: I8, known: Bool, floor: int, most: int) -> I64:
    """Return int64[b]: how many of the rows start[b] .. stop[b] - 1 are wanted events of known items, at most `most`.

    item, grade: of `Histories`. known: bool[n_items]; an item outside of it is not known.
    """
    count = np.zeros(len(start), np.int64)
    for b in range(len(start)):
        row = stop[b] - 1
        while row >= start[b] and count[b] < most:
            if grade[row] >= floor and 0 <= item[row] < len(known) and known[item[row]]:
                count[b] += 1
            row -= 1
    return count


@njit(cache=True, nogil=True)
def latest_wanted(start: I64, stop: I64, item: I32, grade: I8, known: Bool, floor: int, t: int) -> I64:
    """Return int64[b, t]: the items of the latest t events that `count_wanted` counts, in time order, to the right.

    Where there are fewer, the places to the left have the earliest of these items; without any, item 0.
    """
    out = np.zeros((len(start), t), np.int64)
    for b in range(len(start)):
        place, row = t, stop[b] - 1
        while row >= start[b] and place > 0:
            if grade[row] >= floor and 0 <= item[row] < len(known) and known[item[row]]:
                place -= 1
                out[b, place] = item[row]
            row -= 1
        if place < t:
            out[b, :place] = out[b, place]
    return out


class Runtime:
    """Vectors of users from those of the items that they wanted. Any number of threads may share it.

    A user's vector is kept until other events of the user are visible.
    """

    def __init__(self, encode: Encode, items: F32, floor: int, length: int, lag: Lag) -> None:
        """items: float32[n_items, d], NaN unknown. length: the most events of a user that are read.

        floor: rank of the lowest grade that is wanted.
        """
        self.encode, self.items, self.floor, self.length, self.lag = encode, items, floor, length, lag
        self.known = ~np.isnan(items[:, 0])
        self.kept = KeptStates()

    def recoded(self, items: I32) -> "Runtime":
        """Return it for another catalogue: see `features.plugin.RecodedPlugin`."""
        vectors = np.full((len(items), self.items.shape[1]), np.nan, np.float32)
        vectors[items >= 0] = self.items[items[items >= 0]]
        return Runtime(self.encode, vectors, self.floor, self.length, self.lag)

    def user_vectors(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[g, d]; NaN where no wanted event of a known item is visible."""
        start, stop = histories.before(requests.user, self.lag.cut(requests.as_of))
        if len(requests) == 1:
            return self._one_vector(histories, int(requests.user[0]), int(start[0]), int(stop[0]))
        states, place = np.unique(np.stack([start, stop]), axis=1, return_inverse=True)
        return self._computed(histories, *states)[place.ravel()]

    def _one_vector(self, histories: Histories, user: int, start: int, stop: int) -> F32:
        """Return float32[1, d] of a user's rows: the kept one, where there is one."""
        key = key_of(histories, user, start, stop)
        vector = self.kept.find(histories, key)
        if vector is None:
            vector = self._computed(histories, *(np.array([row]) for row in (start, stop)))
            self.kept.keep(histories, key, vector)
        return vector

    def _computed(self, histories: Histories, start: I64, stop: I64) -> F32:
        """Return float32[u, d] of the rows start .. stop - 1 each."""
        h = histories
        vectors = np.full((len(start), self.items.shape[1]), np.nan, np.float32)
        length = count_wanted(start, stop, h.item, h.grade, self.known, self.floor, self.length)
        some = np.flatnonzero(length)
        for part in length_buckets(length[some], BUDGET):
            at = some[part]
            t = int(length[at].max())
            item = latest_wanted(start[at], stop[at], h.item, h.grade, self.known, self.floor, t)
            vectors[at] = self.encode(self.items.take(item, axis=0), length[at])
        return vectors

    def dot(self, requests: Requests, users: F32) -> F32:
        """Return float32[n]: each candidate's vector times its request's user vector."""
        return row_dots(self.items, requests.item, requests.offsets, users)


class WantedPlugin:
    """What a VectorPlugin over a `Runtime` gives; `fit` and `load` of a subclass set it, and `save` writes it."""

    columns: tuple[str, ...] = ("dot",)
    _runtime: Runtime | None = None

    @property
    def runtime(self) -> Runtime:
        """What was fitted; PairliftError before `fit` or `load`."""
        if self._runtime is None:
            raise PairliftError(f"{type(self).__name__} is not fitted: call fit() or load() first")
        return self._runtime

    def values(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n, 1]: user vector · item vector."""
        return self.runtime.dot(requests, self.user_vectors(requests, histories))[:, None]

    @property
    def item_vectors(self) -> F32:
        """float32[n_items, d]; a row of NaN is an item that was never trained on."""
        return self.runtime.items

    def user_vectors(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[g, d]; a row of NaN is a user without a visible wanted event."""
        return self.runtime.user_vectors(requests, histories)

    def recoded(self, items: I32, users: I32) -> Self:
        """Return it for another catalogue: see `features.plugin.RecodedPlugin`."""
        moved = copy(self)
        moved._runtime = self.runtime.recoded(items)
        return moved
