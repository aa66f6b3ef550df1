"""A few of the requests that were answered last: what a new bundle is tried on."""

import threading
import time
from collections import deque

from pairlift.v1 import ranking_pb2 as pb

Asked = pb.RecommendRequest | pb.RankRequest

#: messages, and the bytes of them all
MOST, MOST_BYTES = 256, 16 << 20
#: seconds between two that are kept, so that they span at least a quarter of a minute where there are many
EVERY = 0.05


class Recent:
    """Keeps messages, the oldest go first. `offer` from any thread: most calls cost a look at the clock."""

    def __init__(self) -> None:
        self._messages: deque[tuple[Asked, int]] = deque()
        self._bytes = 0
        self._next = 0.0
        self._lock = threading.Lock()

    def offer(self, message: Asked) -> None:
        """Keep a message that was answered, where it is time for one; it must not change afterwards."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + EVERY
        size = message.ByteSize()
        if size > MOST_BYTES:
            return
        with self._lock:
            self._messages.append((message, size))
            self._bytes += size
            while len(self._messages) > MOST or self._bytes > MOST_BYTES:
                self._bytes -= self._messages.popleft()[1]

    def newest(self, most: int) -> list[Asked]:
        """Return the last of them, the newest first."""
        with self._lock:
            kept = [message for message, _ in self._messages]
        return kept[::-1][:most]
