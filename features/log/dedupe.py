"""Which event ids were recorded lately: 16-byte keys in compiled hash tables, one for each day of arrival."""

from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.hashing import GOLDEN, slot_of
from features.kernels import njit
from features.schema import DAY, Bool

U64 = npt.NDArray[np.uint64]
#: slots of a new table; a table is at most half full, so a key takes at most 64 bytes and 32 at best
SMALLEST = 1 << 12
BYTES_PER_KEY = 64
#: texts that are an integer of at most 18 digits, as `str` writes it: nothing is hashed for them
INTEGER = "^(0|-?[1-9][0-9]{0,17})$"


def keys_of(ids: pa.Array) -> U64:
    """Return uint64[n, 2], never (0, 0), of n texts: an integer with a mark, or 128 bits of any other's BLAKE2b."""
    integer = pc.match_substring_regex(ids, INTEGER)
    keys = np.ones((len(ids), 2), np.uint64)
    rows = integer.to_numpy(zero_copy_only=False)
    keys[rows, 0] = ids.filter(integer).cast(pa.int64()).to_numpy().view(np.uint64)
    keys[~rows] = _hashed(ids.filter(pc.invert(integer)).to_pylist())
    return keys


def _hashed(texts: list[str]) -> U64:
    digests = b"".join([blake2b(text.encode(), digest_size=16).digest() for text in texts])
    keys = np.frombuffer(digests, np.uint64).reshape(-1, 2).copy()
    # The second half of an integer's key is 1: an even one cannot be taken for it, nor (with the bit) be zero.
    keys[:, 1] |= np.uint64(2)
    keys[:, 1] &= ~np.uint64(1)
    return keys


class SeenIds:
    """Keys by day of arrival; a day is forgotten as a whole, once all of it is older than `keep` µs.

    One thread at a time. An id is known for at least `keep` after it was added, and all that arrived at `since` or
    later are.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.since = 0  # µs UTC: of what arrived before, ids may be forgotten
        self._tables: dict[int, U64] = {}  # by day since 1970: [2 ** bits, 2] keys, (0, 0) where empty
        self._counts: dict[int, int] = {}  # by day: its keys

    def __len__(self) -> int:
        return sum(self._counts.values())

    @property
    def bytes_used(self) -> int:
        """Bytes of all tables."""
        return sum(table.nbytes for table in self._tables.values())

    def known(self, keys: U64) -> Bool:
        """Return bool[n]: whether each key was added, or stands earlier in `keys` itself."""
        found = np.zeros(len(keys), bool)
        for table in self._tables.values():
            _find(table, keys, _shift(table), found)
        if len(keys) > 1:
            whole: Any = np.ascontiguousarray(keys).view([("a", np.uint64), ("b", np.uint64)]).ravel()
            first = np.zeros(len(keys), bool)
            first[np.unique(whole, return_index=True)[1]] = True
            found |= ~first
        return found

    def forget(self, now: int) -> None:
        """Forget the days that are too old at `now` (µs UTC)."""
        for day in [day for day in self._tables if (day + 1) * DAY + self.keep <= now]:
            del self._tables[day], self._counts[day]
            self.since = max(self.since, (day + 1) * DAY)

    def add(self, keys: U64, arrival: int) -> None:
        """Add keys that arrived at `arrival` (µs UTC)."""
        day = arrival // DAY
        table = self._tables.get(day)
        if table is None:
            table, self._counts[day] = np.zeros((SMALLEST, 2), np.uint64), 0
        while 2 * (self._counts[day] + len(keys)) > len(table):
            larger = np.zeros((2 * len(table), 2), np.uint64)
            _put(larger, table, _shift(larger))
            table = larger
        self._tables[day] = table
        self._counts[day] += _put(table, keys, _shift(table))


def _shift(table: U64) -> int:
    return 65 - len(table).bit_length()


@njit(cache=True, nogil=True)
def _find(table: U64, keys: U64, shift: int, found: Bool) -> None:
    """Set found[k] where the table has the key; leave it as it is elsewhere."""
    for k in range(len(keys)):
        at = _probe(table, keys[k, 0], keys[k, 1], shift)
        if table[at, 0] != 0 or table[at, 1] != 0:
            found[k] = True


@njit(cache=True, nogil=True)
def _put(table: U64, keys: U64, shift: int) -> int:
    """Put keys into a table, or the slots of another; return how many of them were not there.

    for each key that is not (0, 0), an empty slot of the other table
        go to the slot that has it, or that it would have; count it where that is empty; write it there
    """
    new = 0
    for k in range(len(keys)):
        if keys[k, 0] == 0 and keys[k, 1] == 0:
            continue
        at = _probe(table, keys[k, 0], keys[k, 1], shift)
        new += table[at, 0] == 0 and table[at, 1] == 0
        table[at, 0], table[at, 1] = keys[k, 0], keys[k, 1]
    return new


# A table of its own beside `features.hashing.probe`: a key takes the whole slot, and two words are compared.
@njit(cache=True, nogil=True, inline="always")
def _probe(table: U64, a: np.uint64, b: np.uint64, shift: int) -> Any:
    """Return the slot that holds the key (a, b); where none does, the empty slot, of (0, 0), that would."""
    at = slot_of(np.int64(a ^ (b * np.uint64(GOLDEN))), shift)
    while (table[at, 0] != 0 or table[at, 1] != 0) and (table[at, 0] != a or table[at, 1] != b):
        at = (at + 1) & (len(table) - 1)
    return at
