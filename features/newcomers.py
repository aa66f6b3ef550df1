"""Users, items or arms that no training has seen: they came with recorded events, numbered behind the known ones.

A `Newcomers` is what one side (users, items, or arms) has as of a moment, in the order of the event log. The list and
the dict behind it are shared with later ones, which only add to them, so whoever holds one reads the same for ever and
needs no lock. How many there can be is fixed: codes of keys (`features.counters.keys`) count on it.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

#: bytes of an id in the list and in the dict, with its object and its number's, without a text's characters
BYTES_PER_ID = 200


def bytes_per_id(text: bool, most: int) -> int:
    """Return the most that an id takes. most: bytes of UTF-8 that a text may have.

    One character beyond the 16-bit ones makes all of a Python text four bytes wide, and an answer with it keeps its
    UTF-8 beside it: five bytes for each.
    """
    return BYTES_PER_ID + (5 * most if text else 0)


@dataclass(frozen=True, slots=True)
class Newcomers:
    """The new users, the new items, or the new arms, as of a moment."""

    room: int = 0  # how many there can be
    count: int = 0  # how many there are: later ones may stand in `ids` and `numbers` too
    ids: list[Any] = field(default_factory=list, repr=False, compare=False)  # the k-th has the number k
    numbers: dict[Any, int] = field(default_factory=dict, repr=False, compare=False)  # of each id

    @classmethod
    def of(cls, ids: Collection[Any], room: int) -> "Newcomers":
        """Return those of the ids, in their order, with at least the room for them."""
        return cls(max(room, len(ids)), len(ids), list(ids), {one: k for k, one in enumerate(ids)})

    @property
    def known(self) -> list[Any]:
        """The ids by number."""
        return self.ids[: self.count]

    def find(self, wanted: Collection[Any]) -> npt.NDArray[np.int32]:
        """Return int32[n]: the number of each id (Python ints or strs), -1 where it is none of these."""
        found = np.fromiter((self.numbers.get(one, -1) for one in wanted), np.int32, len(wanted))
        found[found >= self.count] = -1  # a later one has it
        return found

    def extended(self, wanted: Collection[Any]) -> tuple[npt.NDArray[np.int32], "Newcomers"]:
        """Return (int32[n] numbers, -1 where there is no room; the newcomers of then). For one thread."""
        for one in wanted:
            if one not in self.numbers and len(self.ids) < self.room:
                self.ids.append(one)
                self.numbers[one] = len(self.ids) - 1
        later = Newcomers(self.room, len(self.ids), self.ids, self.numbers)
        return later.find(wanted), later


class New(NamedTuple):
    """What recorded events brought, as of one moment."""

    users: Newcomers = Newcomers()
    items: Newcomers = Newcomers()
    arms: Newcomers = Newcomers()  # of experiments, by their names
