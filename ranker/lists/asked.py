"""Who is asked about, and what they wanted: users of a period, each as of one time, with their later wanted items."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from features.kernels import njit
from features.pairing.groups import Groups
from features.schema import I32, I64, NO_GIVEN, Bool, EventLog, Requests, offsets_of
from features.state.histories import Histories

#: as of when users are asked about: each one's first request of the period, the period's own start, or every request
At = Literal["first", "cut", "each"]
#: which item is wanted, in words, by `again`
NEW = {False: " that is new to them", True: ""}
#: so many times `most` are looked at, where there are more
SPARE = 4
#: wanted events that are looked through at a time, some 40 bytes each: over every request of users who have many, there
#: are far more than the log has
BLOCK = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """u users, each with one request, and what they wanted from then on."""

    requests: Requests  # of u users, in their order; its items are the wanted ones: distinct, ascending, at least one
    history: I64  # [u], how many events the user had before as_of

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def offsets(self) -> I64:
        """int64[u + 1]: user k wanted item[offsets[k]:offsets[k + 1]]."""
        return self.requests.offsets

    @property
    def item(self) -> I32:
        """int32[n], the wanted items, dense."""
        return self.requests.item

    @property
    def wanted(self) -> I64:
        """int64[u]: how many items each user wanted."""
        return np.diff(self.requests.offsets)

    def select(self, keep: Bool | I64) -> "Asked":
        """Return the users of a mask bool[u], or of indexes in ascending order."""
        return Asked(requests=self.requests.select(keep), history=self.history[keep])

    def drawn(self, most: int | None, seed: int) -> "Asked":
        """Return at most so many of the users, drawn evenly; None: all."""
        if most is None or len(self) <= most:
            return self
        return self.select(np.sort(np.random.default_rng(seed).choice(len(self), most, replace=False)))


def asked(
    log: EventLog,
    histories: Histories,
    groups: Groups,
    start: int,
    end: int,
    floor: int,
    at: At = "first",
    most: int | None = None,
    seed: int = 0,
    again: bool = False,
) -> Asked:
    """Return the users with a group in [start, end) who wanted, from their as_of to end, an item new to them.

    An item is wanted by an event that may make pairs (`pairing.where`), of a grade rank >= floor; it is new where the
    user has no event of it before as_of, whatever the feedback. as_of is the user's first group in [start, end), or
    `start` itself (at = "cut"); surface, arm, source item, query and
    context are that group's. at = "each" asks about every group, so a
    user comes as often. Drawn negatives are no events, so they never count. histories: of the whole log. start, end:
    µs. most: of more users (or groups), so many are drawn evenly by `seed`. again: an item that the user knows is
    wanted again, as a song is; it need not be new.
    """
    first = _groups_in(groups.requests, start, end) if at == "each" else _first_groups(groups.requests, start, end)
    if most is not None and len(first) > SPARE * most:  # some of those drawn wanted nothing
        first = np.sort(np.random.default_rng(seed).choice(first, SPARE * most, replace=False))
    user = groups.requests.user[first]
    as_of = np.full(len(first), start, np.int64) if at == "cut" else groups.requests.as_of[first]
    place, item = _wanted(log.between(start, end), user, as_of, floor)
    begin, stop = histories.before(user, as_of)
    bounds = np.searchsorted(place, np.arange(len(user) + 1))
    new = _new(item, bounds, histories.item, begin, stop, int(item.max(initial=-1)) + 1) | again
    sizes = np.bincount(place[new], minlength=len(user))
    said = replace(groups.requests, given=NO_GIVEN).select(first)
    requests = replace(said, as_of=as_of, offsets=offsets_of(sizes), item=item[new])
    return Asked(requests=requests, history=stop - begin).select(sizes > 0).drawn(most, seed)


def validation_start(groups: Groups) -> int:
    """Return when the booster's validation slice begins, µs."""
    return int(groups.of("booster", True).requests.as_of.min())


def _groups_in(requests: Requests, start: int, end: int) -> I64:
    """Return the groups in [start, end) whose user is known."""
    return np.flatnonzero((requests.as_of >= start) & (requests.as_of < end) & (requests.user >= 0))


def _first_groups(requests: Requests, start: int, end: int) -> I64:
    """Return the first group in [start, end) of each user that is known, in the order of the users."""
    inside = _groups_in(requests, start, end)
    inside = inside[np.argsort(requests.as_of[inside], kind="stable")]
    return inside[np.unique(requests.user[inside], return_index=True)[1]]


def _wanted(log: EventLog, user: I32, as_of: I64, floor: int) -> tuple[I64, I32]:
    """Return (place in `user`, item) of what each user wanted from as_of on: distinct, in that order.

    user: int32[u], where one may come more than once; as_of: int64[u].
    """
    rows = np.flatnonzero((log.grade >= max(floor, 0)) & log.pairable & (log.item >= 0) & np.isin(log.user, user))
    rows = rows[np.argsort(log.user[rows], kind="stable")]
    own = log.user[rows]
    begin, stop = np.searchsorted(own, user, side="left"), np.searchsorted(own, user, side="right")
    n_items, found = int(log.item.max(initial=0)) + 1, []
    for some in _blocks(stop - begin):
        sizes = (stop - begin)[some]
        place = np.repeat(some, sizes)
        of = rows[np.arange(len(place)) + np.repeat(begin[some] - offsets_of(sizes)[:-1], sizes)]
        later = log.ts[of] >= as_of[place]
        found.append(np.unique(place[later] * n_items + log.item[of[later]]))
    both = np.concatenate(found)
    return both // n_items, (both % n_items).astype(np.int32)


def _blocks(sizes: I64) -> list[I64]:
    """Return consecutive places whose sizes together are about BLOCK, or one larger one."""
    return np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(np.cumsum(sizes) // BLOCK)) + 1)


@njit(cache=True, nogil=True)
def _new(item: I32, bounds: I64, history: I32, start: I64, stop: I64, n_items: int) -> Bool:
    """Return bool[n]: whether each user's item is not in the history rows [start, stop) of that user.

    for each user u: mark the items of the history with u; an item of u without that mark is new
    """
    new, met = np.empty(len(item), np.bool_), np.full(n_items, -1, np.int64)
    for u in range(len(start)):
        if bounds[u] == bounds[u + 1]:
            continue
        for row in range(start[u], stop[u]):
            if 0 <= history[row] < n_items:
                met[history[row]] = u
        for k in range(bounds[u], bounds[u + 1]):
            new[k] = met[item[k]] != u
    return new
