"""The recorded event log: what is acknowledged is on disk, and nothing counts twice.

DIR/<first frame>.log      segments (see `features.log.segments`): the truth, only ever appended to
DIR/events/<first>.parquet each closed segment again, for `[events] source`, DuckDB and anything else
DIR/durable                the number of the last frame that is on disk (see `features.log.reader`)
DIR/lock                   held by the one process that writes

Batches that arrive together are one frame, one write and one fsync (group commit). Parquet and not a DuckDB file:
a DuckDB file has one writer and no reader beside it, and a log of its own; immutable Parquet files are read by a
training run while the server goes on recording.
"""

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import PairliftError
from features.files import made_folder, sync
from features.log.dedupe import U64, SeenIds, keys_of
from features.log.reader import EVENTS, DurableFrame
from features.log.segments import (
    Frame,
    first_arrival,
    first_number,
    last_exported,
    read_segment,
    segment_files,
    with_text_ids,
)
from features.log.tail import LogError, Tail
from features.schema import HOUR, SECOND, Bool

log = logging.getLogger(__name__)

#: events of one frame, at most (one batch more is taken whole)
GROUP = 1 << 16
#: errors of a disk without room
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: seconds between looks whether a full disk has room again
LOOK_EVERY = 1.0


class Receipt(NamedTuple):
    """What became of a batch: it is on disk."""

    number: int  # of its frame
    known: Bool  # [n], whether each event was recorded before


class _Waiting(NamedTuple):
    """A batch that is not written yet."""

    events: pa.Table  # of n rows, `event_id` as text
    keys: U64  # [n, 2], of the event ids
    receipt: "Future[Receipt]"  # done once the batch is durable, or refused


