"""Which gRPC status an error becomes: the one place that knows, for every call."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from features.log.tail import LogError
from features.log.writer import FULL
from ranker.recording.follower import LimitError
from ranker.request import GoneError, RequestError

log = logging.getLogger(__name__)
T = TypeVar("T")

INTERNAL = "the server failed on this request; its log has the traceback"


def status_of(error: Exception, *, writes: bool = False) -> tuple[grpc.StatusCode, str]:
    """Return the code, and a sentence for the caller; INTERNAL: the fault is ours.

    writes: whether the call is one that writes to the disk, so that an OSError is the disk's.
    """
    if isinstance(error, RequestError):
        return grpc.StatusCode.INVALID_ARGUMENT, str(error)
    if isinstance(error, GoneError):
        return grpc.StatusCode.DEADLINE_EXCEEDED, str(error)
    if isinstance(error, LimitError) or (isinstance(error, LogError) and error.full):
        return grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
    if isinstance(error, LogError):
        return grpc.StatusCode.UNAVAILABLE, str(error)
    if writes and isinstance(error, OSError):
        codes = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED
        return codes[error.errno in FULL], f"the disk refused: {error}"
    return grpc.StatusCode.INTERNAL, INTERNAL


def finished(context: grpc.ServicerContext, call: Callable[[], T], place: str = "", *, writes: bool = False) -> T:
    """Return what a call returns, or end the gRPC call with the status of its error and a sentence about `place`.

    The traceback of an error that becomes INTERNAL is logged. writes: see `status_of`.
    """
    try:
        return call()
    except Exception as error:
        code, sentence = status_of(error, writes=writes)
        if code is grpc.StatusCode.INTERNAL:
            log.exception("a call failed")
    context.abort(code, place + sentence)
    raise AssertionError("abort() raises")


class Decoding(grpc.ServerInterceptor):
    """Ends a call with INVALID_ARGUMENT where its message is none of its method's; gRPC by itself says INTERNAL.

    The gate reads the messages of its own methods; here are those of all others.
    """

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
    def answer(asked: Any, context: grpc.ServicerContext, *send: Any) -> Any:  # send: by which Health.Watch answers
        if handler.request_streaming:
            return behaviour((_read(message, context) for message in asked), context, *send)
        return behaviour(_read(asked, context), context, *send)

    return handler._replace(request_deserializer=read, **{name: answer})


def _read(message: Any, context: grpc.ServicerContext) -> Any:
    if isinstance(message, DecodeError):
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"a message of the method was expected: {message}")
    return message
