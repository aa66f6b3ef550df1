"""What the lists of `Recommend` are compared with: popularity and matrix factorisation, tuned before the cut.

A peer gives lists of items that are new to the user, or of any where lists are served so. Like `Recommend` it may read
what happened up to each request: popularity counts up to then, ALS folds in the user's history up to then. What is
fitted or chosen is of before the cut: factors learn on the log before it, and half-life and alpha are those that were
best on the booster's validation slice, for peers that were fitted before that slice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from features.baselines import ALS
from features.pairing.groups import Groups
from features.pairing.pairs import Pairs
from features.pairing.split import Split
from features.plugin import FitData
from features.schema import DAY, F32, F64, I32, I64, Bool, Catalog, EventLog
from features.state.histories import Histories
from ranker.candidates.source import best
from ranker.lists.asked import Asked, At, asked, validation_start
from ranker.lists.worth import worth
from ranker.request import NO_ITEMS

#: gives int32[u, m], the lists of the users who are asked about
Lists = Callable[[Asked, int], I32]

#: half-lives of popularity that are tried, in days; None: every event counts alike
HALF_LIVES = (7, 1, 3, 14, 30, None)
#: alphas of ALS that are tried; in both, the first is taken where the validation slice cannot tell
ALPHAS = (5.0, 1.0, 20.0)
FACTORS = 64
#: what a peer is chosen by, of its lists' worth on the validation slice
CHOSEN_BY = "ndcg@10"
#: users that are scored at a time
BLOCK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """The log that peers are made of."""

    log: EventLog  # the whole log
    histories: Histories  # of it
    catalog: Catalog
    groups: Groups  # of all periods
    split: Split
    floor: int  # the lowest grade rank that is wanted
    again: bool = False  # an item that the user knows may be wanted, and be in lists: [sources] exclude_seen = false

    def asked(self, start: int, end: int, at: At = "first") -> Asked:
        """Return who is asked about in [start, end)."""
        return asked(self.log, self.histories, self.groups, start, end, self.floor, at, again=self.again)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A peer, and how its one parameter was chosen."""

    lists: Lists
    parameter: str  # its name
    value: float | None  # the one chosen
    tried: dict[str, float]  # `CHOSEN_BY` on the validation slice by value; none where nothing was wanted in it


def popular(past: Past, most: int | None = None, seed: int = 0) -> Chosen:
    """Return the most wanted items as of each request, with the best half-life in days."""

    def with_half_life(days: float | None) -> Lists:
        return lambda who, m: popular_lists(past, who, m, None if days is None else int(days * DAY))

    value, tried = _choice(past, dict.fromkeys(HALF_LIVES, with_half_life), most, seed)
    return Chosen(with_half_life(value), "half_life_days", value, tried)


def popular_lists(past: Past, who: Asked, m: int, half_life: int | None) -> I32:
    """Return int32[u, m]: the items with the highest decayed count of wanted events before each as_of.

    half_life: µs; None: without decay. An item that nobody wanted is in no list.
    """
    log, n_items = past.log, past.catalog.n_items
    rows = np.flatnonzero((log.grade >= max(past.floor, 0)) & log.pairable & (log.item >= 0))
    ts, item = log.ts[rows], log.item[rows]
    as_of, lists = who.requests.as_of, np.full((len(who), m), -1, np.int32)
    count, until, done = np.zeros(n_items), 0, 0
    for k in np.argsort(as_of, kind="stable").tolist():
        now = int(as_of[k])
        stop = int(np.searchsorted(ts, now, side="left"))
        count = count * _faded(np.array(now - until), half_life) if done else count
        weight = np.broadcast_to(_faded(now - ts[done:stop], half_life), stop - done)
        count += np.bincount(item[done:stop], weight, n_items)
        until, done = now, stop
        _put(lists[k], np.where(count > 0, count, np.nan), _seen(past.histories, who, k, past.again))
    return lists


def _faded(age: I64, half_life: int | None) -> F64:
    """Return what is left of a count of 1 after an age in µs."""
    return np.exp2(-age / half_life) if half_life else np.ones(age.shape)


def factorised(past: Past, otherwise: Lists, most: int | None = None, seed: int = 0) -> Chosen:
    """Return ALS of 64 factors with the best alpha. otherwise: the peer of users without a vector."""

    def with_alpha(alpha: float | None, end: int) -> Lists:
        als = fitted_als(past, end, alpha or ALPHAS[0], seed)
        return lambda who, m: als_lists(als, past.histories, who, m, otherwise, past.again)

    begin = validation_start(past.groups)
    value, tried = _choice(past, {alpha: lambda a: with_alpha(a, begin) for alpha in ALPHAS}, most, seed)
    return Chosen(with_alpha(value, past.split.t2), "alpha", value, tried)


def fitted_als(past: Past, end: int, alpha: float, seed: int, factors: int = FACTORS) -> ALS:
    """Return ALS of the events in [t0, end)."""
    als, none = ALS(factors=factors, alpha=alpha), np.empty(0, np.int32)
    als.fit(
        FitData(
            log=past.log.between(past.split.t0, end),
            catalog=past.catalog,
            groups=past.groups.select(past.groups.requests.as_of < end),
            pairs=Pairs(none, none, none.astype(np.float32), none.astype(bool)),  # ALS learns from events
            grades=(),
            seed=seed,
        )
    )
    return als


def als_lists(als: ALS, histories: Histories, who: Asked, m: int, otherwise: Lists, again: bool = False) -> I32:
    """Return int32[u, m]: the items of the highest user vector · item vector, the vectors of histories up to as_of.

    again: items of those histories too.
    """
    vectors, lists = als.user_vectors(who.requests, histories), np.full((len(who), m), -1, np.int32)
    for first in range(0, len(who), BLOCK):
        score: F32 = vectors[first : first + BLOCK] @ als.item_vectors.T
        for k in range(len(score)):
            _put(lists[first + k], score[k], _seen(histories, who, first + k, again))
    cold: Bool = np.isnan(vectors[:, 0])
    if cold.any():
        lists[cold] = otherwise(who.select(cold), m)
    return lists


def _put(row: I32, score: F32 | F64, seen: I32) -> None:
    """Write the best items of a score to int32[m] `row`; those of the history, and those of NaN, never."""
    score[seen[(seen >= 0) & (seen < len(score))]] = np.nan
    found = best(score, len(row))
    row[: len(found)] = found


def _seen(histories: Histories, who: Asked, k: int, again: bool) -> I32:
    """Return the items of the history of user k before as_of; none where these are in lists again."""
    if again:
        return NO_ITEMS
    start, stop = histories.before(who.requests.user[k : k + 1], who.requests.as_of[k : k + 1])
    return histories.item[int(start[0]) : int(stop[0])]


def _choice(
    past: Past, make: Mapping[float | None, Callable[[float | None], Lists]], most: int | None, seed: int
) -> tuple[float | None, dict[str, float]]:
    """Return the value whose lists are best on the validation slice, and what each was worth there."""
    who = past.asked(validation_start(past.groups), past.split.t2).drawn(most, seed)
    if not len(who):
        return next(iter(make)), {}
    tried = {value: float(worth(made(value)(who, 10), who, (10,))[CHOSEN_BY].mean()) for value, made in make.items()}
    return max(tried, key=lambda value: tried[value]), {_name(value): found for value, found in tried.items()}


def _name(value: float | None) -> str:
    return "all" if value is None else f"{value:g}"
