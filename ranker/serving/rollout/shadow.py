"""A bundle that scores a share of the requests aside: its answers are compared and dropped."""

import contextlib
import logging
import queue
import threading

from ranker.request import RequestError
from ranker.serving.deployment import Reply
from ranker.serving.rollout.agreement import Agreement, Pair
from ranker.serving.rollout.recent import Asked
from ranker.serving.rollout.trial import answered
from ranker.serving.served import Served

log = logging.getLogger(__name__)

#: requests that may wait; further ones are dropped, and counted
WAITING = 32


class Shadow:
    """A thread that answers again what the active bundle answered. `offer` from any thread."""

    def __init__(self, served: Served, share: float) -> None:
        """share: of the requests that are offered, in (0, 1]."""
        self.served, self.share = served, share
        self.agreement = Agreement()
        self._queue: queue.Queue[tuple[Asked, Reply, float] | None] = queue.Queue(WAITING)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, message: Asked, reply: Reply, seconds: float) -> None:
        """Take a request, the answer that was given, and the seconds that it took; never waits."""
        try:
            self._queue.put_nowait((message, reply, seconds))
        except queue.Full:
            self.agreement.drop()

    def close(self) -> None:
        """Let the thread end; what waits is dropped."""
        self._stopped = True
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)  # wakes the thread, where nothing else does

    def _run(self) -> None:
        while (waiting := self._queue.get()) is not None and not self._stopped:
            message, reply, seconds = waiting
            try:
                again, took = answered(self.served, message)
                self.agreement.add(Pair(reply, again, seconds, took))
            except RequestError:
                self.agreement.fail()
            except Exception:
                if not self.agreement.errors:
                    log.exception("the shadow %s failed on a request", self.served.bundle.version)
                self.agreement.fail()
            del waiting, message, reply  # an idle thread must not hold the last request
