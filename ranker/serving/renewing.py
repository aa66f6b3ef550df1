"""When the sources of a server that records count what they propose anew (`Pipeline.refresh`)."""

import time
from collections.abc import Callable, Iterable

from features.schema import SECOND
from ranker.pipeline import Pipeline

#: seconds of the machine, or of recorded events' own time, after which sources count anew
EVERY = 30.0
#: seconds between two looks at how far the recorded events are
LOOK_EVERY = 0.2
#: after counting it rests for so many times what that took: events that are replayed fast take a tenth of a core
RESTS = 9


class Renewing:
    """Has sources count anew, when it is due. `look` is for one thread.

    Recorded events have times of their own: a replay, a backfill or a simulation passes through a day of them in
    seconds, in which a period of the machine alone would leave the sources as they were before that day.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: gives seconds, never less than before."""
        self._clock = clock
        self._rested = self._begun = clock()  # when it may count again; when it last counted for all

    def look(self, pipelines: Iterable[Pipeline]) -> None:
        """Refresh all pipelines where EVERY has passed, else those whose state went on by it; none while it rests."""
        now = self._clock()
        if now < self._rested:
            return
        every = now - self._begun >= EVERY
        self._begun = now if every else self._begun
        due = [one for one in pipelines if every or one.state.end - one.counted_to >= EVERY * SECOND]
        for pipeline in due:
            pipeline.refresh()
        if due:
            done = self._clock()
            self._rested = done + RESTS * (done - now)
