"""New items, each as often as it may well be good: a Thompson draw for each."""

from copy import copy
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import Field

from features.counters.places import first_not_before
from features.kernels import njit
from features.schema import DAY, F32, F64, I32, I64, Bool, EventLog
from features.settings import Duration, Settings
from features.state.store import NEVER, State
from ranker.candidates.named import Arrays, Served, SourceData
from ranker.candidates.source import Proposal, best
from ranker.request import Request
from ranker.sources.walks import drawn, seed_of

#: what the prior of a log with too little to tell weighs, in events
LEAST = 2.0
#: the correlation of the events of one item, within which the prior is taken: weak ones weigh 1 / LOWEST events
LOWEST, HIGHEST = 1e-4, 0.5
#: draws of a request: some 2 ms. Of more new items each request has a sample, and many requests have all
MOST = 5_000


class FreshSettings(Settings):
    """Items that had their first event lately, by a Thompson draw: of each item's share of wanted events, one value of
    its Beta posterior, and the highest draws first. So what is little known gets a chance, and what is known to be good
    gets most.
    """

    age: Duration = Field(default=7 * DAY, gt=0, description="An item is new for so long after its first event.")


class Events(NamedTuple):
    """The m events of each item within the age, by item and then by time."""

    offsets: I64  # [n_items + 1]
    ts: I64  # [m], µs
    wins: I32  # [m], how many of the item's events up to this one were wanted


class Fresh:
    """Items whose first event is at most `age` ago, by draws from Beta(a + wanted events, b + other events).

    Thompson (Biometrika 1933); Chapelle and Li (NIPS 2011). The prior's a and b are fitted to new items of the log, by
    the moments of their shares (Kleinman, JASA 1973). A draw is of the user, the as_of and the item alone: the same
    request has the same draws, another one others. Events are those of the state that it was made from.
    """

    options = FreshSettings
    name = "fresh"
    event_bytes = 96  # 12 that are held, twice, and what sorting takes

    def __init__(self, **params: Any) -> None:
        self.settings = FreshSettings(**params)

    def fit(self, data: SourceData) -> Arrays:
        """Return the prior: float64[2], a and b."""
        return {"prior": fitted_prior(*_shares(data, self.settings.age))}

    def open(self, served: Served) -> None:
        """Take the prior, and count as of the state."""
        self._prior, self._floor = served.arrays["prior"], served.floor
        self._count(served.state)

    def over(self, state: State) -> Self:
        """Return the same source, counted over another state."""
        other = copy(self)
        other._count(state)
        return other

    def _count(self, state: State) -> None:
        h, n_items = state.histories, state.catalog.all_items
        _, row = h.rows()
        self._first = state.first_seen[:n_items]
        self._by_age = np.argsort(self._first, kind="stable").astype(np.int32)
        self._times = self._first[self._by_age]
        wanted = h.grade[row] >= self._floor
        self._events = made_events(h.item[row], h.ts[row], wanted, self._first, self.settings.age)

    def propose(self, request: Request, limit: int) -> Proposal:
        """Return the highest draws of the new items as of the request, and the draws."""
        since = request.as_of - self.settings.age
        first, last = np.searchsorted(self._times, [since, min(request.as_of, NEVER)])
        items = self._by_age[_some(first, last, seed_of(request.user, request.as_of))]
        score = partial(self._score, request)
        return Proposal(items[best(score(items), limit, items)], score)

    def _score(self, request: Request, item: I32) -> F32:
        """Return float32[n] draws of any items; NaN of one that is not new."""
        since, seed = request.as_of - self.settings.age, seed_of(request.user, request.as_of)
        found: F32 = _draws(self._events, self._first, self._prior, item, since, request.as_of, seed)
        return found


def _some(first: int, last: int, seed: np.uint64) -> slice | I64:
    """Return the places first to last - 1, of more than MOST every n-th, from one on that the seed draws."""
    n = int(last - first)
    if n <= MOST:
        return slice(first, last)
    step = n / MOST
    offset = float(drawn(seed)[1] >> np.uint64(11)) / 2.0**53 * step
    return first + (offset + step * np.arange(MOST)).astype(np.int64)


