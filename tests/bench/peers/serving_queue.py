"""What measured latencies are compared with, and the search for the highest rate that a server bears."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from serving_load import percentile

from features.schema import F64

#: a search ends where a rate that holds and one that does not lie so close
CLOSE = 1.04
#: what a search goes up or down by, until it has one of each
STEP = 1.25


def fifo(due: F64, service: float, cores: int) -> F64:
    """Return float64[n] seconds from arrival to end in a first-in-first-out queue before so many equal cores.

    due: float64[n] arrival times, never decreasing. service: seconds that each takes. Each is begun, in the order of
    arrival, on the core that is free first.
    """
    free, took = [0.0] * cores, np.empty(len(due))
    for k, at in enumerate(due.tolist()):
        end = max(at, heapq.heappop(free)) + service
        heapq.heappush(free, end)
        took[k] = end - at
    return took


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a search found."""

    rate: float  # the highest that held, a second
    p99_ms: float  # at that rate
    tried: tuple[tuple[float, float], ...]  # (rate, 99th percentile in ms) of each probe


def capacity(p99_ms: Callable[[float], float], most_ms: float, guess: float) -> Capacity:
    """Return the highest rate at which the 99th percentile is at most so many ms.

    p99_ms: measures it at a rate; inf where more than 1 % had no answer. guess: where to begin. From there up or down
    by STEP to a rate that holds and one that does not, then by halves of their ratio, until it is CLOSE.
    """
    tried: list[tuple[float, float]] = []

    def holds(rate: float) -> bool:
        tried.append((rate, p99_ms(rate)))
        return tried[-1][1] <= most_ms

    low = high = guess
    if holds(guess):
        while holds(high := high * STEP):
            low = high
    else:
        while not holds(low := low / STEP):
            high = low
            if low < guess / 100:
                raise SystemExit(
                    f"not even {low:.1f} requests/s are answered within {most_ms} ms at the 99th percentile"
                )
    while high / low > CLOSE:
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if holds(middle) else (low, middle)
    return Capacity(low, dict(tried)[low], tuple(tried))


def refused_ceiling(offered: float, capacity_rate: float, refusal: float, cores: int) -> float:
    """Return how many a second could be answered beside bare refusals of all others.

    offered, capacity_rate: a second. refusal: seconds of CPU time of one refusal. An answer costs what it costs at
    capacity, cores / capacity_rate, so  answers · cores / capacity_rate + (offered - answers) · refusal = cores.
    """
    answer = cores / capacity_rate
    return float(np.clip((cores - offered * refusal) / (answer - refusal), 0.0, capacity_rate))


def recovery(due: F64, latency_ms: F64, end: float, within_ms: float, step: float = 0.1) -> float:
    """Return the seconds after `end` from which on the 99th percentile is within so many ms; inf where it never is.

    due, latency_ms: float64[n] of calls that go on after `end`; inf without an answer.
    """
    last = float(due.max(initial=end))
    for start in np.arange(end, last, step):
        if percentile(latency_ms[due >= start], 99) <= within_ms:
            return float(start - end)
    return float("inf")
