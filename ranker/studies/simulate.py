"""What the users of the generated world are shown, and what they make of it: one pass over their requests in time.

A user's state is a taste that wanders and leans to what was liked, a mood (the topic that they are after now), and how
often each topic was met in this sitting. It changes after a list, never within one, so the chance of each grade of all
of a list's items is that of its `as_of`, and of one item it does not depend on the others.
"""

from dataclasses import dataclass

import numpy as np

from features.kernels import njit
from features.schema import F64, I8, I32, I64, Bool

#: impressions of a list; what the policy, and a user who looks around, chooses from
LIST, POOL, AROUND = 8, 32, 12
#: utility: of taste, of the mood's topic, of each time that the topic was met in this sitting, of length by device
TASTE, MOOD, SATIATION, LENGTH = 2.4, 1.6, 0.3, 0.7
#: utility above which an item is viewed, and liked: ordered logit. What a user looked for starts ahead
VIEW, LIKE, SOUGHT = 0.6, 2.2, 0.7
#: share of the way to a liked item that a taste goes; its own steps between two sittings; the policy's error about it
LEAN, WANDER, POLICY = 0.05, 0.12, 1.5
#: chance that a liked topic's mood goes on to the topic after it; that an unliked list ends the mood
GOES_ON, ENDS = 0.7, 0.4


@dataclass(frozen=True, slots=True)
class Items:
    """n items of the world, as the simulation needs them."""

    vector: F64  # [n, k], of length 1
    topic: I64  # [n]
    quality: F64  # [n], utility that it has for everybody
    length: F64  # [n], logarithm of its minutes, centred
    shares: F64  # [days, n], cumulative over the items: with which chance one is shown on a day


@dataclass(frozen=True, slots=True)
class Users:
    """Users of the world."""

    taste: F64  # [users, k], at the start, of length 1
    evening: F64  # [users, k], what an evening adds to it
    patience: F64  # [users], how much more of long items they like on a large screen than on a small one


@dataclass(frozen=True, slots=True)
class Visits:
    """r requests: a user's are together, in time order."""

    user: I64  # [r]
    sitting: I64  # [r], number of the sitting
    day: I64  # [r]
    evening: Bool  # [r]
    large: Bool  # [r], the screen
    first: I64  # [r + 1], row of the request's first event: LIST impressions, then what the user looked for


@dataclass(frozen=True, slots=True)
class Met:
    """n events: what was met, and what became of it."""

    item: I32  # [n]
    grade: I8  # [n], 0 to 2
    expected: F64  # [n], the grade's expectation as of the list


def simulate(items: Items, users: Users, visits: Visits, after: I64, seed: int) -> Met:
    """Run the world; the same arguments give the same events.

    after: int64[topics], what each topic's mood goes on to.
    """
    n = int(visits.first[-1])
    met = Met(np.empty(n, np.int32), np.empty(n, np.int8), np.empty(n))
    starts = np.flatnonzero(np.diff(visits.user, prepend=-1))
    for begin, end in zip(starts, [*starts[1:], len(visits.user)], strict=True):
        user = int(visits.user[begin])
        _live(
            (items.vector, items.topic, items.quality, items.length, items.shares),
            (users.taste[user].copy(), users.evening[user], users.patience[user]),
            (visits.sitting, visits.day, visits.evening, visits.large, visits.first),
            begin,
            end,
            after,
            (seed * 1_000_003 + user) % 2**32,
            (met.item, met.grade, met.expected),
        )
    return met


@njit(cache=True, nogil=True)
def _live(items, user, visits, begin, end, after, seed, met):  # type: ignore[no-untyped-def]
    """Run the requests begin .. end - 1 of one user. The tuples are those of `simulate`."""
    np.random.seed(seed)
    shares, taste, sitting, day, first = items[4], user[0], visits[0], visits[1], visits[4]
    known = taste + POLICY * np.random.standard_normal(len(taste)) / np.sqrt(len(taste))
    met_topics, mood = np.zeros(len(after)), _near(items, taste, shares[day[begin]])
    for r in range(begin, end):
        share = shares[day[r]]
        if r == begin or sitting[r] != sitting[r - 1]:
            met_topics[:] = 0
            _move(taste, np.random.standard_normal(len(taste)) / np.sqrt(len(taste)), WANDER)
        wish, like = _wish(user[1], user[2], taste, visits[2][r], visits[3][r])
        low, high = first[r], first[r + 1]
        own = met[0][low:high], met[1][low:high], met[2][low:high]
        _meet(items, wish, like, (mood, met_topics), share, _shown(items, known, share), own)
        mood = _changed(items, taste, mood, met_topics, after, own[0], own[1])


