"""Calls under way, so that those that a stopping server cannot finish end as what a caller tries again elsewhere."""

import contextlib
from typing import Any

import grpc

#: what such a call ends with
UNFINISHED = "the server stopped before it could answer: ask another one"


class UnderWay:
    """The contexts of calls. To add and discard one is an operation on a set, on any thread."""

    def __init__(self) -> None:
        self._contexts: set[Any] = set()
        self.add, self.discard = self._contexts.add, self._contexts.discard

    def end(self) -> None:
        """End all with UNAVAILABLE, from another thread than theirs.

        gRPC's own way is CANCELLED, as if the caller had given up, and its Python has no public one to say anything
        else: where the one that is used here is gone some day, gRPC's own stays.
        """
        code: int = grpc.StatusCode.UNAVAILABLE.value[0]
        for context in self._contexts.copy():
            with contextlib.suppress(Exception):
                context._rpc_event.call.cancel(code, UNFINISHED)
