"""What the boundaries of the split cut: groups that would be one, were a boundary not where it is."""

from dataclasses import dataclass

import numpy as np

from features.pairing.groups import group_limits, may_pair, time_groups
from features.pairing.split import PERIODS, Split
from features.schema import I8, I64, Bool, EventLog
from features.settings import PairingSettings

#: the part of a log from t3 on, where 0 is the one before t0
OUTSIDE = len(PERIODS) + 1


@dataclass(frozen=True, slots=True)
class Cuts:
    """By boundary, t0 to t3: int64[4] requests and sittings (groups made in time order) that it cuts in two.

    Before t0 and from t3 on, int64[2] each: the groups that the impressions outside would be, and those impressions.
    """

    requests: I64
    sittings: I64
    groups_outside: I64
    impressions_outside: I64


def count_cuts(log: EventLog, settings: PairingSettings, split: Split) -> Cuts:
    """Count what the boundaries cut among the events that may make pairs, those outside [t0, t3) too.

    A sitting is cut where the last group before the boundary would take in the user's next impression after it. Two
    boundaries between the same two impressions both cut.
    """
    rows = np.flatnonzero(may_pair(log))
    bounds = np.array([split.t0, split.t1, split.t2, split.t3])
    part = np.searchsorted(bounds, log.ts, side="right").astype(np.int8)  # 0 before t0, …, 4 from t3 on
    firsts, *requests = _requests(log, rows[log.request[rows] >= 0], part)
    begun, *sittings = _sittings(log, rows[log.request[rows] < 0], part, settings)
    ends, begins = np.array([[0], [OUTSIDE]]), part[np.concatenate([firsts, begun])]
    return Cuts(
        _crossed(part, *requests), _crossed(part, *sittings), _count(begins == ends), _count(part[rows] == ends)
    )


def _requests(log: EventLog, rows: I64, part: I8) -> tuple[I64, I64, I64]:
    """Return the first row of each part of a request, and rows (before, after) that follow each other in one."""
    rows = rows[np.lexsort((rows, log.request[rows]))]
    before, after = rows[:-1], rows[1:]
    same = log.request[before] == log.request[after]
    begins = np.append(True, ~same | (part[before] != part[after]))[: len(rows)]
    return rows[begins], before[same], after[same]


def _sittings(log: EventLog, rows: I64, part: I8, settings: PairingSettings) -> tuple[I64, I64, I64]:
    """Return the first row of each sitting, and rows (before, after) that only a boundary keeps in two of them."""
    rows = rows[np.lexsort((rows, log.user[rows]))]
    window, max_size = (np.pad(limit, 1, mode="edge") for limit in group_limits(settings))
    start = np.flatnonzero(np.diff(time_groups(log.user[rows], log.ts[rows], part[rows], window, max_size), prepend=-1))
    size, begun = np.diff(start), rows[start[:-1]]
    before, after, p = rows[start[1:] - 1], rows[start[1:]], part[begun]
    room = (log.ts[after] < log.ts[begun] + window[p]) & (size < max_size[p])
    joined = room & (log.user[before] == log.user[after])
    return rows[start], before[joined], after[joined]


def _crossed(part: I8, before: I64, after: I64) -> I64:
    """Return int64[4]: by boundary, how many steps from one row to another go over it."""
    number = np.arange(OUTSIDE)[:, None]
    return _count((part[before] <= number) & (number < part[after]))


def _count(marks: Bool) -> I64:
    return np.asarray(marks.sum(axis=1), np.int64)
