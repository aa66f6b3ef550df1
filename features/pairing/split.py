"""The one global temporal split: towers on [t0, t1), booster on [t1, t2), test [t2, t3)."""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import numpy as np

from features.errors import PairliftError
from features.schema import I8, I64, SECOND, EventLog
from features.settings import Boundary, SplitSettings

#: in the order of time
PERIODS = ("towers", "booster", "test")


@dataclass(frozen=True, slots=True)
class Split:
    """The four boundaries in µs UTC, each the first instant of what follows it."""

    t0: int  # the towers' period begins; equal to t1 where there is none
    t1: int  # the booster's
    t2: int  # the test
    t3: int  # the test ends
    validation: float  # share of each training period's impressions that is its validation slice, the latest ones

    def period(self, ts: I64) -> I8:
        """Return int8[n]: 0 towers, 1 booster, 2 test, -1 outside [t0, t3)."""
        bounds = np.array([self.t0, self.t1, self.t2, self.t3])
        period = np.searchsorted(bounds, ts, side="right") - 1
        return np.where(period > 2, -1, period).astype(np.int8)


def utc(value: datetime | date, zone: str) -> int:
    """Return µs UTC of a date (its 00:00) or time of the TOML; without an offset it is of `zone`."""
    moment = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=ZoneInfo(zone))
    return round((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * SECOND)


def make_split(settings: SplitSettings, log: EventLog, zone: str) -> Split:
    """Resolve the boundaries on a log; PairliftError where they are out of order."""

    def resolve(value: Boundary | None, default: int) -> int:
        if value is None:
            return default
        if isinstance(value, float):
            return int(log.ts[int(value * len(log))])
        return utc(value, zone)

    first, after_last = int(log.ts[0]), int(log.ts[-1]) + 1
    asked = ((settings.t0, first), (settings.t1, first), (settings.t2, after_last), (settings.t3, after_last))
    bounds = [resolve(value, default) for value, default in asked]
    if sorted(bounds) != bounds or len(set(bounds[1:])) < 3:
        shown = ", ".join(f"t{k} = {iso(t)}" for k, t in enumerate(bounds))
        raise PairliftError(
            f"[split]: t0 <= t1 < t2 < t3 was expected, found {shown}; the log spans {iso(first)} to {iso(after_last)}"
        )
    t0, t1, t2, t3 = bounds
    return Split(t0, t1, t2, t3, settings.validation)


def iso(ts: int) -> str:
    """Return µs UTC as `2022-04-25T00:00:00Z`."""
    return datetime.fromtimestamp(ts / SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
