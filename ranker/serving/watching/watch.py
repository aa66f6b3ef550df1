"""The interceptor that sees every call of ours: it times it, counts its status, and logs what failed or was slow."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from features.errors import brief
from ranker.serving.watching.calls import CURRENT, Call
from ranker.serving.watching.meters import Meters

log = logging.getLogger(__name__)

#: methods of ours; health and reflection are not counted
OURS = "/pairlift.v1."
#: seconds from which a call that was answered is worth a line
SLOW = 0.5
#: lines a second about calls of one method and status
LINES = 5
#: what a caller may do without being told of in the log
USUAL = {"OK", "CANCELLED"}


class Watch(grpc.ServerInterceptor):
    """Wraps each method of ours; the innermost interceptor: what others refuse they count."""

    def __init__(self, meters: Meters, ended: Callable[[Call, str, int], None] | None = None) -> None:
        """ended: also called with every call that has ended, its status and its nanoseconds (traces)."""
        self._meters, self._ended = meters, ended
        self._sparing = Sparing(LINES)

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """Return the handler of a call, watched."""
        handler = continuation(details)
        if handler is None or not details.method.startswith(OURS):
            return handler
        method = details.method.rpartition("/")[2]
        if handler.response_streaming:
            name, behaviour = ("stream_stream", "unary_stream")[not handler.request_streaming], None
            behaviour = getattr(handler, name)
            return handler._replace(
                **{name: lambda request, context: self._stream(behaviour, method, request, context)}
            )
        unary = handler.unary_unary
        return handler._replace(unary_unary=lambda request, context: self._unary(unary, method, request, context))

    def _unary(self, behaviour: Any, method: str, request: Any, context: Any) -> Any:
        call = _begun(method, context)
        call.request_id = brief(getattr(request, "request_id", "")) or call.request_id
        token = CURRENT.set(call)
        try:
            return behaviour(request, context)
        finally:
            self._end(call, context)
            CURRENT.reset(token)

    def _stream(self, behaviour: Any, method: str, requests: Any, context: Any) -> Iterator[Any]:
        # The generator may be advanced by different threads: the variable is set anew for each step.
        call, answers = _begun(method, context), None
        try:
            token = CURRENT.set(call)
            try:
                answers = iter(behaviour(requests, context))
            finally:
                CURRENT.reset(token)
            while True:
                token = CURRENT.set(call)
                try:
                    answer = next(answers, None)
                finally:
                    CURRENT.reset(token)
                if answer is None:
                    return
                yield answer
        finally:
            token = CURRENT.set(call)
            self._end(call, context)
            CURRENT.reset(token)

    def _end(self, call: Call, context: Any) -> None:
        took = time.perf_counter_ns() - call.began
        code = _code(context)
        self._meters.called(call, code, took * 1e-9)
        if self._ended is not None:
            self._ended(call, code, took)
        unary = call.method != "RecordEvents"  # a stream is open for as long as its caller likes
        if (code not in USUAL or (unary and took * 1e-9 > SLOW)) and self._sparing.may((call.method, code)):
            why = context.details()
            why = why.decode(errors="replace") if isinstance(why, bytes) else why or ""
            said = f": {brief(why)}" if why else ""
            log.info("%s ended with %s after %.1f ms%s", call.method, code, took * 1e-6, said, extra={"code": code})


def _begun(method: str, context: Any) -> Call:
    call = Call(method)
    for key, value in context.invocation_metadata():
        if key == "x-request-id":
            call.request_id = brief(value) if isinstance(value, str) else ""
        elif key == "traceparent":
            call.traceparent = brief(value) if isinstance(value, str) else ""
    return call


def _code(context: Any) -> str:
    """Return the name of the status with which a call ends."""
    code = context.code()
    if code is None:
        return "OK" if context.is_active() else "CANCELLED"
    return code.name if isinstance(code, grpc.StatusCode) else str(code)


class Sparing:
    """Says whether there may be another line about something: so many a second for each."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._second = 0
        self._lines: dict[Any, int] = {}

    def may(self, key: Any) -> bool:
        """Count a line about `key`, and tell whether it is to be written."""
        second = int(time.monotonic())
        with self._lock:
            if second != self._second:
                self._second, self._lines = second, {}
            self._lines[key] = self._lines.get(key, 0) + 1
            return self._lines[key] <= self._most
