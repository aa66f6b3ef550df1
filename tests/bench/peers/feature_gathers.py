"""The serving read: a user and 500 candidates, from ids to a float32 matrix, against a bare NumPy take."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from features.counters.spec import make_counters
from features.ids import IdIndex
from features.rows import FeatureSpec, assemble, make_spec
from features.schema import DAY, Catalog, Requests, empty_log, one_request
from features.settings import CounterSettings
from features.state.store import State

GRADES = ("skip", "listen", "like", "share", "save")
CANDIDATES, COLUMNS, CALLS = 500, 60, 400
USERS, EVENTS_PER_ITEM = 100_000, 3


def declared(key: str, spans: list[str]) -> list[CounterSettings]:
    """Return counters of one key over all of its events and grades."""
    counters = [
        CounterSettings(key=[key], event="impression", spans=["h1d", "h7d", "all"], stats=["count"]),
        CounterSettings(key=[key], event="impression", stats=["since"]),
        CounterSettings(key=[key], event="grade", spans=["h1d", "h7d", "all"], stats=["mean"]),
    ]
    return counters + [
        CounterSettings(key=[key], event=grade, spans=spans, stats=["rate", "count"]) for grade in GRADES[1:]
    ]


def served(items: int) -> tuple[State, FeatureSpec]:
    """Return a state of so many items and 60 columns: 23 counters of the user, 31 of the item, 6 of time and more."""
    rng = np.random.default_rng(0)
    n = items * EVENTS_PER_ITEM
    log = replace(
        empty_log((), n),
        user=rng.integers(0, USERS, n).astype(np.int32),
        item=rng.integers(0, items, n).astype(np.int32),
        ts=np.sort(rng.integers(0, 30 * DAY, n)),
        grade=rng.integers(-1, len(GRADES), n).astype(np.int8),
    )
    catalog = Catalog(user_ids=np.arange(USERS), item_ids=np.arange(items))
    settings = declared("user", ["h7d", "all"]) + declared("item", ["h1d", "h7d", "all"])
    settings += [CounterSettings(key=["user"], event="like", spans=["h3d"], stats=["rate", "count", "sum", "mean"])]
    counters = make_counters(settings, log, catalog, GRADES)
    spec = make_spec(counters, catalog, "Europe/Paris", ["hour", "weekday"])
    if len(spec.columns) != COLUMNS:
        raise SystemExit(f"{COLUMNS} columns were expected, found {len(spec.columns)}")
    return State.build(log, catalog, counters, GRADES), spec


def medians(calls: dict[str, Callable[[Any, int], Any]], ids: dict[str, list[Any]]) -> dict[str, float]:
    """Return the median µs of each call, in turns, so that a busy moment hits all alike.

    Each is given ids of its own, made just before the clock starts, as a request's are when its message is read.
    """
    took: dict[str, list[float]] = {name: [] for name in calls}
    for k in range(CALLS):
        for name, call in calls.items():
            read = ids[name][k]
            given = read.split(" ") if isinstance(read, str) else read.copy()
            begun = time.perf_counter()
            call(given, k)
            took[name].append((time.perf_counter() - begun) * 1e6)
    return {name: statistics.median(t) for name, t in took.items()}


def check(state: State, spec: FeatureSpec, item: np.ndarray) -> None:
    """Two requests at once are read from the timelines: one alone must be equal."""
    as_of = state.end + DAY
    both = Requests(
        user=np.array([5, 6], np.int32), as_of=np.full(2, as_of), surface=np.full(2, -1, np.int16),
        offsets=np.array([0, len(item), len(item)]), item=item,
    )  # fmt: skip
    one = assemble(state, spec, one_request(5, as_of, -1, item))
    np.testing.assert_allclose(one, assemble(state, spec, both), rtol=1e-6, atol=1e-9)


def gathers(items: int) -> dict[str, float]:
    """Return `gather_vs_take`, `gather_text_vs_take` and the µs behind them. Each call has items of its own."""
    state, spec = served(items)
    rng = np.random.default_rng(1)
    floor = rng.random((items, COLUMNS), np.float32)
    integers, texts = IdIndex.of(np.arange(items)), IdIndex.of(np.array([f"item-{k}" for k in range(items)], object))
    gaps = IdIndex.of(np.arange(items) * 3)
    names = ("take", "integer ids", "with gaps", "text ids")
    drawn = {name: [rng.choice(items, CANDIDATES, replace=False) for _ in range(CALLS)] for name in names}
    check(state, spec, drawn["take"][0].astype(np.int32))

    def read(item: np.ndarray, k: int) -> None:
        assemble(state, spec, one_request(k, state.end + k, -1, item))

    t = medians(
        {
            "take": lambda ids, k: floor.take(ids, axis=0),
            "integer ids": lambda ids, k: read(integers.find(ids), k),
            "with gaps": lambda ids, k: read(gaps.find(ids), k),
            "text ids": lambda ids, k: read(texts.find(ids), k),
        },
        drawn
        | {
            "with gaps": [ids * 3 for ids in drawn["with gaps"]],
            "text ids": [" ".join(f"item-{k}" for k in ids.tolist()) for ids in drawn["text ids"]],
        },
    )
    print(f"{CANDIDATES} candidates of {items:,} items, {COLUMNS} values each, median of {CALLS}")
    for name, micros in t.items():
        print(f"  {name:14}{micros:8.1f} µs{micros / t['take']:8.2f} times the take")
    return {
        "gather_vs_take": t["integer ids"] / t["take"],
        "gather_gaps_vs_take": t["with gaps"] / t["take"],
        "gather_text_vs_take": t["text ids"] / t["take"],
        "take_us": t["take"],
        "gather_us": t["integer ids"],
        "gather_text_us": t["text ids"],
    }
