"""How many calls are at work at once: as many as give more answers, found by measuring.

By Little's law n calls at once that take L seconds each give n / L answers a second, so the times of calls tell what
one more at once brings. The limiter climbs along that gradient: up where more at once gives clearly more answers, down
where fewer give as many. A call's time counts from where its work begins: waiting is no part of it.

Why not the gradient of Netflix's concurrency-limits (Gradient2: the limit falls where a call's time is over 1.5 times
the mean of 600 calls, and else grows by the length of a queue): that mean follows an overload within seconds, and the
limit grows to its maximum. Where limits are hundreds, this costs some latency. Where they are one to four, as for a
process of Python, eight calls at work leave gRPC's own thread little of a core: calls pile up before anyone can refuse
them, and every answer is late by that (tests/test_ranker_serving_gate.py simulates both).
"""

#: numbers of calls at once that are compared; a step further makes a difference that can be measured
LEVELS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
#: calls of which a mean is taken: their times scatter by half of it, so their mean by some 6 %
ROUND = 64
#: part of what one level more could give at best that it must give
GAIN = 0.25
#: rounds after which the answers a second of a level are measured anew
FORGET = 60


class Limiter:
    """Says how many calls may be at work at once. Not safe for several threads: its gate has a lock."""

    def __init__(self, start: int, most: int) -> None:
        """start: the number until something is measured. most: the greatest one."""
        self._levels = sorted({*(level for level in LEVELS if level < most), most})
        self._at = sum(level <= start for level in self._levels) - 1
        self._rates: dict[int, tuple[float, int]] = {}  # of a level's place: (answers a second, the round it is of)
        self._round, self._calls, self._seconds = 0, 0, 0.0

    @property
    def limit(self) -> int:
        """How many calls may be at work at once."""
        return self._levels[self._at]

    def took(self, seconds: float, at_work: int) -> None:
        """Take the time of a call that has ended. at_work: calls then, with it: the limit shows only where it binds."""
        if at_work < self.limit:
            return
        self._calls += 1
        self._seconds += seconds
        if self._calls == ROUND:
            self._learn(self.limit * ROUND / max(self._seconds, 1e-9))
            self._climb()

    def _learn(self, rate: float) -> None:
        """Take the answers a second of this level, and forget those of long ago."""
        old = self._rates.get(self._at)
        self._round, self._calls, self._seconds = self._round + 1, 0, 0.0
        self._rates[self._at] = (rate if old is None else (rate + old[0]) / 2, self._round)
        self._rates = {at: (r, of) for at, (r, of) in self._rates.items() if self._round - of < FORGET}

    def _climb(self) -> None:
        """Take a step: up where that is known to pay, down where the last step up does not, else to what is unknown."""
        at = self._at
        if at + 1 in self._rates:
            if self._pays(at):
                self._at += 1
                return
        elif at + 1 < len(self._levels) and (at == 0 or self._known_to_pay(at - 1)):
            self._at += 1
            return
        if at > 0 and not self._known_to_pay(at - 1):
            self._at -= 1

    def _known_to_pay(self, at: int) -> bool:
        return at in self._rates and self._pays(at)

    def _pays(self, at: int) -> bool:
        """Whether the level above gives clearly more answers than this one; both are known."""
        most = self._levels[at + 1] / self._levels[at]
        return self._rates[at + 1][0] >= self._rates[at][0] * (1 + GAIN * (most - 1))


class Typical:
    """The median of recent times in seconds, followed in steps of 5 %: a single slow call moves it by one step."""

    STEP = 1.05

    def __init__(self) -> None:
        self.seconds = 0.0  # until there is one, nothing is refused for it

    def add(self, seconds: float) -> None:
        """Take a time."""
        if not self.seconds:
            self.seconds = seconds
        else:
            self.seconds *= self.STEP if seconds > self.seconds else 1 / self.STEP

    def doubt(self) -> None:
        """Lower it by a step: a call was refused for it, and if it is wrong, soon one is not and shows it."""
        self.seconds /= self.STEP
