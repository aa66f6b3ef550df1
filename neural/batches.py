"""Batches of windows of whole histories, with what is to be predicted and ranked from their states. NumPy alone.

One pass over a window serves every event and every group in it: a target (an event to predict, a group to rank) names
the window and the state there that has seen what it may see. There is never one pass for each impression.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from features.pairing.groups import Groups
from features.pairing.pairs import Pairs
from features.schema import F32, I32, I64, Bool
from features.state.histories import Histories
from features.state.lag import Lag
from neural.expected import ItemSignals
from neural.histories import Tokens, TokenSpec, Windows, length_buckets, make_tokens, mixed_buckets, ranges

#: of lengths, where windows of like lengths are put together: wider would pad more than a tenth
JITTER = (0.92, 1.08)


@dataclass(frozen=True, slots=True)
class TargetMask:
    """The targets that batches are made for."""

    events: Bool  # [rows of the histories], to predict
    groups: Bool  # [groups], to rank


@dataclass(frozen=True, slots=True, kw_only=True)
class EventTargets:
    """n events to predict, each from the state that has seen all of its user's events before it."""

    row: I64  # [n], of the histories
    window: I64  # [n], place in the batch
    state: I64  # [n], 0 .. t, within the window
    as_of: I64  # [n], µs, when the event happened
    item: I64  # [n]
    context: I64  # [n, c], `TokenSpec.context_codes`
    grade: I64  # [n], rank; -1 none
    feedback: F32  # [n, feedback columns], as in the log; NaN unknown
    offset: F32  # [n], the item's mean grade before the event


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTargets:
    """g groups to rank, each from the one state of (as_of - lag), with their m impressions and p pairs of these."""

    window: I64  # [g], place in the batch
    state: I64  # [g], 0 .. t, within the window
    as_of: I64  # [g], µs
    context: I64  # [g, c], `TokenSpec.context_codes`
    row: I64  # [m], impression of `Groups`
    item: I64  # [m]
    group: I64  # [m], which of the g
    offset: F32  # [m], the item's mean grade before the group's as_of
    winner: I64  # [p], which of the m
    loser: I64  # [p], which of the m
    weight: F32  # [p]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """b windows of histories with what is to be predicted and ranked from their states."""

    user: I32  # [b]
    tokens: Tokens  # [b, t]
    surprise: F32  # [b, t, k], of `ItemSignals`
    events: EventTargets  # to predict, of these windows
    groups: GroupTargets  # to rank, of these windows
    whole: "Batch | None" = None  # of which this is one process's share; None: it is whole


