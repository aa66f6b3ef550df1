"""Reflection, of which only so many streams are open at a time: each holds a thread for as long as its caller likes."""

import threading
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

#: open streams: tools such as grpcurl hold one for a moment
MOST = 4


class Reflection(reflection.ReflectionServicer):
    """The service of gRPC's own, with a limit."""

    def __init__(self, names: Iterable[str]) -> None:
        """names: of the services that are described."""
        super().__init__(names)
        self._open = threading.BoundedSemaphore(MOST)

    def ServerReflectionInfo(self, request_iterator: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        """Describe the services: see reflection.proto of gRPC."""
        if not self._open.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MOST} reflection streams are open: try again later")
        try:
            yield from super().ServerReflectionInfo(request_iterator, context)
        finally:
            self._open.release()


def add_reflection(names: Iterable[str], server: Any) -> None:
    """Serve reflection of the services of these names."""
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(Reflection(names), server)
