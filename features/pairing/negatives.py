"""Where drawn losers come from, for a log of positives only: `[pairing] sampler`.

Whatever the choice, nothing of `as_of` or later is looked at: an item is known by its events with `ts < as_of`, or by
the dates that the catalogue itself gives. An item's last event is no date of expiry, for it is known later on alone.
"""

from dataclasses import dataclass

import numpy as np

from features.errors import PairliftError, did_you_mean
from features.pairing.draw import draw_available, draw_events
from features.schema import DAY, F64, I32, I64, SECOND, Catalog, EventLog, Requests
from features.settings import PairingSettings

#: of `recent` where the TOML names no window
WINDOW = 7 * DAY
#: µs, of what does not come, or does not end
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Available:
    """When each item can be had: begin <= as_of < end."""

    begin: I64  # [n_items], µs; NEVER where it was not seen
    end: I64  # [n_items], µs; NEVER where it does not expire


def drawn_items(
    requests: Requests, offsets: I64, log: EventLog, settings: PairingSettings, available: Available | None, seed: int
) -> I32:
    """Return int32[n] drawn items, `offsets[g] .. offsets[g + 1] - 1` for request g; -1 where none was found.

    requests: in time order, with their own items, which are not drawn. offsets: int64[g + 1]. available: of
    `in_catalogue`. The same seed gives the same items.
    """
    out, r = np.empty(offsets[-1], np.int32), requests
    if settings.sampler in ("popularity", "recent"):
        known, since = _before(log, r.as_of), np.zeros(len(r), np.int64)
        if settings.sampler == "recent":
            since = _before(log, r.as_of - (settings.sampler_window or WINDOW))
        draw_events(r.item, r.offsets, since, known, log.item, out, offsets, seed)
    else:
        if available is None:
            if settings.sampler == "in_catalogue":
                raise ValueError("what `availability` returns was expected of sampler = 'in_catalogue'")
            available = Available(*_by_events(log, int(log.item.max(initial=-1)) + 1))
        draw_available(r.item, r.offsets, r.as_of, available.begin, available.end, out, offsets, seed)
    return out


def _before(log: EventLog, ts: I64) -> I64:
    """Return int64[n]: how many events have a ts below each of these."""
    return np.searchsorted(log.ts, ts, side="left").astype(np.int64)


def _by_events(log: EventLog, n_items: int) -> tuple[I64, I64]:
    """Return from when on each item is known by its events, which is the µs after the first, and that none expires."""
    begin, known = np.full(n_items, NEVER), log.item >= 0
    begin[log.item[known][::-1]] = log.ts[known][::-1] + 1  # of several, the last that is written is the earliest
    return begin, np.full(n_items, NEVER)


def availability(log: EventLog, catalog: Catalog, settings: PairingSettings) -> Available | None:
    """Return what `sampler = "in_catalogue"` draws from; None for another sampler.

    Raises PairliftError where the TOML names what is no number of `[items.columns]`.
    """
    if settings.sampler != "in_catalogue":
        return None
    begin, end = _by_events(log, catalog.n_items)
    if settings.available_from is not None:
        since = _seconds(catalog, "available_from", settings.available_from)
        begin = np.where(np.isnan(since), begin, _microseconds(since))
    if settings.available_until is not None:
        until = _seconds(catalog, "available_until", settings.available_until)
        end = np.where(np.isnan(until), end, _microseconds(until))
    return Available(begin, end)


def _seconds(catalog: Catalog, key: str, name: str) -> F64:
    numbers = {a.name: a for a in catalog.item_attributes if a.kind == "numeric"}
    if name not in numbers:
        raise PairliftError(
            f"[pairing] {key}: '{name}' is no number of [items.columns]{did_you_mean(name, numbers)}; seconds since "
            "1970 were expected: epoch(…) of a timestamp"
        )
    return numbers[name].numbers.astype(np.float64)


def _microseconds(seconds: F64) -> I64:
    return (np.nan_to_num(np.clip(seconds, -1e12, 1e12)) * SECOND).astype(np.int64)
