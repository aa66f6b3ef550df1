"""The state that features are read from: counters' timelines, histories and the catalogue, as of a time.

One class for training and serving: training builds it from the log, a server maps the same arrays from a
snapshot. It is immutable; a value as of any time up to `end` can be asked of it.
"""

from dataclasses import dataclass

import numpy as np

from features.counters import Plan, Timeline, key_codes, make_plans
from features.histories import Histories
from features.schema import F32, Catalog, EventLog, Requests
from features.spec import Counter


@dataclass(frozen=True, slots=True)
class State:
    """Everything known of events with `ts < end` (µs UTC). plans and timelines: one for each key."""

    catalog: Catalog
    counters: tuple[Counter, ...]
    plans: tuple[Plan, ...]
    timelines: tuple[Timeline, ...]
    histories: Histories
    end: int

    @classmethod
    def build(cls, log: EventLog, catalog: Catalog, counters: tuple[Counter, ...], grades: tuple[str, ...]) -> "State":
        """Build the state of a whole log."""
        plans = make_plans(counters)
        timelines = tuple(Timeline.build(plan, log, catalog, grades) for plan in plans)
        histories = Histories.build(log, catalog.n_users)
        return cls(catalog, counters, plans, timelines, histories, int(log.ts[-1]) + 1 if len(log) else 0)

    def counter_values(self, requests: Requests) -> F32:
        """Return float32[n, counters]: every counter of every candidate, as of its request's `as_of`."""
        owner = requests.row_request()
        out = np.empty((len(requests.item), len(self.counters)), np.float32)
        for plan, timeline in zip(self.plans, self.timelines, strict=True):
            if set(plan.key) <= {"user", "surface"}:
                # Equal for all candidates of a request: one look-up for each request.
                none = np.full(len(requests), -1, np.int32)
                rows, code, _ = key_codes(plan.key, self.catalog, requests.user, none, requests.surface)
                out[:, plan.counters] = timeline.values(plan, rows, code, requests.as_of)[owner]
            else:
                user, surface = requests.user[owner], requests.surface[owner]
                rows, code, _ = key_codes(plan.key, self.catalog, user, requests.item, surface)
                out[:, plan.counters] = timeline.values(plan, rows, code, requests.as_of[owner])
        return out
