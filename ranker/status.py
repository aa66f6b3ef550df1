"""Which gRPC status an error of recording becomes."""

import logging
from collections.abc import Callable
from typing import TypeVar

import grpc

from features.log.tail import LogError
from ranker.recording.recorder import LimitError
from ranker.request import RequestError

log = logging.getLogger(__name__)
T = TypeVar("T")

INTERNAL = "the server failed on this request; its log has the traceback"


def finished(context: grpc.ServicerContext, call: Callable[[], T], place: str = "") -> T:
    """Return what a call of the recorder returns, or end the gRPC call with a status and a sentence about `place`."""
    try:
        return call()
    except RequestError as error:
        code, sentence = grpc.StatusCode.INVALID_ARGUMENT, str(error)
    except LimitError as error:
        code, sentence = grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
    except LogError as error:
        full = grpc.StatusCode.RESOURCE_EXHAUSTED
        code, sentence = full if error.full else grpc.StatusCode.UNAVAILABLE, str(error)
    except OSError as error:
        code, sentence = grpc.StatusCode.UNAVAILABLE, f"the disk refused: {error}"
    except Exception:
        log.exception("a call to record failed")
        code, sentence = grpc.StatusCode.INTERNAL, INTERNAL
    context.abort(code, place + sentence)
    raise AssertionError("abort() raises")
