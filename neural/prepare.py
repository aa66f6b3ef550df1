"""What training reads: windows of whole histories, and what is looked up in their states. NumPy alone."""

from dataclasses import dataclass, replace

import numpy as np

from features.histories import Histories
from features.pairs import Groups, Pairs
from features.plugin import FitData
from features.schema import F32, I32, I64, Bool, EventLog
from neural.entities import Entities, count_values, encode, table_rows
from neural.histories import (
    Tokens,
    TokenSpec,
    Windows,
    batches,
    cut_times,
    known_scale,
    make_tokens,
    raw_signals,
)
from neural.settings import TowerSettings

#: an item's mean signal is drawn towards the mean of all, as by so many events of the latter
PRIOR_EVENTS = 10.0


def ranges(start: I64, stop: I64) -> I64:
    """Return the concatenation of `start[k] .. stop[k] - 1`."""
    sizes = stop - start
    ends = np.cumsum(sizes)
    return np.repeat(start - ends + sizes, sizes) + np.arange(ends[-1] if len(ends) else 0)


def expected_signals(log: EventLog, spec: TokenSpec) -> F32:
    """Return float32[n_items + 1, k]: the items' mean scaled signals, 0 (the mean of all) for an unknown one."""
    raw = raw_signals(log.grade, log.feedback)
    scaled = (raw - np.array(spec.signal_mean)) / np.array(spec.signal_scale)
    columns = []
    for k in range(spec.n_signals):
        known = np.isfinite(scaled[:, k])
        item = log.item[known]
        total = np.bincount(item, scaled[known, k], minlength=spec.n_items + 1)
        columns.append(total / (np.bincount(item, minlength=spec.n_items + 1) + PRIOR_EVENTS))
    return np.asarray(np.stack(columns, axis=1), np.float32)


class ItemGrades:
    """The items' mean scaled grade as of any time: what the ranker's counters know without a tower."""

    def __init__(self, log: EventLog, spec: TokenSpec) -> None:
        self._events = Histories.build(replace(log, user=log.item, item=log.user), spec.n_items)
        known = self._events.grade >= 0
        scaled = np.where(known, (self._events.grade - spec.signal_mean[0]) / spec.signal_scale[0], 0.0)
        self._count = np.concatenate([[0], np.cumsum(known)])
        self._total = np.concatenate([[0.0], np.cumsum(scaled)])

    def before(self, item: I32, cut: I64) -> F32:
        """Return float32[n]: over each item's events with `ts < cut`, drawn towards 0; 0 for an unknown item."""
        start, stop = self._events.before(item, cut)
        count = self._count[stop] - self._count[start]
        return np.asarray((self._total[stop] - self._total[start]) / (count + PRIOR_EVENTS), np.float32)


@dataclass(frozen=True, slots=True)
class Lookups:
    """Things that are looked up in the states of windows, sorted by window.

    offsets: int64[windows + 1]. state: int64[n] within the window. what: int64[n], an event's row of the
    histories, or a group.
    """

    offsets: I64
    state: I64
    what: I64

    @classmethod
    def build(cls, windows: Windows, user: I32, seen: I64, what: I64) -> "Lookups":
        """Locate n things of users who have seen so many events by then."""
        window, state = windows.locate(user, seen)
        order = np.argsort(window, kind="stable")
        offsets = np.searchsorted(window[order], np.arange(len(windows.user) + 1)).astype(np.int64)
        return cls(offsets, state[order], what[order])

    def of(self, chosen: I64, mask: Bool) -> tuple[I64, I64, I64]:
        """Return (place in `chosen`, state, what) of everything of the mask in the chosen windows."""
        start, stop = self.offsets[chosen], self.offsets[chosen + 1]
        rows = ranges(start, stop)
        at = np.repeat(np.arange(len(chosen)), stop - start)
        keep = mask[self.what[rows]]
        return at[keep], self.state[rows][keep], self.what[rows][keep]

    def windows_with(self, mask: Bool) -> Bool:
        """Return bool[windows]: at least one thing of the mask is looked up in it."""
        per_thing = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        return np.bincount(per_thing[mask[self.what]], minlength=len(self.offsets) - 1) > 0


@dataclass(frozen=True, slots=True)
class Batch:
    """b windows. user: int32[b].

    Events to predict: at [event_at, event_state] stands the state that has seen all before; event: int64[n] rows
    of the histories. Groups to rank: the one state of each at [group_at, group_state], surface: int64[g] codes.
    Candidates: row: int64[m] of all impressions, item: int64[m], of group: int64[m].
    Pairs: winner, loser: int64[p] count these candidates; weight: float32[p].
    """

    user: I32
    tokens: Tokens
    event_at: I64
    event_state: I64
    event: I64
    group_at: I64
    group_state: I64
    surface: I64
    row: I64
    item: I64
    group: I64
    winner: I64
    loser: I64
    weight: F32


