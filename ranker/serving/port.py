"""A gRPC server on a port: its threads, its limits, its connections and its address."""

import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from features.errors import PairliftError

#: calls at once that the gate does not limit: open streams, health checks, administration. Further ones wait; not
#: `maximum_concurrent_rpcs`, which counts the gate's as well: who sends no message would shut out all
THREADS = 200
#: calls of one connection at a time; a client opens another one, or waits
MAX_STREAMS = 1000
#: calls of a method that gRPC holds before Python sees them: from the first number on some and from the second on all
#: are CANCELLED. What comes in a flood that Python cannot even refuse must not wait where nobody counts it
MAX_UNSEEN = (100, 300)
#: how the address of a socket in a folder begins
UNIX = "unix:"
#: bytes of a message: a full batch of events with long texts
MAX_MESSAGE = 64 << 20
#: milliseconds that the calls of a connection have to end when its age is reached: a stream's caller opens another
AGE_GRACE = 3_600_000
#: milliseconds between the pings by which a dead connection is found, and until one must be answered
PING_EVERY, PING_ANSWER = 120_000, 20_000
#: milliseconds between the pings that a client may send, which gRPC else takes for an attack below five minutes
PING_ALLOWED = 20_000


def grpc_server(interceptors: Sequence[grpc.ServerInterceptor], connection_age: int, shared: bool = False) -> Any:
    """Return a gRPC server. interceptors: what each call passes, the outermost first.

    connection_age: ms after which a connection takes no new calls, and its client opens another. shared: its port is
    one that `reserve` has reserved for several processes.
    """
    some, all_of_them = MAX_UNSEEN
    return grpc.server(
        ThreadPoolExecutor(THREADS, thread_name_prefix="grpc"),
        interceptors=interceptors,
        options=[
            # Without so_reuseport = 0 a second server on a taken port would be given half of the calls in silence.
            ("grpc.so_reuseport", int(shared)),
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_concurrent_streams", MAX_STREAMS),
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
    )


def bind(server: Any, host: str, port: int, credentials: Any = None) -> str:
    """Bind a gRPC server to a port (0: any free one) and return its address; PairliftError where it cannot be bound.

    host: `unix:PATH` binds a socket in place of a port. credentials: `grpc.ServerCredentials`, None for plain text.
    """
    address = address_of(host, port)
    try:
        if credentials is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, credentials)
    except RuntimeError:
        bound = 0
    if not bound:
        raise _taken(address)
    return address_of(host, bound)


def address_of(host: str, port: int) -> str:
    """Return what clients connect to."""
    if host.startswith(UNIX):
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reserve(host: str, port: int) -> tuple[socket.socket, int]:
    """Keep a port (0: any free one) for the processes of a server; return what holds it, and its number.

    PairliftError where it cannot be bound, or somebody else listens on it.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        with socket.socket(family, socket.SOCK_STREAM) as alone:  # others that share a port are not seen below
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what a stopped server left does not count
            alone.bind(address)
            alone.listen(1)
            bound = alone.getsockname()[1]
        held = socket.socket(family, socket.SOCK_STREAM)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((address[0], bound, *address[2:]))
    except OSError as error:
        raise _taken(f"{host}:{port}") from error
    return held, bound


def _taken(address: str) -> PairliftError:
    return PairliftError(
        f"{address} cannot be listened on: the port is taken, or the host is not ours; "
        "choose another --port (0: any free one) or --host"
    )
