"""Each user's past events in time order, and the part of them that is visible as of a time."""

from dataclasses import dataclass, fields

import numpy as np
from numba import njit

from features.schema import F32, I8, I16, I32, I64, EventLog


@njit(cache=True, nogil=True)
def _before(offsets: I64, ts: I64, user: I32, cut: I64) -> tuple[I64, I64]:
    start, stop = np.zeros(len(user), np.int64), np.zeros(len(user), np.int64)
    for k in range(len(user)):
        if 0 <= user[k] < len(offsets) - 1:
            lo, hi = offsets[user[k]], offsets[user[k] + 1]
            start[k] = lo
            while lo < hi:
                middle = (lo + hi) // 2
                if ts[middle] < cut[k]:
                    lo = middle + 1
                else:
                    hi = middle
            stop[k] = lo
    return start, stop


@dataclass(frozen=True, slots=True)
class Histories:
    """All events, sorted by (user, ts); user u has the rows `offsets[u] .. offsets[u + 1] - 1`.

    offsets: int64[n_users + 1]. The other arrays are those of `EventLog` in this order: item: int32[n],
    ts: int64[n], grade: int8[n], surface: int16[n], organic: int8[n], feedback: float32[n, k].
    """

    offsets: I64
    item: I32
    ts: I64
    grade: I8
    surface: I16
    organic: I8
    feedback: F32

    @classmethod
    def build(cls, log: EventLog, n_users: int) -> "Histories":
        """Sort a log by user; within a user the log's own time order stays."""
        order = np.argsort(log.user, kind="stable")
        offsets = np.searchsorted(log.user[order], np.arange(n_users + 1)).astype(np.int64)
        names = [f.name for f in fields(cls) if f.name != "offsets"]
        return cls(offsets, **{name: np.ascontiguousarray(getattr(log, name)[order]) for name in names})

    def before(self, user: I32, cut: I64) -> tuple[I64, I64]:
        """Return int64[g] start and stop rows of each user's events with `ts < cut`; empty for a cold user."""
        start, stop = _before(self.offsets, self.ts, np.asarray(user, np.int32), np.asarray(cut, np.int64))
        return start, stop
