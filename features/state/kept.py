"""What was computed of users' histories, kept until they have new events."""

import threading
import weakref
from collections import OrderedDict
from operator import attrgetter

from features.schema import F32
from features.state.histories import COLUMNS, Histories

#: bytes of all that is kept of one plugin: some 100,000 arrays
MOST = 96 * 2**20
#: bytes of an entry beside its numbers: objects of Python's
ENTRY = 450

#: (user, first row, row behind the last) of `Histories`, or whatever else says it all where there are no rows; then
#: what else the array depends on, as many numbers as one likes
Key = tuple[int, ...]

_arrays_of = attrgetter(*COLUMNS)


class KeptStates:
    """Arrays by the rows of a history, of which those that were asked for longest ago go first; for any threads.

    Rows of the same arrays never change (`HistoryBuffer` writes behind them alone), and a new or late event gives a
    user other rows. So an entry is right for the arrays that it was computed from; with others, all go.
    """

    def __init__(self, most: int = MOST) -> None:
        """most: bytes, 0 to keep nothing."""
        self.most, self.bytes = most, 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, F32] = OrderedDict()
        self._arrays: tuple[weakref.ref[object], ...] = ()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, histories: Histories, key: Key) -> F32 | None:
        """Return what was kept of a key, not to be changed; None where there is nothing."""
        with self._lock:
            if not self._is_of(histories):
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
            if not self._is_of(histories):
                self._kept.clear()
                self.bytes = 0
                self._arrays = tuple(map(weakref.ref, _arrays_of(histories)))
            if key not in self._kept:
                self.bytes += size
            self._kept[key] = state
            while self.bytes > self.most:
                self.bytes -= self._kept.popitem(last=False)[1].nbytes + ENTRY

    def _is_of(self, histories: Histories) -> bool:
        """Return whether what is kept is of these histories' arrays."""
        return bool(self._arrays) and all(
            known() is now for known, now in zip(self._arrays, _arrays_of(histories), strict=True)
        )
