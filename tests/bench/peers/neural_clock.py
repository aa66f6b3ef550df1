"""What parts of the neural benchmark share: CPU time in turns."""

import statistics
import time
from collections.abc import Callable


def cpu_seconds(call: Callable[[], object]) -> float:
    """Return the CPU time of the process over a call."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


def in_turns(calls: dict[str, Callable[[], object]], rounds: int, each: int = 1) -> dict[str, list[float]]:
    """Return the CPU seconds of one call, of each round: the calls take turns, so that all meet the same machine.

    each: how often a call is made in its turn. One turn that is not counted comes before.
    """
    took: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            seconds = cpu_seconds(lambda call=call: [call() for _ in range(each)]) / each  # type: ignore[misc]
            if turn:
                took[name].append(seconds)
    return took


def ratio(took: dict[str, list[float]], above: str, below: str) -> float:
    """Return the median over the rounds of one call's time over another's."""
    return statistics.median(a / b for a, b in zip(took[above], took[below], strict=True))
