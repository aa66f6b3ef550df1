"""A split of users between the arms of an experiment: a hash of user and experiment gives a bucket, an arm owns some.

The hash is GrowthBook's, version 2 (https://docs.growthbook.io/lib/build-your-own): FNV-1a of 32 bits over seed and
id, then over the decimal digits of that, modulo 10,000. An arm that grows takes buckets of the control alone, and one
that shrinks gives back those that it took last: so nobody moves from an arm to another, and who was in an arm is in it
again when it has grown back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from features.errors import PairliftError

I16 = npt.NDArray[np.int16]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]

BUCKETS = 10_000
#: what the users are in who are in no arm
CONTROL = "control"
_BASIS, _PRIME = 0x811C9DC5, 0x01000193
#: ids that are hashed at once
_AT_ONCE = 1 << 16


def bucket_of(experiment: str, user: int | str) -> int:
    """Return the bucket of a user in an experiment, of 0 to 9,999; an integer id is hashed as its decimal digits."""
    return _fnv1a(str(_fnv1a(f"{experiment}{user}".encode())).encode()) % BUCKETS


def buckets_of(experiment: str, users: Sequence[int | str] | I64) -> I64:
    """Return int64[n]: the bucket of each user, as `bucket_of`."""
    found = [_buckets(experiment, users[k : k + _AT_ONCE]) for k in range(0, len(users), _AT_ONCE)]
    return np.concatenate([np.empty(0, np.int64), *found])


def _fnv1a(data: bytes) -> int:
    value = _BASIS
    for byte in data:
        value = ((value ^ byte) * _PRIME) & 0xFFFFFFFF
    return value


def _buckets(experiment: str, users: Sequence[int | str] | I64) -> I64:
    texts = [f"{experiment}{user}".encode() for user in (users.tolist() if isinstance(users, np.ndarray) else users)]
    first = _hashes(texts)
    return _hashes([b"%d" % value for value in first.tolist()]).astype(np.int64) % BUCKETS


def _hashes(texts: list[bytes]) -> U32:
    """Return uint32[n]: FNV-1a of each, byte by byte over all of them."""
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    starts, data = np.cumsum(sizes) - sizes, np.frombuffer(b"".join(texts), np.uint8)
    value = np.full(len(texts), _BASIS, np.uint32)
    for place in range(int(sizes.max(initial=0))):
        rows = np.flatnonzero(sizes > place)
        value[rows] = (value[rows] ^ data[starts[rows] + place]) * np.uint32(_PRIME)
    return value


@dataclass(frozen=True)
class Split:
    """Which arm each bucket belongs to; immutable."""

    experiment: str = ""  # the seed of the hash; empty: there is none
    #: of each arm the ranges [first, end) of buckets that it owns, in the order in which it took them
    arms: dict[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)

    @cached_property
    def _owners(self) -> I16:
        """int16[BUCKETS]: the place of the arm in `names` that owns each bucket, 0 for the control."""
        owners = np.zeros(BUCKETS, np.int16)
        for place, ranges in enumerate(self.arms.values(), 1):
            for first, end in ranges:
                owners[first:end] = place
        return owners

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The control and the arms; none where there is no experiment."""
        return (CONTROL, *self.arms) if self.arms else ()

    def share(self, arm: str) -> float:
        """Return the share of the users that an arm has."""
        return sum(end - first for first, end in self.arms.get(arm, ())) / BUCKETS

    def arm_of(self, user: int | str | None) -> str:
        """Return the arm of a user; empty where there is no experiment, or no user."""
        if not self.arms or user is None:
            return ""
        return self.names[int(self._owners[bucket_of(self.experiment, user)])]

    def arms_of(self, users: Sequence[int | str] | I64) -> I16:
        """Return int16[n]: the place in `names` of the arm of each user; -1 where there is no experiment."""
        if not self.arms:
            return np.full(len(users), -1, np.int16)
        return self._owners[buckets_of(self.experiment, users)]

    def with_arm(self, arm: str, share: float) -> "Split":
        """Return the split in which an arm, maybe a new one, has a share; PairliftError where the others leave less."""
        wanted, owned = round(share * BUCKETS) if 0 < share <= 1 else 0, list(self.arms.get(arm, ()))
        if not wanted:
            raise PairliftError(f"--share {share:g}: a share from {1 / BUCKETS:g} to 1 was expected")
        more = wanted - sum(end - first for first, end in owned)
        ranges = _joined([*owned, *self._free(more, arm, share)]) if more > 0 else _shortened(owned, -more)
        return replace(self, arms={**self.arms, arm: tuple(ranges)})

    def without(self, arm: str) -> "Split":
        """Return the split without an arm; its users are in the control. Without any arm the experiment is over."""
        left = {name: ranges for name, ranges in self.arms.items() if name != arm}
        return replace(self, arms=left) if left else Split()

    def _free(self, wanted: int, arm: str, share: float) -> list[tuple[int, int]]:
        """Return the first `wanted` buckets of the control, as ranges."""
        free = np.flatnonzero(self._owners == 0)
        if len(free) < wanted:
            most = self.share(arm) + len(free) / BUCKETS
            raise PairliftError(f"--share {share:g}: the other arms leave '{arm}' {most:g} of the users; ask for less")
        taken = free[:wanted]
        begins = np.flatnonzero(np.diff(taken, prepend=-2) > 1)
        runs = zip(begins.tolist(), [*begins[1:].tolist(), wanted], strict=True)
        return [(int(taken[first]), int(taken[end - 1]) + 1) for first, end in runs]


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the ranges with those as one that follow each other."""
    found: list[tuple[int, int]] = []
    for first, end in ranges:
        if found and found[-1][1] == first:
            first, _ = found.pop()  # noqa: PLW2901
        found.append((first, end))
    return found


def _shortened(ranges: list[tuple[int, int]], fewer: int) -> list[tuple[int, int]]:
    """Return the ranges without the `fewer` buckets that were taken last."""
    while fewer:
        first, end = ranges.pop()
        kept = max(first, end - fewer)
        fewer -= end - kept
        if kept > first:
            ranges.append((first, kept))
    return ranges
