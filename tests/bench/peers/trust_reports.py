"""The reports of the `trust` benchmark: each is the product's own, on a log of known truth.

In memory, `report_of` on new test users (`covered`, `useless`), and `family_of` (`family`); on disk, `uplift_report`
with its leak controls.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import duckdb
import leaky
import numpy as np
import pyarrow as pa
import world as small
from trust_plugins import HONEST, USELESS, Knows, Simulated, as_toml
from trust_world import Setting, World

from features.schema import HOUR
from ranker.columns import Columns
from ranker.config import Config, load_config
from ranker.metrics.holm import LEVEL
from ranker.settings import UpliftSettings
from ranker.training.arms import Arms
from ranker.uplift import described
from ranker.uplift.explain.asked import row_labels
from ranker.uplift.family.report import family_of
from ranker.uplift.leaks import Control
from ranker.uplift.measured import Judged, Measured
from ranker.uplift.report import report_of, uplift_report
from ranker.uplift.slices import labels

FITS, SEEDS = 3, 5
#: of the columns that know nothing: fewer boosters have more luck
USELESS_SEEDS = 3
#: plugins of a report of several, fits and seeds of each: an arm of all but one has to be fitted for each plugin
FAMILY, FAMILY_FITS, FAMILY_SEEDS = 10, 2, 2
#: between the seeds of one report's plugins: more than all other seeds
APART = 100_000_000
#: test users of a report, and of each draw of the truth
USERS, MANY = 250, 600
#: independent draws of users, fit and seed that a truth is the mean of
DRAWS = 150
#: numbers of the truth's draws, fits and seeds, and of the reports': disjoint
TRUTH, REPORTS, STEP = 1_000_000, 2_000_000, 10
#: beside the slices, all pairs
WHOLE = ("", "")

_S = Setting
SETTINGS = {
    s.name: s
    for s in (
        _S("no gain, one fit's luck for all", fresh=False),
        _S("no gain, luck of users"),
        _S("small gain, no luck", 0.35, fresh=False),
        _S("small gain, luck 1", 0.35, 0.04),
        _S("large gain, no luck", 0.6, fresh=False),
        _S("large gain, luck 1", 0.6, 0.04),
        _S("large gain, luck 4", 0.6, 0.15),
        _S("large gain, luck 4, ties", 0.6, 0.15, tied=True),
        _S("small gain, luck 1, ties", 0.35, 0.04, tied=True),
        _S("small gain, no luck, ties, missing", 0.35, fresh=False, tied=True, missing=0.2),
        _S("large gain, luck 1, missing", 0.6, 0.04, missing=0.2),
        _S("large gain, luck 4, missing", 0.6, 0.15, missing=0.2),
    )
}
#: worlds of the columns that know nothing: the base knows all of an item's quality there. Where it misses some, a
#: column that tells items apart, as a popularity does, says what is missing of those of the training, and is useful
USELESS_SETTINGS = tuple(_S("useless", tied=tied) for tied in (False, True))


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="trust-") as folder:
        yield Path(folder)


@lru_cache(maxsize=2)
def _world(setting: Setting, seed: int) -> World:
    return World(setting, seed)


def _settings(number: int, seeds: int) -> UpliftSettings:
    first = REPORTS + STEP * number
    return UpliftSettings(fits=FITS, seeds=list(range(first, first + seeds)))


def _report(world: World, kind: type[Simulated], number: int, seeds: int) -> dict[str, Any]:
    """Return the report of a plugin on new users, with new fits and seeds: all follow from the number."""
    draw = REPORTS + number
    with _folder() as work:
        prepared = world.prepared(draw, USERS, _settings(number, seeds), work)
        arms = Arms.of(prepared)
        fits = [_columns(arms, "x", kind(world, draw, USERS), seed) for seed in prepared.config.uplift.fit_seeds]
        # Reports on logs on disk say which leaks are found; here the controls are taken to have found none.
        controls = {name: Control(1, ()) for name in ("as_of", "refit")}
        return report_of(arms, "x", fits, controls, row_labels(arms))


def _columns(arms: Arms, name: str, plugin: Simulated, seed: int) -> Columns:
    """Fit a plugin with a seed, and return its columns."""
    plugin.fit(arms.prepared.fit_data(seed))
    return arms.plugin_columns(name, plugin)


def covered(setting: str, seed: int, number: int) -> dict[str, Any]:
    """Return what a report says of a plugin whose truth `truth` tells."""
    report = _report(_world(SETTINGS[setting], seed), Knows, number, SEEDS)
    kept = ("relative_uplift", "ci95", "useful", "variance", "standard_error", "degrees_of_freedom")
    return {name: report[name] for name in kept} | {"ties": report["tie_share"]["without"], "slices": _slices(report)}


def _slices(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the intervals of each slice, shrunk and as measured; a kind with one value is the whole, and no slice."""
    return {
        kind: {name: {"shrunk": of["shrunk"]["ci95"], "raw": of["ci95"]} for name, of in values.items()}
        for kind, values in report["slices"].items()
        if len(values) > 1
    }


