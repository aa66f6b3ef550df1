"""Recording: batches are checked and graded, made durable, and folded into the state that requests read.

What is refused is told with its index and reason, and the rest of the batch is kept. Users and items that the
bundle does not know are served like known ones, without attributes, as far as `[record] new_users` and `new_items` give
room; beyond that, until a training knows them, they count only for keys that do not name them.
"""

import logging
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path

import pyarrow as pa

from features.errors import PairliftError
from features.log.recorded import Recorded
from features.log.segments import (
    Frame,
    check_export,
    checksum_of,
    export_segment,
    first_number,
    segment_files,
    segment_name,
)
from features.log.writer import EVENTS, LogWriter
from features.schema import Bool, EventLog, empty_log, merged
from features.state.live import Live
from features.state.store import State
from ranker.bundle import Bundle
from ranker.recording.batch import Batch, Outcome
from ranker.recording.events import Checked, EventReader, Find
from ranker.recording.memory import memory_lines
from ranker.recording.numbering import Numbering, with_room
from ranker.recording.snapshots import MANIFEST, Origin, log_name, tidy_snapshots, write_snapshot
from ranker.request import RequestError

log = logging.getLogger(__name__)

#: seconds after which a thread lets another run, in a process that records: at Python's 5 ms the thread that folds
#: waits too long for its turns
SWITCH = 0.0005
#: events that are graded at once when the log is read again
REPLAYED = 100_000
#: seconds between looks for closed segments without a Parquet file
EXPORT_EVERY = 5.0
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
        wall: Callable[[], int],
        users: Find,
        items: Find,
        *,
        past: bool = False,
        origin: Origin | None = None,
        health: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """Lock the log, read it again, and open it; PairliftError where it is locked, damaged or too large.

        wall: the clock (µs UTC). past: the log's time is not the clock's but the end of what is known. users, items:
        give dense indexes of what the bundle knows. origin: of the snapshot that `bundle.state` is. health: is told
        False where there is a `problem`, and True where it is over.
        """
        self.bundle, self.settings, self.folder = bundle, bundle.config.record, folder
        self._wall, self._past = wall, past
        self._health, self._well = health, True
        self._events = folder / EVENTS
        self._failing: dict[Path, str] = {}  # segments that cannot be exported, and why
        self._trouble = ""  # why the last look for closed segments failed
        self._compared: set[Path] = set()  # segments whose Parquet file is known to be theirs
        self._reader = EventReader(bundle, users, items)
        frame, strangers = (origin.frame, origin.strangers) if origin else (0, empty_log(self._reader.feedback))
        state = with_room(bundle.state, strangers, self.settings.new_users, self.settings.new_items)
        memory_lines(state, self.settings)  # before the log is read, which takes time
        self._numbering = Numbering(state.catalog, self.settings.max_id_bytes)
        self.count = 0
        self._taken = threading.Lock()
        self._live: Live | None = None
        self._stop = threading.Event()
        self._snapping = threading.Lock()
        self._snapped: tuple[Path, int] | None = None
        self._origin = origin
        size, age = round(self.settings.segment_mb * 1e6), self.settings.segment_time
        # An event may come `tolerance` before its time, and again until its time is `keep` ago.
        keep = self._reader.keep + self.settings.tolerance
        self._writer = LogWriter(folder, keep, self.clock, self._recorded, size, age)
        try:
            self._name = log_name(folder)
            if origin is not None and not _is_of(origin, self._name, folder):
                raise PairliftError(f"the snapshot is of another log than {folder}: serve it with its own, or without")
            self._live = Live(state, self._reader.feedback, strangers, frame)
            self._replay(frame, {} if origin is not None else bundle.recorded)
            # Those of events that the bundle or a snapshot has are known too, for `dedupe_days`.
            for line in memory_lines(state, self.settings, max(len(self._writer.seen) - self.count, 0)):
                log.info(line)
            self._writer.start()
            tidy_snapshots(folder / SNAPSHOTS)
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._export, name="export", daemon=True).start()

    @property
    def problem(self) -> str:
        """What is wrong with the recording at the moment: serving, writing or exporting; empty: nothing."""
        failing = list(self._failing.values())
        more = f", and {len(failing) - 1} more; a training lacks their events" if failing[1:] else ""
        told = [self.live.problem, self._writer.problem, self._trouble, *(one + more for one in failing[:1])]
        return "; ".join(one for one in told if one)

    @property
    def live(self) -> Live:
        """What folds; `live.state` is what requests read now."""
        if self._live is None:
            raise PairliftError("the recorder is not open")
        return self._live

    def clock(self) -> int:
        """Return the log's time (µs UTC)."""
        if not self._past:
            return self._wall()
        return (self.bundle.state if self._live is None else self._live.state).end

    def record(self, batch: Batch) -> Outcome:
        """Make a batch durable and return what became of it.

        Raises RequestError for a batch that is none, LimitError, and LogError where it could not be written.
        """
        n, most = batch.events.num_rows, self.settings.max_batch
        if n > most:
            raise RequestError(f"at most {most:,} events in a batch were expected, found {n:,}")
        good = self._reader.checked(batch, self.clock(), self._wall() + self.settings.tolerance)
        if not len(good.log):
            return Outcome(0, 0, good.refused)
        self._reserve(len(good.log))
        known = len(good.log)
        try:
            receipt = self._writer.append(good.table, good).result()
            known = int(receipt.known.sum())
        finally:
            self._reserve(-known)
        return Outcome(len(good.log) - known, known, good.refused)

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
        self._stop.set()
        self._writer.close()
        if self._live is not None:
            self._live.close()

    def _reserve(self, events: int) -> None:
        """Count events before they are written, so that streams at once do not pass the limit together."""
        with self._taken:
            if events > 0 and self.count + events > self.settings.max_events:
                raise LimitError(
                    f"{self.count:,} events are recorded and [record] max_events = {self.settings.max_events:,} can be "
                    "served: train a bundle on them, or take a snapshot and serve it, or raise the limit"
                )
            self.count += events

    def _recorded(self, frame: int, batches: list[tuple[Checked, Bool]]) -> None:
        # Numbers are given in the order of the log, and that is not the order of time.
        self._add([(good.log.select(new), good.table.filter(pa.array(new))) for good, new in batches], frame)

    def _add(self, batches: list[tuple[EventLog, pa.Table]], frame: int) -> None:
        events = [self._numbering.numbered(*batch) for batch in batches]
        self.live.add(merged(events), frame, self._numbering.new)

    def _replay(self, frame: int, trained: Recorded) -> None:
        """Fold in what the log has behind a frame, but for what the bundle was trained on."""
        begun = time.monotonic()
        skipped = _frames_of(self.folder, trained)
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
            log.warning(UNTRAINED, self.folder, f"{late:,}", self._events)

    def _export(self) -> None:
        """Export closed segments, and tell whether all is well, until the end."""
        while True:
            try:
                self._export_closed()
                self._trouble = ""
            except Exception as error:  # this thread must not end: nothing else exports, or tells health
                if not self._trouble:
                    log.exception("%s: closed segments cannot be looked for", self.folder)
                self._trouble = f"{self.folder}: closed segments cannot be looked for ({error})"
            if (well := not self.problem) != self._well:
                self._well = well
                self._health(well)
            if self._stop.wait(EXPORT_EVERY):
                return

    def _export_closed(self) -> None:
        failing: dict[Path, str] = {}
        for path in self._writer.closed_segments():
            try:
                self._export_one(path)
            except Exception as error:
                failing[path] = told = f"{path} could not be written as Parquet into {self._events} ({error})"
                if self._failing.get(path) != told:
                    expected = isinstance(error, OSError | PairliftError)
                    log.error("%s; it is tried again every %g s", told, EXPORT_EVERY, exc_info=not expected)
        for path in self._failing.keys() - failing.keys():
            log.info("%s is exported again or no longer there", path)
        self._failing = failing

    def _export_one(self, path: Path) -> None:
        exported = self._events / f"{path.stem}.parquet"
        if not exported.exists():
            export_segment(path, self._events)
        elif path not in self._compared:
            check_export(path, exported)
        self._compared.add(path)


