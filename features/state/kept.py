"""What was computed of users' histories, kept until they have new events."""

import threading
import weakref
from collections import OrderedDict
from operator import attrgetter
from typing import Any

from features.schema import F32
from features.state.histories import COLUMNS, Histories, LiveHistories

#: bytes of all that is kept of one plugin: some 100,000 arrays
MOST = 96 * 2**20
#: bytes of an entry beside its numbers: objects of Python's
ENTRY = 450

#: of `key_of`, or whatever else says it all where there are no events; then what else the array depends on, as many
#: numbers as one likes
Key = tuple[int, ...]
#: which histories something was computed of: those of one buffer, or of the same arrays
Origin = tuple[weakref.ref[Any], ...]

_arrays_of = attrgetter(*COLUMNS)


def key_of(histories: Histories, user: int, start: int, stop: int) -> Key:
    """Return what stands for a user's events before the row `stop`, wherever they lie: user, number, µs of the last.

    start: a row before `stop` where there are events; (user, 0, 0) where not. Events are added to a history and never
    taken away, at any place in time. So of two histories of one origin one has all events up to an instant that the
    other has, and where these are as many, they are the same.
    """
    return (user, stop - int(histories.offsets[user]), int(histories.ts[stop - 1])) if start < stop else (user, 0, 0)


def origin_of(histories: Histories) -> Origin:
    """Return the origin of histories."""
    return tuple(map(weakref.ref, _marks(histories)))


def is_of(origin: Origin, histories: Histories) -> bool:
    """Return whether histories are of an origin."""
    marks = _marks(histories)
    return len(origin) == len(marks) and all(known() is now for known, now in zip(origin, marks, strict=True))


def _marks(histories: Histories) -> tuple[object, ...]:
    if isinstance(histories, LiveHistories) and histories.lineage is not None:
        return (histories.lineage,)
    arrays: tuple[object, ...] = _arrays_of(histories)
    return arrays


class KeptStates:
    """Arrays by what they were computed from, of which those that were asked for longest ago go first; for any threads.

    A new or late event gives a user another key (`key_of`), and an event that is not visible yet does not: so an entry
    is right for all histories of its origin. With those of another, all go.
    """

    def __init__(self, most: int = MOST) -> None:
        """most: bytes, 0 to keep nothing."""
        self.most, self.bytes = most, 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, F32] = OrderedDict()
        self._origin: Origin = ()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, histories: Histories, key: Key) -> F32 | None:
        """Return what was kept of a key, not to be changed; None where there is nothing."""
        with self._lock:
            if not is_of(self._origin, histories):
                return None
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def keep(self, histories: Histories, key: Key, state: F32) -> None:
        """Keep an array that was computed of the histories; others go where there are too many bytes."""
        size = state.nbytes + ENTRY
        if size > self.most:
            return
        with self._lock:
            if not is_of(self._origin, histories):
                self._kept.clear()
                self.bytes = 0
                self._origin = origin_of(histories)
            if key not in self._kept:
                self.bytes += size
            self._kept[key] = state
            while self.bytes > self.most:
                self.bytes -= self._kept.popitem(last=False)[1].nbytes + ENTRY
