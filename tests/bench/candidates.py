"""What reaches the ranker: how much of what users wanted the blend of the sources finds, and what it costs at size.

`pairlift sources` of both example data sets, as their TOMLs have it. In a generated log of a million items five sources
are asked, merged and filtered on one thread; the times are the thread's own (CPU), the median of requests. Work folders
are kept below .pairlift/bench, so a second run resumes. KuaiRand needs PAIRLIFT_DATA; it is left out, with a word,
where that folder has none, and then there is no blend_gain, which is of both.

blend_gain                recall@500 of the blend less that of the best single source, mean by user: the lower of
                          both data sets' (blend_gain_ci95 has each set's interval, whose lower end is to be above 0)
blend_ms                  five sources, merge, filters and choice by the worth of places, of a request whose lists are
                          looked at as deep as lists ever are
pixie_ms, bm25_ms         random walks, and full-text search, alone
offpolicy_error_vs_obp    largest relative difference from obp's estimators; None where obp cannot be had
exploration_overhead      CPU time of Recommend with all lists drawn over that with none, on MovieLens
prerank_kept_top50, prerank_ms    of the stage before the ranker, as `prerank.py` says
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import sys
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench.peers.examples import WORK, example, written
from bench.peers.exploration_cost import exploration_overhead
from bench.peers.offpolicy_obp import figures as offpolicy_figures
from bench.prerank import figures as prerank_figures

from features.errors import PairliftError
from features.schema import GIB, SECOND
from ranker.candidates.filters import filters_of
from ranker.candidates.gathering import Quotas, own_quotas
from ranker.candidates.merge import Places
from ranker.config import Config
from ranker.examples import example_names
from ranker.lists.found import milliseconds
from ranker.lists.shared import LONGEST
from ranker.request import Request
from ranker.training.arms import Arms
from ranker.training.measured import measure_sources, parts_at_cut
from ranker.training.parts import fit_parts
from ranker.training.plugins import served_plugins
from ranker.training.prepared import prepare
from ranker.training.wanted import sources_until

#: users who are asked about, at most
USERS = 5_000
#: of the generated log at scale 1
ITEMS, PEOPLE, EVENTS = 1_000_000, 200_000, 3_000_000
#: words of all titles, and of one
WORDS, TITLE = 50_000, 6
#: days of the generated log
DAYS = 30
#: requests that are timed
REQUESTS = 300
PARTS = ("found", "time", "offpolicy", "exploration", "prerank")
LARGE = """name = "large"
[events]
source = "events.parquet"
user_id = "user_id"
item_id = "item_id"
ts = "to_timestamp(ts)"
[events.feedback]
play = "play"
[items]
source = "items.parquet"
item_id = "item_id"
[items.text]
title = "title"
[[grades]]
name = "skip"
when = "play < 0.5"
[[grades]]
name = "view"
when = "play >= 0.5"
[split]
t1 = 0.6
t2 = 0.8
[sources]
nearest = false
[sources.walks]
class = "ranker.sources.walks:RandomWalks"
[sources.fresh]
class = "ranker.sources.fresh:Fresh"
[sources.search]
class = "ranker.sources.search:Search"
"""


def found(data: str) -> dict[str, Any]:
    """Return what the sources of an example find, of all users and of parts of them."""
    report = measure_sources(example(data), USERS)
    parts = {name: part for name, part in report["sections"].items() if part["users"]}
    print(f"{data}: recall@500, {report['sections']['all']['users']:,} users")
    for name, part in parts.items():
        best = part["over_best"]["recall@500"]
        low, high = best["ci95"]
        print(
            f"  {name:12} blend {part['blend']['recall@500']['mean']:.4f}, over {best['name']} {best['mean']:+.4f} "
            f"[{low:+.4f}, {high:+.4f}]; within the quotas {part['within_quotas']['recall']['mean']:.4f} of "
            f"{part['within_quotas']['candidates']:.0f} candidates"
        )
    return {
        name: {key: part[key] for key in ("users", "blend", "over_best", "within_quotas")}
        for name, part in parts.items()
    }


def found_or_none(data: str) -> dict[str, Any] | None:
    """Return what `found` does; None, with a word, where the data cannot be had."""
    try:
        return found(data)
    except PairliftError as error:
        print(f"{data} is left out: {error}", file=sys.stderr)
        return None


def gains(of: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what the blend gains: the lower of both data sets' means, each set's interval, and all parts."""
    over = {data: parts["all"]["over_best"]["recall@500"] for data, parts in of.items()}
    complete = set(over) == set(example_names())
    return {
        "blend_gain": min(gain["mean"] for gain in over.values()) if complete else None,
        "blend_gain_ci95": {data: gain["ci95"] for data, gain in over.items()},
        "found": of,
    }


