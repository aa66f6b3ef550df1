"""Fits of boosters side by side: a fit on few rows cannot use a second core, but two fits can."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

from features.machine import cores

T = TypeVar("T")

#: the most fits at a time: each has rows of its own in memory
MOST = 4


class _Here(threading.local):
    over: threading.Event | None = None  # of one of several fits: set once nobody waits for it any more


class OverError(BaseException):
    """Nobody waits for this fit any more."""


_here = _Here()


def in_lane() -> bool:
    """Return whether this thread's fit is one of several."""
    return _here.over is not None


def end_if_over() -> None:
    """Raise OverError where another fit has failed or the run was interrupted: what a long fit calls now and then."""
    if _here.over is not None and _here.over.is_set():
        raise OverError


def abreast(fits: Sequence[Callable[[], T]]) -> Iterator[T]:
    """Run the fits, at most `MOST` and as many as there are cores at a time; yield their results in their order.

    LightGBM (`deterministic`) and the objective give the same bits on however many threads. What a fit raises, or a
    Ctrl-C, is raised here once those that run have ended, at their next `end_if_over`; those that have not begun are
    left out.
    """
    available = cores()
    lanes = min(MOST, available, len(fits))
    if lanes < 2:
        yield from (fit() for fit in fits)
        return

    over = threading.Event()

    def start() -> None:
        _here.over = over
        threadpool_limits(max(available // lanes, 1), user_api="openmp")  # of this thread alone, until it ends

    with ThreadPoolExecutor(lanes, initializer=start) as pool:
        begun = [pool.submit(fit) for fit in fits]
        try:
            yield from (fit.result() for fit in begun)
        finally:
            over.set()
            for fit in begun:
                fit.cancel()
