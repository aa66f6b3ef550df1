"""The cross-encoder as it is served: ONNX Runtime and NumPy, no torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from features.arrays import load_arrays
from features.schema import F32, HOUR, I64, Requests
from features.state.histories import Histories
from features.state.lag import Lag
from neural.expected import ItemSignals
from neural.histories import TokenSpec, length_buckets, make_tokens, ranges, visible
from neural.runtime import BUDGET, EXPECTED, TRUNK_INPUTS, Vectors, load_spec, open_session, shown

#: file of a fit: the network but for the items, which are vectors by then
SCORER = "scorer.onnx"
#: names of the inputs, in the order of the `forward` of `Scorer`
SCORER_INPUTS = (*TRUNK_INPUTS, "age", "context", "candidates")
#: (token, candidate) of one call: their weights are some MB for each head
LOOKS = 1 << 19


def log_hours(as_of: I64, ts: I64) -> F32:
    """Return log(1 + hours) from `ts` to `as_of`, 0 for what is later; µs, of shapes that broadcast."""
    hours: F32 = (np.maximum(as_of - ts, 0) / HOUR).astype(np.float32)
    return np.log1p(hours)


class CrossRuntime:
    """The session with the vectors. Any number of threads may share it."""

    def __init__(self, session: Any, spec: TokenSpec, vectors: Vectors, expected: ItemSignals, lag: Lag) -> None:
        """session: takes SCORER_INPUTS."""
        self.session, self.spec, self.vectors, self.expected, self.lag = session, spec, vectors, expected, lag
        self._known = np.append(vectors.known_items, False)

    def scores(self, requests: Requests, histories: Histories) -> F32:
        """Return float32[n]; all candidates of a request are scored in one call, its history being read once.

        NaN for an item of which nothing is known, and where neither an event before `as_of` (less the lag) nor an
        attribute of the user is known.
        """
        start, stop = visible(histories, requests.user, requests.as_of, self.lag, self.spec.length)
        token, item = self.vectors.user_tokens(requests.user), self.spec.item_row(requests.item)
        context = self.spec.request_codes(requests)
        scores = np.full(len(item), np.nan, np.float32)
        unknown_user = (start == stop) & (token == len(self.vectors.users) - 1)
        size = np.where(unknown_user, 0, np.diff(requests.offsets))
        for at in shown(plan(stop - start, size), len(requests)):
            tokens = make_tokens(histories, requests.user[at], start[at], stop[at], self.spec)
            row = ranges(requests.offsets[at], requests.offsets[at + 1])
            owner = np.repeat(np.arange(len(at)), size[at])
            place = row - requests.offsets[at][owner]
            candidates = np.full((len(at), int(size[at].max())), self.spec.n_items)
            candidates[owner, place] = item[row]
            inputs = (  # as SCORER_INPUTS
                self.vectors.items.take(tokens.item, axis=0), tokens.codes, tokens.signals,
                self.expected.surprise(tokens), self.vectors.users[token[at]], tokens.length,
                log_hours(requests.as_of[at, None], tokens.ts), context[at],
                self.vectors.items.take(candidates, axis=0),
            )  # fmt: skip
            found = self.session.run(None, dict(zip(SCORER_INPUTS, inputs, strict=True)))[0]
            scores[row] = found[owner, place]
        scores[~self._known[item]] = np.nan
        return scores


def plan(length: I64, size: I64) -> Iterator[I64]:
    """Yield indexes of requests to be scored in one call: of like numbers of candidates, and then of like histories.

    length, size: int64[g], events and candidates of each request; those without candidates are left out.
    """
    doublings = np.ceil(np.log2(np.maximum(size, 1))).astype(np.int64)
    for doubling in np.unique(doublings[size > 0]).tolist():
        requests = np.flatnonzero((doublings == doubling) & (size > 0))
        for part in length_buckets(length[requests], min(BUDGET, LOOKS >> doubling)):
            yield requests[part]


def load_cross(folder: Path, lag: Lag) -> CrossRuntime:
    """Open what a fit wrote into a folder."""
    expected = load_arrays(folder / EXPECTED, ItemSignals)
    return CrossRuntime(open_session(folder / SCORER), load_spec(folder), Vectors.load(folder), expected, lag)
