"""Training rows against DuckDB, Polars and pandas, and the serving read against a bare NumPy take.

Run from the repository: python tests/bench/features.py [--events 10000000] [--rows 1000000] [--repeats 3]
The log is generated: items fall in popularity like 1 / rank, users like 1 / rank ** 0.6. Every peer computes the
default counters (running sums by window functions, joined as of each request's time, strictly before); before
anything is timed, all agree with each other and with sums over masks. Peers: pip install 'pairlift[bench]'.
"""

import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

# This file's own folder would hide the package of the same name.
sys.path[0] = str(Path(__file__).parent / "peers")

from feature_gathers import gathers  # noqa: E402
from feature_rows import duckdb_rows, numpy_rows, pandas_rows, polars_rows  # noqa: E402

from features.rows import make_spec, training_rows  # noqa: E402
from features.schema import DAY, SECOND, Attribute, Catalog, EventLog, Requests  # noqa: E402
from features.spec import make_counters  # noqa: E402

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
    log = EventLog(
        user, item, ts, grade, rng.integers(-1, 3, events).astype(np.int16), np.full(events, -1, np.int8),
        np.full(events, -1, np.int64), np.ones(events, bool), np.empty((events, 0), np.float32), (),
    )  # fmt: skip
    none = np.empty(0, np.float32)
    codes = rng.integers(0, CATEGORIES, items).astype(np.int32)
    names = tuple(f"c{k:02}" for k in range(CATEGORIES))
    category = Attribute("category", "categorical", codes, np.empty(0, np.int64), none, names)
    catalog = Catalog(np.arange(users), np.arange(items), ("a", "b", "c"), (category,), ())
    first = np.sort(rng.choice(np.arange(events * 4 // 5, events), rows // GROUP, replace=False))
    offsets = np.arange(0, rows + 1, GROUP)
    shown = item[rng.integers(0, events, len(first) * GROUP)]
    return log, catalog, Requests(user[first], ts[first], log.surface[first], offsets, shown)


def our_rows(log: EventLog, catalog: Catalog, requests: Requests) -> np.ndarray:
    """Return all features of the default set, counters first."""
    counters = make_counters([], log, catalog, GRADES)
    return training_rows(log, catalog, counters, GRADES, make_spec(counters, catalog, "UTC"), requests)


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call took."""
    gc.collect()
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def check(peers: list[str]) -> None:
    """Compare all on a small log whose requests are as large a part of it as in the timed one."""
    log, catalog, requests = make_log(40_000, 4_000, seed=1)
    counters = make_counters([], log, catalog, GRADES)
    ours = our_rows(log, catalog, requests)[:, : len(counters)]
    few = requests.slice(0, CHECKED)
    exact = numpy_rows(counters, log, catalog, GRADES, few)
    np.testing.assert_allclose(ours[: len(exact)], exact, rtol=1e-5, atol=1e-6)
    for peer in peers:
        theirs = PEERS[peer](counters, log, catalog, GRADES, requests)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=peer)


def compare(made: tuple[EventLog, Catalog, Requests], peers: list[str], repeats: int) -> dict[str, Any]:
    """Return the medians of all, and each peer's over ours. pandas, whose time is long, runs once."""
    counters = make_counters([], made[0], made[1], GRADES)
    took = {"pairlift": [seconds(lambda: our_rows(*made)) for _ in range(repeats)]}
    for peer in peers:
        rows_of = partial(PEERS[peer], counters, made[0], made[1], GRADES, made[2])
        took[peer] = [seconds(rows_of) for _ in range(1 if peer == "pandas" else repeats)]
    median = {name: statistics.median(t) for name, t in took.items()}
    rows, events = len(made[2].item), len(made[0])
    print(f"{rows:,} rows over {events:,} events, {len(counters)} counters, median of {repeats} (pandas: once)")
    for name, t in median.items():
        print(f"  {name:10}{t:9.2f} s{t / median['pairlift']:9.1f} times ours", flush=True)
    ratios = {f"rows_vs_{peer}": median[peer] / median["pairlift"] for peer in peers}
    return {"events": events, "rows": rows, "counters": len(counters), "rows_seconds": median["pairlift"]} | ratios


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
    command = [sys.executable, __file__, "--events", str(events), "--rows", str(rows), "--alone"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    return told["gib"], told["seconds"]


def alone(events: int, rows: int) -> None:
    """Make our rows once and tell what it took."""
    our_rows(*make_log(20_000, 2_000))
    made = make_log(events, rows)
    took = seconds(lambda: our_rows(*made))
    print(json.dumps({"gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "seconds": took}))


def sized(text: str) -> list[int]:
    """Read a list of numbers such as '1000000,10000000'."""
    return [int(part) for part in text.split(",") if part]


@click.command()
@click.option("--events", default=1_000_000, show_default=True)
@click.option("--rows", default=100_000, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--sizes", default="", help="events of further runs of ours alone: is the cost linear?")
@click.option("--peers", default="duckdb,polars,pandas", show_default=True)
@click.option("--items", default=1_000_000, show_default=True, help="items of the serving read")
@click.option("--alone", "is_alone", is_flag=True, hidden=True)
def main(events: int, rows: int, repeats: int, sizes: str, peers: str, items: int, is_alone: bool) -> None:
    """Print tables, and one line of JSON."""
    if is_alone:
        alone(events, rows)
        return
    named = [p for p in peers.split(",") if p]
    # First: a process begins with the peak of the one that started it.
    gib, _ = peak_gib(events, rows)
    further = {"rows_gib": gib, "linear": linear(sized(sizes))}
    check(named)
    result = compare(make_log(events, rows), named, repeats) | further
    print(f"  peak of ours {gib:.2f} GiB, the log and the rows counted")
    result |= gathers(items)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
