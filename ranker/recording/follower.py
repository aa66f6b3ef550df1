"""The state of one bundle that follows a recorded log: what requests of that bundle read.

A follower reads the log on disk, whoever writes it: this process, or another one of the server. So several bundles
follow one log beside each other, and all processes see the same. The way of an event: the writer makes it durable and
notes that (`features.log.reader`), `_take` grades it as the bundle does and gives numbers to new users and items,
`Live` folds it in, and the next request has it.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from features.errors import PairliftError, told
from features.log.dedupe import SeenIds, keys_of
from features.log.reader import EVENTS, LogReader
from features.log.recorded import frames_of
from features.log.segments import Frame, checksum_of
from features.schema import empty_log
from features.state.live import Live
from features.state.store import State
from ranker.bundle import Bundle
from ranker.candidates.named import event_bytes_of
from ranker.hashes import MANIFEST
from ranker.recording.checks import Find
from ranker.recording.events import ArmOf, EventReader, no_arm
from ranker.recording.memory import memory_lines, plan_memory
from ranker.recording.numbering import Numbering, with_room
from ranker.recording.snapshots import Origin, log_name, write_snapshot

log = logging.getLogger(__name__)

#: seconds between two looks at the log: of small batches in quick succession several are read for the price of one
EVERY = 0.1
#: events that are graded at once
READ = 100_000
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


class Position(NamedTuple):
    """How far a log was read."""

    frame: int  # the last frame that was read
    served: int  # events up to it of the log: not those that the bundle, or the snapshot, has


class Follower:
    """Follows the log in a folder that a `LogWriter` has opened, here or in another process."""

    def __init__(
        self,
        bundle: Bundle,
        folder: Path,
        *,
        users: Find,
        items: Find,
        origin: Origin | None = None,
        arm_of: ArmOf = no_arm,
    ) -> None:
        """Begin with the bundle's state. PairliftError where the log is another or lacks something, or the memory.

        users, items: give dense indexes of what the bundle knows. origin: of the snapshot that `bundle.state` is.
        arm_of: of events that come in.
        """
        self.bundle, self.settings, self.folder = bundle, bundle.config.record, folder
        self.reader = EventReader(bundle, users, items, arm_of)
        self._origin = origin
        self._name = log_name(folder)
        if origin is not None and not origin.is_of(self._name, folder):
            raise PairliftError(f"the snapshot is of another log than {folder}: serve it with its own, or without")
        frame, trained = (0, bundle.recorded) if origin is None else (origin.frame, {})
        unplaced = origin.unplaced if origin else empty_log(self.reader.feedback, contexts=self.reader.contexts)
        state = with_room(bundle.state, unplaced, self.settings.new_users, self.settings.new_items)
        #: what the state takes, and the most that it can come to
        self.memory = plan_memory(
            state, self.settings.max_events, self.settings.max_id_bytes, sources=event_bytes_of(bundle.config.sources)
        )
        memory_lines(self.memory, self.settings)  # before the log is read, which takes time
        self._log = LogReader(folder, frame)
        self._skipped = frames_of(folder, trained)
        self._numbering = Numbering(state.catalog, self.settings.max_id_bytes)
        #: ids of what was read, until all is that was there: an older Pairlift may have recorded both 7 and "7"
        self._seen: SeenIds | None = SeenIds(self.reader.keep)
        self._late = 0  # events before the end of the bundle's state
        self.position = Position(max(frame, self._log.begin - 1), 0)
        self._error: Exception | None = None  # of the last look
        self._snapping = threading.Lock()
        self._snapped: tuple[Path, int] | None = None  # the last snapshot, and its frame
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self.live = Live(state, self.reader.feedback, unplaced, self.position.frame)

    def start(self) -> None:
        """Begin to follow, again after `pause`; nothing where it follows already."""
        if not self.live.running:
            self.live.start()
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._work, name="follow", daemon=True)
            self._thread.start()

    def catch_up(self) -> None:
        """Start, and wait for all that was durable before; PairliftError where it cannot be read or is too much."""
        begun = time.monotonic()
        self.start()
        try:
            self.drain(PATIENCE)
        except BaseException:
            self.close()
            raise
        if self.position.frame:
            took, count = time.monotonic() - begun, self.position.served
            log.info("%s: %s recorded events were read again in %.1f s", self.folder, f"{count:,}", took)
        if self._late > self.position.served / 2 and self._origin is None:
            log.warning(UNTRAINED, self.folder, f"{self._late:,}", self.folder / EVENTS)

    def pause(self) -> None:
        """End all threads, so that the process can be forked; `start` goes on where they were."""
        self._end()
        self.live.pause()

    def close(self) -> None:
        """End the threads; what is not folded in stays in the log."""
        self._end()
        self.live.close()
        self._log.close()

    def _end(self) -> None:
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wake(self) -> None:
        """Look at the log now."""
        self._wake.set()

    @property
    def state(self) -> State:
        """The state of now: take it once for a request."""
        return self.live.state

    @property
    def frame(self) -> int:
        """The last frame of the log that `state` has."""
        return self.live.frame

    @property
    def behind(self) -> int:
        """How many durable frames `state` does not have yet."""
        return max(self._log.last - self.live.frame, 0)

    @property
    def problem(self) -> str:
        """Why the state does not follow the log at the moment; empty: it does."""
        error = self._error
        if error is None:
            return self.live.problem
        return str(error) if isinstance(error, PairliftError) else told(error)

    def drain(self, timeout: float) -> None:
        """Wait until all that is durable now is in `state`; TimeoutError after `timeout` seconds.

        Raises what keeps the log from being read.
        """
        self._wait(self._log.last, timeout, lambda: self.position.frame)
        self.live.drain(timeout)

    def wait(self, frame: int, timeout: float) -> None:
        """Wait until `state` has a frame; TimeoutError after `timeout` seconds.

        Raises what keeps the log from being read.
        """
        self._wait(frame, timeout, lambda: self.live.frame)

    def _wait(self, frame: int, timeout: float, reached: Callable[[], int]) -> None:
        self.wake()
        until = time.monotonic() + timeout
        while reached() < frame:
            if self._error is not None:
                raise self._error
            if time.monotonic() > until:
                raise TimeoutError(self.problem or f"frame {frame} is waited for, and {reached()} is reached")
            time.sleep(0.002)

    def snapshot(self) -> tuple[Path, State, int]:
        """Write what is recorded so far as a snapshot; return (folder, state, last frame)."""
        with self._snapping:
            self._wait(self._log.last, PATIENCE, lambda: self.position.frame)
            frozen = self.live.freeze().result(PATIENCE)
            # Of the same frame it would be the same again.
            if self._snapped is None or self._snapped[1] != frozen.frame or not (self._snapped[0] / MANIFEST).exists():
                checksum = checksum_of(self.folder, frozen.frame)
                if checksum is None and self._origin is not None and self._origin.frame == frozen.frame:
                    checksum = self._origin.checksum
                folder = write_snapshot(self.folder / SNAPSHOTS, frozen, self._name, self.bundle.version, checksum)
                self._snapped = folder, frozen.frame
            return self._snapped[0], frozen.state, frozen.frame

    def _work(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            try:
                self._read()
                self._error = None
            except Exception as error:  # the events are on disk; the next look, or a restart, has them
                if self._error is None:
                    log.exception("%s: recorded events cannot be read; the served state stays as it is", self.folder)
                self._error = error
                self._stop.wait(1.0)
            self._wake.wait(EVERY)

    def _read(self) -> None:
        """Take what the log has now."""
        for frames in _chunks(self._log.frames(self.position.frame)):
            self._take(frames)
            if self._stop.is_set():
                return
        self._seen = None

    def _take(self, frames: list[Frame]) -> None:
        """Number new users and items, and queue the events of frames for the next fold."""
        table = pa.concat_tables([f.events for f in frames])
        # A frame that is skipped is passed on without its events: a snapshot must know that it is in the state.
        keep = np.repeat([f.number not in self._skipped for f in frames], [f.events.num_rows for f in frames])
        if self._seen is not None:
            keys = keys_of(table["event_id"].combine_chunks())
            known = self._seen.known(keys)
            keep &= ~known
        table = table if keep.all() else table.filter(pa.array(keep))
        events = self.reader.read(table)
        count, most = self.position.served + len(events), self.settings.max_events
        if count > most:
            raise limit_reached(count, most)
        self._late += int((events.ts < self.bundle.state.end).sum())
        numbered = self._numbering.numbered(events, table)
        self.live.add(numbered, frames[-1].number, self._numbering.new)
        self.position = Position(frames[-1].number, count)
        if self._seen is not None:
            self._seen.add(keys[~known], frames[-1].arrival)
            self._seen.forget(frames[-1].arrival)


def limit_reached(count: int, most: int) -> LimitError:
    """Return the error of a log with more events than can be served."""
    return LimitError(
        f"{count:,} events are recorded and [record] max_events = {most:,} can be served: train a bundle on them, or "
        "take a snapshot and serve it, or raise the limit"
    )


def _chunks(frames: Iterator[Frame]) -> Iterator[list[Frame]]:
    """Yield frames by about `READ` events, of one schema."""
    taken: list[Frame] = []
    events = 0
    for frame in frames:
        if taken and (events >= READ or taken[0].events.schema != frame.events.schema):
            yield taken
            taken, events = [], 0
        taken.append(frame)
        events += frame.events.num_rows
    if taken:
        yield taken
