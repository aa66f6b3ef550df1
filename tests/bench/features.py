"""Training rows against DuckDB, Polars and pandas; the serving read against a bare NumPy take and Feast; recording.

`make bench WHAT=features`, in small: make bench WHAT='features --events 200000 --rows 20000 --sizes 100000 --seconds 3'
The log is generated: items fall in popularity like 1 / rank, users like 1 / rank ** 0.6. Every peer computes the
default counters (running sums by window functions, joined as of each request's time, strictly before). Before
anything is timed, all agree with each other and with sums over masks, and what was timed is compared too: all within
1e-6 relative. Peers: pip install 'pairlift[bench]', and Feast in .venv-bench, which `make bench` makes.
"""

import gc
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

# With -P, this file's own folder, which would hide the package of the same name, is not on the path.
PARTS = Path(__file__).parent / "peers"
sys.path.insert(0, str(PARTS))

from feature_gathers import gathers  # noqa: E402
from feature_reads import reads  # noqa: E402
from feature_rows import duckdb_rows, numpy_rows, pandas_rows, polars_rows  # noqa: E402
from last_line import last_line  # noqa: E402

from features.blocks import training_rows  # noqa: E402
from features.counters.spec import make_counters  # noqa: E402
from features.rows import make_spec  # noqa: E402
from features.schema import DAY, SECOND, Attribute, Catalog, EventLog, Requests, empty_log  # noqa: E402

GRADES = ("skip", "listen", "like")
CATEGORIES = 50
SPAN = 60 * DAY
START = 1_700_000_000 * SECOND
GROUP = 10
CHECKED = 20
PEERS = {"duckdb": duckdb_rows, "polars": polars_rows, "pandas": pandas_rows}


def zipf(rng: np.random.Generator, n: int, size: int, power: float) -> np.ndarray:
    """Return int32[size] draws of n things, whose chances fall like 1 / rank ** power."""
    chance = np.cumsum(1 / np.arange(1, n + 1) ** power)
    drawn = np.searchsorted(chance, rng.random(size) * chance[-1])
    return rng.permutation(n).astype(np.int32)[np.minimum(drawn, n - 1)]


