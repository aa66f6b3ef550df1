"""Each user's past events in time order, and the part of them that is visible as of a time.

`Histories` is the compact form of training and of snapshots. `LiveHistories` is what a server that records
events reads: a `HistoryBuffer` appends to the same arrays behind the rows that any reader knows.
"""

from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np

from features.counters.places import first_not_before
from features.kernels import njit
from features.schema import F32, I8, I16, I32, I64, NO_ARMS, NO_CONTEXT, EventLog, arms_of, event_contexts

#: columns of the histories, as in `EventLog`
COLUMNS = ("item", "ts", "grade", "surface", "organic", "feedback", "arm", "context")
#: more events than any user has
ALL = 2**62
#: rows that a user's first block in the buffer's tail has at least
SMALLEST = 8
#: rows that the buffer's tail has at least
TAIL = 1 << 16


@dataclass(frozen=True, slots=True)
class Histories:
    """All events, sorted by (user, ts), with the columns of `EventLog`."""

    offsets: I64  # [n_users + 1], user u has the rows [offsets[u], offsets[u + 1])
    _: KW_ONLY
    item: I32  # [n], dense
    ts: I64  # [n], µs
    grade: I8  # [n], rank, -1 for none
    surface: I16  # [n], code, -1 unknown
    organic: I8  # [n], 1 / 0, -1 unknown
    feedback: F32  # [n, k], NaN where unknown
    #: [n], code of the experiment's arm, -1 none, `OTHER_ARM` one without a code. Left out, as in older files: none
    arm: I16 = field(default_factory=lambda: NO_ARMS)
    #: [n, contexts], as `Requests.context`; [n, 0] without `[events.context]`. Left out, as in older files: that
    context: F32 = field(default_factory=lambda: NO_CONTEXT)

    def __post_init__(self) -> None:
        if len(self.arm) != len(self.ts):
            object.__setattr__(self, "arm", arms_of(self.arm, len(self.ts)))
        if len(self.context) != len(self.ts):
            object.__setattr__(self, "context", event_contexts(self.context, len(self.ts)))

    @classmethod
    def build(cls, log: EventLog, n_users: int) -> "Histories":
        """Sort a log by user; within a user the log's own time order stays."""
        order = np.argsort(log.user, kind="stable")
        offsets = np.searchsorted(log.user[order], np.arange(n_users + 1)).astype(np.int64)
        return Histories(offsets, **{name: np.ascontiguousarray(getattr(log, name)[order]) for name in COLUMNS})

    @property
    def ends(self) -> I64:
        """int64[n_users]: the row behind each user's last."""
        return self.offsets[1:]

    @property
    def sizes(self) -> I64:
        """int64[n_users]: how many events each user has."""
        return self.ends - self.offsets[: len(self.ends)]

    def before(self, user: I32, cut: I64, most: int = ALL) -> tuple[I64, I64]:
        """Return int64[g] start and stop rows of each user's events with `ts < cut`; empty for a cold user.

        most: how many events each has at most, the latest ones.
        """
        user, cut = np.asarray(user, np.int32), np.asarray(cut, np.int64)
        start, stop = _before(self.offsets, self.ends, self.ts, user, cut, most)
        return start, stop

    def past(self, user: int, cut: int) -> slice:
        """Return the rows of one user's events with `ts < cut`; none for a cold user."""
        return slice(*_past(self.offsets, self.ends, self.ts, int(user), int(cut)))

    def until(self, cut: int) -> "LiveHistories":
        """Return the events with `ts < cut`, over the same arrays: costs nothing but a search for each user."""
        n = len(self.ends)
        _, stop = self.before(np.arange(n, dtype=np.int32), np.full(n, cut))
        return LiveHistories(self.offsets, stop=stop, **{name: getattr(self, name) for name in COLUMNS})

    def rows(self) -> tuple[I32, I64]:
        """Return int32[n] user and int64[n] row of every event, by user and then in time order."""
        user, row = _rows(self.offsets, self.ends)
        return user, row

    def log(self, feedback_names: tuple[str, ...]) -> EventLog:
        """Return the events in time order: what counters and histories are built from again.

        Not in it: which request an event was of (-1) and whether it may make pairs (true).
        """
        user, row = self.rows()
        order = np.argsort(self.ts[row], kind="stable")
        row = row[order]
        taken = {name: getattr(self, name)[row] for name in COLUMNS}
        rest = {"request": np.full(len(row), -1, np.int64), "pairable": np.ones(len(row), bool)}
        return EventLog(user=user[order], feedback_names=feedback_names, **taken, **rest)

    def compact(self) -> "Histories":
        """Return a copy without the gaps that a live form has."""
        offsets = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        arrays = {name: getattr(self, name) for name in COLUMNS}
        return Histories(offsets, **{name: _packed(self.offsets, offsets, a) for name, a in arrays.items()})


