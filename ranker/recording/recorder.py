"""The writing side of a recorded log: batches are checked, made durable and counted, and closed segments exported.

What is refused is reported with its index and reason, and the rest of the batch is kept. Users and items that the
bundle does not know are served like known ones, without attributes, as far as `[record] new_users` and `new_items` give
room; beyond that, until a training knows them, they count only for keys that do not name them.

The way of an event, in the order of this file: `record` checks its batch as the bundle in use expects it, `_reserve`
counts it, the writer makes it durable (`features.log.writer`, in one fsync with the batches beside it), and `record`
returns. The follower (`ranker.recording.follower`) reads it within 0.1 s, and requests see it after the next fold.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from features.errors import PairliftError
from features.log.writer import LogWriter
from features.schema import DAY
from ranker.bundle import Bundle
from ranker.recording.batch import Batch, Outcome
from ranker.recording.exports import Exporter
from ranker.recording.follower import SNAPSHOTS, Follower, limit_reached
from ranker.recording.memory import memory_lines
from ranker.recording.snapshots import tidy_snapshots
from ranker.request import RequestError

log = logging.getLogger(__name__)

#: seconds after which a thread lets another run, in a process that records: at Python's 5 ms the thread that folds
#: waits too long for its turns
SWITCH = 0.0005


class Recorder:
    """The log in a folder, for the one process that writes it. `record` from any thread.

    Use: `use(follower)`, `start()`, at last `close()`; another `use` where another bundle answers.
    """

    def __init__(
        self,
        bundle: Bundle,
        folder: Path,
        *,
        wall: Callable[[], int],
        past: bool = False,
    ) -> None:
        """Lock the log and read which event ids it has; PairliftError where it is locked or damaged.

        wall: the clock (µs UTC). past: the log's time is not the clock's but the end of what is known.
        """
        self.folder, self._wall, self._past = folder, wall, past
        self._begin = bundle.state.end
        self._on_health: Callable[[bool], None] = lambda _: None
        self._well = True
        self._counting = threading.Lock()
        self._reserved = 0  # events that are being written
        self._ahead: deque[tuple[int, int]] = deque()  # (frame, events) of those that the follower may lack yet
        self._follower: Follower | None = None
        settings = bundle.config.record
        # An event may come `tolerance` before its time, and again until its time is `keep` ago.
        self._keep = round(settings.dedupe_days * DAY) + settings.tolerance
        size, age = round(settings.segment_mb * 1e6), settings.segment_time
        self._writer = LogWriter(
            folder, self._keep, self.clock, on_commit=self._on_commit, segment_bytes=size, segment_time=age
        )
        self._exporter = Exporter(self._writer, self._report_health)
        try:
            self._writer.learn()
            tidy_snapshots(folder / SNAPSHOTS)
        except BaseException:
            self._writer.close()
            raise

    def use(self, follower: Follower) -> None:
        """Check what comes in from now on by the bundle of a follower of this log, which has caught up.

        PairliftError as for `check`.
        """
        self.check(follower)
        self._follower = follower

    def check(self, follower: Follower) -> None:
        """Raise PairliftError where a follower's bundle knows event ids for longer than the log was opened with."""
        settings = follower.settings
        if round(settings.dedupe_days * DAY) + settings.tolerance > self._keep:
            raise PairliftError(
                f"[record] dedupe_days and tolerance of at most {self._keep / DAY:g} days together were expected, as "
                f"{self.folder} was opened with; restart the server with this bundle"
            )

    def start(self, on_health: Callable[[bool], None]) -> None:
        """Begin to write; PairliftError where that cannot be, or with all event ids the memory is too little.

        on_health: called with False where there is a `problem`, and True where it is over.
        """
        self._on_health, follower = on_health, self._used
        # Those of events that the bundle or a snapshot has are known too, for `dedupe_days`.
        ids = max(len(self._writer.seen) - follower.position.served, 0)
        for line in memory_lines(follower.memory, follower.settings, ids):
            log.info(line)
        self._writer.learn()  # what another process of this server wrote since
        self._writer.start()
        self._exporter.start()

    def record(self, batch: Batch) -> Outcome:
        """Make a batch durable and return what became of it. Requests see its events after the next fold.

        Raises RequestError for a batch that is too large, LimitError, and LogError where it could not be written.
        """
        follower = self._used
        n, most = batch.events.num_rows, follower.settings.max_batch
        if n > most:
            raise RequestError(f"at most {most:,} events in a batch were expected, found {n:,}")
        # An older Pairlift let an event arrive before its time, by `tolerance` at most.
        tolerance, since = follower.settings.tolerance, self._writer.seen.since
        good = follower.reader.checked(batch, self.clock(), self._wall() + tolerance, since + tolerance)
        m = good.table.num_rows
        if not m:
            return Outcome(0, 0, good.refused)
        self._reserve(m, follower.settings.max_events)
        try:
            receipt = self._writer.append(good.table).result()
        except BaseException:
            self._release(m)
            raise
        duplicates = int(receipt.known.sum())
        self._release(duplicates)
        return Outcome(m - duplicates, duplicates, good.refused)

    @property
    def count(self) -> int:
        """Events that are recorded here and served, or are being written."""
        with self._counting:
            return self._count()

    def _count(self) -> int:
        position = self._used.position
        while self._ahead and self._ahead[0][0] <= position.frame:
            self._ahead.popleft()
        return position.served + sum(events for _, events in self._ahead) + self._reserved

    def _reserve(self, events: int, most: int) -> None:
        """Count events before they are written, so that streams at once do not pass the limit together."""
        with self._counting:
            count = self._count()
            if count + events > most:
                raise limit_reached(count, most)
            self._reserved += events

    def _release(self, events: int) -> None:
        """Count no more what was reserved and is not recorded."""
        with self._counting:
            self._reserved -= events

    def _on_commit(self, frame: int, events: int) -> None:
        """Count what the writer made durable, on its thread, until the follower does."""
        with self._counting:
            self._reserved -= events
            self._ahead.append((frame, events))

    @property
    def _used(self) -> Follower:
        if self._follower is None:
            raise PairliftError("the recorder follows no bundle yet")
        return self._follower

    def clock(self) -> int:
        """Return the log's time (µs UTC)."""
        if not self._past:
            return self._wall()
        return self._begin if self._follower is None else self._follower.state.end

    @property
    def problem(self) -> str:
        """What is wrong with the recording at the moment: serving, writing or exporting; empty: nothing."""
        return "; ".join(filter(None, [self._used.problem, self._writer.problem, *self._exporter.problems]))

    def close(self) -> None:
        """Finish what is under way and let the log go."""
        self._exporter.stop()
        self._writer.close()

    def _report_health(self) -> None:
        if (well := not self.problem) != self._well:
            self._well = well
            self._on_health(well)
