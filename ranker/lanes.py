"""How sources and plugins are asked: a lane for each, which has the threads, the durations and the circuit breaker.

What is ours cannot block and runs inline, on the thread of the request. What may block (`may_block`) runs on threads of
its lane, with a deadline. A call that overruns it cannot be stopped, so it is left to end by itself: when all threads
of a lane are busy, a further call is refused at once, and the other lanes go on. A hurried call, whose surface waits
less long than the lane's deadline, has threads of its own kind: those that such calls leave busy are refused to nobody
else, and that they find no thread is no failure of the lane. One that is late for its surface is judged when it ends,
by the lane's deadline. Threads are daemons, so one that hangs does not keep the process from stopping (those of
concurrent.futures would).

What fails again and again, inline or not, is not asked for a while: see `Breaker`. A request may make several calls of
a lane, as a source proposes and then scores; the breaker sees one outcome of them.
"""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

from features.errors import told
from ranker.code_hash import OWN

#: seconds that `close` waits for a thread that may hang
PATIENCE = 0.1
#: what one call counts for in the share of calls that fail, and the share from which on nothing is asked: 10 failures
#: in a row, or about two of five calls over a longer time
WEIGHT, MOST = 1 / 20, 0.4
#: seconds for which nothing is asked, doubled up to the longest with each try that fails
PAUSE, LONGEST = 5.0, 60.0

log = logging.getLogger(__name__)


def source_lane(name: str) -> str:
    """Return the name of a source's lane, by which it is also counted and named where it fails."""
    return f"sources.{name}"


def plugin_lane(name: str) -> str:
    """Return the name of a plugin's lane, by which it is also counted and named where it fails."""
    return f"plugins.{name}"


def may_block(asked: object) -> bool:
    """Return whether a source or plugin may block, so that it runs in threads with a deadline.

    It says so itself by an attribute `blocks`; else all may whose class is not of our packages.
    """
    own = type(asked).__module__.partition(".")[0] in OWN
    return bool(getattr(asked, "blocks", not own))


class BusyError(Exception):
    """All threads of a lane are still at earlier calls."""


class PausedError(Exception):
    """A lane is not asked, because it failed too often of late."""


class Breaker:
    """A circuit breaker: opens when calls fail, and closes when one call that is let through as a try succeeds.

        closed     all are asked; the share of failures (an exponentially weighted mean) opens it at MOST
        open       none is asked for PAUSE, then twice as long, and so on up to LONGEST
        half-open  the pause is over: one call is let through. It closes the breaker, or opens it for longer

    After Nygard, Release It! (2007). A try that never reports is followed by another one a pause later.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: in seconds."""
        self._clock, self._lock = clock, threading.Lock()
        self._share = 0.0  # of calls that fail
        self.pause = 0.0  # seconds; 0: closed
        self._until = 0.0
        self._trying = False

    @property
    def state(self) -> str:
        """What the next call meets: `closed`, `open` or `half-open`."""
        if not self.pause:
            return "closed"
        return "open" if self._clock() < self._until else "half-open"

    def admits(self) -> bool:
        """Return whether a call may be made now; its outcome is to be told by `succeeded` or `failed`."""
        if not self.pause:
            return True
        with self._lock:
            now = self._clock()
            if now < self._until:
                return False
            self._until, self._trying = now + self.pause, True  # the pause goes on for all others
            return True

    def succeeded(self) -> bool:
        """Count a success; return whether it closed the breaker."""
        if not self._share:
            return False
        with self._lock:
            if not self.pause:
                self._share = self._share * (1 - WEIGHT) if self._share > WEIGHT**2 else 0.0
            elif self._trying:  # else it is of a call from before the pause
                self._share, self.pause, self._trying = 0.0, 0.0, False
                return True
            return False

    def failed(self) -> bool:
        """Count a failure; return whether it opened the breaker, or opened it for longer."""
        with self._lock:
            self._share += (1 - self._share) * WEIGHT
            if self._trying:
                self.pause = min(2 * self.pause, LONGEST)
            elif not self.pause and self._share > MOST:
                self.pause = PAUSE
            else:
                return False
            self._until, self._trying = self._clock() + self.pause, False
            return True


