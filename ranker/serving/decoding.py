"""Messages that cannot be read: the caller must change them, and gRPC by itself says INTERNAL, as of a fault of ours.

The gate reads the messages of its own methods; here are those of all others.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import grpc
from google.protobuf.message import DecodeError


class Decoding(grpc.ServerInterceptor):
    """Ends a call with INVALID_ARGUMENT where its message is none of its method's."""

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return the handler of a call, which looks whether the message was read."""
        handler = continuation(handler_call_details)
        return handler if handler is None or handler.request_deserializer is None else _reading(handler)


def _reading(handler: Any) -> Any:
    kinds = ("stream" if streams else "unary" for streams in (handler.request_streaming, handler.response_streaming))
    name = "_".join(kinds)
    behaviour = getattr(handler, name)

    def read(data: bytes) -> Any:
        try:
            return handler.request_deserializer(data)
        except DecodeError as error:
            return error

    @wraps(behaviour)  # with the pool of threads that it asks for
    def answer(asked: Any, context: grpc.ServicerContext) -> Any:
        if handler.request_streaming:
            return behaviour((_read(message, context) for message in asked), context)
        return behaviour(_read(asked, context), context)

    return handler._replace(request_deserializer=read, **{name: answer})


def _read(message: Any, context: grpc.ServicerContext) -> Any:
    if isinstance(message, DecodeError):
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"a message of the method was expected: {message}")
    return message