@njit(cache=True, nogil=True)
def _wish(evening, patience, taste, is_evening, large):  # type: ignore[no-untyped-def]
    """Return what a user is after now, and how much of it long items are."""
    return taste + evening if is_evening else taste, patience if large else -patience


@njit(cache=True, nogil=True)
def _meet(items, wish, like, state, share, shown, met):  # type: ignore[no-untyped-def]
    """Fill in the events of one list: what is shown, then what the user looks for. met: item, grade, expected."""
    item, grade, expected = met
    for k in range(len(item)):
        sought = k >= len(shown)  # known now, and of one's own choice
        item[k] = _sought(items, wish, like, state, share) if sought else shown[k]
        z = _utility(items, item[k], wish, like, state) + (SOUGHT if sought else 0.0)
        view, liked, at = 1 / (1 + np.exp(VIEW - z)), 1 / (1 + np.exp(LIKE - z)), np.random.random()
        grade[k], expected[k] = (at < view) + (at < liked), view + liked


@njit(cache=True, nogil=True)
def _utility(items, item, wish, like, state):  # type: ignore[no-untyped-def]
    """Return what an item is worth to a user now. like: of long items; state: mood, and topics met in this sitting."""
    topic = items[1][item]
    z = TASTE * np.dot(wish, items[0][item]) + items[2][item] + LENGTH * like * items[3][item]
    return z + (MOOD if topic == state[0] else 0.0) - SATIATION * state[1][topic]


@njit(cache=True, nogil=True)
def _draw(share):  # type: ignore[no-untyped-def]
    """Return an item by cumulative shares."""
    return min(np.searchsorted(share, np.random.random() * share[-1], side="right"), len(share) - 1)


@njit(cache=True, nogil=True)
def _shown(items, known, share):  # type: ignore[no-untyped-def]
    """Return LIST distinct items: of a pool drawn by demand, what the policy holds for best, with noise."""
    pool, score, n = np.empty(POOL, np.int32), np.empty(POOL), 0
    while n < POOL:
        item = _draw(share)
        if item not in pool[:n]:
            pool[n] = item
            score[n] = np.dot(known, items[0][item]) - np.log(-np.log(np.random.random()))
            n += 1
    return pool[np.argsort(-score)[:LIST]]


@njit(cache=True, nogil=True)
def _sought(items, wish, like, state, share):  # type: ignore[no-untyped-def]
    """Return the item that a user finds: the best of some, with noise."""
    best, found = -np.inf, 0
    for _ in range(AROUND):
        item = _draw(share)
        z = _utility(items, item, wish, like, state) - np.log(-np.log(np.random.random()))
        if z > best:
            best, found = z, item
    return found


@njit(cache=True, nogil=True)
def _near(items, taste, share):  # type: ignore[no-untyped-def]
    """Return the topic of the nearest of some items."""
    best, found = -np.inf, 0
    for _ in range(AROUND):
        item = _draw(share)
        if np.dot(taste, items[0][item]) > best:
            best, found = np.dot(taste, items[0][item]), items[1][item]
    return found


@njit(cache=True, nogil=True)
def _move(taste, step, share):  # type: ignore[no-untyped-def]
    """Move a taste by a share of a step; its length stays 1."""
    taste += share * step
    taste /= np.sqrt(np.dot(taste, taste))


