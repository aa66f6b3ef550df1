"""The state that follows recorded events: a log-structured merge tree (O'Neil and others, 1996) of levels.

    add ──> pending
               │ fold     every 0.2 s
               v
            memtable      the latest events: one level, built anew with every fold
               │ flush    when it has more than MEMTABLE events
               v
      run … run run       a level with its events each, never changed; older and larger to the left
               │ merge    the newest of them to one, when there are more than RUNS
               v
             base         rebuilt from all events when the runs have SHARE of its events, or for a snapshot (`freeze`)

What is served is a `State` with the levels (base, *runs, memtable): a read adds up what each says, so few levels
keep it fast. States are immutable, and one reference to the served one is swapped. One thread folds and flushes; a
second one, of low priority, merges and rebuilds (the two kinds of compaction), one at a time. A reader takes
`Live.state` once and holds it for its request: no lock.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from features.errors import told
from features.newcomers import New
from features.pace import lower_priority
from features.schema import EventLog, empty_log, merged
from features.state.histories import Histories, HistoryBuffer
from features.state.read import make_tables
from features.state.store import Level, State

log = logging.getLogger(__name__)

#: seconds between the starts of two folds; an event is seen after at most this, and the time of a fold
EVERY = 0.2
#: events that the memtable has at most; with more it is flushed
MEMTABLE = 30_000
#: runs are merged when there are more
RUNS = 4
#: the base is rebuilt when the runs have this share of its events, and at least so many
SHARE, LEAST = 0.25, 500_000


class Frozen(NamedTuple):
    """A state with arrays of its own and a base alone: what a snapshot is written from."""

    state: State  # of all events that were added before it was asked for
    unplaced: EventLog  # events with a user or an item of -1: no room for a new id, so no history has them
    frame: int  # the last of the event log that is in it


class _Served(NamedTuple):
    """What readers see: swapped as one."""

    state: State  # with all levels
    frame: int  # the last of the event log that is in it


class _Run(NamedTuple):
    """A level of flushed events."""

    events: EventLog  # what it is merged from again
    level: Level  # of these events


class _Compacted(NamedTuple):
    """What a compaction made, to stand for some of the runs: a run, or a base."""

    first: int  # the place of the first of these runs
    runs: int  # how many they are
    run: _Run | None  # of a merge: what stands for them
    base: Frozen | None  # of a rebuild: the new base, which has their events


class Live:
    """Folds events into a state. `add` from one thread, `state` from any."""

    def __init__(
        self,
        state: State,
        feedback_names: tuple[str, ...],
        unplaced: EventLog | None = None,
        frame: int = 0,
        every: float = EVERY,
    ) -> None:
        """Copy the histories, and compile the kernels. unplaced, frame: those of the snapshot that `state` is."""
        self._names, self._every = feedback_names, every
        self._contexts = state.histories.context.shape[1]  # columns of context that events have
        self._unplaced = self._no_events() if unplaced is None else unplaced  # as of what is served
        self._buffer = HistoryBuffer(state.histories)
        # The levels. What is held here has no histories, so that it does not hold old arrays of them.
        self._no_histories = Histories.build(self._no_events(), 0)
        self._base = replace(state, histories=self._no_histories)
        self._base_events = len(state.histories.ts)
        self._runs: list[_Run] = []
        self._flushed = self._base  # the base with the runs: what the memtable's level is put on
        self._memtable = self._no_events()
        self._served = _Served(replace(state, histories=self._buffer.histories), frame)
        # Between `add`, `freeze` and the thread that folds, under the lock.
        self._lock = threading.Lock()
        self._pending: list[EventLog] = []
        self._pending_frame, self._pending_new = frame, state.catalog.new
        self._freezes: list[Future[Frozen]] = []  # snapshots that wait for the next base that is begun
        # The compaction at work, and the snapshots waiting for the base that it makes.
        self._compaction: Future[_Compacted] | None = None
        self._base_waiters: list[Future[Frozen]] = []
        self._wake, self._stop = threading.Event(), threading.Event()
        self.problem = ""  # of the last fold, empty where it went well
        self._warm(state)
        self._compactor: threading.Thread | None = None
        self.start()

    @property
    def state(self) -> State:
        """All that is folded in. Take it once for a request."""
        return self._served.state

    @property
    def frame(self) -> int:
        """The last frame of the log that `state` has."""
        return self._served.frame

    @property
    def running(self) -> bool:
        """Whether the thread that folds is there."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """How many events are not folded in yet."""
        return sum(len(part) for part in self._pending)

    def add(self, events: EventLog, frame: int, new: New | None = None) -> None:
        """Queue events, in any order of time. user, item: -1 where unknown. frame: where the log has them.

        new: the new users, items and arms as of these events, where there are others than before.
        """
        with self._lock:
            self._pending.append(events)
            self._pending_frame, self._pending_new = frame, new or self._pending_new
        self._wake.set()

    def freeze(self) -> "Future[Frozen]":
        """Rebuild the base from all that was added so far; the future has it, for a snapshot."""
        wanted: Future[Frozen] = Future()
        with self._lock:
            self._freezes.append(wanted)
        self._wake.set()
        return wanted

    def drain(self, timeout: float) -> None:
        """Wait until all that was added is folded in; TimeoutError after `timeout` seconds."""
        until = time.monotonic() + timeout
        while self.waiting or self._served.frame < self._pending_frame:
            if time.monotonic() > until:
                raise TimeoutError(self.problem or f"{self.waiting} events wait")
            time.sleep(0.005)

    def start(self) -> None:
        """Begin to fold, again after `pause`."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._work, name="fold", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; what is not folded in stays in the log."""
        self._stop.set()
        self._wake.set()
        self._thread.join()

    def pause(self) -> None:
        """End all threads, so that the process can be forked; `start` goes on where they were."""
        self.close()
        if self._compactor is not None:
            self._compactor.join()
        self._wake.set()

    def _no_events(self, n: int = 0) -> EventLog:
        """Return n events of which nothing is known, with the columns that events have."""
        return empty_log(self._names, n, self._contexts)

    def _warm(self, state: State) -> None:
        unknown, zero = self._no_events(1), np.zeros(1, np.int32)
        known = replace(unknown, user=zero, item=zero)
        HistoryBuffer(Histories.build(known, 1)).extended(known).compact()  # as a snapshot has it
        state.extended(unknown)

    def _work(self) -> None:
        while not self._stop.is_set():
            begun = time.monotonic()
            self._wake.wait()
            self._wake.clear()
            try:
                self._turn()
                self.problem = ""
            except Exception as error:  # the events are on disk; the next turn, or a restart, has them
                if not self.problem:
                    log.exception("recorded events could not be folded into the served state; it stays as it is")
                self.problem = told(error)
                self._stop.wait(1.0)
                self._wake.set()
            self._stop.wait(max(0.0, begun + self._every - time.monotonic()))

    def _turn(self) -> None:
        """Install what a compaction made, fold what is pending, begin the next compaction."""
        if self._compaction is not None and self._compaction.done():
            self._install(self._compaction)
        with self._lock:
            taken, frame, new = list(self._pending), self._pending_frame, self._pending_new
        if taken:
            self._fold(merged(taken), frame, new)
            with self._lock:
                del self._pending[: len(taken)]
        if self._compaction is None:
            in_runs = sum(len(run.events) for run in self._runs)
            if self._freezes or in_runs > max(LEAST, SHARE * self._base_events):
                self._begin_rebuild()
            elif len(self._runs) > RUNS:
                self._begin_merge()

    def _install(self, compaction: "Future[_Compacted]") -> None:
        """Put what a compaction made in the place of its runs; runs that were flushed meanwhile stay behind it."""
        self._compaction = None
        waiters, self._base_waiters = self._base_waiters, []
        error = compaction.exception()
        if error is not None:
            for future in waiters:
                future.set_exception(error)
            self._stop.wait(1.0)  # else it would begin again at once, and fail again
            return
        made = compaction.result()
        behind = self._runs[made.first + made.runs :]
        self._runs = [*self._runs[: made.first], *([made.run] if made.run else []), *behind]
        if made.base:
            self._base = replace(made.base.state, histories=self._no_histories)
            self._base_events = len(made.base.state.histories.ts) + len(made.base.unplaced)
        # first_seen, end and ranks stay: they are those of all events.
        levels = (*self._base.levels, *(run.level for run in self._runs))
        self._flushed = replace(self._flushed, levels=levels)
        state = self._served.state
        memtable = (state.levels[-1],) if len(self._memtable) else ()
        self._served = self._served._replace(state=replace(state, levels=(*levels, *memtable)))
        if made.base:
            for future in waiters:
                future.set_result(made.base)

    def _fold(self, events: EventLog, frame: int, new: New) -> None:
        """Serve the state with these events: in the memtable and, those of known users and items, in the histories."""
        unplaced = (events.user < 0) | (events.item < 0)
        memtable = merged([self._memtable, events])
        # Ids and events of one moment become known together.
        self._flushed = replace(self._flushed, catalog=self._flushed.catalog.with_new(new))
        state = self._flushed.extended(memtable)
        # Last what cannot be undone: all before it may fail, and the turn is tried again.
        histories = self._buffer.extended(events.select(~unplaced))
        self._unplaced = merged([self._unplaced, events.select(unplaced)])
        self._memtable = memtable
        self._served = _Served(replace(state, histories=histories), frame)
        if len(memtable) > MEMTABLE:
            self._flush(state)

    def _flush(self, state: State) -> None:
        """Make a run of the memtable. state: the one that has it as its last level."""
        self._runs = [*self._runs, _Run(self._memtable, state.levels[-1])]
        self._flushed, self._memtable = replace(state, histories=self._no_histories), self._no_events()

    def _begin_merge(self) -> None:
        """Merge the newest runs, from the first that is not much larger than all behind it."""
        sizes = np.array([len(run.events) for run in self._runs])
        behind = np.cumsum(sizes[::-1])[::-1] - sizes
        first = int(np.argmax(sizes < 2 * behind)) if (sizes < 2 * behind).any() else len(sizes) - 2
        parts, base = [run.events for run in self._runs[first:]], self._base

        def work() -> _Compacted:
            events = merged(parts)
            return _Compacted(first, len(parts), _Run(events, base.extended(events).levels[-1]), None)

        self._begin(work)

    def _begin_rebuild(self) -> None:
        """Build a base of all that is known."""
        if len(self._memtable):
            self._flush(self._flushed.extended(self._memtable))
        with self._lock:
            # Only what was added before a freeze was asked for must be in it, and all of that is.
            self._base_waiters, self._freezes = self._freezes, []
        (state, frame), unplaced, count = self._served, self._unplaced, len(self._runs)

        def work() -> _Compacted:
            histories = state.histories.compact()
            events = merged([histories.log(self._names), unplaced])
            built = State.build(events, state.catalog, state.counters, state.grades, histories)
            built = replace(built, end=max(built.end, state.end))
            # Made here, not by the first request; of the arms that were asked for until now.
            make_tables(built, {arm for _, arm in state.levels[0].tables})
            return _Compacted(0, count, None, Frozen(built, unplaced, frame))

        self._begin(work)

    def _begin(self, work: Callable[[], _Compacted]) -> None:
        """Run a compaction aside; the next turn after it installs what it made."""
        future: Future[_Compacted] = Future()
        self._compaction = future

        def call() -> None:
            lower_priority()
            try:
                future.set_result(work())
            except Exception as error:
                log.exception("recorded events could not be compacted; they are served as they are")
                future.set_exception(error)
            self._wake.set()

        self._compactor = threading.Thread(target=call, name="compact", daemon=True)
        self._compactor.start()
