"""The feature log: the values that served requests used, sampled by request, in Parquet.

`ranker.recording.logged` reads it: a booster can be trained on them in place of recomputed values (`overlay`), and a
report says where the two differ (`drift`): a feature that is not computed as it was served shows there first.
"""

import logging
import os
import queue
import threading
import time
import uuid
import zlib
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import PairliftError
from features.files import made_folder, sync
from features.schema import F32, Catalog, is_text
from ranker.request import Answer, Explored, Request

log = logging.getLogger(__name__)

#: answers that may wait for the writer; further ones are dropped, and counted
WAITING = 1000
#: rows of one file at most, and seconds after which a shorter one is written
ROWS, SECONDS = 100_000, 10.0
#: columns of a row before its features. Not `surface`: a feature has that name (it is a code), and would replace it
KEYS = (
    *("request_id", "user_id", "item_id", "as_of", "surface_name", "source_item_id", "query_text", "rank", "score"),
    *("bundle_version", "arm_name", "exploration", "temperature", "propensity"),
)


class _Sampled(NamedTuple):
    """An answer that waits to be written. Not with its request, which would hold the counters of an old state."""

    catalog: Catalog  # of the request's state: the ids behind the indexes
    request_id: str  # never empty
    user: int  # dense; -1 cold
    as_of: int  # µs UTC
    surface: int  # code; -1 missing
    source_item: int  # dense; -1 none, or cold
    query: str  # what the user typed; empty: nothing
    answer: Answer  # its k items, best first
    values: F32  # [k, c], of the c columns of the bundle
    arm: str  # of the user; empty: none