def useless(kind: str, seed: int, number: int) -> dict[str, Any]:
    """Return what a report says of a column that knows nothing."""
    report = _report(_world(USELESS_SETTINGS[seed % len(USELESS_SETTINGS)], seed), USELESS[kind], number, USELESS_SEEDS)
    return {name: report[name] for name in ("relative_uplift", "ci95", "useful")}


def family(seed: int, number: int) -> dict[str, Any]:
    """Return of how many of FAMILY plugins that know nothing a report says that they are useful, or add to the rest."""
    world, draw = _world(USELESS_SETTINGS[seed % len(USELESS_SETTINGS)], seed), REPORTS + number
    with _folder() as work:
        settings = _settings(number, FAMILY_SEEDS).model_copy(update={"fits": FAMILY_FITS})
        arms, fits = Arms.of(world.prepared(draw, USERS, settings, work)), {}
        for k in range(FAMILY):
            kind = list(USELESS.values())[k % len(USELESS)]
            plugin = kind(world, draw, USERS)
            fits[f"x{k}"] = [_columns(arms, f"x{k}", plugin, one + k * APART) for one in settings.fit_seeds]
        found = family_of(arms, fits, {name: {"leaks": 0, "controls": {}} for name in fits})
    each = found["each"].values()
    return {
        **{verdict: sum(of[verdict] for of in each) for verdict in ("useful", "more")},
        "uncorrected": sum(of["alone"]["p"] <= LEVEL for of in each),
        "together": found["together"]["ci95"],
    }


def truth(setting: str, seed: int) -> dict[str, Any]:
    """Return the uplift over new users, fits and seeds, and its standard error over DRAWS draws of one of each.

    `slices` has the uplift of each value of each kind of slices.
    """
    world, drawn = _world(SETTINGS[setting], seed), []
    for k in range(DRAWS):
        with _folder() as work:
            drawn.append(_one_draw(world, TRUTH + k, work))
    base, gained = np.array([of[WHOLE] for of in drawn]).T
    ratio = gained.sum() / base.sum()
    error = (gained - ratio * base).std(ddof=1) / base.mean() / np.sqrt(DRAWS)
    slices: dict[str, dict[str, float]] = {}
    for kind, name in sorted({place for of in drawn for place in of} - {WHOLE}):
        right = np.sum([of.get((kind, name), (0.0, 0.0)) for of in drawn], axis=0)
        if right[0] > 0:
            slices.setdefault(kind, {})[name] = float(right[1] / right[0] - 1)
    return {"uplift": float(ratio - 1), "error": float(error), "slices": slices}


