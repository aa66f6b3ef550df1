"""How a client reaches a server: TLS, a token, when a call is tried again."""

import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from features.errors import PairliftError
from ranker.asking.expiry import warn_of_end

#: gRPC's service config. Only a call that no server took (UNAVAILABLE) is tried again: what is refused for the load
#: must not come back at once, and what was late is late. Where most calls fail, the throttle ends this. Recording has
#: none: what was not answered is sent again by the caller, who knows what that is
SERVICE_CONFIG: dict[str, Any] = {
    "methodConfig": [
        {
            "name": [
                {"service": "pairlift.v1.RankingService", "method": name} for name in ("Recommend", "Rank", "Describe")
            ],
            "waitForReady": False,
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}
#: milliseconds between the pings by which a dead connection is found while calls are under way, and for an answer
PING_EVERY, PING_ANSWER = 60_000, 10_000
#: what gRPC says when no server listens; a server that does may be UNAVAILABLE too, with a sentence of its own
NOT_CONNECTED = ("failed to connect", "errors resolving", "DNS resolution failed")
#: and when one listens, and the two do not agree on TLS, or on each other's certificates
NOT_TRUSTED = ("handshak", "CERTIFICATE", "SSL", "Socket closed", "Connection reset")


@dataclass(frozen=True, slots=True)
class Tls:
    """How a server is known, and what it is shown. As it is: by the public roots, and nothing."""

    ca: Path | None = None  # PEM of the roots that the server's certificate must come from
    cert: Path | None = None  # PEM of the client's own certificate, where the server asks for one
    key: Path | None = None  # PEM of its private key

    def credentials(self) -> Any:
        """Return `grpc.ChannelCredentials`; PairliftError where a file cannot be read. Logs what ends soon."""
        if (self.cert is None) != (self.key is None):
            raise PairliftError("a client's certificate and its private key were expected, found one of the two")
        ca, key, cert = (_content(path) for path in (self.ca, self.key, self.cert))
        for path, pem in ((self.ca, ca), (self.cert, cert)):
            if path is not None and pem is not None:
                warn_of_end(path, pem, roots=path is self.ca)
        return grpc.ssl_channel_credentials(ca, key, cert)


def open_channel(address: str, tls: Tls | None, token: str | None) -> grpc.Channel:
    """Return a channel to HOST:PORT, which connects when it is used; PairliftError for a token that others could read.

    tls: None for plain text. token: None where the server asks for none.
    """
    options = [
        ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
        ("grpc.keepalive_time_ms", PING_EVERY),
        ("grpc.keepalive_timeout_ms", PING_ANSWER),
    ]
    if tls is not None:
        channel = grpc.secure_channel(address, tls.credentials(), options)
    elif token is None or address.startswith("unix:") or is_loopback(address.rpartition(":")[0]):
        channel = grpc.insecure_channel(address, options)
    else:
        raise PairliftError(f"a token is not sent to {address} in plain text, where others could read it: use TLS")
    return channel if token is None else grpc.intercept_channel(channel, _Bearer(token))


def read_token(path: Path) -> str:
    """Return the token that a file holds; PairliftError where there is none."""
    words = (_content(path) or b"").decode(errors="replace").split()
    if len(words) != 1:
        raise PairliftError(f"{path}: a token and nothing else was expected, as `pairlift token NAME` shows it")
    return words[0]


def _content(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise PairliftError(f"{path} cannot be read: {error.strerror}") from error


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine's own, which nobody else reaches; a socket in a folder is."""
    if host.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class _Details(NamedTuple):
    """What `grpc.ClientCallDetails` declares, and no class of gRPC's implements."""

    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _Bearer(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Sends a token with each call."""

    def __init__(self, token: str) -> None:
        self._header = ("authorization", f"Bearer {token}")

    def _with_token(self, continuation: Any, d: Any, request: Any) -> Any:
        metadata = [*(d.metadata or ()), self._header]
        return continuation(
            _Details(d.method, d.timeout, metadata, d.credentials, d.wait_for_ready, d.compression), request
        )

    intercept_unary_unary = intercept_unary_stream = _with_token
    intercept_stream_unary = intercept_stream_stream = _with_token


def sentence_of(error: Any, address: str, timeout: float) -> str:
    """Return what to say of a call's `grpc.RpcError`; address, timeout (s): of the call."""
    code, detail = error.code(), error.details()
    if code is grpc.StatusCode.UNAVAILABLE:
        return _unavailable(detail, address)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"the server at {address} did not answer within {timeout:g} s"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return f"the server at {address} does not speak pairlift.v1: {detail}"
    return detail or f"the call ended with {code.name}"


def _unavailable(detail: str, address: str) -> str:
    if not any(words in detail for words in NOT_CONNECTED):
        return f"the server at {address} cannot do it now: {detail}"
    if any(words in detail for words in NOT_TRUSTED):
        return (
            f"what listens at {address} and this client did not come to terms: only one of them speaks TLS (our "
            f"commands: --tls-ca FILE), or one does not take the other's certificate ({detail})"
        )
    return f"no server answers at {address}; `pairlift serve BUNDLE` starts one"
