"""Which calls are let in: as many at once as pays, a short queue, and cheap refusals.

It is decided on gRPC's own thread, before a message is read, parsed or handed to another thread: a call begins on a
worker's thread, waits, or is over. What is over ends there and then: a refusal costs 1.3 times what gRPC itself takes
to refuse a call (96 against 74 µs of CPU time; 135 from a handler on a thread of a pool). For this, gRPC is told that
a unary method takes a stream of one message, which begins before the message is there, and asks the
`experimental_thread_pool` of a method, not the server's pool, to run it.
"""

import contextlib
import itertools
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError

from features.machine import cores
from features.schema import SECOND
from ranker.request import Check, GivenUpError, GoneError
from ranker.serving.admission import Admission
from ranker.serving.limiter import Limiter, Typical
from ranker.serving.underway import UnderWay
from ranker.serving.unsent import Unsent
from ranker.settings import ServeSettings

log = logging.getLogger(__name__)

#: metadata of a call, with `low` for one that its caller can do without: such calls are refused first
PRIORITY = "pairlift-priority"
#: services that the gate shuts before the server is ready and when it stops; health and metrics answer meanwhile
SHUT = ("/pairlift.v1.RankingService/", "/pairlift.v1.AdminService/")
#: ms after which a refused caller is to ask again, by gRPC's own trailer; several, lest all come back at once
RETRY = tuple((("grpc-retry-pushback-ms", str(ms)),) for ms in (500, 1300, 700, 1100, 900))
#: niceness of workers beyond one for each core: gRPC's own thread must keep up with what comes, or calls queue where
#: none is refused. Not of the others: one that yields to gRPC's thread at each step costs 40 µs a call
NICE = 5
#: part of the longest wait, and seconds at least, after which calls are looked for that wait too long: where no other
#: call comes or ends, nobody else would tell them
SWEEP, SWEEP_LEAST = 0.25, 0.01
#: seconds, and part of its deadline, by which a call may end sooner at its caller than here: the way, and gRPC rounds
SOONER = 0.02
#: seconds that `close` waits for a worker
PATIENCE = 0.1


class Refusal(NamedTuple):
    """Why a call is over."""

    reason: str  # by which it is counted
    code: grpc.StatusCode
    sentence: str


BUSY = Refusal(
    "busy",
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    "as many calls are at work and waiting as can be answered in time: ask again in about a second",
)
LATE = Refusal(
    "late",
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    "the call waited for [serve] max_wait and could not be begun: ask again in about a second",
)
DEADLINE = Refusal(
    "deadline", grpc.StatusCode.DEADLINE_EXCEEDED, "the call was not begun: less time is left than such calls take"
)
GONE = Refusal("gone", grpc.StatusCode.CANCELLED, "the caller gave up while the call waited")
LOADING = Refusal("loading", grpc.StatusCode.UNAVAILABLE, "the server is loading its bundle: ask again in some seconds")
STOPPING = Refusal("stopping", grpc.StatusCode.UNAVAILABLE, "the server is stopping: ask another one")


@dataclass(slots=True, eq=False)
class Call:
    """A call that came to the gate."""

    run: Callable[[], None]  # gRPC's own: reads the message, answers, and tells the caller
    came: float  # when it came, in seconds (monotonic)
    low: bool  # whether its caller can do without it
    refusal: Refusal | None = None  # why it is over; None: it is let in
    answered: bool = False  # whether its time is that of an answer


