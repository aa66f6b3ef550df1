"""Which gRPC status an error becomes: the one place that knows, for every call."""

import logging
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from features.log.tail import LogError
from features.log.writer import FULL
from ranker.recording.follower import LimitError
from ranker.request import GivenUpError, GoneError, RequestError
from ranker.serving.underway import UnderWay
from ranker.serving.unsent import Unsent

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
        given_up = isinstance(error, GivenUpError)
        return grpc.StatusCode.CANCELLED if given_up else grpc.StatusCode.DEADLINE_EXCEEDED, str(error)
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

    The message of a unary method is waited for as the gate does, so that one that never comes holds no thread for long.
    The gate reads the messages of its own methods; here are those of all others.
    """

    def __init__(self, under_way: UnderWay) -> None:
        """under_way: is told of the calls."""
        self._unsent, self._under_way = Unsent(), under_way

    def close(self) -> None:
        """Let the thread end."""
        self._unsent.close()

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return the handler of a call, which looks whether the message was read."""
        handler = continuation(handler_call_details)
        return handler if handler is None or handler.request_deserializer is None else self._reading(handler)

    def _reading(self, handler: Any) -> Any:
        kind = "stream" if handler.response_streaming else "unary"
        behaviour = getattr(handler, f"{'stream' if handler.request_streaming else 'unary'}_{kind}")

        def read(data: bytes) -> Any:
            try:
                return handler.request_deserializer(data)
            except DecodeError as error:
                return error

        @wraps(behaviour)  # with the pool of threads that it asks for
        def answer(asked: Any, context: grpc.ServicerContext, *send: Any) -> Any:  # send: by which Health.Watch answers
            self._under_way.add(context)
            if not context.add_callback(partial(self._under_way.discard, context)):
                self._under_way.discard(context)  # it has ended by now
            messages = (_read(message, context) for message in asked)
            return behaviour(messages if handler.request_streaming else self._one(messages, context), context, *send)

        ways = {f"unary_{kind}": None, f"stream_{kind}": answer}
        return handler._replace(request_streaming=True, request_deserializer=read, **ways)

    def _one(self, messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
        try:
            return self._unsent.first(messages, context)
        except StopIteration:
            pass
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "one message was expected, found none")
        raise AssertionError("abort() raises")


def _read(message: Any, context: grpc.ServicerContext) -> Any:
    if isinstance(message, DecodeError):
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"a message of the method was expected: {message}")
    return message
