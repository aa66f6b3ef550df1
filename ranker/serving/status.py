"""Which gRPC status an error becomes: the one place that knows, for every call."""

import logging
from collections.abc import Callable
from typing import TypeVar

import grpc

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