def make_log(events: int, rows: int, seed: int = 0) -> tuple[EventLog, Catalog, Requests]:
    """Return a log, its catalogue and requests of 10 candidates each over its last fifth."""
    rng = np.random.default_rng(seed)
    users, items = max(events // 20, 100), max(events // 100, 100)
    ts = np.sort(rng.integers(0, SPAN, events)) + START
    user, item = zipf(rng, users, events, 0.6), zipf(rng, items, events, 1.0)
    grade = rng.choice(np.array([-1, 0, 1, 2], np.int8), events, p=[0.1, 0.6, 0.2, 0.1])
    log = replace(
        empty_log((), events),
        user=user,
        item=item,
        ts=ts,
        grade=grade,
        surface=rng.integers(-1, 3, events).astype(np.int16),
    )
    codes = rng.integers(0, CATEGORIES, items).astype(np.int32)
    names = tuple(f"c{k:02}" for k in range(CATEGORIES))
    category = Attribute("category", "categorical", codes=codes, values=names)
    catalog = Catalog(
        user_ids=np.arange(users), item_ids=np.arange(items), surfaces=("a", "b", "c"), item_attributes=(category,)
    )
    first = np.sort(rng.choice(np.arange(events * 4 // 5, events), rows // GROUP, replace=False))
    offsets = np.arange(0, rows + 1, GROUP)
    shown = item[rng.integers(0, events, len(first) * GROUP)]
    return (
        log,
        catalog,
        Requests(user=user[first], as_of=ts[first], surface=log.surface[first], offsets=offsets, item=shown),
    )


def our_rows(log: EventLog, catalog: Catalog, requests: Requests) -> np.ndarray:
    """Return all features of the default set, counters first."""
    counters = make_counters(None, log, catalog, GRADES)
    return training_rows(log, catalog, counters, GRADES, make_spec(counters, catalog, "UTC"), requests)


def timed(call: Callable[[], np.ndarray], repeats: int = 1) -> tuple[float, np.ndarray]:
    """Return (median seconds, what the call gave)."""
    took = []
    for _ in range(repeats):
        gc.collect()
        begun = time.perf_counter()
        given = call()
        took.append(time.perf_counter() - begun)
    return statistics.median(took), given


def same(ours: np.ndarray, theirs: np.ndarray, name: str) -> None:
    """Compare float32 values: both are float64 inside, so they differ by the last rounding at most."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=0, err_msg=name)


def check(peers: list[str]) -> None:
    """Compare all on a small log whose requests are as large a part of it as in the timed one."""
    log, catalog, requests = make_log(40_000, 4_000, seed=1)
    counters = make_counters(None, log, catalog, GRADES)
    ours = our_rows(log, catalog, requests)[:, : len(counters)]
    exact = numpy_rows(counters, log, catalog, GRADES, requests.slice(0, CHECKED))
    same(ours[: len(exact)], exact, "sums over masks")
    for peer in peers:
        same(ours, PEERS[peer](counters, log, catalog, GRADES, requests), peer)


def compare(made: tuple[EventLog, Catalog, Requests], peers: list[str], repeats: int) -> dict[str, Any]:
    """Return the medians of all, and each peer's over ours. pandas, whose time is long, runs once."""
    counters = make_counters(None, made[0], made[1], GRADES)
    rows, events = len(made[2].item), len(made[0])
    print(f"{rows:,} rows over {events:,} events, {len(counters)} counters, median of {repeats} (pandas: once)")
    our, ours = timed(partial(our_rows, *made), repeats)
    print(f"  {'pairlift':10}{our:9.2f} s", flush=True)
    ratios = {}
    for peer in peers:
        rows_of = partial(PEERS[peer], counters, made[0], made[1], GRADES, made[2])
        their, theirs = timed(rows_of, 1 if peer == "pandas" else repeats)
        same(ours[:, : len(counters)], theirs, peer)
        print(f"  {peer:10}{their:9.2f} s{their / our:9.1f} times ours", flush=True)
        ratios[f"rows_vs_{peer}"] = their / our
    return {"events": events, "rows": rows, "counters": len(counters), "rows_seconds": our} | ratios


def linear(sizes: list[int]) -> dict[str, Any]:
    """Return seconds, GiB and ns an event of ours alone at each size, with a tenth as many rows (at most 1 million)."""
    found = {}
    for size in sizes:
        gib, t = peak_gib(size, min(size // 10, 1_000_000))
        found[str(size)] = {"seconds": t, "gib": gib, "ns_per_event": t / size * 1e9}
        print(f"  {size:>12,} events {t:8.2f} s {gib:6.2f} GiB {t / size * 1e9:7.0f} ns an event", flush=True)
    return found


def peak_gib(events: int, rows: int) -> tuple[float, float]:
    """Return (GiB, seconds) of our rows in a process of their own: the log and the matrix count too."""
    command = [sys.executable, "-P", __file__, "--events", str(events), "--rows", str(rows), "--alone"]
    found = json.loads(last_line(command))
    return found["gib"], found["seconds"]


def alone(events: int, rows: int) -> None:
    """Make our rows once and tell what it took."""
    our_rows(*make_log(20_000, 2_000))
    made = make_log(events, rows)
    took, _ = timed(partial(our_rows, *made))
    print(json.dumps({"gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "seconds": took}))


def recording(length: float) -> dict[str, Any]:
    """Return `events_per_second` and `visible_seconds` over gRPC, and more, of two runs of so many seconds."""
    command = [sys.executable, "-P", str(PARTS / "feature_ingest.py"), "--seconds", str(length)]
    return json.loads(last_line(command, {**os.environ, "PYTHONPATH": str(PARTS.parents[1])}))


def sized(text: str) -> list[int]:
    """Read a list of numbers such as '1000000,10000000'."""
    return [int(part) for part in text.split(",") if part]


@click.command()
@click.option("--events", default=10_000_000, show_default=True)
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--repeats", default=3, show_default=True, help="of ours and of each peer, save pandas")
@click.option("--sizes", default="1000000,10000000,100000000", show_default=True, help="events: is the cost linear?")
@click.option("--peers", default="duckdb,polars,pandas", show_default=True)
@click.option("--items", default=1_000_000, show_default=True, help="items of the serving read")
@click.option("--feast-items", default=50_000, show_default=True, help="items of the read compared with Feast's")
@click.option("--seconds", default=10.0, show_default=True, help="of each of the two runs that record events")
@click.option("--alone", "is_alone", is_flag=True, hidden=True)
def main(
    events: int,
    rows: int,
    repeats: int,
    sizes: str,
    peers: str,
    items: int,
    feast_items: int,
    seconds: float,
    is_alone: bool,
) -> None:
    """Print tables, and one line of JSON."""
    if is_alone:
        alone(events, rows)
        return
    named = [p for p in peers.split(",") if p]
    # First: a process begins with the peak of the one that started it.
    gib, _ = peak_gib(events, rows)
    print(f"peak of ours {gib:.2f} GiB, the log and the rows counted; is the cost linear?", flush=True)
    result = {"rows_gib": gib, "linear": linear(sized(sizes))}
    check(named)
    result |= compare(make_log(events, rows), named, repeats) | gathers(items) | reads(feast_items) | recording(seconds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
