"""How much of the server one caller may have: a server interceptor behind the gate, and behind the rights."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc

from ranker.serving.callers.rights import right_of, token_in
from ranker.serving.callers.tokens import Tokens

#: a handler as gRPC has it: of a message, or an iterator of them, and a context
Behaviour = Callable[[Any, grpc.ServicerContext], Any]


class Callers(grpc.ServerInterceptor):
    """How many calls each caller has at work. A caller is the name of a token, else a host with all its connections."""

    def __init__(self, most: int, tokens: Tokens | None) -> None:
        """most: calls of one caller at a time, open streams among them."""
        self._most, self._tokens = most, tokens
        self._at_work: dict[str, int] = {}
        self._lock = threading.Lock()

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return a handler that refuses what is over the limit, and is counted while it runs."""
        handler = continuation(handler_call_details)
        if handler is None or right_of(handler_call_details.method) is None:
            return handler
        streams = handler.response_streaming
        kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if streams else 'unary'}"
        counted = partial(self._stream if streams else self._answer, getattr(handler, kind))
        return handler._replace(**{kind: counted})

    def _answer(self, behaviour: Behaviour, request: Any, context: grpc.ServicerContext) -> Any:
        caller = self._enter(context)
        try:
            return behaviour(request, context)
        finally:
            self._leave(caller)

    def _stream(self, behaviour: Behaviour, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        caller = self._enter(context)
        try:
            yield from behaviour(request, context)
        finally:
            self._leave(caller)

    def _enter(self, context: grpc.ServicerContext) -> str:
        """Count a call in and return its caller, or end it with RESOURCE_EXHAUSTED."""
        caller = self._caller(context)
        with self._lock:
            count = self._at_work.get(caller, 0)
            if count < self._most:
                self._at_work[caller] = count + 1
                return caller
        context.abort(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"{count} calls of '{caller}' are at work, and [serve] calls_per_caller is {self._most}: try again later",
        )
        raise AssertionError("abort() raises")

    def _caller(self, context: grpc.ServicerContext) -> str:
        token = None if self._tokens is None else token_in(context.invocation_metadata())
        grant = None if self._tokens is None or token is None else self._tokens.find(token)
        # A host without its port: it may have many connections.
        return str(context.peer()).rpartition(":")[0] if grant is None else grant.name

    def _leave(self, caller: str) -> None:
        with self._lock:
            count = self._at_work[caller] - 1
            if count:
                self._at_work[caller] = count
            else:
                del self._at_work[caller]