class LogWriter:
    """Appends to the log in a folder, from any thread.

    Use: `learn()`, then `start()`, then `append(…).result()`, at last `close()`.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        clock: Callable[[], int],
        *,
        on_commit: Callable[[int, int], None] = lambda *_: None,
        segment_bytes: int = 64 << 20,
        segment_time: int = HOUR,
    ) -> None:
        """Lock the folder (made where it is missing); PairliftError where another process has it.

        keep: µs for which an event's id is known after its arrival. clock: gives the time (µs UTC) that arrivals are
        stamped with. on_commit: called with the number of every new frame, and that of its events, in order, on the
        writer's thread, once it is on disk and before it is acknowledged; it must not raise. segment_bytes,
        segment_time: see `Tail`.
        """
        self.folder = folder
        self.seen = SeenIds(keep)
        self.number = 0  # of the last frame
        self._arrival = 0  # of the last frame, µs UTC
        self._began = 0  # of the log's time (µs UTC) less the monotonic clock, at the start
        self._failed = ""  # why the last batch could not be written
        self._full = False  # whether that was for want of space
        self._clock, self._on_commit = clock, on_commit
        self._lock = _locked(folder)
        self._durable = self._opened()
        self._tail = Tail(folder, segment_bytes=segment_bytes, segment_time=segment_time)
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()  # None: close
        self._thread = threading.Thread(target=self._work, name="event-log", daemon=True)
        self._closed = threading.Event()

    def _opened(self) -> DurableFrame:
        try:
            return DurableFrame(self.folder, writes=True)
        except OSError as error:
            os.close(self._lock)
            raise PairliftError(f"{self.folder} cannot be used as a log: {error.strerror}") from error

    @property
    def problem(self) -> str:
        """Why nothing can be written any more, or the last batch could not be; empty: it can."""
        return self._tail.broken or self._failed

    def learn(self) -> None:
        """Read the ids of the last `keep` µs and drop a torn end; what the log has then is durable.

        Where all segments were deleted, numbers go on behind what was exported. Another call reads what another
        process has added. PairliftError where the log is damaged, or a file of it cannot be synced.
        """
        files = segment_files(self.folder)
        begin = first_number(files[0]) if files else last_exported(self.folder / EVENTS) + 1
        self.number = max(self.number, begin - 1)
        horizon = self._steady_from(files) - self.seen.keep
        for path, behind in itertools.zip_longest(files, files[1:]):
            old = behind is not None and _before(behind, horizon)
            if behind is not None and (old or first_number(behind) <= self.number + 1):
                self.seen.since = max(self.seen.since, horizon) if old else self.seen.since
                self.number = max(self.number, first_number(behind) - 1)
                continue
            if first_number(path) > self.number + 1:
                raise PairliftError(f"{self.folder}: frame {self.number + 1} was expected, {path.name} comes next")
            for frame in read_segment(path, last=behind is None):
                if frame.number > self.number:
                    self._learn(frame, horizon)
        self._sync()

    def _steady_from(self, files: list[Path]) -> int:
        """Return what time it is, and let ids be forgotten as time goes on from there, whatever steps the clock makes.

        A clock that runs ahead is not believed beyond what arrived last: the ids that it would forget are asked for
        once it is right again.
        """
        arrivals = [arrival for path in files[-2:] if (arrival := first_arrival(path)) is not None]
        now = min([self._clock(), *arrivals[-1:]])
        self._began = now - round(monotonic() * SECOND)
        return now

    def _learn(self, frame: Frame, horizon: int) -> None:
        self.number, self._arrival = frame.number, max(self._arrival, frame.arrival)
        if frame.arrival < horizon:
            self.seen.since = max(self.seen.since, horizon)
            return
        keys = keys_of(_ids(frame.events))
        self.seen.add(keys[~self.seen.known(keys)], frame.arrival)

    def _sync(self) -> None:
        """Make what was read durable: a process that was killed may have written it and not synced."""
        try:
            for path in segment_files(self.folder)[-1:]:
                sync(path)
            sync(self.folder)
            self._durable.note(self.number)
        except OSError as error:
            raise PairliftError(f"{self.folder} cannot be used as a log: {error.strerror}") from error

    def start(self) -> None:
        """Open a new segment and take appends; LogError where it cannot be made.

        On a full disk it is made later: a server that records nothing meanwhile can still rank.
        """
        try:
            for path in segment_files(self.folder)[-1:]:
                if first_number(path) > self.number:  # no frame in it
                    path.unlink()
            self._tail.open(self.number + 1)
        except OSError as error:
            reason = self._explained(error)
            if not reason.full:
                raise reason from error
            self._note_failure(reason)
        self._thread.start()

    def append(self, events: pa.Table) -> "Future[Receipt]":
        """Queue a batch (column `event_id`: int64 or text; 7 and "7" are one id). The future has its receipt, or raises
        LogError.
        """
        receipt: Future[Receipt] = Future()
        if self._closed.is_set():
            receipt.set_exception(LogError("the log is closed: the server is stopping"))
        else:
            events = with_text_ids(events)
            self._queue.put(_Waiting(events, keys_of(_ids(events)), receipt))
        return receipt

    def closed_segments(self) -> list[Path]:
        """Return the segments that nothing more is written to."""
        # Not "all but the open one": while a segment is opened, its file is there before it is known as that.
        return [path for path in segment_files(self.folder) if first_number(path) < self._tail.first]

    def close(self) -> None:
        """Finish what is queued, then close the segment and let the folder go."""
        if not self._closed.is_set():
            self._closed.set()
            self._queue.put(None)
            if self._thread.is_alive():
                self._thread.join()
            self._tail.close()
            self._durable.close()
            os.close(self._lock)

    def _work(self) -> None:
        last = False
        while not last:
            group, last = self._group()
            try:
                self._commit(group)
            except Exception as error:  # whatever it is, the callers must get it and the thread must go on
                reason = self._explained(error) if isinstance(error, OSError) else error
                self._note_failure(reason)
                log.error("a batch of events was not recorded: %s", reason, exc_info=not isinstance(error, OSError))
                for waiting in group:
                    if not waiting.receipt.done():
                        waiting.receipt.set_exception(reason)

    def _group(self) -> tuple[list[_Waiting], bool]:
        """Wait for a batch and take what else waits; return (batches, whether the end was asked for)."""
        group: list[_Waiting] = []
        taken = self._awaited()
        while taken is not None:
            group.append(taken)
            if sum(len(waiting.keys) for waiting in group) >= GROUP:
                return group, False
            try:
                taken = self._queue.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _awaited(self) -> _Waiting | None:
        """Wait for a batch. Where the disk was full, look meanwhile whether it still is: nobody may send anything."""
        while self._full:
            try:
                return self._queue.get(timeout=LOOK_EVERY)
            except queue.Empty:
                with contextlib.suppress(OSError):
                    self._tail.find_room()
                    self._failed, self._full = "", False
                    log.info("%s: there is room again, events are recorded", self.folder)
        return self._queue.get()

    def _note_failure(self, reason: Exception) -> None:
        self._failed, self._full = str(reason), isinstance(reason, LogError) and reason.full

    def _commit(self, group: list[_Waiting]) -> None:
        if not group:
            return
        keys = np.concatenate([waiting.keys for waiting in group])
        known = self.seen.known(keys)
        bounds = np.cumsum([len(waiting.keys) for waiting in group])[:-1]
        parts = np.split(known, bounds)
        if not known.all():
            tables = [waiting.events for waiting in group]
            whole = pa.concat_tables(tables, promote_options="permissive") if len(tables) > 1 else tables[0]
            new = whole.filter(pa.array(~known))
            # Never before an earlier one, though a clock may step back, nor before what happened: by its arrival is
            # told whether the id of an event may be forgotten, and by its time whether it may come again.
            arrival = max(self._arrival, self._clock(), pc.max(new["ts"]).as_py())
            frame = Frame(self.number + 1, arrival, new)
            self._tail.append(frame)
            self.number, self._arrival = frame.number, arrival
            self._failed, self._full = "", False
            self.seen.add(keys[~known], arrival)
            self.seen.forget(min(arrival, self._began + round(monotonic() * SECOND)))
            self._note(frame.number)
            self._on_commit(frame.number, frame.events.num_rows)
        for waiting, part in zip(group, parts, strict=True):
            waiting.receipt.set_result(Receipt(self.number, part))

    def _note(self, number: int) -> None:
        """Let followers see a frame. Where that fails, it is recorded, and seen with the next one."""
        try:
            self._durable.note(number)
        except OSError as error:
            self._failed = f"{self.folder}: recorded events are not seen ({error.strerror})"
            log.error("%s", self._failed)

    def _explained(self, error: OSError) -> LogError:
        full = error.errno in FULL
        hint = "make room, then send the batch again" if full else "nothing of the batch is recorded"
        return LogError(f"{self.folder}: events cannot be written ({error.strerror}); {hint}", full=full)


def _before(path: Path, horizon: int) -> bool:
    """Tell whether a segment's first frame, and so all segments before it, arrived before a time."""
    arrival = first_arrival(path)
    return arrival is not None and arrival < horizon


def _ids(events: pa.Table) -> pa.Array:
    return events["event_id"].combine_chunks()


def _locked(folder: Path) -> int:
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if found and not found & {"lock", "log.json", EVENTS} and not segment_files(folder):
        raise PairliftError(f"{folder} has other files, and no recorded log: give the log a folder of its own")
    try:
        made_folder(folder)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise PairliftError(f"{folder} cannot be used as a log: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(handle, 20, 0).decode(errors="replace").strip() or "?"
        os.close(handle)
        raise PairliftError(
            f"{folder} is locked: process {holder} records into it; stop that server, or choose another --log"
        ) from error
    with contextlib.suppress(OSError):  # a full disk keeps the number out, not the lock
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
    return handle
