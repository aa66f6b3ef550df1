"""Load in an open loop: calls begin at times that were fixed beforehand, whatever the server does.

A caller who waits counts from when the call was due, not from when it could be sent (else a server that stalls would
be asked less while it stalls: "coordinated omission"). One thread, some connections; a call that is not answered by its
deadline is reset, as gRPC's clients do. How late the calls were sent is reported too: a run in which this process
itself was late says nothing (`Outcome.lag_ms`).
"""

import ctypes
import gc
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import cycle

import numpy as np
from serving_http2 import Connection, call_of

from features.schema import F64, I64

OK, CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNAVAILABLE = 0, 1, 4, 8, 14
#: of a call whose deadline passed without a status from the server
GIVEN_UP = -1
CONNECTIONS = 8
#: seconds before the first call is due
LEAD = 0.05
#: of so many calls one answer is kept
KEPT = 50
#: seconds that a run without deadlines goes on behind its last call
PATIENCE = 30.0
PR_SET_TIMERSLACK = 29


@dataclass(frozen=True, slots=True)
class Calls:
    """n calls that are to be made."""

    due: F64  # [n], seconds from the begin of the run, never decreasing
    method: Sequence[str]  # [n], /package.Service/Method
    message: Sequence[bytes]  # [n]
    deadline: float | None = None  # seconds from when a call is due
    at_once: int | None = None  # no more than so many are open at a time (a closed loop, where all are due at 0)

    def __len__(self) -> int:
        return len(self.due)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of n calls."""

    due: F64  # [n], seconds
    sent: F64  # [n], seconds; NaN never
    done: F64  # [n], seconds; NaN without an answer
    status: I64  # [n], gRPC's code, or GIVEN_UP
    deadline: float | None
    bodies: list[bytes]  # of some answers

    @property
    def latency_ms(self) -> F64:
        """float64[n]: from when a call was due to its answer; inf for what was not answered OK."""
        return np.where(self.status == OK, (self.done - self.due) * 1e3, np.inf)

    @property
    def lag_ms(self) -> float:
        """How late this process sent (99th percentile)."""
        lag = (self.sent - self.due) * 1e3
        return percentile(lag[~np.isnan(lag)], 99)

    @property
    def good(self) -> int:
        """How many were answered OK within their deadline."""
        return int((self.latency_ms <= (np.inf if self.deadline is None else self.deadline * 1e3)).sum())

    def counts(self) -> dict[str, int]:
        """Return how many calls ended in which way."""
        late = 0 if self.deadline is None else int((self.status == OK).sum()) - self.good
        named = {"deadline": DEADLINE_EXCEEDED, "exhausted": RESOURCE_EXHAUSTED}
        named |= {"cancelled": CANCELLED, "unavailable": UNAVAILABLE}
        found = {name: int((self.status == code).sum()) for name, code in named.items()}
        found["deadline"] += int((self.status == GIVEN_UP).sum())
        found = {"ok": int((self.status == OK).sum()) - late, "late": late, **found}
        return {**found, "other": len(self.status) - sum(found.values())}

    def part(self, start: float, stop: float) -> "Outcome":
        """Return the calls that were due in [start, stop)."""
        take = (self.due >= start) & (self.due < stop)
        return Outcome(self.due[take], self.sent[take], self.done[take], self.status[take], self.deadline, [])


def percentile(values: F64, q: float) -> float:
    """Return the q-th percentile by the nearest rank: one of the values (inf too), so at least q % are not above it."""
    if not len(values):
        return float("nan")
    return float(np.sort(values)[max(int(np.ceil(q / 100 * len(values))) - 1, 0)])


def poisson(rate: float, seconds: float, seed: int) -> F64:
    """Return the arrival times, in seconds, of a Poisson process of so many a second."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / rate, int(rate * seconds + 10 * np.sqrt(rate * seconds) + 20))
    times = np.cumsum(gaps)
    return times[times < seconds]


def phases(parts: Sequence[tuple[float, float]], seed: int) -> F64:
    """Return the arrival times of Poisson processes that follow each other: (rate, seconds) of each."""
    begins = np.cumsum([0.0, *(seconds for _, seconds in parts)])
    return np.concatenate(
        [
            begin + poisson(rate, long, seed + k)
            for k, (begin, (rate, long)) in enumerate(zip(begins, parts, strict=False))
        ]
    )


def drive(address: str, calls: Calls, until: Callable[[], bool] | None = None) -> Outcome:
    """Make the calls and return what became of them. until: asked often; once it says so, no further calls begin."""
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0)  # wake within 1 µs, not 50
    host, _, port = address.rpartition(":")
    run = _Run(host, int(port), calls)
    collects = gc.isenabled()
    gc.disable()
    try:
        made = run.go(until)
    finally:
        if collects:
            gc.enable()
        for connection in run.connections:
            connection.close()
    arrays = (each[:made] for each in (calls.due, run.sent, run.done, run.status))
    return Outcome(*arrays, calls.deadline, run.bodies)


