"""A gRPC server on a port: its threads, its limits and its address."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from features.errors import PairliftError

#: threads beside those of the calls, for health checks and open reflection streams (a stream holds its thread)
SPARE_THREADS = 8
#: calls under way or waiting; further ones get RESOURCE_EXHAUSTED instead of an ever longer queue
MAX_CALLS = 1000
#: bytes of a message: a full batch of events with long texts
MAX_MESSAGE = 64 << 20


def grpc_server(workers: int, streams: int, interceptors: Sequence[grpc.ServerInterceptor] = ()) -> Any:
    """Return a gRPC server with threads for so many requests at once, and for so many streams that stay open.

    interceptors: the outermost first.
    """
    return grpc.server(
        ThreadPoolExecutor(workers + streams + SPARE_THREADS, thread_name_prefix="grpc"),
        # Without so_reuseport = 0 a second server on a taken port would be given half of the calls in silence.
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.enable_channelz", 1),
        ],
        interceptors=interceptors,
        maximum_concurrent_rpcs=MAX_CALLS,
    )


def bind(server: Any, host: str, port: int) -> str:
    """Bind a gRPC server to a port (0: any free one) and return its address; PairliftError where it cannot be bound."""
    shown = f"[{host}]" if ":" in host else host
    try:
        bound = server.add_insecure_port(f"{shown}:{port}")
    except RuntimeError:
        bound = 0
    if not bound:
        raise PairliftError(
            f"{shown}:{port} cannot be listened on: the port is taken, or the host is not ours; "
            "choose another --port (0: any free one) or --host"
        )
    return f"{shown}:{bound}"
