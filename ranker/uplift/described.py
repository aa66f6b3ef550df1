"""Beside a report's figures: what they were measured on, what the plugin costs, how its values move."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from features.pairing.groups import Groups
from features.pairing.split import iso
from features.plugin import FeaturePlugin
from features.schema import F64, Requests
from ranker.columns import Columns, plugin_values
from ranker.training.plugins import plugin_seconds, plugin_stage, saved_fit
from ranker.training.prepared import Prepared
from ranker.uplift.memory import Asked, memory_of

#: single requests that are timed, after some that are not
TIMED, UNTIMED = 200, 20
#: tables of the TOML that the figures depend on, beside the plugin's own. Not [data] and [events]: a page is passed on
TABLES = {"grades", "pairing", "split", "features", "counters", "booster", "uplift", "lists"}


def described(prepared: Prepared, name: str, groups: dict[str, Groups], first: Columns) -> dict[str, Any]:
    """Return `split`, `settings`, `cost` and `periods` of a report.

    groups: by slice; first: the columns of the plugin's first fit. Of `cost`, what takes time differs from run to run.
    """
    split, config = prepared.split, prepared.config
    settings = config.model_dump(mode="json", include=TABLES)
    return {
        "split": {of: iso(getattr(split, of)) for of in ("t0", "t1", "t2", "t3")},
        "groups": {part: len(of.requests) for part, of in groups.items()},
        "settings": {"plugin": config.plugins[name].model_dump(mode="json", by_alias=True), **settings},
        "cost": _cost(prepared, name, groups["test"]),
        "periods": _periods(first),
    }


def _cost(prepared: Prepared, name: str, groups: Groups) -> dict[str, Any]:
    """Return seconds of each fit when it was made, bytes that a bundle keeps and that a process that serves needs more,
    and milliseconds of one request.
    """
    config = prepared.config
    seeds = config.uplift.fit_seeds
    saved = saved_fit(config, name, seeds[0])
    # Loaded anew: one that gave values of the whole log may have kept them.
    plugin = plugin_stage(prepared, name, seeds[0])
    drawn = np.random.default_rng(0).permutation(len(groups.requests))[: TIMED + UNTIMED].tolist()
    asked = [groups.requests.slice(g, g + 1) for g in drawn]
    # Before the memory: what compiles its kernels here, and keeps them, would have the compiler's too.
    ms = _request_ms(prepared, name, plugin, asked)
    histories, path = prepared.state.histories, config.plugins[name].path
    few = Asked(name=name, path=path, saved=saved, requests=asked[:UNTIMED], histories=histories, spec=prepared.spec)
    return {
        "fit_seconds": [plugin_seconds(config, name, seed) for seed in seeds],
        "saved_bytes": sum(path.stat().st_size for path in saved.rglob("*") if path.is_file()),
        "memory_bytes": memory_of(few),
        "request_ms": {"p50": float(np.median(ms)), "p99": float(np.percentile(ms, 99))},
        "requests": len(ms),
        "candidates": len(groups.requests.item) / max(len(groups.requests), 1),
    }


def _request_ms(prepared: Prepared, name: str, plugin: FeaturePlugin, requests: Sequence[Requests]) -> F64:
    """Return float64[n]: how long the plugin's values of one request take, asked one after the other."""
    took = []
    for one in requests:
        started = time.perf_counter()
        plugin_values(name, plugin, one, prepared.state.histories, prepared.spec)
        took.append(1000 * (time.perf_counter() - started))
    return np.array(took[UNTIMED:] or took)


def _periods(columns: Columns) -> dict[str, Any]:
    """Return, by column and slice, the share of rows with a value, and its mean and spread; and how far it moved.

    `moved`: the test's mean less that of the rows that the boosters learned from, by the latter's spread. Not of codes.
    """
    found: dict[str, Any] = {}
    for k, name in enumerate(columns.names):
        by = {part: _summary(values[:, k].astype(np.float64)) for part, values in columns.values.items()}
        before, after = by["train"], by["test"]
        counts = before["sd"] > 0 and name not in columns.categorical
        moved = (after["mean"] - before["mean"]) / before["sd"] if counts else float("nan")
        found[name] = {"moved": moved, **by}
    return found


def _summary(values: F64) -> dict[str, float]:
    known = values[~np.isnan(values)]
    spread = (float(known.mean()), float(known.std())) if len(known) else (float("nan"),) * 2
    return {"known": len(known) / max(len(values), 1), "mean": spread[0], "sd": spread[1]}
