"""Calls whose message does not come.

The gate begins a call before its message is there, so a caller that sends headers and then nothing, or hangs in the
middle of a message, has a worker for as long as it likes: as many as there are workers, and nobody else is answered.
"""

import threading
import time
from collections.abc import Iterator
from typing import TypeVar

import grpc

T = TypeVar("T")

#: seconds that a message may take to come once its call has begun
LONGEST = 1.0


class Unsent:
    """Cancels calls whose message takes too long. `first` costs a look at the clock, on any thread."""

    def __init__(self, longest: float = LONGEST) -> None:
        """longest: seconds that a message may take."""
        self._longest = longest
        self._until: dict[grpc.ServicerContext, float] = {}  # seconds (monotonic)
        self._stop = threading.Event()
        threading.Thread(target=self._look, name="unsent", daemon=True).start()

    def first(self, messages: Iterator[T], context: grpc.ServicerContext) -> T:
        """Wait for a call's message and return it; StopIteration where it sends none."""
        self._until[context] = time.monotonic() + self._longest
        try:
            return next(messages)
        finally:
            self._until.pop(context, None)

    def close(self) -> None:
        """Let the thread end."""
        self._stop.set()

    def _look(self) -> None:
        while not self._stop.wait(self._longest / 4):
            now = time.monotonic()
            for context, until in self._until.copy().items():
                if now > until:
                    context.cancel()  # who waits for the message is woken, and ends the call
