"""Pairing groups with one `as_of` each: requests of the log, or made in time order for each user.

The same groups serve the towers, the booster and the metric.
"""

from dataclasses import dataclass, replace

import numpy as np

from features.errors import PairliftError
from features.kernels import njit
from features.pairing.negatives import Available, drawn_items
from features.pairing.split import PERIODS, Split, iso
from features.schema import (
    F32,
    I8,
    I32,
    I64,
    NO_CONTEXT,
    NO_GIVEN,
    NO_SOURCE_ITEMS,
    Bool,
    EventLog,
    Requests,
    offsets_of,
)
from features.settings import PairingSettings

#: rows that an error names
FIRST_FEW = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """g pairing groups in time order of `as_of`, with their n impressions."""

    requests: Requests  # user, as_of and what else is said of each; its impressions in time order, then drawn negatives
    period: I8  # [g], place in PERIODS
    validation: Bool  # [g], in the last part of its period
    grade: I8  # [n], rank from worst (0) to best; -1 no grade, or drawn
    event: I64  # [n], row of the log; -1 drawn

    @property
    def sampled(self) -> Bool:
        """bool[n]: drawn as a negative, not shown."""
        return self.event < 0

    def rows(self, keep: Bool) -> "Groups":
        """Return all groups with the impressions of the mask bool[n] alone; a group may be left empty."""
        requests = self.requests.with_candidates(keep)
        return replace(self, requests=requests, grade=self.grade[keep], event=self.event[keep])

    def select(self, keep: Bool) -> "Groups":
        """Return the groups of the mask bool[g], with their impressions."""
        rows = keep[self.requests.row_request()]
        return Groups(
            requests=self.requests.select(keep),
            period=self.period[keep],
            validation=self.validation[keep],
            grade=self.grade[rows],
            event=self.event[rows],
        )

    def of(self, period: str, validation: bool | None = None) -> "Groups":
        """Return the groups of `towers`, `booster` or `test`; of its validation slice or of the rest where asked."""
        keep = self.period == PERIODS.index(period)
        return self.select(keep if validation is None else keep & (self.validation == validation))


def may_pair(log: EventLog) -> Bool:
    """Return bool[n]: graded, and `pairing.where` is true of it."""
    return np.asarray((log.grade >= 0) & log.pairable)


def make_groups(
    log: EventLog,
    settings: PairingSettings,
    split: Split,
    seed: int = 0,
    given: F32 = NO_GIVEN,
    available: Available | None = None,
) -> Groups:
    """Group the impressions that may make pairs (graded, `pairing.where` true, inside [t0, t3)).

    A group is a request where the log has one, else made in time order for each user. Its `as_of` is the ts of the
    request's first event, or of the first impression, and so is what else is said of it. Groups are cut at the
    boundaries of the split. given: float32[n, c] of the log's events, as `Requests` has it.
    available: what `sampler = "in_catalogue"` draws from (`availability`).
    """
    _refuse_shared_requests(log, split)
    rows = np.flatnonzero(may_pair(log) & (split.period(log.ts) >= 0))
    ordered, number = _number_groups(log, rows, settings, split)
    starts = np.flatnonzero(np.diff(number, prepend=-1))  # [g], places in `ordered`
    first = _first_events(log, ordered[starts], split)  # [g], rows of the log
    order = np.lexsort((starts, log.ts[first]))  # groups in time order; ties keep the order of the users
    sizes = np.diff(np.append(starts, len(ordered)))
    take = np.repeat(starts[order] - offsets_of(sizes[order])[:-1], sizes[order]) + np.arange(len(ordered))
    first, event = first[order], ordered[take]
    requests = Requests(
        user=log.user[first],
        as_of=log.ts[first],
        surface=log.surface[first],
        offsets=offsets_of(sizes[order]),
        item=log.item[event],
        context=log.context[first] if log.context.shape[1] else NO_CONTEXT,
        given=given[event] if len(given) else given,
        arm=log.arm[first],
        source_item=log.source_item[first, 0] if log.source_item.shape[1] else NO_SOURCE_ITEMS,
    )
    period = split.period(requests.as_of)
    validation = _validation(requests, period, split)
    groups = Groups(requests=requests, period=period, validation=validation, grade=log.grade[event], event=event)
    _check(groups, log)
    return _with_negatives(groups, log, settings, available, seed) if settings.negatives else groups


def _refuse_shared_requests(log: EventLog, split: Split) -> None:
    """Raise where two users share a request: graded or not, for its first event gives the group's user and as_of."""
    rows = np.flatnonzero((log.request >= 0) & (split.period(log.ts) >= 0))
    order = rows[np.argsort(log.request[rows], kind="stable")]
    bad = order[1:][(np.diff(log.request[order]) == 0) & (np.diff(log.user[order]) != 0)]
    if len(bad):
        first = ", ".join(iso(ts) for ts in log.ts[np.sort(bad)[:FIRST_FEW]].tolist())
        raise PairliftError(
            f"[events] request_id: a request belongs to one user, but {len(bad):,} rows share one with another user "
            f"(the first at {first}); make it unique, for example concat(user_id, ':', request_id), or mend those rows"
        )


