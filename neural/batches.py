"""Training batches: windows of whole histories, with all events and all groups that are looked up in their states."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from features.histories import Histories
from features.pairs import Groups, Pairs
from features.schema import F32, I32, I64, Bool
from neural.histories import Tokens, TokenSpec, Windows, batches, cut_times, make_tokens


def ranges(start: I64, stop: I64) -> I64:
    """Return the concatenation of `start[k] .. stop[k] - 1`."""
    sizes = stop - start
    ends = np.cumsum(sizes)
    return np.repeat(start - ends + sizes, sizes) + np.arange(ends[-1] if len(ends) else 0)


@dataclass(frozen=True, slots=True)
class Lookups:
    """Things that are looked up in the states of windows, sorted by window.

    offsets: int64[windows + 1]. state: int64[n] within the window. what: int64[n], an event's row of the histories, or a group.
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

    def of(self, chosen: I64) -> tuple[I64, I64, I64]:
        """Return (place in `chosen`, state, what) of everything in the chosen windows."""
        start, stop = self.offsets[chosen], self.offsets[chosen + 1]
        rows = ranges(start, stop)
        return np.repeat(np.arange(len(chosen)), stop - start), self.state[rows], self.what[rows]


@dataclass(frozen=True, slots=True)
class Batch:
    """b windows. user: int32[b].

    Events to predict: at (event_at, event_state) stands the state that has seen all before; event: int64[n] rows of the histories.
    Groups to rank: one state for each (group_at, group_state, surface: int64[g]); the candidate
    item: int64[m] of group candidate_group: int64[m]; winner, loser: int64[p] count candidates; weight: float32[p].
    """

    user: I32
    tokens: Tokens
    event_at: I64
    event_state: I64
    event: I64
    group_at: I64
    group_state: I64
    surface: I64
    item: I64
    candidate_group: I64
    winner: I64
    loser: I64
    weight: F32


class Batches:
    """All that training reads, arranged by window once.

    One pass over a window gives the states of every group in it, at (as_of - lag): never one pass for each impression.
    """

    def __init__(
        self, histories: Histories, groups: Groups, pairs: Pairs, spec: TokenSpec, lag: int | str
    ) -> None:
        self.histories, self.spec = histories, spec
        self.windows = Windows.build(histories, spec.length)
        user = np.repeat(np.arange(len(histories.offsets) - 1, dtype=np.int32), np.diff(histories.offsets))
        rows = np.arange(len(user), dtype=np.int64)
        self.events = Lookups.build(self.windows, user, rows - histories.offsets[user], rows)
        self.requests = groups.requests
        start, stop = histories.before(self.requests.user, cut_times(self.requests.as_of, lag))
        with_user = np.flatnonzero(self.requests.user >= 0)
        self.groups = Lookups.build(
            self.windows, self.requests.user[with_user], (stop - start)[with_user], with_user
        )
        self.surface = spec.surface_code(self.requests.surface)
        self.candidate = np.where(
            (self.requests.item >= 0) & (self.requests.item < spec.n_items), self.requests.item, spec.n_items
        ).astype(np.int64)
        self._arrange(pairs)

    def _arrange(self, pairs: Pairs) -> None:
        group = self.requests.row_request()[pairs.winner]
        order = np.argsort(group, kind="stable")
        self.winner, self.loser = pairs.winner[order].astype(np.int64), pairs.loser[order].astype(np.int64)
        self.weight = pairs.weight[order]
        self.pair_offsets = np.searchsorted(group[order], np.arange(len(self.requests) + 1)).astype(np.int64)

    def make(self, chosen: I64, events: Bool | None, groups: Bool | None) -> Batch:
        """Return the chosen windows with the events and the groups of the masks (None: with none of them)."""
        w = self.windows
        tokens = make_tokens(self.histories, w.user[chosen], w.start[chosen], w.stop[chosen], self.spec)
        event_at, event_state, event = _masked(self.events.of(chosen), events)
        group_at, group_state, group = _masked(self.groups.of(chosen), groups)
        first, last = self.requests.offsets[group], self.requests.offsets[group + 1]
        shift = np.cumsum(last - first) - last  # from rows of all groups to rows of these
        of_pairs = ranges(self.pair_offsets[group], self.pair_offsets[group + 1])
        n_pairs = self.pair_offsets[group + 1] - self.pair_offsets[group]
        return Batch(
            w.user[chosen], tokens, event_at, event_state, event, group_at, group_state, self.surface[group],
            self.candidate[ranges(first, last)], np.repeat(np.arange(len(group)), last - first),
            self.winner[of_pairs] + np.repeat(shift, n_pairs), self.loser[of_pairs] + np.repeat(shift, n_pairs),
            self.weight[of_pairs],
        )  # fmt: skip

    def epoch(
        self, events: Bool | None, groups: Bool | None, budget: int, rng: np.random.Generator | None
    ) -> Iterator[Batch]:
        """Yield every window that has something to look up, in batches of like lengths, in random order with `rng`."""
        useful = np.zeros(len(self.windows.user), bool)
        for lookups, mask in ((self.events, events), (self.groups, groups)):
            if mask is not None:
                window = np.repeat(np.arange(len(useful)), np.diff(lookups.offsets))
                useful[window[mask[lookups.what]]] = True
        windows = np.flatnonzero(useful)
        length = (self.windows.stop - self.windows.start)[windows]
        if rng is None:
            chosen = [windows[k] for k in batches(length, budget)]
        else:
            # Lengths are jittered so that a window meets others in each epoch.
            mixed = rng.permutation(len(windows))
            jittered = length[mixed] * rng.uniform(0.8, 1.25, len(windows))
            chosen = [windows[mixed[k]] for k in batches(jittered.astype(np.int64), budget)]
            rng.shuffle(chosen)  # type: ignore[arg-type]
        for some in chosen:
            yield self.make(some, events, groups)


def _masked(found: tuple[I64, I64, I64], mask: Bool | None) -> tuple[I64, I64, I64]:
    at, state, what = found
    keep = np.zeros(len(what), bool) if mask is None else mask[what]
    return at[keep], state[keep], what[keep]