class Batches:
    """Plans which windows make a batch, and makes it."""

    def __init__(
        self,
        histories: Histories,
        groups: Groups,
        pairs: Pairs,
        spec: TokenSpec,
        expected: ItemSignals,
        lag: Lag,
    ) -> None:
        r = groups.requests
        self.histories, self.requests, self.spec, self.expected, self.lag = histories, r, spec, expected, lag
        self.windows = Windows.build(histories, spec.length)
        self.events = _find_events(histories, self.windows)
        self.groups = _find_groups(histories, self.windows, groups, lag)
        self.event_offset = expected.before(histories.item, histories.ts)[:, 0]  # [rows of the histories]
        self.context = spec.request_codes(r)  # [groups, c]
        self.item = spec.item_row(r.item)  # [impressions]
        self.impression_offset = expected.before(r.item, r.as_of[r.row_request()])[:, 0]  # [impressions]
        group = r.row_request()[pairs.winner]
        order = np.argsort(group, kind="stable")  # pairs, by group
        self.winner, self.loser = pairs.winner[order].astype(np.int64), pairs.loser[order].astype(np.int64)
        self.weight = pairs.weight[order]
        self.pair_offsets = np.searchsorted(group[order], np.arange(len(r) + 1)).astype(np.int64)  # [groups + 1]

    @property
    def with_pairs(self) -> Bool:
        """bool[groups]: it holds at least one pair."""
        return np.diff(self.pair_offsets) > 0

    def plan(self, mask: TargetMask, budget: int, rng: np.random.Generator | None = None) -> list[I64]:
        """Return windows by batch: all that have something of the mask, like lengths together; mixed with `rng`."""
        windows = np.flatnonzero(self.events.windows_with(mask.events) | self.groups.windows_with(mask.groups))
        length = (self.windows.stop - self.windows.start)[windows]
        found = length_buckets(length, budget) if rng is None else mixed_buckets(length, budget, JITTER, rng)
        return [windows[k] for k in found]

    def make(self, chosen: I64, mask: TargetMask) -> Batch:
        """Return the chosen windows, int64[b], with the targets of the mask."""
        user, w = self.windows.user[chosen], self.windows
        tokens = make_tokens(self.histories, user, w.start[chosen], w.stop[chosen], self.spec)
        return Batch(
            user=user,
            tokens=tokens,
            surprise=self.expected.surprise(tokens),
            events=self._event_targets(chosen, mask.events),
            groups=self._group_targets(chosen, mask.groups),
        )

    def context_of(self, row: I64) -> I64:
        """Return int64[n, c] `TokenSpec.context_codes` of events, int64[n] rows of the histories."""
        h = self.histories
        return self.spec.context_codes(h.surface[row], h.ts[row], h.context[row])

    def _event_targets(self, chosen: I64, mask: Bool) -> EventTargets:
        window, state, row = self.events.within(chosen, mask)
        h = self.histories
        return EventTargets(
            row=row,
            window=window,
            state=state,
            as_of=h.ts[row],
            item=h.item[row].astype(np.int64),
            context=self.context_of(row),
            grade=h.grade[row].astype(np.int64),
            feedback=h.feedback[row],
            offset=self.event_offset[row],
        )

    def _group_targets(self, chosen: I64, mask: Bool) -> GroupTargets:
        window, state, group = self.groups.within(chosen, mask)
        first, last = self.requests.offsets[group], self.requests.offsets[group + 1]
        row = ranges(first, last)
        pair = ranges(self.pair_offsets[group], self.pair_offsets[group + 1])
        n_pairs = self.pair_offsets[group + 1] - self.pair_offsets[group]
        shift = np.repeat(np.cumsum(last - first) - last, n_pairs)  # from all impressions to those of the batch
        return GroupTargets(
            window=window,
            state=state,
            as_of=self.requests.as_of[group],
            context=self.context[group],
            row=row,
            item=self.item[row],
            group=np.repeat(np.arange(len(group)), last - first),
            offset=self.impression_offset[row],
            winner=self.winner[pair] + shift,
            loser=self.loser[pair] + shift,
            weight=self.weight[pair],
        )


@dataclass(frozen=True, slots=True)
class TargetIndex:
    """All n targets of one kind, sorted by the window that holds their state."""

    offsets: I64  # [windows + 1]; window w has the targets offsets[w] .. offsets[w + 1] - 1
    state: I64  # [n], within the window
    target: I64  # [n], an event's row of the histories, or a group

    @classmethod
    def build(cls, windows: Windows, user: I32, seen: I64, target: I64) -> Self:
        """Locate the states of n users who have seen so many events by then."""
        window, state = windows.locate(user, seen)
        order = np.argsort(window, kind="stable")
        offsets = np.searchsorted(window[order], np.arange(len(windows.user) + 1)).astype(np.int64)
        return cls(offsets, state[order], target[order])

    def windows_with(self, mask: Bool) -> Bool:
        """Return bool[windows]: it holds at least one target of the mask."""
        window = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        return np.bincount(window[mask[self.target]], minlength=len(self.offsets) - 1) > 0

    def within(self, chosen: I64, mask: Bool) -> tuple[I64, I64, I64]:
        """Return (place in `chosen`, state, target) of every target of the mask in the chosen windows."""
        start, stop = self.offsets[chosen], self.offsets[chosen + 1]
        rows = ranges(start, stop)
        window = np.repeat(np.arange(len(chosen)), stop - start)
        keep = mask[self.target[rows]]
        return window[keep], self.state[rows][keep], self.target[rows][keep]


def _find_events(histories: Histories, windows: Windows) -> TargetIndex:
    """Find the state of each event that has seen all of its user's events before it."""
    user, row = histories.rows()
    return TargetIndex.build(windows, user, row - histories.offsets[user], row)


def _find_groups(histories: Histories, windows: Windows, groups: Groups, lag: Lag) -> TargetIndex:
    """Find the state of each known user's group that has seen all before (as_of - lag)."""
    r = groups.requests
    start, stop = histories.before(r.user, lag.cut(r.as_of))
    known = np.flatnonzero(r.user >= 0)
    return TargetIndex.build(windows, r.user[known], (stop - start)[known], known)
