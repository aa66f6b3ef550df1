"""The state that follows recorded events: immutable objects, and one reference that is swapped.

Layers of segments, as in a log-structured merge tree: the base; then layers of recorded events; then the latest
events, which are built anew with every fold. One thread folds. Another, of low priority, does what is long: it merges
layers when they are many, and rebuilds the base when they are a quarter of it. A reader takes `Live.state` once and
holds it for its request: no lock.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import fields, replace
from typing import NamedTuple

import numpy as np

from features.newcomers import Newcomers
from features.schema import EventLog
from features.state.histories import Histories, HistoryBuffer
from features.state.read import make_tables
from features.state.store import Segment, State

log = logging.getLogger(__name__)

#: seconds between the starts of two folds; an event is seen after at most this, and the time of a fold
EVERY = 0.2
#: events that are built anew with every fold, at most; more become a layer
LATEST = 30_000
#: layers are merged when there are more
MANY = 4
#: the base is rebuilt when the layers have this share of its events, and at least so many
SHARE, LEAST = 0.25, 500_000
#: priority of the long work: the nice value of its thread
NICE = 10


class Frozen(NamedTuple):
    """A state of its own arrays, without layers. strangers: its events with a -1; frame: its last."""

    state: State
    strangers: EventLog
    frame: int


class _Layer(NamedTuple):
    events: EventLog
    segment: Segment


class _Done(NamedTuple):
    """What long work made, to stand for `layers` of them from the place `first`: one layer, or a base (first 0)."""

    first: int
    layers: int
    layer: _Layer | None
    frozen: Frozen | None


class Live:
    """Folds events into a state. `add` from one thread, `state` from any."""

    def __init__(
        self,
        state: State,
        feedback_names: tuple[str, ...],
        strangers: EventLog | None = None,
        frame: int = 0,
        every: float = EVERY,
    ) -> None:
        """Copy the histories, and compile what folds. strangers, frame: those of the snapshot that `state` is."""
        self._names, self._every = feedback_names, every
        self._strangers = empty_log(feedback_names) if strangers is None else strangers
        self._buffer = HistoryBuffer(state.histories)
        self._none = Histories.build(empty_log(feedback_names), 0)  # what is held here must not hold old arrays
        self._base = replace(state, histories=self._none)
        self._layers: list[_Layer] = []
        self._solid, self._latest = self._base, empty_log(feedback_names)  # the base with the layers, and the rest
        self._working: Future[_Done] | None = None
        self._promised: list[Future[Frozen]] = []  # who gets the base that is being built
        self._base_events = len(state.histories.ts)
        self._known = (replace(state, histories=self._buffer.histories), frame)
        self._lock = threading.Lock()
        self._pending: list[EventLog] = []
        self._pending_frame, self._pending_new = frame, (state.catalog.new_users, state.catalog.new_items)
        self._freeze: list[Future[Frozen]] = []
        self._wake, self._stop, self.problem = threading.Event(), threading.Event(), ""
        self._warm(state)
        self._thread = threading.Thread(target=self._work, name="fold", daemon=True)
        self._thread.start()

    @property
    def state(self) -> State:
        """All that is folded in. Take it once for a request."""
        return self._known[0]

    @property
    def frame(self) -> int:
        """The last frame of the log that `state` has."""
        return self._known[1]

    @property
    def waiting(self) -> int:
        """How many events are not folded in yet."""
        return sum(len(part) for part in self._pending)

    def add(self, events: EventLog, frame: int, new: tuple[Newcomers, Newcomers] | None = None) -> None:
        """Queue events, in any order of time. user, item: -1 where unknown. frame: where the log has them.

        new: the new users and items as of these events, where there are others than before.
        """
        with self._lock:
            self._pending.append(events)
            self._pending_frame, self._pending_new = frame, new or self._pending_new
        self._wake.set()

    def freeze(self) -> "Future[Frozen]":
        """Rebuild the base from all that was added so far; the future has it, for a snapshot."""
        wanted: Future[Frozen] = Future()
        with self._lock:
            self._freeze.append(wanted)
        self._wake.set()
        return wanted

    def drain(self, timeout: float) -> None:
        """Wait until all that was added is folded in; TimeoutError after `timeout` seconds."""
        until = time.monotonic() + timeout
        while self.waiting or self._known[1] < self._pending_frame:
            if time.monotonic() > until:
                raise TimeoutError(self.problem or f"{self.waiting} events wait")
            time.sleep(0.005)

    def close(self) -> None:
        """End the thread; what is not folded in stays in the log."""
        self._stop.set()
        self._wake.set()
        self._thread.join()

    def _warm(self, state: State) -> None:
        stranger, zero = empty_log(self._names, 1), np.zeros(1, np.int32)
        known = replace(stranger, user=zero, item=zero)
        HistoryBuffer(Histories.build(known, 1)).extended(known)
        state.extended(stranger)

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
                self.problem = f"{type(error).__name__}: {error}"
                self._stop.wait(1.0)
                self._wake.set()
            self._stop.wait(max(0.0, begun + self._every - time.monotonic()))

    def _turn(self) -> None:
        if self._working is not None and self._working.done():
            self._take(self._working)
        with self._lock:
            taken, frame, new = list(self._pending), self._pending_frame, self._pending_new
        if taken:
            self._fold(merged(taken), frame, new)
            with self._lock:
                del self._pending[: len(taken)]
        if self._working is None:
            layered = sum(len(layer.events) for layer in self._layers)
            if self._freeze or layered > max(LEAST, SHARE * self._base_events):
                self._begin_base()
            elif len(self._layers) > MANY:
                self._begin_merge()

    def _fold(self, events: EventLog, frame: int, new: tuple[Newcomers, Newcomers]) -> None:
        strange = (events.user < 0) | (events.item < 0)
        latest = merged([self._latest, events])
        # Ids and events of one moment become known together.
        self._solid = replace(self._solid, catalog=replace(self._solid.catalog, new_users=new[0], new_items=new[1]))
        state = self._solid.extended(latest)
        # Last what cannot be undone: all before it may fail, and the turn is tried again.
        histories = self._buffer.extended(events.select(~strange))
        self._strangers = merged([self._strangers, events.select(strange)])
        self._latest = latest
        self._known = (replace(state, histories=histories), frame)
        if len(latest) > LATEST:
            self._close_latest(state)

    def _close_latest(self, state: State) -> None:
        """Make a layer of the latest events. state: the one that has them in its last segment."""
        self._layers = [*self._layers, _Layer(self._latest, state.segments[-1])]
        self._solid, self._latest = replace(state, histories=self._none), empty_log(self._names)

    def _begin(self, work: Callable[[], _Done]) -> None:
        """Run long work aside; the next turn after it takes what it made."""
        future: Future[_Done] = Future()
        self._working = future

        def call() -> None:
            with contextlib.suppress(OSError):  # where the system has no such thing, it runs as any other
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
            try:
                future.set_result(work())
            except Exception as error:
                log.exception("recorded events could not be compacted; they are served as they are")
                future.set_exception(error)
            self._wake.set()

        threading.Thread(target=call, name="compact", daemon=True).start()

    def _begin_merge(self) -> None:
        """Merge the newest layers, from the first that is not much larger than all behind it."""
        sizes = np.array([len(layer.events) for layer in self._layers])
        behind = np.cumsum(sizes[::-1])[::-1] - sizes
        first = int(np.argmax(sizes < 2 * behind)) if (sizes < 2 * behind).any() else len(sizes) - 2
        parts, base = [layer.events for layer in self._layers[first:]], self._base

        def work() -> _Done:
            events = merged(parts)
            return _Done(first, len(parts), _Layer(events, base.extended(events).segments[-1]), None)

        self._begin(work)

    def _begin_base(self) -> None:
        """Build a base of all that is known."""
        if len(self._latest):
            self._close_latest(self._solid.extended(self._latest))
        with self._lock:
            # Only what was added before a freeze was asked for must be in it, and all of that is.
            self._promised, self._freeze = self._freeze, []
        (state, frame), strangers, count = self._known, self._strangers, len(self._layers)

        def work() -> _Done:
            histories = state.histories.compact()
            events = merged([histories.log(self._names), strangers])
            built = State.build(events, state.catalog, state.counters, state.grades, histories)
            built = replace(built, end=max(built.end, state.end))
            make_tables(built)  # made here, not by the first request
            return _Done(0, count, None, Frozen(built, strangers, frame))

        self._begin(work)

    def _take(self, working: "Future[_Done]") -> None:
        """Put what long work made in the place of its layers."""
        self._working = None
        promised, self._promised = self._promised, []
        error = working.exception()
        if error is not None:
            for future in promised:
                future.set_exception(error)
            self._stop.wait(1.0)  # else it would begin again at once, and fail again
            return
        done = working.result()
        behind = self._layers[done.first + done.layers :]
        self._layers = [*self._layers[: done.first], *([done.layer] if done.layer else []), *behind]
        if done.frozen:
            self._base = replace(done.frozen.state, histories=self._none)
            self._base_events = len(done.frozen.state.histories.ts) + len(done.frozen.strangers)
        # first_seen, end and ranks stay: they are those of all events.
        segments = (*self._base.segments, *(layer.segment for layer in self._layers))
        self._solid = replace(self._solid, segments=segments)
        state, frame = self._known
        latest = (state.segments[-1],) if len(self._latest) else ()
        self._known = (replace(state, segments=(*segments, *latest)), frame)
        if done.frozen:
            for future in promised:
                future.set_result(done.frozen)


def empty_log(feedback_names: tuple[str, ...], n: int = 0) -> EventLog:
    """Return n events of nobody with nothing, at time 0."""
    return EventLog(
        np.full(n, -1, np.int32),
        np.full(n, -1, np.int32),
        np.zeros(n, np.int64),
        np.full(n, -1, np.int8),
        np.full(n, -1, np.int16),
        np.full(n, -1, np.int8),
        np.full(n, -1, np.int64),
        np.ones(n, bool),
        np.full((n, len(feedback_names)), np.nan, np.float32),
        feedback_names,
    )


ARRAYS = tuple(f.name for f in fields(EventLog) if f.name != "feedback_names")


def merged(logs: list[EventLog]) -> EventLog:
    """Return all events in time order; those of one instant in the order given."""
    if len(logs) == 1 and (np.diff(logs[0].ts) >= 0).all():
        return logs[0]
    whole = {name: np.concatenate([getattr(part, name) for part in logs]) for name in ARRAYS}
    order = np.argsort(whole["ts"], kind="stable")
    return EventLog(**{name: array[order] for name, array in whole.items()}, feedback_names=logs[0].feedback_names)