class FeatureLog:
    """Writes what answers used. The request path only puts an answer into a queue; one thread writes.

    columns: of the bundle, float32 each, beside `request_id`, `user_id` and `item_id` (null where cold), `as_of` (µs
    UTC), `surface_name`, `source_item_id` and `query_text` (null where missing), `rank` (0 first), `score`,
    `bundle_version` and `arm_name` (of the experiment, null where there was none). A list of Recommend has the score of
    the wanted part, which ordered it, and the columns of the liked part, which learns from them. Where its order was
    drawn, `exploration` says how (the kind), `temperature` is what the scores were divided by (null where they were
    not read), and `propensity` the chance of the item given those of a lower rank; all three are null in lists that
    were not drawn.
    """

    def __init__(
        self, folder: Path, *, columns: tuple[str, ...], version: str, share: float, seconds: float = SECONDS
    ) -> None:
        """version: of the bundle. share: of the requests that are logged, in (0, 1]; the request's id decides, so a
        resend decides alike. Those whose list was drawn (`[exploration]`) are logged beside them. seconds: that an
        answer waits at most before it is written.
        """
        if not 0 < share <= 1:
            raise PairliftError(f"--feature-share {share}: a share above 0 and up to 1 was expected")
        try:
            made_folder(folder)
        except OSError as error:
            raise PairliftError(f"--feature-log {folder}: {error.strerror}") from error
        self.folder, self.columns, self.version, self.share = folder, columns, version, share
        self._seconds = seconds
        self.dropped = 0  # answers
        self._counting = threading.Lock()
        self._queue: queue.Queue[_Sampled | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None  # from the first answer on: not before a process is forked

    def wants(self, request_id: str) -> bool:
        """Tell whether a request is sampled; one without an id cannot be joined to its feedback and never is."""
        return bool(request_id) and zlib.crc32(request_id.encode()) < self.share * 2**32

    def offer(self, request: Request, answer: Answer, values: F32, arm: str = "") -> None:
        """Take an answer and float32[k, c] of its items; never waits. arm: of the user, empty for none."""
        if self._thread is None:
            self._start()
        sampled = _Sampled(
            catalog=request.state.catalog,
            request_id=request.request_id,
            user=request.user,
            as_of=request.as_of,
            surface=request.surface,
            source_item=request.source_item,
            query=request.query,
            answer=answer,
            values=values,
            arm=arm,
        )
        try:
            self._queue.put_nowait(sampled)
        except queue.Full:
            dropped = self._drop(1)
            if dropped & (dropped - 1) == 0:
                log.warning("feature log: %d answers lost so far: they come faster than the disk takes them", dropped)

    def _start(self) -> None:
        with self._counting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="feature-log", daemon=True)
                self._thread.start()

    def _drop(self, answers: int) -> int:
        """Count answers that are lost; return how many are by now."""
        with self._counting:
            self.dropped += answers
            return self.dropped

    def close(self) -> None:
        """Write what waits, and stop."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        waiting: list[_Sampled] = []
        due = 0.0  # when what waits is written, in seconds (monotonic): steady traffic must not put it off
        while True:
            try:
                sampled = self._queue.get(timeout=max(due - time.monotonic(), 0.0) if waiting else None)
            except queue.Empty:
                self._write(waiting)
                continue
            if sampled is not None:
                due = due if waiting else time.monotonic() + self._seconds
                waiting.append(sampled)
            if sampled is None or sum(len(one.values) for one in waiting) >= ROWS or time.monotonic() >= due:
                self._write(waiting)
            if sampled is None:
                return

    def _table(self, sampled: _Sampled) -> pa.Table:
        catalog, answer = sampled.catalog, sampled.answer
        n = len(answer.item)
        users, items = catalog.ids_of_users(np.full(n, sampled.user, np.int32)), catalog.ids_of_items(answer.item)
        kinds = [pa.string() if is_text(known) else pa.int64() for known in (catalog.user_ids, catalog.item_ids)]
        surface = catalog.surfaces[sampled.surface] if sampled.surface >= 0 else None
        keys = {
            "request_id": pa.array([sampled.request_id] * n, pa.string()),
            "user_id": pa.array(users, kinds[0]),
            "item_id": pa.array(items, kinds[1]),
            "as_of": pa.array([sampled.as_of] * n, pa.int64()),
            "surface_name": pa.array([surface] * n, pa.string()),
            "source_item_id": pa.array(catalog.ids_of_items(np.full(n, sampled.source_item, np.int32)), kinds[1]),
            "query_text": pa.array([sampled.query or None] * n, pa.string()),
            "rank": pa.array(range(n), pa.int32()),
            "score": pa.array(answer.score, pa.float64()),
            "bundle_version": pa.array([answer.bundle_version] * n, pa.string()),
            "arm_name": pa.array([sampled.arm or None] * n, pa.string()),
        } | _drawn(answer.explored, n)
        features = {name: pa.array(sampled.values[:, k], pa.float32()) for k, name in enumerate(self.columns)}
        return pa.table(keys | features)

    def _write(self, waiting: list[_Sampled]) -> None:
        if not waiting:
            return
        try:
            write_part(self.folder, pa.concat_tables([self._table(one) for one in waiting]), self.version)
        except Exception as error:  # serving goes on, and so does this thread; what is lost is counted
            text = "feature log: %d answers lost so far: they could not be written to %s (%s)"
            log.error(text, self._drop(len(waiting)), self.folder, error, exc_info=not isinstance(error, OSError))
        waiting.clear()


def _drawn(explored: Explored | None, n: int) -> dict[str, pa.Array]:
    """Return the columns of how the order of n items was drawn."""
    kind, temperature = (None, None) if explored is None else (explored.kind, explored.temperature)
    return {
        "exploration": pa.array([kind] * n, pa.string()),
        "temperature": pa.array([temperature] * n, pa.float64()),
        "propensity": pa.array([None] * n if explored is None else explored.propensity, pa.float64()),
    }


def write_part(folder: Path, table: pa.Table, version: str) -> None:
    """Write rows as a new file of a feature log, durable: it appears whole or not at all, and replaces no other.

    Several servers may write into the folder, so the file is not `written`: its name must be no other's.
    """
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
    sync(folder)


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
