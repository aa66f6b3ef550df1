"""A gRPC server on a port: its threads, its limits, its connections and its address."""

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
#: milliseconds that the calls of a connection have to end when its age is reached: a stream's caller opens another
AGE_GRACE = 3_600_000
#: milliseconds between the pings by which a dead connection is found, and until one must be answered
PING_EVERY, PING_ANSWER = 120_000, 20_000
#: milliseconds between the pings that a client may send, which gRPC else takes for an attack below five minutes
PING_ALLOWED = 20_000


def grpc_server(interceptors: Sequence[grpc.ServerInterceptor], connection_age: int) -> Any:
    """Return a gRPC server. interceptors: what each call passes, the outermost first.

    connection_age: ms after which a connection takes no new calls, and its client opens another.
    """
    some, all_of_them = MAX_UNSEEN
    return grpc.server(
        ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="grpc"),
        interceptors=interceptors,
        options=[
            # Without so_reuseport = 0 a second server on a taken port would be given half of the calls in silence.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.enable_channelz", 1),
            ("grpc.server.max_pending_requests", some),
            ("grpc.server.max_pending_requests_hard_limit", all_of_them),
            ("grpc.max_connection_age_ms", connection_age),
            ("grpc.max_connection_age_grace_ms", AGE_GRACE),
            ("grpc.keepalive_time_ms", PING_EVERY),
            ("grpc.keepalive_timeout_ms", PING_ANSWER),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", PING_ALLOWED),
        ],
        maximum_concurrent_rpcs=MAX_CALLS,
    )


def bind(server: Any, host: str, port: int, credentials: Any = None) -> str:
    """Bind a gRPC server to a port (0: any free one) and return its address; PairliftError where it cannot be bound.

    credentials: `grpc.ServerCredentials`, None for plain text.
    """
    shown = f"[{host}]" if ":" in host else host
    try:
        if credentials is None:
            bound = server.add_insecure_port(f"{shown}:{port}")
        else:
            bound = server.add_secure_port(f"{shown}:{port}", credentials)
    except RuntimeError:
        bound = 0
    if not bound:
        raise PairliftError(
            f"{shown}:{port} cannot be listened on: the port is taken, or the host is not ours; "
            "choose another --port (0: any free one) or --host"
        )
    return f"{shown}:{bound}"
