"""Recording: batches are checked and graded, made durable, and folded into the state that requests read.

What is refused is reported with its index and reason, and the rest of the batch is kept. Users and items that the
bundle does not know are served like known ones, without attributes, as far as `[record] new_users` and `new_items` give
room; beyond that, until a training knows them, they count only for keys that do not name them.

The way of an event, in the order of this file: `record` checks its batch, `_reserve` counts it, the writer makes it
durable (`features.log.writer`, in one fsync with the batches beside it), `_on_commit` is called on the writer's thread,
`_add` gives numbers to new users and items and queues the event in `Live`, and `record` returns. Requests see the event
after the next fold (`Live._fold`, every 0.2 s).
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from features.errors import PairliftError
from features.log.recorded import Recorded, frames_of
from features.log.segments import Frame, checksum_of
from features.log.writer import EVENTS, LogWriter
from features.schema import Bool, EventLog, empty_log, merged
from features.state.live import Live
from features.state.store import State
from ranker.bundle import Bundle
from ranker.hashes import MANIFEST
from ranker.recording.batch import Batch, Outcome
from ranker.recording.checks import Find
from ranker.recording.events import ArmOf, Checked, EventReader, no_arm
from ranker.recording.exports import Exporter
from ranker.recording.memory import memory_lines
from ranker.recording.numbering import Numbering, with_room
from ranker.recording.snapshots import Origin, log_name, tidy_snapshots, write_snapshot
from ranker.request import RequestError

log = logging.getLogger(__name__)

#: seconds after which a thread lets another run, in a process that records: at Python's 5 ms the thread that folds
#: waits too long for its turns
SWITCH = 0.0005
#: events that are graded at once when the log is read again
REPLAYED = 100_000
#: seconds that a snapshot, or what is read again at the start, may take to be folded in
PATIENCE = 3600.0
#: folder in the log's
SNAPSHOTS = "snapshots"
UNTRAINED = (
    "%s: %s recorded events are older than the end of what the bundle was trained on, and its training did not read "
    "them from %s: they are counted beside it. If it read the same events from elsewhere, they count twice: name these "
    "files in [events] source in their place, or start another --log"
)


class LimitError(PairliftError):
    """The log has as many events as `[record] max_events` lets it serve."""


class Recorder:
    """The log in a folder, and the state that follows it. `record` from any thread."""

    def __init__(
        self,
        bundle: Bundle,
        folder: Path,
        *,
        wall: Callable[[], int],
        users: Find,
        items: Find,
        past: bool = False,
        origin: Origin | None = None,
        arm_of: ArmOf = no_arm,
        on_health: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """Lock the log, read it again, and open it; PairliftError where it is locked, damaged or too large.

        wall: the clock (µs UTC). past: the log's time is not the clock's but the end of what is known. users, items:
        give dense indexes of what the bundle knows. origin: of the snapshot that `bundle.state` is. arm_of: of events
        that come in. on_health: called with False where there is a `problem`, and True where it is over.
        """
        self.bundle, self.settings, self.folder = bundle, bundle.config.record, folder
        self.count = 0  # events that are recorded here and served, or are being written
        self._counting = threading.Lock()
        self._wall, self._past = wall, past
        self._on_health, self._well = on_health, True
        self._live: Live | None = None
        self._origin = origin
        self._snapping = threading.Lock()
        self._snapped: tuple[Path, int] | None = None  # the last snapshot, and its frame
        self._reader = EventReader(bundle, users, items, arm_of)
        unplaced = origin.unplaced if origin else empty_log(self._reader.feedback)
        state = with_room(bundle.state, unplaced, self.settings.new_users, self.settings.new_items)
        memory_lines(state, self.settings)  # before the log is read, which takes time
        self._numbering = Numbering(state.catalog, self.settings.max_id_bytes)
        self._writer = self._log_writer()
        self._exporter = Exporter(self._writer, self._report_health)
        try:
            self._open(state, unplaced)
        except BaseException:
            self.close()
            raise
        self._exporter.start()

    def record(self, batch: Batch) -> Outcome:
        """Make a batch durable and return what became of it. Requests see its events after the next fold.

        Raises RequestError for a batch that is too large, LimitError, and LogError where it could not be written.
        """
        n, most = batch.events.num_rows, self.settings.max_batch
        if n > most:
            raise RequestError(f"at most {most:,} events in a batch were expected, found {n:,}")
        good = self._reader.checked(batch, self.clock(), self._wall() + self.settings.tolerance)
        if not len(good.log):
            return Outcome(0, 0, good.refused)
        self._reserve(len(good.log))
        try:
            receipt = self._writer.append(good.table, good).result()
        except BaseException:
            self._release(len(good.log))
            raise
        duplicates = int(receipt.known.sum())
        self._release(duplicates)
        return Outcome(len(good.log) - duplicates, duplicates, good.refused)

    def _reserve(self, events: int) -> None:
        """Count events before they are written, so that streams at once do not pass the limit together."""
        with self._counting:
            if self.count + events > self.settings.max_events:
                raise LimitError(
                    f"{self.count:,} events are recorded and [record] max_events = {self.settings.max_events:,} can be "
                    "served: train a bundle on them, or take a snapshot and serve it, or raise the limit"
                )
            self.count += events

    def _release(self, events: int) -> None:
        """Count no more what was reserved and is not recorded."""
        with self._counting:
            self.count -= events

    def _on_commit(self, frame: int, batches: list[tuple[Checked, Bool]]) -> None:
        """Take what the writer made durable, on its thread. batches: each with bool[n], which of its events are new."""
        # Numbers are given in the order of the log, and that is not the order of time.
        self._add([(good.log.select(new), good.table.filter(pa.array(new))) for good, new in batches], frame)

    def _add(self, batches: list[tuple[EventLog, pa.Table]], frame: int) -> None:
        """Number new users and items, and queue the events for the next fold. frame: the last that has them."""
        events = [self._numbering.numbered(*batch) for batch in batches]
        self.live.add(merged(events), frame, self._numbering.new)

    @property
    def live(self) -> Live:
        """The state that follows the log; `live.state` is what requests read now."""
        if self._live is None:
            raise PairliftError("the recorder is not open")
        return self._live

    def clock(self) -> int:
        """Return the log's time (µs UTC)."""
        if not self._past:
            return self._wall()
        return (self.bundle.state if self._live is None else self._live.state).end

    @property
    def problem(self) -> str:
        """What is wrong with the recording at the moment: serving, writing or exporting; empty: nothing."""
        return "; ".join(filter(None, [self.live.problem, self._writer.problem, *self._exporter.problems]))

    def snapshot(self) -> tuple[Path, State, int]:
        """Write what is recorded so far as a snapshot; return (folder, state, last frame)."""
        with self._snapping:
            frozen = self.live.freeze().result(PATIENCE)
            # Of the same frame it would be the same again.
            if self._snapped is None or self._snapped[1] != frozen.frame or not (self._snapped[0] / MANIFEST).exists():
                checksum = checksum_of(self.folder, frozen.frame)
                if checksum is None and self._origin is not None and self._origin.frame == frozen.frame:
                    checksum = self._origin.checksum
                folder = write_snapshot(self.folder / SNAPSHOTS, frozen, self._name, self.bundle.version, checksum)
                self._snapped = folder, frozen.frame
            return self._snapped[0], frozen.state, frozen.frame

    def close(self) -> None:
        """Finish what is under way and let the log go."""
        self._exporter.stop()
        self._writer.close()
        if self._live is not None:
            self._live.close()

    def _log_writer(self) -> LogWriter:
        # An event may come `tolerance` before its time, and again until its time is `keep` ago.
        keep = self._reader.keep + self.settings.tolerance
        size, age = round(self.settings.segment_mb * 1e6), self.settings.segment_time
        return LogWriter(self.folder, keep, self.clock, on_commit=self._on_commit, segment_bytes=size, segment_time=age)

    def _open(self, state: State, unplaced: EventLog) -> None:
        """Read the log again, on top of a state and its events without a place, and begin to write."""
        self._name = log_name(self.folder)
        frame, trained = 0, self.bundle.recorded
        if self._origin is not None:
            if not self._origin.is_of(self._name, self.folder):
                raise PairliftError(
                    f"the snapshot is of another log than {self.folder}: serve it with its own, or without"
                )
            frame, trained = self._origin.frame, {}
        self._live = Live(state, self._reader.feedback, unplaced, frame)
        self._replay(frame, trained)
        # Those of events that the bundle or a snapshot has are known too, for `dedupe_days`.
        for line in memory_lines(state, self.settings, max(len(self._writer.seen) - self.count, 0)):
            log.info(line)
        self._writer.start()
        tidy_snapshots(self.folder / SNAPSHOTS)

    def _replay(self, frame: int, trained: Recorded) -> None:
        """Fold in what the log has behind a frame, but for what the bundle was trained on."""
        begun = time.monotonic()
        skipped = frames_of(self.folder, trained)
        late = 0
        for frames in _chunks(self._writer.replay(frame)):
            # A frame that is skipped is passed on without its events: a snapshot must know that it is in the state.
            table = pa.concat_tables([f.events.slice(0, 0 if f.number in skipped else None) for f in frames])
            events = self._reader.read(table)
            late += int((events.ts < self.bundle.state.end).sum())
            self._reserve(len(events))
            self._add([(events, table)], frames[-1].number)
        self.live.drain(PATIENCE)
        if self._writer.number:
            took = time.monotonic() - begun
            log.info("%s: %s recorded events were read again in %.1f s", self.folder, f"{self.count:,}", took)
        if late > self.count / 2 and not frame:
            log.warning(UNTRAINED, self.folder, f"{late:,}", self.folder / EVENTS)

    def _report_health(self) -> None:
        if (well := not self.problem) != self._well:
            self._well = well
            self._on_health(well)


def _chunks(frames: Iterator[Frame]) -> Iterator[list[Frame]]:
    """Yield frames by about `REPLAYED` events, of one schema."""
    taken: list[Frame] = []
    events = 0
    for frame in frames:
        if taken and (events >= REPLAYED or taken[0].events.schema != frame.events.schema):
            yield taken
            taken, events = [], 0
        taken.append(frame)
        events += frame.events.num_rows
    if taken:
        yield taken
