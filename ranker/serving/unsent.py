"""Calls whose message does not come.

The gate begins a call before its message is there, so a caller that sends headers and then nothing, or hangs in the
middle of a message, has a worker for as long as it likes: as many as there are workers, and nobody else is answered.
"""

import threading
import time

import grpc

#: seconds that a message may take to come once its call has begun
LONGEST = 1.0


class Unsent:
    """Cancels calls whose message takes too long. `expect` and `came` cost a look at the clock, on any thread."""

    def __init__(self, longest: float = LONGEST) -> None:
        """longest: seconds that a message may take."""
        self._longest = longest
        self._until: dict[grpc.ServicerContext, float] = {}  # seconds (monotonic)
        self._stop = threading.Event()
        threading.Thread(target=self._look, name="unsent", daemon=True).start()

    def expect(self, context: grpc.ServicerContext) -> None:
        """Say that a call's message is waited for."""
        self._until[context] = time.monotonic() + self._longest

    def came(self, context: grpc.ServicerContext) -> None:
        """Say that it is waited for no longer."""
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