@njit(cache=True, nogil=True)
def _past(first: I64, last: I64, ts: I64, user: int, cut: int) -> tuple[int, int]:
    """Return (start, stop) of the rows of a user with `ts < cut`; (0, 0) for one that is not there."""
    if not 0 <= user < len(last):
        return 0, 0
    return first[user], first_not_before(ts, first[user], last[user], cut)


@njit(cache=True, nogil=True)
def _before(first: I64, last: I64, ts: I64, user: I32, cut: I64, most: int) -> tuple[I64, I64]:
    """Return the last `most` rows of `_past` of each user."""
    start, stop = np.empty(len(user), np.int64), np.empty(len(user), np.int64)
    for k in range(len(user)):
        begin, stop[k] = _past(first, last, ts, user[k], cut[k])
        start[k] = max(begin, stop[k] - most)
    return start, stop


@njit(cache=True, nogil=True)
def _rows(first: I64, last: I64) -> tuple[I32, I64]:
    """Return (user, row) of every event: user by user, the rows of each in their order."""
    n = 0
    for u in range(len(last)):
        n += last[u] - first[u]
    user, row = np.empty(n, np.int32), np.empty(n, np.int64)
    k = 0
    for u in range(len(last)):
        for r in range(first[u], last[u]):
            user[k], row[k] = u, r
            k += 1
    return user, row


@njit(cache=True, nogil=True)
def _packed(first: I64, offsets: I64, values: Any) -> Any:
    """Return the rows of each user, from first[u] on, beside those of the user before."""
    out = np.empty((offsets[-1], *values.shape[1:]), values.dtype)
    for u in range(len(offsets) - 1):
        out[offsets[u] : offsets[u + 1]] = values[first[u] : first[u] + offsets[u + 1] - offsets[u]]
    return out


class Lineage:
    """The mark of histories that came from each other by further events, wherever their rows lie."""


@dataclass(frozen=True, slots=True)
class LiveHistories(Histories):
    """Histories with gaps: user u has the rows [offsets[u], stop[u]), and the last of `offsets` has no meaning.

    The arrays belong to a `HistoryBuffer`, which writes only behind the rows that this object knows: whoever
    holds it reads the same for ever.
    """

    stop: I64  # [n_users]
    lineage: Lineage | None = field(default=None, compare=False)  # of the buffer; None: a part of other histories

    @property
    def ends(self) -> I64:
        """int64[n_users]: the row behind each user's last."""
        return self.stop


