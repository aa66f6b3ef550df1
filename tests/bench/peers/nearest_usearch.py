"""Nearest neighbours at size: `Coarse` and `Probed` beside usearch's HNSW, at equal recall, on one thread.

    pip download --no-deps usearch numkong; unpack both; PYTHONPATH=… python tests/bench/peers/nearest_usearch.py

A million keys of 64 numbers, 200 of which are wanted for each of 200 queries, by scalar product: normal ones, in which
no key is near another, and ones around 2,000 centres. Of usearch the least expansion is taken that has the recall of
ours. Times are the thread's own (CPU), the median of queries; the exact products behind a first pass count with it.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from features.dots import row_dots
from features.schema import F32, I32
from ranker.candidates.coarse import Coarse
from ranker.candidates.probed import NO_OFFSET, Probed
from ranker.candidates.source import best

WANTED, QUERIES, SAMPLE = 200, 200, 64
Ask = Callable[[F32], I32]


def world(kind: str, n: int, d: int = 64) -> tuple[F32, F32]:
    """Return (float32[n, d] keys, float32[q, d] queries)."""
    rng = np.random.default_rng(0)
    keys, queries = (rng.normal(size=(m, d)).astype(np.float32) for m in (n, QUERIES + SAMPLE))
    if kind == "clustered":
        centres = rng.normal(size=(2000, d)).astype(np.float32)
        keys = centres[rng.integers(0, 2000, n)] + np.float32(0.5) * keys
        queries = centres[rng.integers(0, 2000, len(queries))] + np.float32(0.5) * queries
    return keys, queries


def products(keys: F32, rows: Any, query: F32) -> F32:
    return row_dots(keys, rows, np.array([0, len(rows)]), query[None])


def first_pass(keys: F32, made: Coarse | Probed) -> Ask:
    """Return how a source asks: a pass in 8 bits, then the products of what it leaves."""

    def ask(query: F32) -> I32:
        rows = made.highest(query, 1.0, NO_OFFSET, WANTED)
        return rows[best(products(keys, rows, query), WANTED)]  # type: ignore[no-any-return]

    return ask


def timed(ask: Ask, queries: F32, truth: list[set[int]]) -> tuple[float, float]:
    """Return (recall, median ms of CPU)."""
    ask(queries[0])
    found, took = [], []
    for query, true in zip(queries, truth, strict=True):
        begun = time.thread_time()
        items = ask(query)
        took.append(1e3 * (time.thread_time() - begun))
        found.append(len(true & set(items.tolist())) / WANTED)
    return float(np.mean(found)), float(np.median(took))


def of_usearch(keys: F32, queries: F32, truth: list[set[int]], dtype: str, least: float) -> dict[str, Any]:
    """Return the figures of usearch at the least expansion of at least such a recall, or at the largest tried."""
    from usearch.index import Index  # type: ignore[import-not-found]

    index, begun = Index(ndim=keys.shape[1], metric="ip", dtype=dtype), time.thread_time()
    index.add(np.arange(len(keys)), keys, threads=1)
    build, tried = time.thread_time() - begun, {}
    for expansion in (250, 350, 500, 800, 1500, 3000, 6000, 12000):
        index.expansion_search = expansion

        def ask(query: F32) -> I32:
            more = index.search(query, WANTED + WANTED // 4, threads=1).keys.astype(np.int64)
            return more[best(products(keys, more, query), WANTED)]  # type: ignore[no-any-return]

        tried[expansion] = timed(ask, queries, truth)
        if tried[expansion][0] >= least:
            break
    recall, ms = tried[expansion]
    return {"recall": recall, "ms": ms, "expansion": expansion, "build_s": build, "tried": tried}


def measure(kind: str, n: int, dtypes: list[str]) -> dict[str, Any]:
    keys, queries = world(kind, n)
    queries, sample = queries[:QUERIES], queries[QUERIES:]
    every = np.arange(n)
    truth = [set(best(products(keys, every, query), WANTED).tolist()) for query in queries]
    found: dict[str, Any] = {}
    _, ms = timed(lambda query: best(products(keys, every, query), WANTED), queries[:20], truth[:20])
    found["exact"] = {"recall": 1.0, "ms": ms}
    for name, make in {"coarse": lambda: Coarse.of(keys), "probed": lambda: Probed.of(keys, list(sample))}.items():
        begun = time.thread_time()
        made = make()
        build = time.thread_time() - begun
        recall, ms = timed(first_pass(keys, made), queries, truth)
        found[name] = {"recall": recall, "ms": ms, "build_s": build}
        if isinstance(made, Probed):
            read = [made.search(query, 1.0, NO_OFFSET, WANTED)[1] / len(made.spread) for query in queries]
            found[name]["read"] = float(np.mean(read))
    print(kind, json.dumps(found), flush=True)
    for dtype in dtypes:
        found[f"usearch {dtype}"] = of_usearch(keys, queries, truth, dtype, min(found["probed"]["recall"], 0.999))
        print(kind, dtype, json.dumps(found[f"usearch {dtype}"]), flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--dtypes", default="i8", help="of usearch's index, comma-separated; empty: without it")
    options = parser.parse_args()
    dtypes = [dtype for dtype in options.dtypes.split(",") if dtype]
    print(json.dumps({kind: measure(kind, options.keys, dtypes) for kind in ("clustered", "unclustered")}))