class Lookout:
    """Histories, groups and pairs by window: one pass over a window serves every event and every group in it.

    A group's state is that of (as_of - lag); there is never one pass for each impression.
    """

    def __init__(self, histories: Histories, groups: Groups, pairs: Pairs, spec: TokenSpec, lag: int | str) -> None:
        self.histories, self.spec, self.requests = histories, spec, groups.requests
        self.windows = Windows.build(histories, spec.length)
        user = np.repeat(np.arange(len(histories.offsets) - 1, dtype=np.int32), np.diff(histories.offsets))
        rows = np.arange(len(user), dtype=np.int64)
        self.events = Lookups.build(self.windows, user, rows - histories.offsets[user], rows)
        start, stop = histories.before(self.requests.user, cut_times(self.requests.as_of, lag))
        known = np.flatnonzero(self.requests.user >= 0)
        self.groups = Lookups.build(self.windows, self.requests.user[known], (stop - start)[known], known)
        self.surface = spec.surface_code(self.requests.surface)
        self.item = spec.item_row(self.requests.item)
        group = self.requests.row_request()[pairs.winner]
        order = np.argsort(group, kind="stable")
        self.winner, self.loser = pairs.winner[order].astype(np.int64), pairs.loser[order].astype(np.int64)
        self.weight = pairs.weight[order]
        self.pair_offsets = np.searchsorted(group[order], np.arange(len(self.requests) + 1)).astype(np.int64)

    @property
    def with_pairs(self) -> Bool:
        """bool[groups]: it holds at least one pair."""
        return np.diff(self.pair_offsets) > 0

    def plan(self, events: Bool, groups: Bool, budget: int, rng: np.random.Generator | None) -> list[I64]:
        """Return windows by batch: all that have something of the masks, like lengths together; mixed with `rng`."""
        windows = np.flatnonzero(self.events.windows_with(events) | self.groups.windows_with(groups))
        length = (self.windows.stop - self.windows.start)[windows]
        if rng is None:
            return [windows[k] for k in batches(length, budget)]
        mixed = rng.permutation(len(windows))
        # Jittered, so that a window meets others in each epoch.
        jittered = (length[mixed] * rng.uniform(0.8, 1.25, len(windows))).astype(np.int64)
        chosen = [windows[mixed[k]] for k in batches(jittered, budget)]
        return [chosen[k] for k in rng.permutation(len(chosen))]

    def make(self, chosen: I64, events: Bool, groups: Bool) -> Batch:
        """Return the chosen windows with the events (bool[events]) and the groups (bool[groups]) of the masks."""
        w = self.windows
        tokens = make_tokens(self.histories, w.user[chosen], w.start[chosen], w.stop[chosen], self.spec)
        event_at, event_state, event = self.events.of(chosen, events)
        group_at, group_state, group = self.groups.of(chosen, groups)
        first, last = self.requests.offsets[group], self.requests.offsets[group + 1]
        rows = ranges(first, last)
        of_pairs = ranges(self.pair_offsets[group], self.pair_offsets[group + 1])
        n_pairs = self.pair_offsets[group + 1] - self.pair_offsets[group]
        shift = np.repeat(np.cumsum(last - first) - last, n_pairs)  # from all impressions to those of the batch
        return Batch(
            w.user[chosen], tokens, event_at, event_state, event, group_at, group_state, self.surface[group],
            rows, self.item[rows], np.repeat(np.arange(len(group)), last - first),
            self.winner[of_pairs] + shift, self.loser[of_pairs] + shift, self.weight[of_pairs],
        )  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """All inputs of a fit.

    rows: of the shared table. popularity: int64[n_items] events. expected: float32[n_items + 1, k]. binary:
    bool[k - 1], the feedback columns of 0 and 1 alone. event_offset: float32[rows of the histories] and
    candidate_offset: float32[impressions], `ItemGrades` before each. events: bool[rows of the histories], tuned, held:
    bool[groups], what pre-training, fine-tuning and the choice of the epoch may read.
    """

    spec: TokenSpec
    histories: Histories
    items: Entities
    users: Entities
    rows: int
    popularity: I64
    expected: F32
    binary: Bool
    lookout: Lookout
    event_offset: F32
    candidate_offset: F32
    events: Bool
    tuned: Bool
    held: Bool


def prepare(data: FitData, settings: TowerSettings) -> Prepared:
    """Arrange the data of a fit. What is of the validation slice's time is a target of neither phase."""
    log, catalog = data.log, data.catalog
    raw = raw_signals(log.grade, log.feedback)
    mean, scale = known_scale(raw)
    spec = TokenSpec(catalog.n_items, len(data.grades), len(catalog.surfaces), mean, scale, settings.history)
    histories = Histories.build(log, catalog.n_users)
    popularity = np.bincount(log.item, minlength=catalog.n_items)
    activity = np.bincount(log.user, minlength=catalog.n_users)
    rows = table_rows(count_values(catalog.n_items, catalog.item_attributes + catalog.user_attributes))
    grades = ItemGrades(log, spec)
    r, validation = data.groups.requests, data.groups.validation
    lookout = Lookout(histories, data.groups, data.pairs, spec, settings.lag)
    boundary = r.as_of[validation].min() if validation.any() else np.iinfo(np.int64).max
    return Prepared(
        spec=spec,
        histories=histories,
        items=encode(popularity, catalog.item_attributes, rows, settings.id_shrink, salt=1),
        users=encode(activity, catalog.user_attributes, rows, None, salt=2),
        rows=rows,
        popularity=popularity,
        expected=expected_signals(log, spec),
        binary=np.all(~np.isfinite(log.feedback) | (log.feedback == 0) | (log.feedback == 1), axis=0),
        lookout=lookout,
        event_offset=grades.before(histories.item, histories.ts),
        candidate_offset=grades.before(r.item, r.as_of[r.row_request()]),
        events=histories.ts < boundary,
        tuned=~validation & lookout.with_pairs,
        held=validation & lookout.with_pairs,
    )