class _Run:
    """A run under way."""

    def __init__(self, host: str, port: int, calls: Calls) -> None:
        self.host, self.port, self.calls = host, port, calls
        made = cache(partial(call_of, timeout=calls.deadline))
        self.buffers = [made(method, message) for method, message in zip(calls.method, calls.message, strict=True)]
        n = len(calls)
        self.sent, self.done = np.full(n, np.nan), np.full(n, np.nan)
        self.status, self.bodies = np.full(n, GIVEN_UP), []
        self.waiting: deque[int] = deque()  # due and not sent: the connections take no more for now
        self.expiring: deque[tuple[int, Connection, int]] = deque()  # (call, connection, stream), the first due first
        self.begun = self.ended = 0  # calls
        self.connections = [Connection(host, port) for _ in range(CONNECTIONS)]
        self.turn = cycle(range(CONNECTIONS))

    def go(self, until: Callable[[], bool] | None) -> int:
        """Run to the end of the last call; return how many were due."""
        due, clock = self.calls.due.tolist(), time.perf_counter
        patience = PATIENCE if self.calls.deadline is None else self.calls.deadline
        begun, k = clock() + LEAD, 0
        while self.ended < len(due):
            now = clock() - begun
            while k < len(due) and due[k] <= now:
                self.waiting.append(k)
                k += 1
            self._send(clock, begun)
            self._expire(now)
            if k == len(due) and now > due[-1] + patience and self.calls.at_once is None:
                break
            if until is not None and k < len(due) and until():
                del due[k:]
            self._receive(self._pause(due, k, clock() - begun), clock, begun)
        return k

    def _pause(self, due: list[float], k: int, now: float) -> float:
        """Return how long nothing is to be done unless an answer comes."""
        pause = 0.05 if k == len(due) else due[k] - now
        if self.calls.deadline is not None and self.expiring:
            pause = min(pause, self.calls.due[self.expiring[0][0]] + self.calls.deadline - now)
        return min(max(pause, 0.0), 0.05)

    def _send(self, clock: Callable[[], float], begun: float) -> None:
        while self.waiting:
            call = self.waiting[0]
            block, data = self.buffers[call]
            connection = None if self.begun - self.ended == self.calls.at_once else self._free(data)
            if connection is None:
                return
            self.waiting.popleft()
            stream = connection.begin(call, block, data, keep=call % KEPT == 0)
            self.begun += 1
            self.sent[call] = clock() - begun
            if self.calls.deadline is not None:
                self.expiring.append((call, connection, stream))

    def _free(self, data: bytes) -> Connection | None:
        """Return the next connection that takes a call; one that the server closes is replaced."""
        for _ in range(CONNECTIONS):
            place = next(self.turn)
            if self.connections[place].closing:
                self._replace(place)
            if self.connections[place].takes(data):
                return self.connections[place]
        return None

    def _replace(self, place: int) -> None:
        old = self.connections[place]
        try:
            self.connections[place] = Connection(self.host, self.port)
        except OSError:
            return  # the server is away: the calls wait, or their deadlines pass
        self.connections.append(old)  # its calls go on

    def _expire(self, now: float) -> None:
        """Give up the calls whose deadlines are over."""
        if self.calls.deadline is None:
            return
        latest = now - self.calls.deadline
        while self.expiring and self.calls.due[self.expiring[0][0]] <= latest:
            _, connection, stream = self.expiring.popleft()
            if connection.give_up(stream):
                self.ended += 1
        while self.waiting and self.calls.due[self.waiting[0]] <= latest:
            self.waiting.popleft()
            self.ended += 1

    def _receive(self, pause: float, clock: Callable[[], float], begun: float) -> None:
        reading = [c for c in self.connections if not c.closing or c.open]
        writing = [c for c in reading if c.has_output]
        sockets = {c.socket: c for c in reading}
        readable, writable, _ = select.select(list(sockets), [c.socket for c in writing], [], pause)
        for ready in writable:
            sockets[ready].flush()
        for ready in readable:
            connection = sockets[ready]
            for ended in connection.receive():
                self.done[ended.call], self.status[ended.call] = clock() - begun, ended.status
                self.ended += 1
                if ended.body:
                    self.bodies.append(ended.body[5:])
        for connection in self.connections:
            self.waiting.extendleft(connection.unseen)
            self.begun -= len(connection.unseen)
            connection.unseen.clear()
            for call in connection.failed:
                self.done[call], self.status[call] = clock() - begun, UNAVAILABLE
                self.ended += 1
            connection.failed.clear()
