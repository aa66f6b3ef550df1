"""The feature matrix of requests: counters, attributes and context, strictly before each `as_of`.

`assemble` is the one path: training calls it with all groups of the log, the server with one request.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np

from features.schema import DAY, F32, HOUR, I32, I64, SECOND, Attribute, Catalog, Requests
from features.spec import MAX_DEFAULT_VALUES, Counter
from features.store import State


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """Names and order of the columns that `assemble` gives, and which of them are categorical codes."""

    columns: tuple[str, ...]
    categorical: tuple[str, ...]
    zone: str


def _plain(attributes: tuple[Attribute, ...]) -> list[Attribute]:
    """Numbers, and categories of few values: a category of many serves counters and towers only."""
    return [
        a
        for a in attributes
        if a.kind == "numeric" or (a.kind == "categorical" and len(a.values) <= MAX_DEFAULT_VALUES)
    ]


def make_spec(counters: tuple[Counter, ...], catalog: Catalog, zone: str) -> FeatureSpec:
    """Return the columns in the order of `assemble`."""
    named = [("item", a) for a in _plain(catalog.item_attributes)]
    named += [("user", a) for a in _plain(catalog.user_attributes)]
    columns = [c.column for c in counters] + [f"{side}_{a.name}" for side, a in named] + ["hour"]
    categorical = [f"{side}_{a.name}" for side, a in named if a.kind == "categorical"]
    surface = ["surface"] if catalog.surfaces else []
    return FeatureSpec((*columns, *surface), (*categorical, *surface), zone)


def _attribute_column(attribute: Attribute, index: I32) -> F32:
    if attribute.kind == "numeric":
        return np.asarray(np.append(attribute.numbers, np.float32(np.nan))[index])
    codes = np.append(attribute.codes, np.int32(-1))[index].astype(np.float32)
    codes[codes < 0] = np.nan
    return codes


def hour_of_day(ts: I64, zone: str) -> F32:
    """Return float32[n]: hours since midnight in `zone`, 0 to 24; the zone's offset is looked up once an hour."""
    hours, place = np.unique(ts // HOUR, return_inverse=True)
    offset = np.array([_offset(int(hour), ZoneInfo(zone)) for hour in hours])
    return np.asarray(((ts + offset[place]) % DAY) / HOUR, np.float32)


def _offset(hour: int, zone: ZoneInfo) -> int:
    """Return the offset of a zone from UTC in µs, at an hour since 1970."""
    offset = datetime.fromtimestamp(hour * HOUR / SECOND, UTC).astimezone(zone).utcoffset()
    return round((offset or timedelta()).total_seconds()) * SECOND


def assemble(state: State, spec: FeatureSpec, requests: Requests) -> F32:
    """Return float32[n, len(spec.columns)]: a row for each candidate, NaN where nothing is known."""
    owner = requests.row_request()
    catalog = state.catalog
    columns = [_attribute_column(a, requests.item) for a in _plain(catalog.item_attributes)]
    columns += [_attribute_column(a, requests.user)[owner] for a in _plain(catalog.user_attributes)]
    columns.append(hour_of_day(requests.as_of, spec.zone)[owner])
    if "surface" in spec.categorical:
        surface = requests.surface.astype(np.float32)
        surface[surface < 0] = np.nan
        columns.append(surface[owner])
    return np.concatenate([state.counter_values(requests), np.stack(columns, axis=1)], axis=1, dtype=np.float32)
