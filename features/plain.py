"""Plain features: columns of items and users, the request's context, ages and the time of day.

Names: `item_<column>` and `user_<column>` (numbers, categories), for a multi-valued column `…_count` (how many
values) and `…_main` (the value that most items or users share, a category), for a number that is seconds since
1970 `…_age` (days since then); `item_age` (days since the item's first event). Of the request: `hour` (0 to 24) and
`weekday` (0 is Monday) in `time.zone`, `surface`, and `context_<name>` of `[events.context]`; of a candidate in the
request `candidate_<name>` of `[events.candidate]`, and the features of the list (`features.given`). What a candidate
has to do with its request's source item and query stands among them; `features.rows.Matching` writes it.
"""

import json
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import count
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from features.counters.defaults import MAX_VALUES
from features.errors import PairliftError, did_you_mean
from features.given import PREFIX, candidate_columns
from features.kernels import AHEAD, njit, prefetch
from features.schema import DAY, F32, HOUR, I32, I64, SECOND, Attribute, Catalog, Requests
from features.state.store import NEVER, State

WEEK = 7
#: 1970-01-01 was a Thursday
THURSDAY = 3
#: columns of every request
CONTEXT = ("hour", "weekday", "surface")
#: columns that no attribute gives
OTHERS = (*CONTEXT, "item_age")
#: µs UTC
Times = int | I64
#: (where it stands in a row, name) of each column
Columns = list[tuple[int, str]]


