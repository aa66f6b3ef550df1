"""Work that is in no hurry, beside threads that are: it rests between its steps.

A thread of low priority alone would not do: while it holds Python's interpreter lock and does not get the processor,
those of high priority wait for it.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

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
