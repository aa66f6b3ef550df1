"""States of many users that were computed ahead of requests, in one array: the next refresh takes its place."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from features.errors import PairliftError
from features.pace import breathe
from features.schema import F32, I32, I64
from features.state.histories import Histories
from features.state.kept import Key, Origin, is_of, origin_of

#: users whose states are computed between two rests and two looks at the histories: a tenth of a second
SOME = 256
#: bytes of a user of whom there is a state, beside it, and of any user
BESIDE, PLACE = 16, 4

#: histories, int32[b] users, and int64[b] of the first rows of what is read of each and of those behind the last, to
#: float32[b, w] states
Compute = Callable[[Histories, I32, I64, I64], F32]


class Ahead(NamedTuple):
    """What is to be computed ahead."""

    histories: Callable[[], Histories]  # gives those of now
    as_of: int  # µs UTC
    users: int  # at most so many, those with the latest events
    memory: int  # bytes that the states may take
    told: Callable[[int, int], None]  # takes (users done, users in all); what it raises ends the work


class _Seen(NamedTuple):
    """What the states of b users, each with an event, are of."""

    start: I64  # [b], first row of what is read
    stop: I64  # [b], row behind the last
    events: I64  # [b], how many the user has up to it, what is not read too
    last: I64  # [b], µs of the last


@dataclass(frozen=True, slots=True)
class RefreshedStates:
    """States of m users as of a refresh. One is right until its user has other visible events (`key_of`)."""

    place: I32  # [n_users], row of each user's state, -1 none
    count: I64  # [m], how many events the state has seen, or had to choose from
    last: I64  # [m], µs of the last of them
    states: F32  # [m, w]
    origin: Origin
    as_of: int  # µs UTC
    computed: int  # how many of the states were computed; the others are those of the refresh before

    def __len__(self) -> int:
        return len(self.states)

    @property
    def bytes(self) -> int:
        """Bytes that it takes."""
        return sum(array.nbytes for array in (self.place, self.count, self.last, self.states))

    def find(self, histories: Histories, key: Key) -> F32 | None:
        """Return float32[1, w] of a `key_of`, not to be changed; None where there is nothing."""
        user, count, last = key
        at = int(self.place[user]) if 0 <= user < len(self.place) else -1
        if at < 0 or self.count[at] != count or self.last[at] != last or not is_of(self.origin, histories):
            return None
        return self.states[at : at + 1]

    def take(self, histories: Histories, user: I32, seen: _Seen, out: F32) -> I64:
        """Put the states that are right into float32[b, w] `out`; return the places of the others."""
        if not is_of(self.origin, histories):
            return np.arange(len(user))
        at = np.full(len(user), -1, np.int64)
        old = user < len(self.place)
        at[old] = self.place[user[old]]
        right = (at >= 0) & (self.count[at] == seen.events) & (self.last[at] == seen.last) if len(self) else at >= 0
        out[right] = self.states[at[right]]
        return np.flatnonzero(~right)


def refreshed(
    ahead: Ahead, cut: int, length: int, width: int, compute: Compute, before: RefreshedStates | None
) -> RefreshedStates:
    """Return states of the users with the latest events before `cut` (µs), as many as are asked for and there is room.

    length: the most events of a user that are read. width: of a state. before: whose states are taken where they are
    still right. PairliftError where there is room for none.
    """
    histories = ahead.histories()
    user = _latest(histories, cut, min(ahead.users, _room(ahead.memory, len(histories.ends), width)))
    states, count, last = np.empty((len(user), width), np.float32), *np.empty((2, len(user)), np.int64)
    computed = 0
    ahead.told(0, len(user))
    for first in range(0, len(user), SOME):
        rows, histories = slice(first, first + SOME), ahead.histories()
        some, out = user[rows], states[rows]
        seen = _seen(histories, some, cut, length)
        left = np.arange(len(some)) if before is None else before.take(histories, some, seen, out)
        if len(left):
            out[left] = compute(histories, some[left], seen.start[left], seen.stop[left])
        count[rows], last[rows], computed = seen.events, seen.last, computed + len(left)
        ahead.told(first + len(some), len(user))
        breathe()
    place = np.full(len(histories.ends), -1, np.int32)
    place[user] = np.arange(len(user))
    return RefreshedStates(place, count, last, states, origin_of(histories), ahead.as_of, computed)


def _room(memory: int, n_users: int, width: int) -> int:
    """Return how many states fit beside the places of all users; PairliftError for none."""
    one = 4 * width + BESIDE
    room = (memory - PLACE * n_users) // one
    if room < 1:
        raise PairliftError(
            f"{memory:,} bytes are too few for a state: {PLACE * n_users:,} for the places of all users and {one} for "
            "each state were expected"
        )
    return room


def _latest(histories: Histories, cut: int, most: int) -> I32:
    """Return int32[m <= most] the users with events before `cut`, latest first."""
    user = np.arange(len(histories.ends), dtype=np.int32)
    start, stop = histories.before(user, np.full(len(user), cut))
    some = np.flatnonzero(start < stop)
    return user[some[np.argsort(-histories.ts[stop[some] - 1], kind="stable")[:most]]]


def _seen(histories: Histories, user: I32, cut: int, length: int) -> _Seen:
    start, stop = histories.before(user, np.full(len(user), cut), length)
    return _Seen(start, stop, stop - histories.offsets[user], histories.ts[stop - 1])
