"""Sequences of wanted events, cut into windows to learn from. NumPy alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from features.schema import I64, Bool, offsets_of
from features.state.histories import Histories
from neural.histories import length_buckets, mixed_buckets

#: of lengths, where windows of like lengths are put together
JITTER = (0.8, 1.25)


@dataclass(frozen=True, slots=True)
class Windows:
    """w windows of sequences: each of its events is followed by the one that is to be predicted."""

    start: I64  # [w], place in the sequences
    stop: I64  # [w], place behind the last that is read, which is that of the last target

    def batches(self, budget: int, rng: np.random.Generator | None = None) -> Iterator["Windows"]:
        """Yield them by like length, at most `budget` events once padded; mixed with `rng`."""
        size = self.stop - self.start
        chosen = length_buckets(size, budget) if rng is None else mixed_buckets(size, budget, JITTER, rng)
        return (Windows(self.start[part], self.stop[part]) for part in chosen)


@dataclass(frozen=True, slots=True)
class Batch:
    """b windows, padded on the left to t events: the last one read is in the last place, as the paper has it."""

    item: I64  # [b, t]; what is padded has some item
    target: I64  # [b, t], the item after it
    place: I64  # [b, t], of the target in the sequences; 0 padding, for no first event is a target
    length: I64  # [b]

    @property
    def there(self) -> Bool:
        """bool[b, t]: not padding."""
        return self.place > 0


@dataclass(frozen=True, slots=True)
class Sequences:
    """The m wanted events of known items, by user and then in time order."""

    offsets: I64  # [n_users + 1]
    item: I64  # [m], as `row` had them
    ts: I64  # [m], µs

    @classmethod
    def build(cls, histories: Histories, row: I64, floor: int) -> Self:
        """Keep the events of grade `floor` or better. row: int64[n_items], what stands for each item, -1 unknown."""
        user, at = histories.rows()
        item = histories.item[at]
        number = np.where(item >= 0, row[item], -1) if len(row) else np.full(len(item), -1)
        keep = (histories.grade[at] >= floor) & (number >= 0)
        count = np.bincount(user[keep], minlength=len(histories.ends))
        return cls(offsets_of(count), number[keep], histories.ts[at[keep]])

    def windows(self, length: int) -> Windows:
        """Cut all sequences from their ends, so that each event but a user's first is the target of one window.

        The paper reads the latest `length` events of a user and leaves the others out: this is the last window here.
        """
        targets = np.maximum(np.diff(self.offsets) - 1, 0)
        count = -(-targets // length)
        user = np.repeat(np.arange(len(count)), count)
        back = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)  # 0 for the latest window of a user
        stop = self.offsets[user + 1] - 1 - back * length
        return Windows(np.maximum(self.offsets[user], stop - length), stop)

    def batch(self, windows: Windows) -> Batch:
        """Return the windows, padded to the longest."""
        length = windows.stop - windows.start
        t = int(length.max())
        at = windows.stop[:, None] - t + np.arange(t)
        there = at >= windows.start[:, None]
        at = np.where(there, at, 0)
        return Batch(self.item[at], self.item[at + 1], np.where(there, at + 1, 0), length)
