"""Orders that learn nothing, for a ranker to be compared with: by popularity, and by freshness."""

import numpy as np

from features.counters.spec import Counter, Span
from features.pairing.groups import Groups
from features.schema import F64, EventLog
from features.state.read import counter_values
from features.state.store import State


def events_before(log: EventLog, state: State, groups: Groups, key: tuple[str, ...] = ("item",)) -> F64:
    """Return float64[n]: how many events of each candidate's key (`counters.keys`) came before its group's as_of.

    state: of that log, for its catalogue and histories.
    """
    return _counted(log, state, groups, Counter(key, "impression", Span("all", 0), "count"))


def freshness(log: EventLog, state: State, groups: Groups) -> F64:
    """Return float64[n]: minus the seconds since each candidate's last event before as_of; NaN without one."""
    return -_counted(log, state, groups, Counter(("item",), "impression", Span("all", 0), "since"))


def _counted(log: EventLog, state: State, groups: Groups, counter: Counter) -> F64:
    alone = State.build(log, state.catalog, (counter,), (), state.histories)  # impressions are of no grade
    return counter_values(alone, groups.requests)[:, 0].astype(np.float64)