@njit(cache=True, nogil=True)
def _changed(items, taste, mood, met_topics, after, item, grade):  # type: ignore[no-untyped-def]
    """Let what was met in a list change taste and sitting; return the mood that follows."""
    liked = -1
    for k in range(len(item)):
        met_topics[items[1][item[k]]] += 1
        if grade[k] == 2:
            liked = items[1][item[k]]
            _move(taste, items[0][item[k]] - taste, LEAN)
    if liked >= 0:
        return after[liked] if np.random.random() < GOES_ON else liked
    if np.random.random() < ENDS:
        return np.random.randint(len(after))
    return mood


class Lives:
    """The same users, one list at a time: what each has become depends on what was shown before.

    What is drawn follows from seed, user and request alone, so two runs that show the same give the same.
    """

    def __init__(self, items: Items, users: Users, visits: Visits, after: I64, seed: int) -> None:
        """Begin before the first request. Arguments as those of `simulate`, which draws otherwise."""
        self._items = (items.vector, items.topic, items.quality, items.length, items.shares)
        self._users, self._visits, self._after, self._seed = users, visits, after, seed
        n = len(users.taste)
        self._taste, self._known = users.taste.copy(), np.zeros_like(users.taste)
        self._topics, self._mood = np.zeros((n, len(after))), np.full(n, -1)
        self._sitting = np.full(n, -1)

    def meet(self, request: int, shown: I32 | None = None) -> tuple[I32, I8, F64]:
        """Return the items that a user meets by a request, int32[n], with int8[n] grades and float64[n] expected ones.

        request: later than all of this user before. shown: int32[m] items of the list, which come first; None: what
        the world's own policy shows. Behind them is what the user looks for.
        """
        visits = self._visits
        user, day = int(visits.user[request]), int(visits.day[request])
        if self._mood[user] < 0:
            seed = (self._seed * 1_000_003 + user) % 2**32
            self._mood[user], self._known[user] = _born(self._items, self._taste[user], self._items[4][day], seed)
        rest = int(visits.first[request + 1] - visits.first[request]) - LIST
        n = (LIST if shown is None else len(shown)) + rest
        met = np.empty(n, np.int32), np.empty(n, np.int8), np.empty(n)
        self._mood[user] = _lived(
            self._items,
            (self._taste[user], self._users.evening[user], self._users.patience[user]),
            (self._known[user], self._topics[user], self._mood[user]),
            (visits.sitting[request] != self._sitting[user], visits.evening[request], visits.large[request]),
            self._items[4][day],
            self._after,
            np.empty(0, np.int32) if shown is None else shown,
            shown is None,
            (self._seed * 1_000_003 + request * 7_919 + 1) % 2**32,
            met,
        )
        self._sitting[user] = visits.sitting[request]
        return met

    def worth(self, request: int, items: I32) -> F64:
        """Return float64[n], the expected grade that each of n items has if it is shown now; nothing changes by it."""
        user = int(self._visits.user[request])
        state = (self._taste, self._known, self._topics, self._mood, self._sitting)
        before = [of[user].copy() for of in state]
        expected = self.meet(request, items)[2][: len(items)]
        for of, was in zip(state, before, strict=True):
            of[user] = was
        return expected


@njit(cache=True, nogil=True)
def _born(items, taste, share, seed):  # type: ignore[no-untyped-def]
    """Return a user's first mood, and what the world's own policy holds for their taste."""
    np.random.seed(seed)
    known = taste + POLICY * np.random.standard_normal(len(taste)) / np.sqrt(len(taste))
    return _near(items, taste, share), known


@njit(cache=True, nogil=True)
def _lived(items, user, mind, visit, share, after, shown, by_policy, seed, met):  # type: ignore[no-untyped-def]
    """Let a user meet one list; return the mood that follows. Tuples as in `Lives.meet`."""
    np.random.seed(seed)
    taste, known, met_topics = user[0], mind[0], mind[1]
    if visit[0]:
        met_topics[:] = 0
        _move(taste, np.random.standard_normal(len(taste)) / np.sqrt(len(taste)), WANDER)
    wish, like = _wish(user[1], user[2], taste, visit[1], visit[2])
    own = _shown(items, known, share)  # drawn in any case, so that what follows has the same luck
    _meet(items, wish, like, (mind[2], met_topics), share, own if by_policy else shown, met)
    return _changed(items, taste, mind[2], met_topics, after, met[0], met[1])
