"""A batch of events to record, and what became of it, in our own terms. The clients load this, and no more."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import PairliftError
from features.log.segments import FRAME, SEGMENT
from features.schema import QUARTER, SECOND

#: columns of `Batch.events` beside the ids and ts; a file may lack them
OPTIONAL = {"surface": pa.string(), "organic": pa.bool_(), "request_id": pa.string(), "position": pa.int32()}
#: µs: the years of which Python knows an offset, with a day to spare
FIRST, LAST = -62_135_510_400_000_000, 253_402_214_400_000_000
NEEDED = ("event_id", "user_id", "item_id", "ts")


class Batch(NamedTuple):
    """n events as they came."""

    #: event_id, user_id, item_id (int64 or text), ts (int64 µs UTC), surface, organic, request_id, position
    events: pa.Table  # n rows, null unknown
    feedback: dict[str, pa.Array]  # and what else the TOML names, by name: n numbers or texts, null unknown
    grades: Sequence[str]  # n names, "" for no grade; an empty list if none were sent


class Outcome(NamedTuple):
    """What became of a batch."""

    recorded: int  # events that are on disk now
    duplicates: int  # events that were recorded before
    refused: tuple[tuple[int, str], ...]  # (index in the batch, reason) of each refused one


def read_batches(path: Path, size: int, zone: str = "UTC") -> Iterator[Batch]:
    """Yield the rows of a Parquet file in batches: the columns of `Batch.events`, `grade`, and all others as columns of
    the TOML.

    ts: a timestamp, which is of `zone` where it says none, or an integer of µs UTC. PairliftError where a needed column
    is missing or cannot be read so.
    """
    file = _opened(path)
    missing = [name for name in NEEDED if name not in file.schema_arrow.names]
    if missing:
        found = ", ".join(file.schema_arrow.names)
        raise PairliftError(
            f"{path}: the column '{missing[0]}' was expected, found {found}. Each event needs {', '.join(NEEDED)}; "
            "an event_id that it has for ever is what keeps a resend from counting twice"
        )
    for part in file.iter_batches(size):
        yield _batch(path, pa.table(part), zone)


def is_local(path: Path) -> bool:
    """Return whether the ts of a Parquet file are timestamps without a zone."""
    schema = _opened(path).schema_arrow
    kind = schema.field("ts").type if "ts" in schema.names else None
    return kind is not None and pa.types.is_timestamp(kind) and kind.tz is None


def count_events(path: Path) -> int:
    """Return how many rows a Parquet file has; PairliftError where it is none that can be read."""
    return int(_opened(path).metadata.num_rows)


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise PairliftError(f"{path}: a Parquet file of events was expected, and there is no such file") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise PairliftError(f"{path} is not a Parquet file that can be read: {error}") from error


def _batch(path: Path, table: pa.Table, zone: str) -> Batch:
    columns, kind_of_ts = {}, table["ts"].type
    if not (pa.types.is_timestamp(kind_of_ts) or pa.types.is_integer(kind_of_ts)):
        raise PairliftError(f"{path}: ts of timestamps or integers (µs UTC) was expected, found the type {kind_of_ts}")
    try:
        for name in NEEDED:
            if table[name].null_count:
                raise PairliftError(f"{path}: NULL in the column '{name}' where a value was expected")
            columns[name] = table[name].cast(pa.string() if _is_text(table[name].type) else pa.int64())
        if pa.types.is_timestamp(kind_of_ts):
            columns["ts"] = _micros(table["ts"], zone)
        for name, kind in OPTIONAL.items():
            columns[name] = table[name].cast(kind) if name in table.column_names else pa.nulls(len(table), kind)
        # A file that a server exported may be recorded into another log.
        rest = [name for name in table.column_names if name not in {*columns, "grade", SEGMENT, FRAME}]
        feedback = {name: _feedback(table[name].combine_chunks()) for name in rest}
    except pa.ArrowInvalid as error:
        raise PairliftError(f"{path}: {error}") from error
    grades = [g or "" for g in table["grade"].to_pylist()] if "grade" in table.column_names else []
    return Batch(pa.table(columns), feedback, grades)


def _micros(times: pa.ChunkedArray, zone: str) -> pa.Array:
    """Return int64 µs UTC of timestamps, as DuckDB does when the log is imported: a time that a change of the clock
    skips or repeats has the smaller of the two offsets.
    """
    micros = times.cast(pa.timestamp("us", times.type.tz)).cast(pa.int64())
    if times.type.tz is not None or zone == "UTC":
        return micros
    local = micros.to_numpy()
    starts, place = np.unique(local // QUARTER, return_inverse=True)
    offsets = np.array([_offset(int(start) * QUARTER, ZoneInfo(zone)) for start in starts], np.int64)
    return pa.array(local - offsets[place])


def _offset(local: int, zone: ZoneInfo) -> int:
    """Return by how many µs a local time (µs since 1970 on its clock) is ahead of UTC."""
    moment = datetime(1970, 1, 1, tzinfo=zone) + timedelta(microseconds=min(max(local, FIRST), LAST))
    either = [moment.replace(fold=fold).utcoffset() or timedelta() for fold in (0, 1)]
    return round(min(either).total_seconds() * SECOND)


def _feedback(values: pa.Array) -> pa.Array:
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    return values.cast(pa.string() if _is_text(values.type) else pa.float64())


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
