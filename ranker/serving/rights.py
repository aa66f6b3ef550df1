"""Who may call what: a server interceptor, which refuses before a message is read."""

import threading
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import grpc
from grpc_health.v1 import health
from pairlift.v1 import ranking_pb2 as pb

from ranker.serving.tokens import Grant, Tokens

_SERVICE = pb.DESCRIPTOR.services_by_name["RankingService"].full_name
_PACKAGE = pb.DESCRIPTOR.package
#: the right that each method needs; any other, of another service too, needs `admin`
NEEDS = {
    **{f"{_SERVICE}/{name}": "read" for name in ("Recommend", "Rank", "Describe")},
    f"{_SERVICE}/RecordEvents": "record",
    f"{_PACKAGE}.MetricsService/Metrics": "read",
}
BEARER = "Bearer "
NO_TOKEN = "a token was expected: send the metadata `authorization: Bearer TOKEN` (our commands: --token-file)"
UNKNOWN_TOKEN = "this token is not known: `pairlift token NAME` makes one, and a line for the file of `serve --tokens`"
#: a handler as gRPC has it: of a message, or an iterator of them, and a context
Behaviour = Callable[[Any, grpc.ServicerContext], Any]


@lru_cache(maxsize=64)  # callers may send any name
def right_of(method: str) -> str | None:
    """Return the right that `/package.Service/Method` needs; None: it is open to all, as health is."""
    name = method.lstrip("/")
    service = name.partition("/")[0]
    if service == health.SERVICE_NAME:
        return None
    return "read" if service.startswith("grpc.reflection.") else NEEDS.get(name, "admin")


class Rights(grpc.ServerInterceptor):
    """Lets in calls whose token has the right that their method needs, and of one caller only so many at a time."""

    def __init__(self, tokens: Tokens | None, calls_per_caller: int) -> None:
        """tokens: None lets everybody in. calls_per_caller: 0 is no limit; a caller is a token's name, else a host."""
        self._tokens = tokens
        self._callers = Callers(calls_per_caller) if calls_per_caller else None

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """Return the handler of a call, or one that refuses it."""
        grant: Grant | None = None
        right = right_of(details.method)
        if right is None:
            return continuation(details)
        if self._tokens is not None:
            token = _token(details.invocation_metadata)
            grant = None if token is None else self._tokens.find(token)
            if grant is None:
                return _refusal(grpc.StatusCode.UNAUTHENTICATED, NO_TOKEN if token is None else UNKNOWN_TOKEN)
            if right not in grant.rights:
                method, has = details.method.rpartition("/")[2], ", ".join(sorted(grant.rights))
                sentence = f"{method} needs the right '{right}', and the token of '{grant.name}' has: {has}"
                return _refusal(grpc.StatusCode.PERMISSION_DENIED, sentence)
        handler = continuation(details)
        return handler if handler is None or self._callers is None else self._callers.counted(handler, grant)


def _token(metadata: Any) -> str | None:
    """Return the bearer token of a call; None where it has none."""
    for key, value in metadata:
        if key == "authorization" and isinstance(value, str) and value.startswith(BEARER):
            return value[len(BEARER) :].strip()
    return None


def _refusal(code: grpc.StatusCode, sentence: str) -> Any:
    """Return a handler that ends a call of any kind; one of a stream, for it needs not wait for a message."""
    return grpc.stream_stream_rpc_method_handler(partial(_refuse, code, sentence))


def _refuse(code: grpc.StatusCode, sentence: str, _: Any, context: grpc.ServicerContext) -> Any:
    context.abort(code, sentence)


class Callers:
    """How many calls each caller has under way."""

    def __init__(self, most: int) -> None:
        """most: calls of one caller at a time."""
        self._most = most
        self._under_way: dict[str, int] = {}
        self._lock = threading.Lock()

    def counted(self, handler: Any, grant: Grant | None) -> Any:
        """Return a handler that refuses what is over the limit, and is counted while it runs."""
        for kind, wrapped in (
            ("unary_unary", self._answer),
            ("stream_unary", self._answer),
            ("unary_stream", self._stream),
            ("stream_stream", self._stream),
        ):
            behaviour = getattr(handler, kind)
            if behaviour is not None:
                name = None if grant is None else grant.name
                counted = partial(wrapped, behaviour, name)
                vars(counted).update(vars(behaviour))  # by an attribute the gate says where gRPC is to run it
                return handler._replace(**{kind: counted})
        return handler

    def _answer(self, behaviour: Behaviour, name: str | None, request: Any, context: grpc.ServicerContext) -> Any:
        caller = self._enter(name, context)
        try:
            return behaviour(request, context)
        finally:
            self._leave(caller)

    def _stream(
        self, behaviour: Behaviour, name: str | None, request: Any, context: grpc.ServicerContext
    ) -> Iterator[Any]:
        caller = self._enter(name, context)
        try:
            yield from behaviour(request, context)
        finally:
            self._leave(caller)

    def _enter(self, name: str | None, context: grpc.ServicerContext) -> str:
        """Count a call in and return its caller, or end it with RESOURCE_EXHAUSTED."""
        caller = name or context.peer().rpartition(":")[0]  # without the port: a host may have many connections
        with self._lock:
            count = self._under_way.get(caller, 0)
            if count < self._most:
                self._under_way[caller] = count + 1
                return caller
        context.abort(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"{count} calls of '{caller}' are under way, and [serve] calls_per_caller is {self._most}: try again later",
        )
        raise AssertionError("abort() raises")

    def _leave(self, caller: str) -> None:
        with self._lock:
            count = self._under_way[caller] - 1
            if count:
                self._under_way[caller] = count
            else:
                del self._under_way[caller]
