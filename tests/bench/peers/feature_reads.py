"""The serving read of 50 values of 500 items, against Feast's online read of the same values."""

import json
import statistics
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from last_line import last_line

from features.counters.spec import make_counters
from features.ids import IdIndex
from features.rows import FeatureSpec, assemble, make_spec
from features.schema import DAY, F32, SECOND, Catalog, empty_log, one_request
from features.settings import CounterSettings
from features.state.store import State

HERE = Path(__file__).parent
#: Feast has an environment of its own: its pins clash with ours
PYTHON = HERE.parents[2] / ".venv-bench" / "bin" / "python"
GRADES = ("skip", "listen", "like", "share", "save")
SPANS = ["h1d", "h3d", "h7d", "h28d", "all"]
CANDIDATES, COLUMNS, CALLS = 500, 50, 400
START = 1_700_000_000 * SECOND


def served(items: int) -> tuple[State, FeatureSpec]:
    """Return a state of so many items, three events each, and 50 counters of an item."""
    rng = np.random.default_rng(0)
    n = 3 * items
    log = replace(
        empty_log((), n),
        user=rng.integers(0, 1000, n).astype(np.int32),
        item=rng.integers(0, items, n).astype(np.int32),
        ts=START + np.sort(rng.integers(0, 30 * DAY, n)),
        grade=rng.integers(-1, len(GRADES), n).astype(np.int8),
    )
    catalog = Catalog(user_ids=np.arange(1000), item_ids=np.arange(items))
    settings = [
        CounterSettings(key=["item"], event="impression", spans=SPANS, stats=["count"]),
        CounterSettings(key=["item"], event="impression", stats=["since"]),
        CounterSettings(key=["item"], event="grade", spans=SPANS[1:], stats=["mean"]),
    ]
    settings += [CounterSettings(key=["item"], event=g, spans=SPANS, stats=["rate", "count"]) for g in GRADES[1:]]
    counters = make_counters(settings, log, catalog, GRADES)
    spec = make_spec(counters, catalog, "UTC", [])
    if len(spec.columns) != COLUMNS:
        raise SystemExit(f"{COLUMNS} columns were expected, found {len(spec.columns)}")
    return State.build(log, catalog, counters, GRADES), spec


def feast_reads(values: F32, columns: tuple[str, ...], as_of: int) -> dict[str, float]:
    """Return the median µs of Feast's read from each store, filled with the values float32[items, columns]."""
    if not PYTHON.exists():
        raise SystemExit("Feast is not installed: `make bench WHAT=features` does it, in .venv-bench")
    table = {"item_id": np.arange(len(values)), "at": [datetime.fromtimestamp(as_of // SECOND, UTC)] * len(values)}
    with tempfile.TemporaryDirectory() as folder:
        by_name = dict(zip(columns, values.T, strict=True))
        pq.write_table(pa.table(table | by_name), Path(folder) / "values.parquet")
        return json.loads(last_line([str(PYTHON), str(HERE / "feature_feast.py"), folder, str(CANDIDATES)]))


def reads(items: int) -> dict[str, float]:
    """Return `read_vs_feast`, the ratio for each store, and the µs behind them. Each call has items of its own."""
    state, spec = served(items)
    as_of, ids = state.end + DAY, IdIndex.of(np.arange(items))
    rng = np.random.default_rng(1)
    took = []
    print(f"{CANDIDATES} of {items:,} items, {COLUMNS} values each", flush=True)
    for _ in range(CALLS):
        wanted = rng.choice(items, CANDIDATES, replace=False)
        begun = time.perf_counter()
        assemble(state, spec, one_request(0, as_of, -1, ids.find(wanted)))
        took.append((time.perf_counter() - begun) * 1e6)
    every = assemble(state, spec, one_request(0, as_of, -1, np.arange(items, dtype=np.int32)))
    t = {"ours": statistics.median(took)} | feast_reads(every, spec.columns, as_of)
    version = t.pop("feast")
    for name, micros in t.items():
        print(f"  {name:14}{micros:10.1f} µs{micros / t['ours']:10.1f} times ours")
    best = min(t["sqlite"], t["redis"])
    return {
        "read_vs_feast": best / t["ours"],
        "read_vs_feast_sqlite": t["sqlite"] / t["ours"],
        "read_vs_feast_redis": t["redis"] / t["ours"],
        "read_us": t["ours"],
        "feast": version,
        "feast_items": items,
    }