def _number_groups(log: EventLog, rows: I64, settings: PairingSettings, split: Split) -> tuple[I64, I64]:
    """Return (rows in the order of their groups, group number of each)."""
    by_request = rows[log.request[rows] >= 0]
    by_time = rows[log.request[rows] < 0]
    order = by_request[np.lexsort((by_request, log.request[by_request]))]
    period = split.period(log.ts[order])
    # A request whose impressions straddle a boundary is cut there, as every group is.
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(log.request[order]) != 0) | (np.diff(period) != 0)
    request_group = np.cumsum(new) - 1
    timed = by_time[np.lexsort((by_time, log.user[by_time]))]
    time_group = time_groups(log.user[timed], log.ts[timed], split.period(log.ts[timed]), *group_limits(settings))
    shift = request_group[-1] + 1 if len(request_group) else 0
    return np.concatenate([order, timed]), np.concatenate([request_group, time_group + shift])


@njit(cache=True, nogil=True)
def time_groups(user: I32, ts: I64, period: I8, window: I64, max_size: I64) -> I64:
    """Return int64[n], the number of each impression's group; impressions are sorted by (user, ts).

        for each impression
            begin a group at a new user, in a new period, `window` after the group's first one, or where it is full
            the impression is of the group begun last

    period: int8[n], each of [0, p). window (µs), max_size: int64[p], the limits in each period.
    """
    group = np.empty(len(user), np.int64)
    current, start, size = -1, 0, 0
    for k in range(len(user)):
        p = period[k]
        new = k == 0 or user[k] != user[k - 1] or period[k] != period[k - 1]
        if new or ts[k] >= ts[start] + window[p] or size >= max_size[p]:
            current, start, size = current + 1, k, 0
        group[k] = current
        size += 1
    return group


def group_limits(settings: PairingSettings) -> tuple[I64, I64]:
    """Return int64[3]: the window (µs) and the most impressions of a group made in time order, by period."""
    each = (settings.for_towers(), settings, settings)
    return np.array([s.window for s in each], np.int64), np.array([s.max_size for s in each], np.int64)


def _first_events(log: EventLog, first: I64, split: Split) -> I64:
    """Return the event whose time and context are a group's, given its first impression that makes pairs.

    A request began with its first event, graded or not: what was shown in it later must not see that one.
    """
    # -1, outside [t0, t3), needs a number of its own beside the periods': else it is a period of another request.
    part = split.period(log.ts) + 1
    key = np.where(log.request >= 0, log.request * (len(PERIODS) + 1) + part, -1)
    keys, earliest = np.unique(key, return_index=True)
    return np.where(log.request[first] >= 0, earliest[np.searchsorted(keys, key[first])], first)


def _validation(requests: Requests, period: I8, split: Split) -> Bool:
    """Mark the last groups of each training period that hold `split.validation` of its impressions."""
    mark = np.zeros(len(period), bool)
    sizes = np.diff(requests.offsets)
    for k in (0, 1):
        members = np.flatnonzero(period == k)
        if len(members):
            through = np.cumsum(sizes[members])
            mark[members[through > (1 - split.validation) * through[-1]]] = True
    return mark


def _check(groups: Groups, log: EventLog) -> None:
    """Raise RuntimeError where a shown impression is not of its group's user, or a group of no period."""
    owner = groups.requests.row_request()
    other_users = int(np.sum(log.user[groups.event] != groups.requests.user[owner]))
    no_period = int(np.sum(groups.period < 0))
    if other_users or no_period:
        raise RuntimeError(
            f"a fault of Pairlift, please report it: {other_users:,} impressions are in a group of another user, and "
            f"{no_period:,} groups are in no period, where each was expected to be of its own user and period"
        )


def _with_negatives(
    groups: Groups, log: EventLog, settings: PairingSettings, available: Available | None, seed: int
) -> Groups:
    """Add drawn losers to each group, without the group's own items."""
    r = groups.requests
    drawn_offsets = offsets_of(np.diff(r.offsets) * settings.negatives)
    drawn = drawn_items(r, drawn_offsets, log, settings, available, seed)
    group = np.concatenate([r.row_request(), np.repeat(np.arange(len(r)), np.diff(drawn_offsets))])
    item = np.concatenate([r.item, drawn])
    event = np.concatenate([groups.event, np.full(len(drawn), -1, np.int64)])
    grade = np.concatenate([groups.grade, np.full(len(drawn), -1, np.int8)])
    keep = item >= 0
    order = np.flatnonzero(keep)[np.argsort(group[keep], kind="stable")]
    offsets = offsets_of(np.bincount(group[order], minlength=len(r)))
    return replace(
        groups, requests=replace(r, offsets=offsets, item=item[order]), grade=grade[order], event=event[order]
    )