class _Frames:
    """Numbers of frames, as ranges (first, last) that do not overlap."""

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        self._ranges = sorted(ranges)
        self._firsts = [first for first, _ in self._ranges]

    def __len__(self) -> int:
        return len(self._ranges)

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self._firsts, number) - 1
        return place >= 0 and number <= self._ranges[place][1]


def _frames_of(folder: Path, trained: Recorded) -> _Frames:
    """Return the frames of a log that were trained on: those that a segment of the very name has.

    The same segment of another copy may have more, and this log other frames of these numbers, in its next segment.
    """
    firsts = {name.partition("-")[0] for name in trained}
    ranges: list[tuple[int, int]] = []
    for path, behind in zip_longest(files := segment_files(folder), files[1:]):
        if path.stem in firsts:
            end = first_number(behind) - 1 if behind is not None else sys.maxsize
            ranges += [(first, min(last, end)) for first, last in trained.get(segment_name(path), []) if first <= end]
    return _Frames(ranges)


def _is_of(origin: Origin, name: str, folder: Path) -> bool:
    """Tell whether a snapshot is of a log, as far as the log's files show: its last frame may have been deleted."""
    found = checksum_of(folder, origin.frame)
    return origin.log == name and (found == origin.checksum or found is None or origin.checksum is None)


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
