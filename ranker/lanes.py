"""Threads for what may be late: each source and plugin has a lane of its own, and a lane has few threads.

A call that overruns its deadline cannot be stopped, so it is left to end by itself. Its lane is bounded: when
all threads of a lane are busy, a further call is refused at once, and the other lanes go on. Threads are
daemons, so one that hangs does not keep the process from stopping (those of concurrent.futures would).
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

#: seconds that `close` waits for a thread that may hang
PATIENCE = 0.1

log = logging.getLogger(__name__)


class BusyError(Exception):
    """All threads of a lane are still at earlier calls."""


class Lane:
    """The threads of one source or plugin: at most `width` calls at once."""

    def __init__(self, name: str, width: int) -> None:
        self.name = name
        self.width = width
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._busy = 0
        self._threads: list[threading.Thread] = []

    def start(self, call: Callable[[], Any]) -> Future[Any]:
        """Run `call` on a thread of the lane; the future raises what it raises, or BusyError."""
        future: Future[Any] = Future()
        with self._lock:
            if self._busy == self.width:
                future.set_exception(BusyError(f"its {self.width} threads are still busy with earlier requests"))
                return future
            self._busy += 1
            if len(self._threads) < self._busy:
                thread = threading.Thread(target=self._work, name=self.name, daemon=True)
                self._threads.append(thread)
                thread.start()
        self._jobs.put((future, call))
        return future

    def close(self) -> None:
        """Let the idle threads end; a hung one ends with the process."""
        with self._lock:
            threads = list(self._threads)
        for _ in threads:
            self._jobs.put(None)
        for thread in threads:
            thread.join(PATIENCE)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, call = job
            result: Any = None
            error: Exception | None = None
            try:
                result = call()
            except Exception as caught:
                error = caught
            except BaseException as caught:  # a source's SystemExit is its own failure, not the end of a thread
                error = RuntimeError(repr(caught))
            with self._lock:  # before the result is out: the next call must find the thread free
                self._busy -= 1
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
            del job, future, call, result, error  # an idle thread must not hold the state of its last request


class Failures:
    """Counts what failed or was late, by name, and logs the 1st, 2nd, 4th, 8th … time of each."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, error: BaseException) -> str:
        """Count one failure; return it as a sentence."""
        reason = "it was late" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
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
