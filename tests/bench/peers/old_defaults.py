"""The default features as they were before the study `defaults`: what the present ones are compared with.

`gain_over_old(config, seeds)` is the comparison on the test of one log.
"""

from typing import Any

from features.log.loading import load_log
from features.schema import Catalog
from features.settings import CounterSettings
from ranker.columns import Columns
from ranker.config import Config
from ranker.training.arms import Arms, of_kind
from ranker.training.importing import import_stage
from ranker.training.prepared import prepare
from ranker.uplift.measured import Judged, uplift_of

#: an attribute of more values had no default columns
MAX_VALUES = 1000


def old_counters(catalog: Catalog, grades: tuple[str, ...]) -> list[CounterSettings]:
    """Return the counters that a TOML without `[[counters]]` had."""
    categories = [a for a in catalog.item_attributes if a.kind in ("categorical", "multi")]
    keys = [["user"], ["item"], *(["user", a.name] for a in categories if 2 <= len(a.values) <= MAX_VALUES)]
    if len(catalog.surfaces) > 1:
        keys.append(["item", "surface"])
    declared = []
    for key in keys:
        declared.append(CounterSettings(key=key, event="impression", spans=["h1d", "h7d", "all"], stats=["count"]))
        if len(grades) > 1:
            declared.append(CounterSettings(key=key, event="grade", spans=["h7d", "all"], stats=["mean"]))
            declared += [CounterSettings(key=key, event=g, spans=["h7d", "all"], stats=["rate"]) for g in grades[1:]]
    return declared + [CounterSettings(key=[key], event="impression", stats=["since"]) for key in ("user", "item")]


def old_columns(catalog: Catalog) -> list[str]:
    """Return the plain columns that a TOML without `[features] columns` had."""
    sides = {
        "item": catalog.item_attributes,
        "user": catalog.user_attributes,
        "context": catalog.contexts,
        "candidate": catalog.candidates,
    }
    small = [
        f"{side}_{a.name}"
        for side, attributes in sides.items()
        for a in attributes
        if a.kind == "numeric" or (a.kind == "categorical" and len(a.values) <= MAX_VALUES)
    ]
    return [*small, "hour", *(["surface"] if catalog.surfaces else [])]


def with_old_defaults(config: Config) -> Config:
    """Return the settings with the old defaults spelled out, whatever features they had. The log is imported."""
    _, catalog = load_log(import_stage(config) / "log.duckdb")
    features = config.features.model_copy(update={"columns": old_columns(catalog), "add": [], "counters": None})
    counters = old_counters(catalog, config.grade_names)
    return config.model_copy(update={"counters": counters, "features": features})


def gain_over_old(config: Config, seeds: list[int]) -> dict[str, Any]:
    """Return how much more right the features of a TOML are than the old defaults: PairAccuracy of the test's pairs.

    Both are fitted without plugins, with the same seeds: `without` (the old), `with`, `relative_uplift`, `ci95` and so
    on, as `ranker.uplift.measured.compared` has them, ties as one half. Fits are resumed from the work folder.
    """
    fits, judged = [], []
    for name, mine in (("old-defaults", with_old_defaults(config)), ("defaults", config)):
        arms = Arms.of(prepare(mine))
        fits.append([[arms.fit(name, Columns(), seed) for seed in seeds]])
        judged.append(Judged.of(arms.groups["test"], of_kind(arms.pairs("test"), arms.kind)))
    return uplift_of(fits[0], fits[1], judged[0])