def column_names(
    catalog: Catalog, wanted: list[str] | None, further: Sequence[str] = (), matched: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Return (columns, those of them that are categorical codes): the wanted ones, or the default and further ones.

    The default has numbers, categories of at most MAX_VALUES values, item_age, the hour, the surface, if any, and
    `matched`: what there is of source items and queries.
    """
    known, others = _known(catalog), [*OTHERS, *matched]
    for key, names in (("columns", wanted or ()), ("add", further)):
        for name in names:
            if name not in known and name not in others:
                raise PairliftError(f"[features] {key}: '{name}'{did_you_mean(name, [*known, *others])}")
            if names.count(name) > 1:
                raise PairliftError(f"[features] {key}: '{name}' stands there twice")
    if wanted is None:
        plain = [name for name, (form, a) in known.items() if form in ("number", "code") and _is_small(a)]
        wanted = [*plain, "item_age", "hour", *(["surface"] if catalog.surfaces else []), *matched]
        wanted += [name for name in further if name not in wanted]
    categorical = [n for n in wanted if n == "surface" or (n in known and known[n][0] in ("code", "main"))]
    return list(wanted), categorical


def left_out(catalog: Catalog, columns: Sequence[str], keys: Collection[str]) -> str | None:
    """Return a sentence that names the categories of more than MAX_VALUES values that `columns` lacks; None for none.

    keys: the parts of counters' keys, to say which of them are counted.
    """
    large = {name: a for name, (form, a) in _known(catalog).items() if form == "code" and not _is_small(a)}
    missed = {name: a for name, a in large.items() if name not in columns}
    if not missed:
        return None

    def described(name: str, attribute: Attribute) -> str:
        part = name.removeprefix("item_")  # as a key has it; `user_` is of its name
        return f"{name} ({len(attribute.values):,} values{', counted as of the time' if part in keys else ''})"

    return (
        f"left out of the columns, for they have more than {MAX_VALUES:,} values: "
        f"{', '.join(described(name, a) for name, a in missed.items())}; [features] add = {json.dumps([*missed])} "
        "would have them as categories"
    )


def _known(catalog: Catalog) -> dict[str, tuple[str, Attribute]]:
    """Return (form, attribute) of every column that the attributes give."""
    forms = {"categorical": {"": "code"}, "multi": {"_count": "count", "_main": "main"}}
    known: dict[str, tuple[str, Attribute]] = {}
    for side, attributes in (("item", catalog.item_attributes), ("user", catalog.user_attributes)):
        for attribute in attributes:
            own = {"": "number", "_age": "age"} if attribute.kind == "numeric" else forms.get(attribute.kind, {})
            known |= {f"{side}_{attribute.name}{ending}": (form, attribute) for ending, form in own.items()}
    for side, attributes in (("context", catalog.contexts), ("candidate", catalog.candidates)):
        for attribute in attributes:
            known[f"{side}_{attribute.name}"] = ("number" if attribute.kind == "numeric" else "code", attribute)
    return known


def _is_small(attribute: Attribute) -> bool:
    return attribute.kind == "numeric" or len(attribute.values) <= MAX_VALUES


def request_values(state: State, columns: Columns, zone: str, requests: Requests, row: F32) -> Columns:
    """Write to float32[width] `row` what all candidates of the one request share; return the other columns."""
    rest = []
    for k, name in columns:
        if name in CONTEXT or name.startswith(("context_", "user_")):
            row[k] = _request_value(state, name, zone, requests)
        else:
            rest.append((k, name))
    return rest


def candidate_values(state: State, columns: Columns, zone: str, requests: Requests, out: F32) -> None:
    """Write to float32[n, width] `out` columns of every candidate."""
    owner = np.zeros(1, np.int64) if len(requests) == 1 else requests.row_request()
    given = [(k, name) for k, name in columns if name.startswith(PREFIX)]
    if given:
        _write_given(state.catalog, given, requests, out)
    rest = [(k, name) for k, name in columns if not name.startswith(PREFIX)]
    if len(requests) == 1:
        rest = _write_items(state, rest, requests.item, int(requests.as_of[0]), out)
    for k, name in rest:
        out[:, k] = _column(state, name, zone, requests, owner)


class _Items(NamedTuple):
    """What of all items does not depend on the time, for some columns, and where the items' age stands."""

    columns: Columns  # that were asked for
    table: F32  # [n_items + 1, c], side by side; the last row is that of an unknown item
    at: I64  # [c], where they stand in a row of features
    age: int  # where `item_age` does, -1 nowhere
    rest: Columns  # the others

    @classmethod
    def of(cls, state: State, columns: Columns) -> "_Items":
        known = _known(state.catalog)
        fixed = [(k, name) for k, name in columns if name.startswith("item_") and known.get(name, ("age",))[0] != "age"]
        values = [_static(*known[name])[1] for _, name in fixed]
        table = np.stack(values, axis=1) if values else np.empty((1, 0), np.float32)
        at = np.array([k for k, _ in fixed], np.int64)
        age = next((k for k, name in columns if name == "item_age"), -1)
        rest = [(k, name) for k, name in columns if k != age and (k, name) not in fixed]
        return cls(columns, table, at, age, rest)


def _write_items(state: State, columns: Columns, item: I32, as_of: int, out: F32) -> Columns:
    """Write to float32[n, width] `out` what `_Items` has of int32[n] items, and their age; return the other columns.

    An item's row is one read of memory that is far away, where each column by itself would be one.
    """
    held: _Items | None = state.made.get("items")
    if held is None or held.columns != columns:
        held = state.made["items"] = _Items.of(state, columns)
    if len(held.at) or held.age >= 0:
        _take(held.table, held.at, state.first_seen, held.age, as_of, item, out)
    return held.rest


@njit(cache=True, nogil=True)
def _take(table: F32, at: I64, first_seen: I64, age: int, as_of: int, item: I32, out: F32) -> None:
    """Write the row of each item, the last one for those that have none, to the columns int64[c] of `out`.

    age: the column of each item's age as of a time, -1 for none.
    """
    unknown, row_bytes = len(table) - 1, table.shape[1] * 4
    for i in range(len(item)):
        ahead = max(item[min(i + AHEAD, len(item) - 1)], 0)
        start = np.int64(min(ahead, unknown)) * row_bytes
        prefetch(table, start)
        prefetch(table, start + row_bytes - 4)  # a row that begins within a line ends a line later
        if age >= 0:
            prefetch(first_seen, np.int64(min(ahead, len(first_seen) - 1)) * 8)
            out[i, age] = _age(first_seen, item[i], as_of)
        row = table[item[i] if 0 <= item[i] < unknown else unknown]
        for k in range(len(at)):
            out[i, at[k]] = row[k]


def _write_given(catalog: Catalog, columns: Columns, requests: Requests, out: F32) -> None:
    """Write to float32[n, width] `out` what was said of every candidate, NaN where it is not given."""
    own = {name: place for place, name in enumerate(candidate_columns(catalog))}
    further = count(len(own))  # of the features of the list, which stand in the order of their columns
    places = [own[name] if name in own else next(further) for _, name in columns]
    at = _span([k for k, _ in columns])
    out[:, at] = requests.given[:, _span(places)] if len(requests.given) else np.nan


def _span(places: list[int]) -> list[int] | slice:
    """Return places as a slice where they follow one another: NumPy takes that in half the time."""
    first, behind = places[0], places[0] + len(places)
    return slice(first, behind) if places == list(range(first, behind)) else places


def _request_value(state: State, name: str, zone: str, requests: Requests) -> float:
    """Return what `_column` gives for a single request and a column that depends on it alone."""
    if name.startswith("context_"):
        return float(_given(state.catalog, name, requests)[0])
    if name == "surface":
        surface = int(requests.surface[0])
        return surface if surface >= 0 else np.nan
    ts = int(requests.as_of[0])
    if name.startswith("user_"):
        form, values = _held(state, name)
        user = int(requests.user[0])
        found = float(values[user if 0 <= user < len(values) - 1 else -1])
        return ((ts / SECOND) - found) * SECOND / DAY if form == "age" else found
    return float(hour_of_day(ts, zone) if name == "hour" else day_of_week(ts, zone))


def _column(state: State, name: str, zone: str, requests: Requests, owner: I64) -> F32:
    """Return float32[n] of one column. owner: int64[n], the request of each candidate."""
    if name in ("hour", "weekday"):
        local: I64 = (hour_of_day if name == "hour" else day_of_week)(requests.as_of, zone)
        return local[owner].astype(np.float32)
    if name == "surface":
        return np.where(requests.surface < 0, np.nan, requests.surface).astype(np.float32)[owner]
    if name.startswith("context_"):
        return _given(state.catalog, name, requests)[owner]
    if name == "item_age":
        age: F32 = _ages(state.first_seen, requests.item, requests.as_of[owner])
        return age
    form, values = _held(state, name)
    if name.startswith("item_"):
        found = values[state.catalog.described_items(requests.item)]
    else:
        found = values[state.catalog.described_users(requests.user)][owner]
    if form == "age":
        return np.asarray(((requests.as_of[owner] / SECOND) - found) * SECOND / DAY, np.float32)
    return np.asarray(found)


def _held(state: State, name: str) -> tuple[str, F32]:
    """Return what `_static` makes of the attribute behind a column, once for all requests."""
    if name not in state.made:
        state.made[name] = _static(*_known(state.catalog)[name])
    held: tuple[str, F32] = state.made[name]
    return held


@njit(cache=True, nogil=True)
def _ages(first_seen: I64, item: I32, as_of: I64) -> F32:
    """Return float32[n]: days since each item's first event, NaN where that is not before as_of: int64[n]."""
    out = np.empty(len(item), np.float32)
    for k in range(len(item)):
        out[k] = _age(first_seen, item[k], as_of[k])
    return out


@njit(cache=True, nogil=True)
def _age(first_seen: I64, item: int, as_of: int) -> float:
    """Return the age of one item."""
    age = (as_of - (first_seen[item] if 0 <= item < len(first_seen) else NEVER)) / DAY
    return age if age > 0 else np.nan


def _given(catalog: Catalog, name: str, requests: Requests) -> F32:
    """Return float32[g]: what each request says of itself, NaN where it is not given."""
    if not len(requests.context):
        return np.full(len(requests), np.nan, np.float32)
    place = [f"context_{attribute.name}" for attribute in catalog.contexts].index(name)
    return np.asarray(requests.context[:, place])


def _static(form: str, attribute: Attribute) -> tuple[str, F32]:
    """Return (form, float32[n + 1]): a column of each item or user, NaN in the last place for unknown ones (-1)."""
    if form in ("number", "age"):
        values = attribute.numbers
    elif form == "code":
        values = np.where(attribute.codes < 0, np.nan, attribute.codes).astype(np.float32)
    elif form == "count":
        values = np.diff(attribute.offsets).astype(np.float32)
    else:
        values = _main(attribute)
    return form, np.append(values, np.float32(np.nan)).astype(np.float32)


def _main(attribute: Attribute) -> F32:
    """Return float32[n]: of each list the value that is in most lists (the first of equals), NaN for an empty one."""
    n = len(attribute.offsets) - 1
    row = np.repeat(np.arange(n), np.diff(attribute.offsets))
    common = np.bincount(attribute.codes, minlength=len(attribute.values))[attribute.codes]
    order = np.lexsort((attribute.codes, -common, row))
    first = order[np.diff(row[order], prepend=-1) != 0]
    out = np.full(n, np.nan, np.float32)
    out[row[first]] = attribute.codes[first]
    return out


def hour_of_day(ts: Times, zone: str) -> Any:
    """Return hours since midnight in `zone`, 0 to 24, of one time or of int64[n]."""
    return (_local(ts, zone) % DAY) / HOUR


def day_of_week(ts: Times, zone: str) -> Any:
    """Return the day in `zone`, 0 is Monday, of one time or of int64[n]."""
    return (_local(ts, zone) // DAY + THURSDAY) % WEEK


def _local(ts: Times, zone: str) -> Any:
    """Return µs since 1970 on the clocks of `zone`; its offset is looked up once a quarter of an hour."""
    if isinstance(ts, int):
        return ts + _offset(ts // (HOUR // 4), zone)
    quarters, place = np.unique(ts // (HOUR // 4), return_inverse=True)
    offset = np.array([_offset(int(quarter), zone) for quarter in quarters], np.int64)
    return ts + offset[place]


@lru_cache(maxsize=100_000)
def _offset(quarter: int, zone: str) -> int:
    """Return the offset of a zone from UTC in µs, at a quarter of an hour since 1970."""
    ts = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(minutes=15 * quarter)
    offset = ts.astimezone(ZoneInfo(zone)).utcoffset()
    return round((offset or timedelta()).total_seconds()) * SECOND