class Running:
    """A call of a lane. Inline it is made when its result is asked for, on the thread that asks."""

    __slots__ = ("_call", "_error", "_result", "hurried", "nanoseconds")

    def __init__(self, call: Callable[[], Any]) -> None:
        self.nanoseconds = 0  # that the call took, once it has ended
        self.hurried = False  # whether it has less time than its lane's deadline
        self._call: Callable[[], Any] | None = call
        self._result: Any = None
        self._error: Exception | None = None

    def refuse(self, error: Exception) -> "Running":
        """Let `result` raise an error, without a call."""
        self._call, self._error = None, error
        return self

    def run(self) -> None:
        """Make the call here, unless it was made or refused, or has a thread of its own."""
        self._make()

    def _make(self) -> None:
        call, self._call = self._call, None
        if call is None:
            return
        begun = time.perf_counter_ns()
        try:
            self._result = call()
        except Exception as caught:
            self._error = caught
        except BaseException as caught:  # a source's SystemExit is its own failure, not the end of a thread
            self._error = RuntimeError(told(caught))
        self.nanoseconds = time.perf_counter_ns() - begun

    @property
    def ended_well(self) -> bool:
        """Whether it raised nothing, of a call that has ended."""
        return self._error is None

    def result(self, timeout: float) -> Any:
        """Return what the call gives, or raise what it raises; inline it may take longer than `timeout` seconds."""
        self._make()
        if self._error is not None:
            raise self._error
        return self._result


def _nobody(running: Running) -> None:
    """Be told of a call whose caller waits for it."""


class Threaded(Running):
    """A call on a thread of a lane, which calls `leave` once it is free again."""

    __slots__ = ("_ended", "_leave", "_lock", "_over", "_tell")

    def __init__(self, call: Callable[[], Any], leave: Callable[[], None]) -> None:
        super().__init__(call)
        self._leave, self._ended = leave, threading.Lock()
        self._ended.acquire()
        self._lock = threading.Lock()
        self._tell: Callable[[Running], None] = _nobody  # is told that it has ended
        self._over = False

    def refuse(self, error: Exception) -> "Running":
        """Let `result` raise an error, without a call."""
        self._ended.release()
        return super().refuse(error)

    def run(self) -> None:
        """Leave it to its thread."""

    def work(self) -> None:
        """Make the call: on a thread of the lane."""
        self._make()
        self._leave()  # before the result is out: the next call must find the thread free
        with self._lock:
            self._over, tell = True, self._tell
        tell(self)
        self._ended.release()

    def at_end(self, tell: Callable[["Running"], None]) -> None:
        """Let somebody be told that the call has ended, for its caller has given up: now, if it has by now."""
        with self._lock:
            over, self._tell = self._over, tell
        if over:
            tell(self)

    def result(self, timeout: float) -> Any:
        """Wait for at most `timeout` seconds; TimeoutError where the call is late."""
        if not self._ended.acquire(timeout=timeout):
            raise TimeoutError
        self._ended.release()
        return super().result(timeout)