class HistoryBuffer:
    """Arrays with room behind each user's events; one thread appends, any number read what `extended` returned.

    An event in its place costs its own bytes; a late one, or one without room, moves its user's rows. The room is
    at most twice the rows that moved, and all gaps go when the tail is full (`bytes_used` tells).
    """

    def __init__(self, histories: Histories) -> None:
        """Copy the histories (mapped ones too), with room at the tail; untouched pages cost no memory."""
        self._lineage = Lineage()
        self._restart(histories, 0)

    def _restart(self, histories: Histories, extra: int) -> None:
        _, row = histories.rows()
        self._tail = len(row)  # the first row behind all blocks
        capacity = len(row) + max(TAIL, len(row) // 2, 4 * extra)
        self._arrays = {}  # by name of COLUMNS
        for name in COLUMNS:
            old = getattr(histories, name)
            self._arrays[name] = np.empty((capacity, *old.shape[1:]), old.dtype)
            np.take(old, row, axis=0, out=self._arrays[name][: len(row)], mode="clip")
        self._first = np.concatenate([[0], np.cumsum(histories.sizes)]).astype(np.int64)
        self._last = self._first[1:].copy()
        self._room = histories.sizes.copy()  # of each user's block, in rows

    @property
    def histories(self) -> LiveHistories:
        """What is known now."""
        return LiveHistories(self._first, stop=self._last, lineage=self._lineage, **self._arrays)

    @property
    def bytes_used(self) -> int:
        """Bytes of the rows in use and of the bounds, gaps included."""
        a_row = sum(array.itemsize * int(np.prod(array.shape[1:])) for array in self._arrays.values())
        return self._tail * a_row + 3 * self._first.nbytes

    def _make_room(self, n_users: int) -> None:
        """Let there be at least so many users; new ones have no events and no block."""
        new = n_users - len(self._last)
        if new > 0:
            # The last of `_first` is no user's.
            self._first = np.append(self._first[:-1], np.zeros(new + 1, np.int64))
            self._last, self._room = (np.append(a, np.zeros(new, np.int64)) for a in (self._last, self._room))

    def extended(self, log: EventLog) -> LiveHistories:
        """Return the histories with the events of `log` (in time order; no -1; users may be new) put in."""
        order = np.argsort(log.user, kind="stable")
        users, begin = np.unique(log.user[order], return_index=True)
        self._make_room(int(users[-1]) + 1 if len(users) else 0)
        bounds = np.append(begin, len(order)).astype(np.int64)
        new_ts = log.ts[order]
        moved = int(self.histories.sizes[users].sum()) + len(order)
        if self._tail + 2 * moved + SMALLEST * len(users) > len(self._arrays["ts"]):
            self._restart(self.histories, moved + SMALLEST * len(users))
        # Copies: whoever reads the earlier state keeps its own bounds.
        self._first, self._last = self._first.copy(), self._last.copy()
        target, source, self._tail = _place(
            users, bounds, new_ts, self._arrays["ts"], self._first, self._last, self._room, self._tail
        )
        old, new = source >= 0, source < 0
        for name, array in self._arrays.items():
            array[target[old]] = array[source[old]]
            array[target[new]] = getattr(log, name)[order][~source[new]]
        return self.histories


@njit(cache=True, nogil=True)
def _place(
    users: I32, bounds: I64, new_ts: I64, ts: I64, first: I64, last: I64, room: I64, tail: int
) -> tuple[I64, I64, int]:
    """Return (target, source, tail): rows to write, and what into them: a row, or ~k for new event k.

    For each of the `users`, whose new events are [bounds[k], bounds[k + 1]) and whose rows are [first, last):
        if the new events come behind the known ones and fit into the block's room: write them there
        else: take a block of twice the size at the tail, and write old and new events to it, merged by time
    So rows that a reader may know stay as they are. first, last, room: of the next state; changed here.
    """
    n = 0
    for k in range(len(users)):
        n += last[users[k]] - first[users[k]] + bounds[k + 1] - bounds[k]
    target, source = np.empty(n, np.int64), np.empty(n, np.int64)
    n = 0
    for k in range(len(users)):
        u, a, b = users[k], bounds[k], bounds[k + 1]
        lo, hi = first[u], last[u]
        if hi - lo + b - a <= room[u] and (hi == lo or ts[hi - 1] <= new_ts[a]):
            at = hi
        else:
            room[u] = max(SMALLEST, 2 * (hi - lo + b - a))
            at = first[u] = tail
            tail += room[u]
            while lo < hi and a < b:
                if ts[lo] <= new_ts[a]:
                    target[n], source[n], lo = at, lo, lo + 1
                else:
                    target[n], source[n], a = at, ~a, a + 1
                at, n = at + 1, n + 1
            while lo < hi:
                target[n], source[n] = at, lo
                at, n, lo = at + 1, n + 1, lo + 1
        while a < b:
            target[n], source[n] = at, ~a
            at, n, a = at + 1, n + 1, a + 1
        last[u] = at
    return target[:n], source[:n], tail
