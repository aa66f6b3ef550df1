"""What training reads: windows of whole histories, and what is looked up in their states. NumPy alone."""

from dataclasses import dataclass

import numpy as np

from features.pairing.groups import Groups
from features.pairing.pairs import Pairs
from features.plugin import FitData
from features.schema import F32, I32, I64, Bool, Catalog, EventLog
from features.state.histories import Histories
from neural.entities import Entities, count_values, encode, table_rows
from neural.expected import ItemSignals, ranges
from neural.histories import Lag, Tokens, TokenSpec, Windows, batches, known_scale, make_tokens, raw_signals
from neural.settings import TowerSettings


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

    def __init__(self, histories: Histories, groups: Groups, pairs: Pairs, spec: TokenSpec, lag: Lag) -> None:
        self.histories, self.spec, self.requests = histories, spec, groups.requests
        self.windows = Windows.build(histories, spec.length)
        user = np.repeat(np.arange(len(histories.offsets) - 1, dtype=np.int32), np.diff(histories.offsets))
        rows = np.arange(len(user), dtype=np.int64)
        self.events = Lookups.build(self.windows, user, rows - histories.offsets[user], rows)
        start, stop = histories.before(self.requests.user, lag.cut(self.requests.as_of))
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

    rows: of the shared table. popularity: int64[n_items] events before the validation slice. expected: of all events.
    binary: bool[k - 1], the feedback columns of 0 and 1 alone. event_offset: float32[rows of the histories] and
    candidate_offset: float32[impressions], the item's mean grade before each. events: bool[rows of the histories],
    tuned, held: bool[groups], what pre-training, fine-tuning and the choice of the epoch may read.
    """

    spec: TokenSpec
    histories: Histories
    items: Entities
    users: Entities
    rows: int
    popularity: I64
    expected: ItemSignals
    binary: Bool
    lookout: Lookout
    event_offset: F32
    candidate_offset: F32
    events: Bool
    tuned: Bool
    held: Bool


def _spec(learned: EventLog, catalog: Catalog, n_grades: int, length: int) -> TokenSpec:
    """Return the vocabulary and the scale of what is learned from, whatever else the catalogue has."""
    mean, scale = known_scale(raw_signals(learned.grade, learned.feedback))
    n_surfaces = int(learned.surface.max(initial=-1)) + 1
    return TokenSpec(catalog.n_items, n_grades, n_surfaces, mean, scale, length)


def prepare(data: FitData, settings: TowerSettings) -> Prepared:
    """Arrange the data of a fit.

    What is of the validation slice's time is a target of neither phase, and nothing is counted or scaled by it: it
    is read as what stands in the histories of the held groups, and the towers are served as they were trained.
    """
    catalog, r, validation = data.catalog, data.groups.requests, data.groups.validation
    boundary = int(r.as_of[validation].min()) if validation.any() else np.iinfo(np.int64).max
    learned = data.log.until(boundary)
    spec = _spec(learned, catalog, len(data.grades), settings.history)
    histories = Histories.build(data.log, catalog.n_users)
    popularity = np.bincount(learned.item, minlength=catalog.n_items)
    activity = np.bincount(learned.user, minlength=catalog.n_users)
    rows = table_rows(count_values(catalog.n_items, catalog.item_attributes + catalog.user_attributes))
    expected = ItemSignals.build(data.log, spec)
    lookout = Lookout(histories, data.groups, data.pairs, spec, Lag(settings.lag, data.zone))
    return Prepared(
        spec=spec,
        histories=histories,
        items=encode(popularity, catalog.item_attributes, rows, settings.id_shrink, salt=1),
        users=encode(activity, catalog.user_attributes, rows, None, salt=2),
        rows=rows,
        popularity=popularity,
        expected=expected,
        binary=np.all(~np.isfinite(learned.feedback) | np.isin(learned.feedback, (0, 1)), axis=0),
        lookout=lookout,
        event_offset=expected.before(histories.item, histories.ts)[:, 0],
        candidate_offset=expected.before(r.item, r.as_of[r.row_request()])[:, 0],
        events=histories.ts < boundary,
        tuned=~validation & lookout.with_pairs,
        held=validation & lookout.with_pairs,
    )
