"""A gRPC server on a port: its threads, its limits and its address."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from features.errors import PairliftError

#: calls at once that the gate does not limit, each with a thread: open streams, health checks, administration
MAX_CALLS = 200
#: calls of a method that gRPC holds before Python sees them: from the first number on some and from the second on all
#: are CANCELLED. What comes in a flood that Python cannot even refuse must not wait where nobody counts it
MAX_UNSEEN = (100, 300)
#: bytes of a message: a full batch of events with long texts
MAX_MESSAGE = 64 << 20


def grpc_server(interceptors: Sequence[grpc.ServerInterceptor]) -> Any:
    """Return a gRPC server. interceptors: what each call passes, the outermost first."""
    some, all_of_them = MAX_UNSEEN
    return grpc.server(
        ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="grpc"),
        interceptors=interceptors,
        options=[
            # Without so_reuseport = 0 a second server on a taken port would be given half of the calls in silence.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.server.max_pending_requests", some),
            ("grpc.server.max_pending_requests_hard_limit", all_of_them),
        ],
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
