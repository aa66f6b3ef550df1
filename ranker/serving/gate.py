"""Which calls are let in: as many at once as `[serve] workers`, and none whose caller has gone."""

import contextlib
import threading
from collections.abc import Iterator

import grpc


class Gate:
    """What each call passes before any work."""

    def __init__(self, workers: int) -> None:
        """workers: calls at once. The pool has threads to spare for streams, so this is kept here."""
        self._workers = threading.BoundedSemaphore(workers)

    @contextlib.contextmanager
    def entered(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Wait for a place, and keep it for as long as the call is at work; end the call where its caller has gone."""
        with self._workers:
            if not context.is_active():
                context.abort(grpc.StatusCode.CANCELLED, "the caller gave up while the call waited")
            yield
