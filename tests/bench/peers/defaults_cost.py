"""What default features cost: memory of the state at 10 million events, and time of a request of 500 candidates.

The log is generated: items fall in popularity like 1 / rank, users like 1 / rank ** 0.6; an item has a category of 50
and an author of a tenth as many as there are items.
"""

import statistics
import time
from typing import NamedTuple

import numpy as np
from defaults_study import Family

from features.counters.spec import make_counters
from features.rows import assemble, make_spec
from features.schema import DAY, GIB, I32, SECOND, Attribute, Catalog, EventLog, empty_log, one_request
from features.state.read import make_tables
from features.state.store import State
from ranker.recording.memory import plan_memory

GRADES = ("skip", "click", "like")
SPAN, START = 60 * DAY, 1_700_000_000 * SECOND
#: events of the log that is reported, candidates of a request, requests that are timed
FULL, CANDIDATES, TIMED = 10_000_000, 500, 200


class Cost(NamedTuple):
    """Of all columns together."""

    gib: float  # of the state, at FULL events
    us: float  # to assemble the rows of a request of CANDIDATES, the median


def make_log(events: int, seed: int = 0) -> tuple[EventLog, Catalog]:
    """Return a log over 60 days and its catalogue; users and items grow with the events."""
    rng = np.random.default_rng(seed)
    users, items = max(events // 20, 100), max(events // 100, 2000)
    log = EventLog(
        **{name: getattr(empty_log((), events), name) for name in ("organic", "request", "pairable", "feedback")},
        user=drawn(rng, users, events, 0.6),
        item=drawn(rng, items, events, 1.0),
        ts=np.sort(rng.integers(0, SPAN, events)) + START,
        grade=rng.choice(np.array([-1, 0, 1, 2], np.int8), events, p=[0.1, 0.6, 0.2, 0.1]),
        surface=rng.integers(-1, 3, events).astype(np.int16),
        feedback_names=(),
    )
    attributes = tuple(
        Attribute(
            name, "categorical", codes=rng.integers(0, n, items).astype(np.int32), values=tuple(map(str, range(n)))
        )
        for name, n in (("category", 50), ("author", items // 10 + 1001))
    )
    catalog = Catalog(
        user_ids=np.arange(users), item_ids=np.arange(items), surfaces=("a", "b", "c"), item_attributes=attributes
    )
    return log, catalog


def drawn(rng: np.random.Generator, n: int, size: int, power: float) -> I32:
    """Return int32[size] draws of n things, whose chances fall like 1 / rank ** power."""
    chance = np.cumsum(1 / np.arange(1, n + 1) ** power)
    found = np.searchsorted(chance, rng.random(size) * chance[-1])
    return rng.permutation(n).astype(np.int32)[np.minimum(found, n - 1)]


def cost_of(family: Family, log: EventLog, catalog: Catalog) -> Cost:
    """Return what the columns of a family cost on a log; memory is scaled to FULL events."""
    counters = make_counters(family.counters, log, catalog, GRADES)
    spec = make_spec(counters, catalog, "UTC", family.columns)
    state = State.build(log, catalog, counters, GRADES)
    make_tables(state)
    rng = np.random.default_rng(1)
    requests = [
        one_request(int(user), state.end + DAY, 0, rng.choice(catalog.n_items, CANDIDATES, replace=False))
        for user in rng.integers(0, catalog.n_users, TIMED)
    ]
    took = []
    for request in [*requests[:20], *requests]:
        begun = time.perf_counter()
        assemble(state, spec, request)
        took.append(time.perf_counter() - begun)
    gib = plan_memory(state, 0).now / GIB * FULL / len(log)
    return Cost(gib, 1e6 * statistics.median(took[20:]))
