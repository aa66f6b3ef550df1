"""Groups that a boundary of the split cuts in two."""

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
    """What each boundary, t0 to t3, cuts in two, and what lies outside, before t0 and from t3 on.

    A sitting is a group made in time order, in a log without request ids.
    """

    requests: I64  # [4], cut by each boundary
    sittings: I64  # [4], cut by each boundary
    groups_outside: I64  # [2], that the impressions outside would be
    impressions_outside: I64  # [2]


@dataclass(frozen=True, slots=True)
class _Parts:
    """Requests, or sittings, in the parts that the boundaries leave of them. Rows are those of the log."""

    first: I64  # [k], first row of each part
    before: I64  # [m], a row, and
    after: I64  # [m], the next one that would be of its group were there no boundary between them


def count_cuts(log: EventLog, settings: PairingSettings, split: Split) -> Cuts:
    """Count what the boundaries cut among the events that may make pairs, those outside [t0, t3) too.

    A sitting is cut where the last group before the boundary would take in the user's next impression after it. Two
    boundaries between the same two impressions both cut.
    """
    rows = np.flatnonzero(may_pair(log))
    bounds = np.array([split.t0, split.t1, split.t2, split.t3])
    part = np.searchsorted(bounds, log.ts, side="right").astype(np.int8)  # 0 before t0, …, 4 from t3 on
    requests = _requests(log, rows[log.request[rows] >= 0], part)
    sittings = _sittings(log, rows[log.request[rows] < 0], part, settings)
    outside, begins = np.array([[0], [OUTSIDE]]), part[np.concatenate([requests.first, sittings.first])]
    return Cuts(
        requests=_crossed(part, requests),
        sittings=_crossed(part, sittings),
        groups_outside=_count(begins == outside),
        impressions_outside=_count(part[rows] == outside),
    )


def _requests(log: EventLog, rows: I64, part: I8) -> _Parts:
    """Return the parts of the requests: rows (before, after) follow each other in one."""
    rows = rows[np.lexsort((rows, log.request[rows]))]
    before, after = rows[:-1], rows[1:]
    same = log.request[before] == log.request[after]
    begins = np.append(True, ~same | (part[before] != part[after]))[: len(rows)]
    return _Parts(rows[begins], before[same], after[same])


def _sittings(log: EventLog, rows: I64, part: I8, settings: PairingSettings) -> _Parts:
    """Return the parts of the sittings: rows (before, after) are in two of them for the boundary alone."""
    rows = rows[np.lexsort((rows, log.user[rows]))]
    window, max_size = (np.pad(limit, 1, mode="edge") for limit in group_limits(settings))
    start = np.flatnonzero(np.diff(time_groups(log.user[rows], log.ts[rows], part[rows], window, max_size), prepend=-1))
    size, begun = np.diff(start), rows[start[:-1]]
    before, after, p = rows[start[1:] - 1], rows[start[1:]], part[begun]
    room = (log.ts[after] < log.ts[begun] + window[p]) & (size < max_size[p])
    joined = room & (log.user[before] == log.user[after])
    return _Parts(rows[start], before[joined], after[joined])


def _crossed(part: I8, parts: _Parts) -> I64:
    """Return int64[4]: by boundary, how many steps from a row to the next one go over it."""
    number = np.arange(OUTSIDE)[:, None]
    return _count((part[parts.before] <= number) & (number < part[parts.after]))


def _count(marks: Bool) -> I64:
    return np.asarray(marks.sum(axis=1), np.int64)
