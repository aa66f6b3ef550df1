"""How much later than it happened an event is seen: by vectors that are computed ahead, or of events that come late."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np

from features.pairing.split import utc
from features.schema import I64, QUARTER
from features.settings import duration_text

#: of vectors that are computed once a day, at 00:00 of `[time] zone`
DAILY = "daily"


@dataclass(frozen=True, slots=True)
class Lag:
    """A duration, or until the next 00:00 of a time zone: what a request sees is older than that."""

    value: int | str = 0  # µs, or DAILY
    zone: str = "UTC"  # whose 00:00 it is

    def cut(self, as_of: I64) -> I64:
        """Return int64[g]: events with `ts <` this are visible at `as_of`."""
        if self.value != DAILY:
            return as_of - int(self.value)
        quarters, place = np.unique(as_of // QUARTER, return_inverse=True)
        return np.array([_midnight(int(quarter), self.zone) for quarter in quarters], np.int64)[place]

    def age(self, as_of: I64) -> I64:
        """Return int64[g] µs: how long before `as_of` the history ended of which a request has a user's vector."""
        return as_of - self.cut(as_of)

    @property
    def text(self) -> str:
        """As the TOML has it (`"daily"`, `"1d"`); empty where events are seen at once."""
        return self.value if isinstance(self.value, str) else duration_text(self.value) if self.value else ""


@lru_cache(maxsize=100_000)
def _midnight(quarter: int, zone: str) -> int:
    """Return µs UTC at which the day of a quarter of an hour since 1970 began on the clocks of a zone.

    Where 00:00 comes twice it is the first one; where clocks skip it, the instant at which they do. A day that begins
    within a quarter, as of some zones of the past, is seen to begin the day before.
    """
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(minutes=15 * quarter)
    return utc(at.astimezone(ZoneInfo(zone)).date(), zone)
