"""The feature log: the values that served requests used, sampled by request, in Parquet.

A booster can be trained on them in place of recomputed values (`overlay`), and a report tells where the two differ
(`drift`): a feature that is not computed as it was served shows there first.
"""

import logging
import os
import queue
import threading
import time
import uuid
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import PairliftError
from features.log.segments import sync_folder
from features.pairing.groups import Groups
from features.schema import F32, I64, Catalog, EventLog, Ids, Requests, lookup
from ranker.request import Answer, Request

log = logging.getLogger(__name__)

#: answers that may wait for the writer; further ones are dropped, and counted
WAITING = 1000
#: rows of one file at most, and seconds after which a shorter one is written
ROWS, SECONDS = 100_000, 10.0
# Not `surface`: so a feature is called, a code, and it would take the name's place.
_KEYS = ("request_id", "user_id", "item_id", "as_of", "surface_name", "rank", "score", "bundle_version")


class _Taken(NamedTuple):
    """An answer that waits to be written. Not with its request, which would hold the counters of an old state."""

    catalog: Catalog  # of the request's state
    request_id: str
    user: int
    as_of: int
    surface: int
    answer: Answer
    values: F32  # [k, c]


class FeatureLog:
    """Writes what answers used. The request path only puts an answer into a queue; one thread writes.

    columns: of the bundle, float32 each, beside `request_id`, `user_id` and `item_id` (null where cold), `as_of` (µs
    UTC), `surface_name` (null where missing), `rank` (0 first), `score` and `bundle_version`.
    """

    def __init__(self, folder: Path, columns: tuple[str, ...], version: str, share: float) -> None:
        """share: of the requests that are logged, in (0, 1]; the request's id decides, so a resend decides alike."""
        if not 0 < share <= 1:
            raise PairliftError(f"--feature-share {share}: a share above 0 and up to 1 was expected")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PairliftError(f"--feature-log {folder}: {error.strerror}") from error
        self.folder, self.columns, self.version, self.share = folder, columns, version, share
        self.dropped = 0  # answers
        self._counting = threading.Lock()
        self._queue: queue.Queue[_Taken | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._run, name="feature-log", daemon=True)
        self._thread.start()

    def wants(self, request_id: str) -> bool:
        """Tell whether a request is sampled; one without an id cannot be joined to its feedback and never is."""
        return bool(request_id) and zlib.crc32(request_id.encode()) < self.share * 2**32

    def offer(self, request: Request, answer: Answer, values: F32) -> None:
        """Take an answer and float32[k, c] of its items; never waits."""
        taken = _Taken(
            catalog=request.state.catalog,
            request_id=request.request_id,
            user=request.user,
            as_of=request.as_of,
            surface=request.surface,
            answer=answer,
            values=values,
        )
        try:
            self._queue.put_nowait(taken)
        except queue.Full:
            dropped = self._drop(1)
            if dropped & (dropped - 1) == 0:
                log.warning("feature log: %d answers lost so far: they come faster than the disk takes them", dropped)

    def _drop(self, answers: int) -> int:
        """Count answers that are lost; return how many are by now."""
        with self._counting:
            self.dropped += answers
            return self.dropped

    def close(self) -> None:
        """Write what waits, and stop."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        waiting: list[_Taken] = []
        while True:
            try:
                taken = self._queue.get(timeout=SECONDS)
            except queue.Empty:
                self._write(waiting)
                continue
            if taken is not None:
                waiting.append(taken)
            if taken is None or sum(len(one.values) for one in waiting) >= ROWS:
                self._write(waiting)
            if taken is None:
                return

    def _table(self, taken: _Taken) -> pa.Table:
        catalog, answer, values = taken.catalog, taken.answer, taken.values
        n = len(answer.item)
        users, items = catalog.ids_of_users(np.full(n, taken.user, np.int32)), catalog.ids_of_items(answer.item)
        kinds = [pa.string() if known.dtype == object else pa.int64() for known in (catalog.user_ids, catalog.item_ids)]
        surface = catalog.surfaces[taken.surface] if taken.surface >= 0 else None
        keys = {
            "request_id": pa.array([taken.request_id] * n, pa.string()),
            "user_id": pa.array(users, kinds[0]),
            "item_id": pa.array(items, kinds[1]),
            "as_of": pa.array([taken.as_of] * n, pa.int64()),
            "surface_name": pa.array([surface] * n, pa.string()),
            "rank": pa.array(range(n), pa.int32()),
            "score": pa.array(answer.score, pa.float64()),
            "bundle_version": pa.array([answer.bundle_version] * n, pa.string()),
        }
        return pa.table(keys | {name: pa.array(values[:, k], pa.float32()) for k, name in enumerate(self.columns)})

    def _write(self, waiting: list[_Taken]) -> None:
        if not waiting:
            return
        try:
            write_part(self.folder, pa.concat_tables([self._table(taken) for taken in waiting]), self.version)
        except Exception as error:  # serving goes on, and so does this thread; what is lost is counted
            told = "feature log: %d answers lost so far: they could not be written to %s (%s)"
            log.error(told, self._drop(len(waiting)), self.folder, error, exc_info=not isinstance(error, OSError))
        waiting.clear()


def write_part(folder: Path, table: pa.Table, version: str) -> None:
    """Write rows as a new file of a feature log, durable: it appears whole or not at all, and replaces no other."""
    target, file = _own_name(folder, version)
    partial = target.with_suffix(".partial")
    try:
        with file:
            pq.write_table(table, file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(folder)


def _own_name(folder: Path, version: str) -> tuple[Path, BinaryIO]:
    """Return a name that no file has, and its partial file, by which it is ours: other servers may write here too."""
    while True:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        target = folder / f"part-{stamp}-{uuid.uuid4().hex[:16]}-{version}.parquet"
        with suppress(FileExistsError):
            file = target.with_suffix(".partial").open("xb")
            if not target.exists():
                return target, file
            file.close()
            target.with_suffix(".partial").unlink()


@dataclass(frozen=True, slots=True)
class Logged:
    """A feature log that was read. request_id: object[n]. user, item: int32[n]; as_of: int64[n]; surface: int16[n]."""

    request_id: Ids
    requests: Requests
    values: F32
    columns: tuple[str, ...]


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        first = str(error).split("\n")[0]
        raise PairliftError(
            f"{folder}: {first}\n  a folder that `pairlift serve --feature-log` wrote was expected"
        ) from error


def read_features(folder: Path, catalog: Catalog) -> Logged:
    """Read a feature log, one request after the other. Raises PairliftError where it is none."""
    with _explained(folder), duckdb.connect() as con:
        files = f"read_parquet('{folder}/part-*.parquet', union_by_name = true)"
        rows: Any = con.sql(f"SELECT * FROM {files} ORDER BY as_of, request_id, rank").to_arrow_table()
    columns = tuple(name for name in rows.column_names if name not in _KEYS)
    request_id: Ids = np.array(rows["request_id"].to_pylist(), dtype=np.object_)
    starts = np.flatnonzero(np.append(True, request_id[1:] != request_id[:-1])) if len(rows) else np.empty(0, np.int64)
    user = _index(catalog.user_ids, rows["user_id"])
    surface_code = {name: code for code, name in enumerate(catalog.surfaces)}
    if "surface_name" not in rows.column_names:
        raise PairliftError(f"{folder}: written by an earlier version, in which a feature took the surface's place")
    surface = np.array([surface_code.get(s, -1) for s in rows["surface_name"].to_pylist()], np.int16)
    requests = Requests(
        user[starts],
        rows["as_of"].to_numpy()[starts].astype(np.int64),
        surface[starts],
        np.append(starts, len(rows)).astype(np.int64),
        _index(catalog.item_ids, rows["item_id"]),
    )
    values = np.stack([rows[name].to_numpy().astype(np.float32) for name in columns], axis=1)
    # What requests said of themselves is an input: it is taken as it was logged, where the bundle had its column.
    said = [f"context_{known.name}" for known in catalog.contexts]
    context = [values[starts, columns.index(n)] if n in columns else np.full(len(starts), np.nan) for n in said]
    if said:
        requests = replace(requests, context=np.stack(context, axis=1).astype(np.float32))
    return Logged(request_id[starts], requests, values, columns)


def _index(known: Ids, column: Any) -> Any:
    values = column.to_pylist()
    there = np.array([v is not None for v in values], bool)
    blank = "" if known.dtype == object else 0
    wanted = np.array([blank if v is None else v for v in values], dtype=known.dtype)
    return np.where(there, lookup(known, wanted), -1).astype(np.int32)


def drift(logged: Logged, recomputed: F32, of_plugins: Collection[str] = ()) -> list[dict[str, Any]]:
    """Compare float32[n, c] recomputed values with the logged ones, column by column, the most different first.

    A value differs where it is off by more than 1e-6 relative (and 1e-6 absolute), or missing in one of the two.
    of_plugins: columns that may also be off by 1e-5 of their standard deviation, for a tower sums in another order in
    a batch, and its dot may be near 0 where its terms are not.
    """
    found = []
    owner = logged.requests.row_request()
    for k, name in enumerate(logged.columns):
        was, now = logged.values[:, k].astype(np.float64), recomputed[:, k].astype(np.float64)
        one_missing = np.isnan(was) != np.isnan(now)
        gap = np.where(np.isnan(was) | np.isnan(now), 0.0, np.abs(was - now))
        known = now[np.isfinite(now)]
        spread = float(known.std()) if name in of_plugins and len(known) else 0.0
        off = one_missing | (gap > 1e-6 + 1e-6 * np.abs(np.nan_to_num(now)) + 1e-5 * spread)
        worst = int(np.argmax(np.where(one_missing, np.inf, gap))) if len(gap) else 0
        found.append(
            {
                "column": name,
                "differs": float(off.mean()) if len(off) else 0.0,
                "mean_gap": float(gap.mean()) if len(gap) else 0.0,
                "largest_gap": float(gap.max(initial=0.0)),
                "missing_in_one": int(one_missing.sum()),
                "example": str(logged.request_id[owner[worst]]) if off.any() else None,
            }
        )
    return sorted(found, key=lambda row: -row["differs"])


def overlay(
    logged: Logged, request_codes: dict[str, int], log_: EventLog, groups: Groups, matrix: F32, columns: list[str]
) -> tuple[F32, int]:
    """Return the matrix with the logged values in the rows of logged (request, item), and how many rows those are.

    request_codes: the log's request ids to the codes of `EventLog.request`. columns: names of the matrix's; the log
    must have them all, else PairliftError.
    """
    lacking = [name for name in columns if name not in logged.columns]
    if lacking:
        raise PairliftError(
            f"the feature log lacks {', '.join(lacking[:5])}: it was written by a bundle with other features"
        )
    owner = logged.requests.row_request()
    code = np.array([request_codes.get(str(name), -1) for name in logged.request_id], np.int64)[owner]
    place = _places(code, logged.requests.item, groups, log_)
    order = [logged.columns.index(name) for name in columns]
    out = matrix.copy()
    rows = np.flatnonzero(place >= 0)
    out[rows] = logged.values[place[rows]][:, order]
    return out, len(rows)


def _places(code: I64, item: Any, groups: Groups, log_: EventLog) -> I64:
    """Return int64[n]: the logged row of each impression, -1 where it was not logged."""
    known = {(int(c), int(i)): k for k, (c, i) in enumerate(zip(code, item, strict=True)) if c >= 0 and i >= 0}
    shown = groups.event >= 0
    request = np.where(shown, log_.request[np.maximum(groups.event, 0)], -1)
    pairs = zip(request.tolist(), groups.requests.item.tolist(), strict=True)
    return np.array([known.get(pair, -1) for pair in pairs], np.int64)
