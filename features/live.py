"""The state that follows recorded events: immutable objects, and one reference that is swapped.

Layers of segments, as in a log-structured merge tree: the base; then layers of recorded events, each built once
and merged with its like; then the latest events, rebuilt with every fold. One thread folds; a second rebuilds the
base when the layers are a quarter of it. A reader takes `Live.state` once and holds it for its request: no lock.
"""

import logging
import threading
import time
from concurrent.futures import Future
from dataclasses import fields, replace
from typing import NamedTuple

import numpy as np

from features.histories import Histories, HistoryBuffer
from features.schema import Bool, EventLog
from features.store import State

log = logging.getLogger(__name__)

#: seconds between the starts of two folds; an event is seen after at most this, and the time of a fold
EVERY = 0.2
#: events that are rebuilt with every fold, at most; more become a layer
LATEST = 20_000
#: the base is rebuilt when the layers have this share of its events, and at least so many
SHARE, LEAST = 0.25, 500_000


class Frozen(NamedTuple):
    """A state of its own arrays, without layers. strangers: its events of unknown users or items; frame: its last."""

    state: State
    strangers: EventLog
    frame: int


class _Base(NamedTuple):
    state: State  # the new base, with compact histories
    layers: int  # how many layers are in it
    strangers: EventLog
    frame: int


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
        self._base = replace(state, histories=self._buffer.histories)
        self._layers: list[EventLog] = []
        self._solid, self._latest = self._base, empty_log(feedback_names)
        self._rebuilding: Future[_Base] | None = None
        self._frozen_layers = 0
        self._promised: list[Future[Frozen]] = []  # who gets the base that is being built
        self._base_events = len(state.histories.ts)
        self._known = (self._base, frame)
        self._lock = threading.Lock()
        self._pending: list[EventLog] = []
        self._pending_frame = frame
        self._freeze: list[Future[Frozen]] = []
        self._wake, self._stop = threading.Event(), threading.Event()
        self.problem = ""
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

    def add(self, events: EventLog, frame: int) -> None:
        """Queue events, in any order of time. user, item: -1 where unknown. frame: where the log has them."""
        with self._lock:
            self._pending.append(events)
            self._pending_frame = frame
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
        stranger = empty_log(self._names, 1)
        known = replace(stranger, user=np.zeros(1, np.int32), item=np.zeros(1, np.int32))
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
        self._take_base()
        with self._lock:
            taken, frame = list(self._pending), self._pending_frame
        if taken:
            self._fold(merged(taken), frame)
            with self._lock:
                del self._pending[: len(taken)]
        layered = sum(map(len, self._layers))
        if self._rebuilding is None and (self._freeze or layered > max(LEAST, SHARE * self._base_events)):
            self._rebuild()

    def _fold(self, events: EventLog, frame: int) -> None:
        strange = (events.user < 0) | (events.item < 0)
        latest = merged([self._latest, events])
        solid, layers = self._solid, self._layers
        if len(latest) > LATEST:
            layers = self._with_layer(latest)
            solid, latest = self._stacked(self._base, layers), empty_log(self._names)
        state = solid.extended(latest) if len(latest) else solid
        # Last what cannot be undone: all before it may fail, and the turn is tried again.
        histories = self._buffer.extended(picked(events, ~strange))
        self._strangers = merged([self._strangers, picked(events, strange)])
        self._solid, self._layers, self._latest = solid, layers, latest
        self._known = (replace(state, histories=histories), frame)

    def _with_layer(self, layer: EventLog) -> list[EventLog]:
        """Return the layers with one more, merged with those that are not much larger."""
        layers = list(self._layers)
        while len(layers) > self._frozen_layers and len(layers[-1]) < 2 * len(layer):
            layer = merged([layers.pop(), layer])
        return [*layers, layer]

    def _stacked(self, base: State, layers: list[EventLog]) -> State:
        """Return the base with the layers; those whose segments are there already are not built again."""
        same = 0
        if base is self._base:
            pairs = zip(layers, self._layers, strict=False)
            same = next((k for k, (a, b) in enumerate(pairs) if a is not b), min(len(layers), len(self._layers)))
        state = base
        if same:
            kept = self._solid.segments[: len(base.segments) + same]
            # first_seen and end of later layers hold for the merged ones too: they have the same events and more.
            state = replace(self._solid, segments=kept)
        for layer in layers[same:]:
            state = state.extended(layer)
        return state

    def _rebuild(self) -> None:
        """Begin to build a base of all that is known, in a thread of its own."""
        if len(self._latest):
            self._layers = [*self._layers, self._latest]
            self._solid, self._latest = self._solid.extended(self._latest), empty_log(self._names)
        self._frozen_layers = len(self._layers)
        with self._lock:
            # Only what was added before a freeze was asked for must be in it, and all of that is.
            self._promised, self._freeze = self._freeze, []
        state, frame = self._known
        strangers, count = self._strangers, len(self._layers)
        future: Future[_Base] = Future()
        self._rebuilding = future

        def build() -> None:
            try:
                histories = state.histories.compact()
                everything = merged([histories.log(self._names), strangers])
                built = State.build(everything, state.catalog, state.counters, state.grades)
                future.set_result(
                    _Base(replace(built, histories=histories, end=max(built.end, state.end)), count, strangers, frame)
                )
            except Exception as error:
                log.exception("the base could not be rebuilt; the layers stay")
                future.set_exception(error)
            self._wake.set()

        threading.Thread(target=build, name="rebuild", daemon=True).start()

    def _take_base(self) -> None:
        """Put a base that is ready below the layers that are not in it."""
        if self._rebuilding is None or not self._rebuilding.done():
            return
        done, self._rebuilding = self._rebuilding, None
        waiting, self._promised = self._promised, []
        self._frozen_layers = 0
        try:
            base = done.result()
        except Exception as error:
            for future in waiting:
                future.set_exception(error)
            return
        layers = self._layers[base.layers :]
        self._base = replace(base.state, histories=self._buffer.histories)
        self._base_events = len(base.state.histories.ts) + len(base.strangers)
        self._layers, self._solid = layers, self._base
        for layer in layers:
            self._solid = self._solid.extended(layer)
        state = self._solid.extended(self._latest) if len(self._latest) else self._solid
        self._known = (replace(state, histories=self._known[0].histories), self._known[1])
        for future in waiting:
            future.set_result(Frozen(base.state, base.strangers, base.frame))


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


def picked(events: EventLog, keep: Bool) -> EventLog:
    """Return the events of the mask bool[n]."""
    return replace(events, **{name: getattr(events, name)[keep] for name in ARRAYS})