def overhead(data: str) -> float:
    """Return what drawing adds to the requests of an example's bundle."""
    prepared = prepare(example(data))
    return exploration_overhead(parts_at_cut(fit_parts(Arms.of(prepared), served_plugins(prepared))))


def large(scale: float) -> Config:
    """Write a log of ITEMS items, whose popularity and words follow Zipf's law, and read its TOML."""
    folder = WORK / f"candidates-large-{scale:g}"
    if not (folder / "events.parquet").exists():
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        items, people, events = (max(int(n * scale), 100) for n in (ITEMS, PEOPLE, EVENTS))
        words = np.array([f"w{k}" for k in range(WORDS)])[zipf(rng, WORDS, (items, TITLE))]
        titles = [" ".join(row) for row in words.tolist()]
        pq.write_table(pa.table({"item_id": np.arange(items), "title": titles}), folder / "items.parquet")
        columns = {
            "user_id": rng.integers(0, people, events),
            "item_id": rng.permutation(items)[zipf(rng, items, events)],
            "ts": 1_700_000_000.0 + np.sort(rng.random(events)) * DAYS * 86_400,
            "play": rng.random(events),
        }
        pq.write_table(pa.table(columns), folder / "events.parquet")
    return written(folder, LARGE)


def zipf(rng: np.random.Generator, n: int, size: Any) -> Any:
    """Return numbers below n, k with a chance that falls as 1 / (k + 10)."""
    total = np.cumsum(1 / (np.arange(n) + 10.0))
    return np.searchsorted(total, rng.random(size) * total[-1])


def timed(scale: float) -> dict[str, float]:
    """Return the median milliseconds of each source of the large log, and of all with merge and filters."""
    prepared = prepare(large(scale))
    state, rng = prepared.state, np.random.default_rng(1)
    sources = sources_until(prepared, {}, prepared.split.t2, 4 * GIB)
    words = zipf(rng, WORDS, (REQUESTS, 2))
    requests = [
        Request(int(user), state.end + SECOND, state=state, query=f"w{a} w{b}")
        for user, (a, b) in zip(rng.integers(0, state.catalog.n_users, REQUESTS), words, strict=True)
    ]
    took = milliseconds(sources, deepest(own_quotas(sources)), requests, filters_of(prepared.config, state))
    for name, value in {**took["sources"], "blend": took["blend"]}.items():
        print(f"  {name:14} {value:8.3f} ms")
    return {**took["sources"], "blend": took["blend"]}


def deepest(quotas: Quotas) -> Quotas:
    """Return quotas by which as many candidates are chosen of lists that are looked at as deep as they ever are."""
    worth = np.linspace(1.0, 0.0, LONGEST, dtype=np.float32)

    def of(request: Request) -> Places:
        own = quotas(request)
        return own._replace(quota=[LONGEST] * len(own.quota), worth=np.tile(worth, (len(own.quota), 1)))

    return of


@click.command()
@click.option("--scale", default=1.0, show_default=True, help="Of the generated log.")
@click.option("--only", type=click.Choice(PARTS), help="One part alone.")
def main(scale: float, only: str | None) -> None:
    """Run the parts, print their tables, then the JSON."""
    result: dict[str, Any] = {}
    if only in (None, "time"):
        print(f"{int(ITEMS * scale):,} items, one thread, p50 of {REQUESTS} requests")
        took = timed(scale)
        result |= {"blend_ms": took["blend"], "pixie_ms": took["walks"], "bm25_ms": took["search"], "sources_ms": took}
    if only in (None, "found"):
        result |= gains({data: parts for data in example_names() if (parts := found_or_none(data))})
    if only in (None, "exploration"):
        result["exploration_overhead"] = overhead("movielens")
    if only in (None, "offpolicy"):
        result |= offpolicy_figures()
    if only in (None, "prerank"):
        result |= prerank_figures()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
