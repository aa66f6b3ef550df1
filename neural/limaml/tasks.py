"""The tasks of meta-training: a user as of a time, whose events before it adapt and whose later ones are asked for.

NumPy alone. What adapts is called support and what is asked for query, as in MAML; they share no event, for the support
ends before the query begins.
"""

from dataclasses import dataclass

import numpy as np

from features.schema import F32, I8, I32, I64, Bool
from features.state.lag import Lag
from neural.batches import JITTER
from neural.data import TowerData
from neural.histories import length_buckets, mixed_buckets, ranges
from neural.limaml.settings import LiMAMLSettings


@dataclass(frozen=True, slots=True)
class Tasks:
    """n tasks."""

    user: I32  # [n]
    start: I64  # [n], row of the histories: the support is start .. stop - 1
    stop: I64  # [n]
    first: I64  # [n], the query is first .. last - 1: rows of the histories, or groups
    last: I64  # [n]

    def __len__(self) -> int:
        return len(self.user)

    def select(self, rows: I64) -> "Tasks":
        """Return some of them."""
        return Tasks(self.user[rows], self.start[rows], self.stop[rows], self.first[rows], self.last[rows])

    def batches(self, budget: int, query: int, rng: np.random.Generator | None) -> list["Tasks"]:
        """Return all tasks in batches of at most `budget` events, each task with `query` beside its support.

        Supports of like lengths are together; mixed with `rng`.
        """
        length = self.stop - self.start + query
        found = length_buckets(length, budget) if rng is None else mixed_buckets(length, budget, JITTER, rng)
        return [self.select(rows) for rows in found]


@dataclass(frozen=True, slots=True)
class Support:
    """The support of b tasks, right padded to t events."""

    item: I64  # [b, t]; `n_items` for an unknown one and for padding
    rank: I64  # [b, t], of the grade, see `support_ranks`; -1: no part of the support
    offset: F32  # [b, t], the item's mean grade before the event


@dataclass(frozen=True, slots=True)
class Query:
    """m (user, item) that are asked for."""

    task: I64  # [m], place in the batch
    item: I64  # [m]
    offset: F32  # [m], the item's mean grade before the event, or before the group's as_of


@dataclass(frozen=True, slots=True)
class QueryPairs:
    """p pairs of a query."""

    winner: I64  # [p], which of the m
    loser: I64  # [p], which of the m
    weight: F32  # [p]


def support_ranks(grade: I8, known: Bool, n_grades: int) -> I64:
    """Return int64[n]: the rank of the grade of each event of a support, -1 for one without a grade or a known item.

    In a log of one grade it is 1, for an event is above what never happened.
    """
    return np.where((grade >= 0) & known, grade.astype(np.int64) + (n_grades == 1), -1)


class TaskData:
    """Makes tasks and what a batch of them reads."""

    def __init__(self, inputs: TowerData, settings: LiMAMLSettings, zone: str) -> None:
        self.inputs, self.settings, self.lag = inputs, settings, Lag(settings.lag, zone)

    def events(self, rng: np.random.Generator | None) -> Tasks:
        """Cut the events before the validation slice into runs of `query` of one user: a task asks for one run.

        Where the runs begin is drawn, so that supports of all lengths are met.
        """
        h, size = self.inputs.batches.histories, self.settings.query
        user, row = h.rows()
        learned = self.inputs.pretrain.events
        n_users = len(h.sizes)
        shift = np.zeros(n_users, np.int64) if rng is None else rng.integers(0, size, n_users)
        place = row - h.offsets[user]
        first = np.flatnonzero(learned & ((place == 0) | ((place + shift[user]) % size == 0)))
        user = user[first]
        end = h.offsets[:-1] + np.bincount(h.rows()[0][learned], minlength=n_users)  # learned rows come first
        last = np.minimum(np.append(first[1:], len(row)), end[user])
        start, stop = h.before(user, self.lag.cut(h.ts[first]), self.settings.history)
        return Tasks(user, start, stop, first, last)

    def groups(self, chosen: Bool) -> Tasks:
        """Return a task for each group of the mask, as of its own as_of."""
        h, r = self.inputs.batches.histories, self.inputs.batches.requests
        group = np.flatnonzero(chosen)
        start, stop = h.before(r.user[group], self.lag.cut(r.as_of[group]), self.settings.history)
        return Tasks(r.user[group], start, stop, group, group + 1)

    def support(self, tasks: Tasks) -> Support:
        """Return the support: graded events of known items."""
        b, h = self.inputs.batches, self.inputs.batches.histories
        t = max(int((tasks.stop - tasks.start).max(initial=0)), 1)
        there = np.arange(t) < (tasks.stop - tasks.start)[:, None]  # [b, t]
        row = ranges(tasks.start, tasks.stop)
        item = np.full(there.shape, b.spec.n_items)
        rank, offset = np.full(there.shape, -1), np.zeros(there.shape, np.float32)
        item[there], offset[there] = b.spec.item_row(h.item[row]), b.event_offset[row]
        rank[there] = support_ranks(h.grade[row], self.inputs.items.known[item[there]], b.spec.n_grades)
        return Support(item, rank, offset)

    def event_query(self, tasks: Tasks) -> tuple[Query, I64]:
        """Return the events that are asked for, and int64[m] their ranks, -1 unknown."""
        b, h = self.inputs.batches, self.inputs.batches.histories
        row = ranges(tasks.first, tasks.last)
        task = np.repeat(np.arange(len(tasks)), tasks.last - tasks.first)
        return Query(task, b.spec.item_row(h.item[row]), b.event_offset[row]), h.grade[row].astype(np.int64)

    def group_query(self, tasks: Tasks) -> tuple[Query, QueryPairs]:
        """Return the impressions of the groups that are asked for, and their pairs."""
        b, group = self.inputs.batches, tasks.first
        first, last = b.requests.offsets[group], b.requests.offsets[group + 1]
        row = ranges(first, last)
        task = np.repeat(np.arange(len(tasks)), last - first)
        pair = ranges(b.pair_offsets[group], b.pair_offsets[group + 1])
        n_pairs = b.pair_offsets[group + 1] - b.pair_offsets[group]
        shift = np.repeat(np.cumsum(last - first) - last, n_pairs)  # from all impressions to those of the batch
        pairs = QueryPairs(b.winner[pair] + shift, b.loser[pair] + shift, b.weight[pair])
        return Query(task, b.item[row], b.impression_offset[row]), pairs