def _one_draw(world: World, number: int, work: Path) -> dict[tuple[str, str], tuple[float, float]]:
    """Return the weight of the right pairs, without and with, of WHOLE and by kind and value of the slices."""
    prepared = world.prepared(number, MANY, UpliftSettings(fits=1, seeds=[number]), work)
    arms, plugin = Arms.of(prepared), Knows(world, number, MANY)
    plugin.fit(prepared.fit_data(number))
    columns = arms.plugin_columns("x", plugin)
    judged = Judged.of(arms.groups["test"], arms.pairs("test"))
    fits = [[[arms.fit(name, given, number)]] for name, given in (("without", Columns()), ("with", columns))]

    def right(of: Judged) -> tuple[float, float]:
        without, with_ = (float(Measured.of(arm, of).right.sum()) for arm in fits)
        return without, with_

    found = {WHOLE: right(judged)}
    for kind, label in labels(prepared, judged.groups, judged.pairs, row_labels(arms)).items():
        found |= {(kind, str(name)): right(judged.only(label == name)) for name in np.unique(label)}
    return found


def write_log(folder: Path, seed: int, plugins: dict[str, dict[str, Any]], equal_times: bool) -> Config:
    """Write a log of `tests/world.py` with its TOML, with the plugins in it. equal_times: times in whole hours."""
    log = small.make_world(seed, n_users=40, requests_per_user=15).log
    ts = log.ts // HOUR * HOUR if equal_times else log.ts
    shown = pa.table({"user_id": log.user, "item_id": log.item, "ts": ts, "liking": log.grade})  # noqa: F841  (for SQL)
    duckdb.sql(f"COPY shown TO '{folder}/log.parquet'")
    grades = "".join(f'[[grades]]\nname = "{name}"\nwhen = "liking >= {k}"\n' for k, name in enumerate(small.GRADES))
    (folder / "pairlift.toml").write_text(
        f'name = "trust"\n[data]\nroot = "."\n[events]\nsource = "log.parquet"\nts = "make_timestamp(ts)"\n'
        f'feedback = {{liking = "liking"}}\n{grades}[booster]\ntrees = 30\nstop_after = 5\n'
        f"params = {{num_threads = 1}}\n[uplift]\nfits = {FITS}\nseeds = [{2 * seed}, {2 * seed + 1}]\n"
        f"{as_toml(plugins)}"
    )
    return load_config(folder / "pairlift.toml")


def _on_a_log(seed: int, plugins: dict[str, dict[str, Any]], equal_times: bool) -> dict[str, Any]:
    """Return, by plugin, what its whole report says of leaks."""
    # What a plugin costs is no part of the answer, and measuring its memory takes a process of its own.
    with _folder() as folder, patch.object(described, "memory_of", lambda _: None):
        config = write_log(folder, seed, plugins, equal_times)
        return {name: _leaks(uplift_report(config, name, lists=False)) for name in plugins}


def honest(seed: int) -> dict[str, Any]:
    """Return what the reports of all honest plugins on one log say of leaks; every third log has equal times."""
    return _on_a_log(seed, HONEST, equal_times=seed % 3 == 0)


def leaking(seed: int) -> dict[str, Any]:
    """Return the same of the planted leaks. `<=` leaks where events share a time, and the later event where not."""
    found = {}
    for kind in leaky.LEAKS:
        plugins = {kind.__name__: {"class": leaky.plugin_of(kind)}}
        found |= _on_a_log(seed, plugins, equal_times=kind is leaky.AtAsOf)
    return found


def _leaks(report: dict[str, Any]) -> dict[str, Any]:
    """Return the number of leaks, and of an unsteady plugin the gap of its refit over that among its fits."""
    said = re.search(r"by ([\d.e-]+) of its spread, .* by up to ([\d.e-]+)$", report["controls"]["refit"]["remark"])
    ratio = float(said[1]) / float(said[2]) if said else None
    return {"leaks": report["leaks"], "useful": report["useful"], "ratio": ratio}
