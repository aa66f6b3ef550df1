"""A server under load as a simulation: cores that are shared, one thread that takes or refuses calls, and workers.

The rules are passed in, and are the server's own or others to compare. What comes waits first, unseen by the rules, for
the one thread that takes calls; that thread and the workers share the cores, and workers beyond the cores get a third.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ranker.serving.port import MAX_UNSEEN

#: seconds of a core: a call's work on average, of gRPC's thread to take it, to finish it, to refuse it
WORK, TAKE, FINISH, REFUSE = 2.5e-3, 3e-5, 1.2e-4, 7e-5
#: share of a contended core of a worker of niceness 5, for one of niceness 0
NICE = 1 / 3


@dataclass(slots=True, eq=False)
class Job:
    """One call."""

    came: float
    work: float  # seconds of a core, of which `left` are to do
    low: bool = False
    left: float = 0.0
    begun: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of the calls that came after the first second."""

    goodput: float  # answers in time a second, over the capacity
    p50: float  # seconds, of the answers
    p99: float
    good: tuple[Job, ...]  # answered in time
    over: tuple[Job, ...]  # refused
    lost: int  # ended by gRPC itself, unseen
    unseen: float  # the longest wait before the rules saw a call, in seconds


def capacity(cores: int = 1) -> float:
    """Calls a second that the cores can answer."""
    return cores / (WORK + TAKE + FINISH)


def simulated(
    rules: Any,
    rate: float,
    deadline: float,
    *,
    cores: int = 1,
    seconds: float = 6.0,
    low: float = 0.0,
    waits: float = 0.0,
    unseen_most: tuple[int, int] = MAX_UNSEEN,
    seed: int = 0,
) -> Outcome:
    """Run `rate` times the capacity through rules as `ranker.serving.admission.Admission`.

    deadline: seconds of each call. low: share of calls of low priority. waits: seconds of each call without a core.
    unseen_most: calls that wait unseen, from which on some and all further ones are lost.
    """
    rng = np.random.default_rng(seed)
    n = int(rate * capacity(cores) * seconds)
    times = np.cumsum(rng.exponential(1 / (rate * capacity(cores)), n))
    shape = 6.0  # the work scatters by 0.4 of its mean
    jobs = [
        Job(float(t), float(w), bool(is_low))
        for t, w, is_low in zip(times, rng.gamma(shape, WORK / shape, n), rng.random(n) < low, strict=True)
    ]
    line: deque[Job] = deque()
    working: list[Job] = []
    good: list[Job] = []
    over: list[Job] = []
    lost: list[Job] = []
    latencies: list[float] = []
    now, taking, unseen, at = 0.0, 0.0, 0.0, 0

    def begin(job: Job) -> None:
        nonlocal taking
        job.left, job.begun = job.work, now
        working.append(job)
        taking += FINISH

    def refuse(late: list[Job]) -> None:
        nonlocal taking
        over.extend(late)
        taking += REFUSE * len(late)

    def leave(job: Job, took: float | None) -> None:
        begun, late = rules.end(took, now)
        refuse(late)
        for one in begun:
            if one.came + deadline - now < WORK:  # as the gate does where less time is left than such calls take
                refuse([one])
                rules.waiting.crowd(now)
                leave(one, None)
            else:
                begin(one)

    while now < seconds and (at < n or working or line):
        busy = [job for job in working if now - job.begun >= waits]
        n_busy = len(busy)
        share = min(1.0, cores / (1 + min(n_busy, cores) + NICE * max(0, n_busy - cores))) if taking > 0 else 0.0
        each = min(1.0, (cores - share) / len(busy)) if busy else 0.0
        step = min(
            [times[at] - now if at < n else 1.0]
            + ([taking / share] if share else [])
            + [job.left / each for job in busy]
            + [job.begun + waits - now for job in working if now - job.begun < waits]
        )
        step = max(float(step), 1e-9)
        now += step
        taking = max(0.0, taking - step * share)
        for job in busy:
            job.left -= step * each
        while at < n and times[at] <= now:
            if rng.random() < (len(line) - unseen_most[0]) / (unseen_most[1] - unseen_most[0]):
                lost.append(jobs[at])
            else:
                line.append(jobs[at])
            at += 1
        for job in [job for job in busy if job.left <= 1e-9]:
            working.remove(job)
            (good if now - job.came <= deadline else []).append(job)
            latencies += [now - job.came] * (job.came > 1)
            leave(job, now - job.begun)
        while line and taking <= 1e-9:
            job = line.popleft()
            unseen = max(unseen, now - job.came)
            taking += TAKE
            begins, late = rules.come(job, now)
            refuse(late)
            if begins:
                begin(job)
    after = [job for job in good if job.came > 1]
    measured = np.array(latencies or [np.nan])
    return Outcome(
        goodput=len(after) / (seconds - 1) / capacity(cores),
        p50=float(np.percentile(measured, 50)),
        p99=float(np.percentile(measured, 99)),
        good=tuple(after),
        over=tuple(job for job in over if job.came > 1),
        lost=sum(job.came > 1 for job in lost),
        unseen=unseen,
    )


def bare(rate: float) -> float:
    """Return the share of the capacity that is left where all above it is refused."""
    return min(1.0, 1 - (rate - 1) * capacity() * (TAKE + REFUSE))


class Gradient2:
    """The limit of Netflix's concurrency-limits, to compare."""

    def __init__(self, most: int, queue: Callable[[float], float] = lambda _: 1.0) -> None:
        self.most, self.queue = most, queue
        self.size, self.long = 1.0, 0.0

    @property
    def limit(self) -> int:
        return int(self.size)

    def took(self, seconds: float, at_work: int) -> None:
        self.long = self.long + 2 / 601 * (seconds - self.long) if self.long else seconds
        if self.long / seconds > 2:
            self.long *= 0.95
        if at_work >= self.size / 2:
            gradient = max(0.5, min(1.0, 1.5 * self.long / seconds))
            new = self.size * gradient + self.queue(self.size)
            self.size = max(1.0, min(self.most, 0.8 * self.size + 0.2 * new))