class Gate(grpc.ServerInterceptor):
    """What every call of our services passes. Shut until `open`."""

    def __init__(self, methods: Iterable[str], settings: ServeSettings, under_way: UnderWay | None = None) -> None:
        """methods: full names (`/package.Service/Method`) of unary methods that are limited; others are only shut.

        under_way: is told of their calls; None: nobody is.
        """
        self._under_way = UnderWay() if under_way is None else under_way
        self.refused: Counter[str] = Counter()  # calls that were not begun, by `Refusal.reason`
        self._shut: Refusal | None = LOADING
        self._typical = {method: Typical() for method in methods}
        self._cores = cores()
        limiter = Limiter(self._cores, settings.workers)
        self._longest = settings.max_wait / SECOND
        self._admission: Admission[Call] = Admission(limiter, self._longest)
        self._closed = threading.Event()
        self._doors: dict[tuple[str, bool], Any] = {}
        self._lock = threading.Lock()
        self._runs: SimpleQueue[Call | None] = SimpleQueue()  # to idle workers
        self._threads: list[threading.Thread] = []
        self._here = threading.local()  # .call: the one that this thread runs
        self._hints = itertools.cycle(RETRY)
        self._unsent = Unsent()

    @property
    def limit(self) -> int:
        """Calls that may be at work at once."""
        return self._admission.limiter.limit

    @property
    def at_work(self) -> int:
        """Calls that have begun and not ended."""
        return self._admission.at_work

    @property
    def waiting(self) -> int:
        """Calls that wait."""
        return len(self._admission.waiting)

    def open(self) -> None:
        """Let calls in."""
        self._shut = None
        threading.Thread(target=self._sweep, name="gate", daemon=True).start()

    def shut(self) -> None:
        """Refuse what comes from now on; what has come is answered."""
        self._shut = STOPPING

    def close(self) -> None:
        """Let the workers end; one that hangs ends with the process."""
        self._closed.set()
        self._unsent.close()
        for _ in self._threads:
            self._runs.put(None)
        for thread in self._threads:
            thread.join(PATIENCE)

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return the way of a call through the gate: gRPC asks on its own thread, before it reads a message."""
        method = handler_call_details.method
        if method not in self._typical:
            handler, shut = continuation(handler_call_details), self._shut
            if handler is None or shut is None or not method.startswith(SHUT):
                return handler
            return _ending(handler, partial(self._end, shut))
        low = any(key == PRIORITY and value == "low" for key, value in handler_call_details.invocation_metadata)
        door = self._doors.get((method, low))
        if door is None:
            door = self._doors[method, low] = self._door(continuation(handler_call_details), method, low)
        return door

    def _door(self, handler: Any, method: str, low: bool) -> Any:
        """Return a handler that hands its calls to the gate in place of a pool."""

        def answer(messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            return self._answered(handler, method, messages, context)

        answer.experimental_thread_pool = _Entrance(self, low)  # type: ignore[attr-defined]
        return grpc.stream_unary_rpc_method_handler(answer, response_serializer=handler.response_serializer)

    def enter(self, call: Call) -> None:
        """Begin a call, let it wait, or end it; and end those for which there is no room any more."""
        shut = self._shut
        if shut is not None:
            self._end_of(call, shut)
            return
        with self._lock:
            begins, over = self._admission.come(call, call.came)
            if begins:
                self._hand_over(call)
        for one in over:
            self._end_of(one, BUSY)

    def _hand_over(self, call: Call) -> None:
        """Give a call to an idle worker. With the lock."""
        if len(self._threads) < self.at_work:
            number = len(self._threads)
            thread = threading.Thread(target=self._work, args=(number,), name=f"call-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._runs.put(call)

    def _work(self, number: int) -> None:
        if number >= self._cores:
            with contextlib.suppress(OSError):  # where the system has no such thing, it runs as any other
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while (handed := self._runs.get()) is not None:
            call: Call | None = handed
            while call is not None:
                begun = time.monotonic()
                self._here.call = call
                try:
                    call.run()
                except BaseException:  # gRPC has caught all else: a SystemExit is not the end of a worker
                    log.exception("a call ended with no answer")
                call = self._next(call, begun)

    def _next(self, call: Call, begun: float) -> Call | None:
        """End a worker's call that was begun at a time (monotonic); return its next one, None where none waits."""
        now = time.monotonic()
        with self._lock:
            if call.refusal is not None:
                self._admission.waiting.crowd(now)
            begin, over = self._admission.end(now - begun if call.answered else None, now)
            for one in begin[1:]:  # the limit has grown
                self._hand_over(one)
        for one in over:
            self._end_of(one, LATE)
        return begin[0] if begin else None

    def _sweep(self) -> None:
        while not self._closed.wait(max(SWEEP * self._longest, SWEEP_LEAST)):
            if self.waiting:
                with self._lock:
                    over = self._admission.waiting.late(time.monotonic())
                for one in over:
                    self._end_of(one, LATE)

    def _end_of(self, call: Call, refusal: Refusal) -> None:
        """End a call that was not begun, on this thread: `_answered` sees the refusal, and reads no message."""
        call.refusal = refusal
        self._here.call = call
        call.run()

    def _answered(self, handler: Any, method: str, messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        """Read the one message of a call and answer it, or end it where it is over."""
        call: Call = self._here.call
        call.refusal = call.refusal or self._hopeless(method, context)
        if call.refusal is not None:
            self._end(call.refusal, context)
        begun = time.monotonic()
        self._under_way.add(context)
        try:
            try:
                message = handler.request_deserializer(self._unsent.first(messages, context))
            except (StopIteration, DecodeError) as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{method}: one message was expected: {error}")
            answer = handler.unary_unary(message, context)
        finally:
            self._under_way.discard(context)
        call.answered = True
        with self._lock:
            self._typical[method].add(time.monotonic() - begun)
        return answer

    def _hopeless(self, method: str, context: grpc.ServicerContext) -> Refusal | None:
        """Return why a call that is about to begin could not end in time."""
        if not context.is_active():
            return GONE
        with self._lock:
            typical = self._typical[method]
            if context.time_remaining() >= typical.seconds:
                return None
            typical.doubt()
        return DEADLINE

    def _end(self, refusal: Refusal, context: grpc.ServicerContext) -> None:
        """End a call: it raises."""
        with self._lock:
            self.refused[refusal.reason] += 1
        if refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            context.set_trailing_metadata(next(self._hints))
        context.abort(refusal.code, refusal.sentence)


class _Entrance(ThreadPoolExecutor):
    """What gRPC takes for the pool of a method: each call goes to the gate."""

    DONE: Future[None] = Future()  # gRPC counts its pool's calls by their futures; the gate counts its own

    def __init__(self, gate: Gate, low: bool) -> None:
        super().__init__(1)  # gRPC asks for a ThreadPoolExecutor; it starts no thread
        self._gate, self._low = gate, low

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Take a call, on gRPC's own thread."""
        self._gate.enter(Call(partial(fn, *args, **kwargs), time.monotonic(), self._low))
        return self.DONE


_Entrance.DONE.set_result(None)


def _ending(handler: Any, end: Callable[[grpc.ServicerContext], None]) -> Any:
    """Return a handler of the same kind that ends every call."""

    def ended(_: Any, context: grpc.ServicerContext) -> Any:
        end(context)

    if handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(ended)
    return grpc.stream_unary_rpc_method_handler(ended)


class Awaited(Check):
    """Whether a call's caller still waits: GoneError once its deadline is over, GivenUpError where it was cancelled.

    A caller whose deadline is over cancels its call, too: a little sooner than the deadline is over here.
    """

    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context, self._left = context, context.time_remaining()
        self.until = time.monotonic() + self._left

    def __call__(self) -> None:
        """GoneError or GivenUpError where nobody waits any more."""
        early = self.until - time.monotonic()
        if early >= 0 and self._context.is_active():
            return
        if early > SOONER + self._left * SOONER:
            raise GivenUpError("the caller gave up")
        raise GoneError("the caller's deadline is over")
