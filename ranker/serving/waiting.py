"""The short queue before the work: which call is next, and which are over.

In order, until one is over: too many wait, one has waited too long, or one whose turn came had no time left. Then, until
the queue is empty, more come than can be answered: the newest is next, which has its whole deadline before it, the
oldest is over, and an eighth as many may wait. In order, every answer would come after the longest wait, too late for
who has less time; with the newest first it comes as fast as ever (adaptive LIFO: Maurer, Fail at Scale, ACM Queue 13(8),
2015). A call of low priority is next only where no other waits, and is over first. Times are passed in: no clock and no
threads.
"""

from collections import deque
from typing import Generic, Protocol, TypeVar

#: calls that wait at most, however short they are
MOST = 1000
#: part of the room that is left while more come than can be answered
CROWDED = 8


class Waits(Protocol):
    """A call that may wait."""

    came: float  # when it came, in seconds
    low: bool  # whether its caller can do without it


C = TypeVar("C", bound=Waits)


class Waiting(Generic[C]):
    """Calls that wait, for no longer than `longest` seconds. Not safe for several threads: its gate has a lock."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._crowded = False  # whether more come than can be answered
        self._first: deque[C] = deque()
        self._low: deque[C] = deque()  # next where `_first` has none

    def __len__(self) -> int:
        return len(self._first) + len(self._low)

    def add(self, call: C, now: float, typical: float, limit: int) -> list[C]:
        """Let a call wait; return those that are over, of which it may be one.

        typical: seconds that a call takes, 0 not known. limit: how many are at work at once.
        """
        (self._low if call.low else self._first).append(call)
        over = self._late(now)
        room = MOST if typical <= 0 else min(MOST, int(self._longest * limit / typical))
        while len(self) > max(limit, room // CROWDED if self._crowded else room):
            self._crowded = True
            over.append((self._low or self._first).popleft())
        return over

    def next(self, now: float) -> tuple[C | None, list[C]]:
        """Return the call that is next (None: none waits), and those that have waited too long."""
        over = self._late(now)
        queue = self._first or self._low
        call = (queue.pop() if self._crowded else queue.popleft()) if queue else None
        self._crowded = self._crowded and len(self) > 0
        return call, over

    def crowd(self) -> None:
        """Say that the time of one whose turn came was over."""
        self._crowded = len(self) > 0

    def _late(self, now: float) -> list[C]:
        """Take out those that have waited too long."""
        over: list[C] = []
        for queue in (self._low, self._first):
            while queue and now - queue[0].came > self._longest:
                over.append(queue.popleft())
        self._crowded |= bool(over)
        return over
