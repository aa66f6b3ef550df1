"""Work that is in no hurry, beside threads that are: it rests between its steps.

A thread of low priority alone would not do: while it holds Python's interpreter lock and does not get the processor,
those of high priority wait for it.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

#: priority of such work: the nice value of its thread
NICE = 10
#: seconds of rest for each second of work
REST = 3.0
#: seconds of work before a rest
STEP = 0.001


class _Here(threading.local):
    since: float | None = None  # this thread's CPU time at its last rest; None: it is in a hurry


_here = _Here()


@contextmanager
def unhurried() -> Iterator[None]:
    """Let this thread rest at each `breathe` until the block ends."""
    _here.since = time.thread_time()
    try:
        yield
    finally:
        _here.since = None


def breathe() -> None:
    """Rest where this thread is unhurried, three times as long as it worked; long work calls this again and again."""
    if _here.since is None:
        return
    worked = time.thread_time() - _here.since
    if worked >= STEP:
        time.sleep(worked * REST)
        _here.since = time.thread_time()


def lower_priority() -> None:
    """Give this thread the priority of such work, for good."""
    with contextlib.suppress(OSError):  # where the system has no such thing, it runs as any other
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def at_low_priority(work: Callable[[], T]) -> T:
    """Return what work gives, done unhurried on a thread of low priority. It starts none: they would be so too."""
    done: Future[T] = Future()

    def call() -> None:
        lower_priority()
        try:
            with unhurried():
                done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=call, name="unhurried", daemon=True).start()
    return done.result()
