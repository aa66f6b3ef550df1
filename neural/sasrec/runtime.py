"""SASRec as it is served: ONNX Runtime and NumPy, no torch."""

from typing import Any

import numpy as np

from features.dots import row_dots
from features.schema import F32, I64, Requests
from features.state.histories import Histories
from features.state.kept import KeptStates
from neural.histories import length_buckets
from neural.runtime import BUDGET
from neural.sasrec.sequences import count_wanted, latest_wanted

#: names of the inputs, in the order of the `forward` of `Encoder`
INPUTS = ("item", "length")


class Runtime:
    """The encoder's session with the items' vectors. Any number of threads may share it.

    A user's vector is kept until the user has new events.
    """

    def __init__(self, encoder: Any, items: F32, floor: int, length: int, lag: int) -> None:
        """encoder: a session that takes INPUTS. items: float32[n_items, d], NaN unknown. lag: µs.

        floor: rank of the lowest grade that is wanted. length: the most events that are read.
        """
        self.encoder, self.items, self.floor, self.length, self.lag = encoder, items, floor, length, lag
        self.known = ~np.isnan(items[:, 0])
        self.kept = KeptStates()

    def moved(self, items: F32) -> "Runtime":
        """Return the same with the vectors of another catalogue."""
        return Runtime(self.encoder, items, self.floor, self.length, self.lag)

    def user_vectors(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[g, d]; NaN where no wanted event of a known item is visible."""
        start, stop = histories.before(requests.user, requests.as_of - self.lag)
        if len(requests) == 1:
            return self._one_vector(histories, (int(requests.user[0]), int(start[0]), int(stop[0])))
        states, place = np.unique(np.stack([start, stop]), axis=1, return_inverse=True)
        return self._computed(histories, *states)[place.ravel()]

    def _one_vector(self, histories: Histories, key: tuple[int, int, int]) -> F32:
        """Return float32[1, d] of (user, start, stop): the kept one, where there is one."""
        vector = self.kept.find(histories, key)
        if vector is None:
            vector = self._computed(histories, *(np.array([row]) for row in key[1:]))
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
            inputs = (self.items.take(item, axis=0), length[at])  # as INPUTS
            vectors[at] = self.encoder.run(None, dict(zip(INPUTS, inputs, strict=True)))[0]
        return vectors

    def dot(self, requests: Requests, users: F32) -> F32:
        """Return float32[n]: each candidate's vector times its request's user vector."""
        inside = (requests.item >= 0) & (requests.item < len(self.items))
        row = np.where(inside, requests.item, -1).astype(np.int64)
        return row_dots(self.items, row, requests.offsets, users)
