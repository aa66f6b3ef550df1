"""What the sections of `make bench WHAT=serving` share: the traffic, the cores, the servers, and what was found."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pairlift.v1 import ranking_pb2 as pb
from serving_load import Outcome, drive, poisson
from serving_process import Process, pairlift
from serving_traffic import RANK, RECOMMEND, Traffic

from features.schema import F64

#: a run in which the generator sent so many ms too late (99th percentile) says nothing: it is made again, once
MOST_LAG = 5.0
NAMES = {RANK: "rank", RECOMMEND: "recommend"}
REPLIES: dict[str, Any] = {RANK: pb.RankResponse, RECOMMEND: pb.RecommendResponse}

Result = dict[str, Any]


@dataclass
class Bench:
    """What all sections need, and what those before have found."""

    folder: Path  # of `serving_world.py`
    traffic: Traffic
    candidates: int
    length: float  # of the runs; 1 is what the figures are of
    server: set[int]  # its cores
    generator: set[int]
    found: dict[str, Result] = field(default_factory=dict)  # by section
    seed: int = 0  # of the latest arrival times
    late: int = 0  # runs of this section in which the generator did not keep up, though they were made again

    @property
    def everywhere(self) -> set[int]:
        """All cores that either has."""
        return self.server | self.generator

    def due(self, rate: float, seconds: float) -> F64:
        """Return arrival times, other ones each time."""
        self.seed += 1
        return poisson(rate, seconds * self.length, self.seed)

    def pairlift(self, *options: str, bundle: Path | None = None) -> AbstractContextManager[Process]:
        """Start a server of the bundle."""
        return pairlift(bundle or self.folder / "bundle", self.server, *options, log=self.folder / "server.log")

    def warmed(self, server: Process) -> Process:
        """Ask a new server a little of everything."""
        for method in NAMES:
            drive(server.address, self.traffic.calls(method, self.due(50, 1.0)))
        return server

    def ask(
        self,
        server: Process,
        method: str,
        due: F64,
        *,
        cached: bool = False,
        deadline: float | None = None,
        until: Callable[[], bool] | None = None,
    ) -> Outcome:
        """Make the calls, of other users where the generator was late and they are made again."""
        for _ in range(2):
            calls = self.traffic.calls(method, due, cached=cached, deadline=deadline)
            outcome = drive(server.address, calls, until)
            if until is not None or outcome.lag_ms <= MOST_LAG:
                return outcome
        self.late += 1
        return outcome

    def degraded(self, outcome: Outcome, method: str) -> float:
        """Return the share of the kept answers that are degraded; those of Rank have as many items as they should."""
        answers = [REPLIES[method].FromString(body) for body in outcome.bodies]
        for answer in answers:
            if method == RANK and len(answer.scores) != self.candidates:
                raise SystemExit(f"answers of {self.candidates} items were expected, found {len(answer.scores)}")
        return float(np.mean([bool(answer.degraded) for answer in answers])) if answers else 0.0


def say(text: str) -> None:
    """Print a line at once."""
    print(f"  {text}", flush=True)
