"""Signals as numbers in a file that one can wait for: by a queue that handlers fill, one could be missed.

Python's handlers run on the main thread, between two of its steps: where a signal comes just before the main thread
waits, or to another thread, no handler runs while it waits. The number is written by C at once, on whichever thread.
"""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence

#: by which a server is told to end
TOLD = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def told(numbers: Sequence[signal.Signals]) -> Iterator[int]:
    """Give a file, which does not block, from which the numbers of these signals can be read. On the main thread."""
    reads, writes = os.pipe()
    for handle in (reads, writes):
        os.set_blocking(handle, False)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    old = signal.set_wakeup_fd(writes)
    try:
        yield reads
    finally:
        signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reads)
        os.close(writes)