class Lane:
    """The way to one source or plugin: its breaker, and its threads where it may block."""

    def __init__(self, name: str, width: int, deadline: float = 0.0) -> None:
        """width: calls on threads at once, and hurried ones as many, 0 for a lane whose calls run inline.

        deadline: seconds that one may take.
        """
        self.name, self.width, self.deadline = name, width, deadline
        self.breaker = Breaker()
        self._jobs: SimpleQueue[Threaded | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._busy = {False: 0, True: 0}  # threads, by whether they are at hurried calls
        self._threads: list[threading.Thread] = []

    @property
    def state(self) -> str:
        """State of the breaker: `closed`, `open` or `half-open`."""
        return self.breaker.state

    def start(self, call: Callable[[], Any], most: float = math.inf) -> Running:
        """Begin the first call of a request; its result raises what `call` raises, BusyError or PausedError.

        most: seconds that its caller waits in any case; fewer than the lane's deadline make it a hurried one.
        """
        if not self.breaker.admits():
            return Running(call).refuse(PausedError("it failed too often, so it is not asked for some seconds"))
        return self.go_on(call, most)

    def go_on(self, call: Callable[[], Any], most: float = math.inf) -> Running:
        """Begin a further call of a request that was let in, so that the breaker is not asked. most: as for `start`."""
        if not self.width:
            return Running(call)
        running = Threaded(call, partial(self._leave, most < self.deadline))
        running.hurried = most < self.deadline
        return self._queued(running)

    def outcome(self, running: Running, timeout: float) -> Any:
        """Return the result of a call, or raise what `Running.result` does and tell the breaker of the failure.

        It is told of a success by `succeeded`, once for all calls of a request: each would close what the next opens.
        """
        try:
            return running.result(timeout)
        except PausedError:
            raise
        except Exception as error:
            if running.hurried and isinstance(error, BusyError):
                raise
            if running.hurried and isinstance(error, TimeoutError) and isinstance(running, Threaded):
                running.at_end(self._judge)
                raise
            self.failed()
            raise

    def _judge(self, running: Running) -> None:
        """Tell the breaker of a call that ended after its caller gave up, which waited less than the lane allows."""
        if running.ended_well and running.nanoseconds <= 1e9 * self.deadline:
            self.succeeded()
        else:
            self.failed()

    def succeeded(self) -> None:
        """Tell the breaker that all calls of a request went well."""
        if self.breaker.succeeded():
            log.warning("%s works again", self.name)

    def failed(self) -> None:
        """Tell the breaker of a failure."""
        if self.breaker.failed():
            log.warning("%s failed too often: it is not asked for %g s", self.name, self.breaker.pause)

    def _queued(self, running: Threaded) -> Running:
        with self._lock:
            if self._busy[running.hurried] == self.width:
                return running.refuse(BusyError(f"its {self.width} threads are still busy with earlier requests"))
            self._busy[running.hurried] += 1
            if len(self._threads) < sum(self._busy.values()):
                thread = threading.Thread(target=self._work, args=(self._jobs,), name=self.name, daemon=True)
                self._threads.append(thread)
                thread.start()
        self._jobs.put(running)
        return running

    def close(self) -> None:
        """Let the idle threads end; a hung one ends with the process. A later call begins others."""
        with self._lock:
            threads, self._threads = self._threads, []
            jobs, self._jobs = self._jobs, SimpleQueue()
        for _ in threads:
            jobs.put(None)
        for thread in threads:
            thread.join(PATIENCE)

    def _work(self, jobs: "SimpleQueue[Threaded | None]") -> None:
        while (running := jobs.get()) is not None:
            running.work()
            del running  # an idle thread must not hold the state of its last request

    def _leave(self, hurried: bool) -> None:
        with self._lock:
            self._busy[hurried] -= 1


class Failures:
    """Counts what failed or was late, by name, and logs the 1st, 2nd, 4th, 8th … time of each."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, error: BaseException) -> str:
        """Count one failure; return it as a sentence. A pause counts as none: what led to it was counted."""
        if isinstance(error, PausedError):
            return str(error)
        reason = "it was late" if isinstance(error, TimeoutError) else told(error)
        with self._lock:
            self._counts[name] += 1
            count = self._counts[name]
        if count & (count - 1) == 0:
            known = isinstance(error, TimeoutError | BusyError)
            log.warning("%s degraded (%d so far): %s", name, count, reason, exc_info=None if known else error)
        return reason

    def counts(self) -> dict[str, int]:
        """Return the counts so far."""
        with self._lock:
            return dict(self._counts)
