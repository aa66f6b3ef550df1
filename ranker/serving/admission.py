"""Which call begins, which waits, and which is over: the rules of the gate, without threads and without a clock.

Calls wait in order, until one is over: too many wait, one has waited too long, or one whose turn came had no time left.
From then on, until for as long as a call may wait none was over, more come than can be answered: the newest is next,
which has its whole deadline before it, the oldest is over, an eighth as many may wait, and an eighth as long. In order,
every answer would come after the longest wait, too late for who has less time; with the newest first it comes about as
fast as ever (adaptive LIFO and controlled delay: Maurer, Fail at Scale, ACM Queue 13(8), 2015). A call of low priority
is next only where no other waits, the newest first, and over before any other: however many such calls come, the others
wait in order.
"""

from collections import deque
from typing import Generic, Protocol, TypeVar

from ranker.serving.limiter import Limiter, Typical

#: calls that wait at most, however short they are
MOST = 1000
#: part of the room, and of the longest wait, that is left while more come than can be answered
CROWDED = 8
#: calls that are over where one comes: a few, lest those that come next wait for many refusals
AT_ONCE = 2


class Waits(Protocol):
    """A call that may wait."""

    came: float  # when it came, in seconds
    low: bool  # whether its caller can do without it


C = TypeVar("C", bound=Waits)


class Waiting(Generic[C]):
    """Calls that wait, for no longer than `longest` seconds."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._crowded_until = 0.0  # seconds (monotonic): before then, more of `_first` come than can be answered
        self._first: deque[C] = deque()
        self._low: deque[C] = deque()  # next where `_first` has none

    def __len__(self) -> int:
        return len(self._first) + len(self._low)

    def add(self, call: C, now: float, typical: float, limit: int) -> list[C]:
        """Let a call wait; return those that are over, of which it may be one.

        typical: seconds that a call takes, 0 not known. limit: how many are at work at once.
        """
        (self._low if call.low else self._first).append(call)
        over = self.late(now)
        room = MOST if typical <= 0 else min(MOST, int(self._longest * limit / typical))
        for _ in range(AT_ONCE):
            if len(self) > max(limit, room // CROWDED if self._is_crowded(now) else room):
                if not self._low:
                    self.crowd(now)
                over.append((self._low or self._first).popleft())
        return over

    def next(self, now: float) -> tuple[C | None, list[C]]:
        """Return the call that is next (None: none waits), and those that have waited too long."""
        over = self.late(now)
        if self._first:
            return self._first.pop() if self._is_crowded(now) else self._first.popleft(), over
        return self._low.pop() if self._low else None, over

    def crowd(self, now: float) -> None:
        """Say that one is over now: of too many, or because no time was left when its turn came."""
        self._crowded_until = now + self._longest

    def _is_crowded(self, now: float) -> bool:
        return now < self._crowded_until

    def late(self, now: float) -> list[C]:
        """Take out those that have waited too long."""
        over: list[C] = []
        for queue in (self._low, self._first):
            longest = self._longest / CROWDED if queue is self._first and self._is_crowded(now) else self._longest
            while queue and now - queue[0].came > longest:
                over.append(queue.popleft())
                if queue is self._first:
                    self.crowd(now)
        return over


class Admission(Generic[C]):
    """What begins and what waits. Not safe for several threads: the gate has a lock."""

    def __init__(self, limiter: Limiter, longest: float) -> None:
        """longest: seconds that a call may wait."""
        self.limiter = limiter
        self.waiting: Waiting[C] = Waiting(longest)
        self.at_work = 0
        self._typical = Typical()

    def come(self, call: C, now: float) -> tuple[bool, list[C]]:
        """Take a call; return whether it begins now, and those that are over, of which it may be one."""
        if self.at_work < self.limiter.limit:
            self.at_work += 1
            return True, []
        return False, self.waiting.add(call, now, self._typical.seconds, self.limiter.limit)

    def end(self, seconds: float | None, now: float) -> tuple[list[C], list[C]]:
        """Take the end of a call at work; return those that begin now, and those that are over.

        seconds: that it took; None where it was not answered.
        """
        if seconds is not None:
            self.limiter.took(seconds, self.at_work)
            self._typical.add(seconds)
        self.at_work -= 1
        begun: list[C] = []
        over: list[C] = []
        while self.waiting and self.at_work < self.limiter.limit:
            call, late = self.waiting.next(now)
            over += late
            if call is not None:
                begun.append(call)
                self.at_work += 1
        return begun, over