def made_events(item: I32, ts: I64, wanted: Bool, first: I64, age: int) -> Events:
    """Return the events within `age` µs of their item's first, at int64[n_items] `first`; the rest: of all events."""
    use = (item >= 0) & (ts - first[item] <= age)
    order = np.lexsort((ts[use], item[use]))
    item, ts, wanted = item[use][order], ts[use][order], wanted[use][order]
    offsets = np.searchsorted(item, np.arange(len(first) + 1)).astype(np.int64)
    total = np.concatenate([[0], np.cumsum(wanted)])
    wins = total[1:] - np.repeat(total[offsets[:-1]], np.diff(offsets))
    return Events(offsets, ts, wins.astype(np.int32))


def _shares(data: SourceData, age: int) -> tuple[F64, F64]:
    """Return (wanted events, events) within the age of each item that has any."""
    log: EventLog = data.log
    first = np.full(data.catalog.n_items, NEVER, np.int64)
    np.minimum.at(first, log.item[log.item >= 0], log.ts[log.item >= 0])
    of = made_events(log.item, log.ts, log.grade >= data.floor, first, age)
    n, last = np.diff(of.offsets), of.offsets[1:] - 1
    return of.wins[last[n > 0]].astype(np.float64), n[n > 0].astype(np.float64)


def fitted_prior(wins: F64, n: F64) -> F64:
    """Return float64[2], a and b of a Beta, by the moments of float64[k] shares wins / n.

    With mean p = Σ wins / Σ n and S = Σ n (share - p)², the correlation of an item's events is estimated by
    (S - p q Σ (1 - n / N)) / (p q (Σ n (1 - n / N) - Σ (1 - n / N))), and a + b = 1 / correlation - 1. Of fewer than
    two items, or where all events are wanted or none is, a + b = LEAST.
    """
    total = n.sum()
    p = (wins.sum() + 1) / (total + 2)  # never 0 or 1
    rest = 1 - n / total if total else n
    below = p * (1 - p) * (rest @ n - rest.sum())
    strength = LEAST
    if len(n) > 1 and 0 < wins.sum() < total and below > 0:
        correlation = (n @ (wins / n - p) ** 2 - p * (1 - p) * rest.sum()) / below
        strength = 1 / float(np.clip(correlation, LOWEST, HIGHEST)) - 1
    return np.array([p, 1 - p]) * strength


# for each item that is new: count its events and wanted ones before as_of; draw of its posterior, by a seed of its own
@njit(cache=True, nogil=True)
def _draws(
    events: Events, first: I64, prior: F64, item: I32, since: int, as_of: int, seed: np.uint64
) -> F32:  # fmt: skip
    score = np.full(len(item), np.nan, np.float32)
    for k in range(len(item)):
        i = item[k]
        if not 0 <= i < len(first) or not since <= first[i] < as_of:
            continue
        start = events.offsets[i]
        stop = first_not_before(events.ts, start, events.offsets[i + 1], as_of)
        wins = np.float64(events.wins[stop - 1]) if stop > start else 0.0
        state = drawn(seed ^ np.uint64(i))[1]
        state, a = _gamma(prior[0] + wins, state)
        state, b = _gamma(prior[1] + (stop - start) - wins, state)
        score[k] = a / (a + b) if a + b > 0 else prior[0] / (prior[0] + prior[1])
    return score


@njit(cache=True, nogil=True)
def _uniform(state: np.uint64) -> tuple[np.uint64, float]:
    """Return the next state, and a number in (0, 1)."""
    state, bits = drawn(state)
    return state, (np.float64(bits >> np.uint64(11)) + 0.5) / 2.0**53


# Marsaglia and Tsang, ACM TOMS 2000: d = shape - 1/3, c = 1 / sqrt(9 d)
#     until log(u) < x²/2 + d - d v + d log(v): x normal, v = (1 + c x)³ > 0, u uniform
#     d v; of a shape below 1, that of shape + 1 times u^(1 / shape)
@njit(cache=True, nogil=True)
def _gamma(shape: float, state: np.uint64) -> tuple[np.uint64, float]:
    d = (shape + 1 if shape < 1 else shape) - 1 / 3
    c, found = 1 / np.sqrt(9 * d), -1.0
    while found < 0:
        state, u = _uniform(state)
        state, angle = _uniform(state)
        x = np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * angle)  # Box and Muller 1958
        v = (1 + c * x) ** 3
        state, u = _uniform(state)
        if v > 0 and np.log(u) < x * x / 2 + d - d * v + d * np.log(v):
            found = d * v
    if shape < 1:
        state, u = _uniform(state)
        found *= u ** (1 / shape)
    return state, found
