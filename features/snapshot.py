"""A snapshot: the state as of a time in a folder of memory-mapped arrays, immutable."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from features.arrays import load_arrays, save_arrays
from features.counters import Timeline, make_plans
from features.histories import Histories
from features.schema import Attribute, Catalog, Ids
from features.spec import Counter, Span
from features.store import State


def save_state(folder: Path, state: State) -> None:
    """Write a state into an empty folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_arrays(folder / "histories", state.histories)
    for number, timeline in enumerate(state.timelines):
        save_arrays(folder / f"timeline{number}", timeline)
    _save_catalog(folder / "catalog", state.catalog)
    told = {"end": state.end, "counters": [asdict(c) for c in state.counters]}
    (folder / "state.json").write_text(json.dumps(told, indent=1))


def load_state(folder: Path) -> State:
    """Map a state that `save_state` wrote."""
    told = json.loads((folder / "state.json").read_text())
    counters = tuple(Counter(**{**c, "key": tuple(c["key"]), "span": Span(**c["span"])}) for c in told["counters"])
    plans = make_plans(counters)
    timelines = tuple(load_arrays(folder / f"timeline{k}", Timeline) for k in range(len(plans)))
    catalog = _load_catalog(folder / "catalog")
    return State(catalog, counters, plans, timelines, load_arrays(folder / "histories", Histories), told["end"])


def _save_catalog(folder: Path, catalog: Catalog) -> None:
    save_arrays(folder, replace(catalog, item_attributes=(), user_attributes=()))
    for side in ("item", "user"):
        attributes: tuple[Attribute, ...] = getattr(catalog, f"{side}_attributes")
        (folder / f"{side}_attributes.json").write_text(json.dumps([a.name for a in attributes]))
        for number, attribute in enumerate(attributes):
            save_arrays(folder / f"{side}_{number}", attribute)


def _load_catalog(folder: Path) -> Catalog:
    def attributes(side: str) -> tuple[Attribute, ...]:
        names = json.loads((folder / f"{side}_attributes.json").read_text())
        return tuple(load_arrays(folder / f"{side}_{number}", Attribute) for number in range(len(names)))

    bare = load_arrays(folder, Catalog)
    return replace(
        bare,
        user_ids=_ids(bare.user_ids),
        item_ids=_ids(bare.item_ids),
        item_attributes=attributes("item"),
        user_attributes=attributes("user"),
    )


def _ids(ids: Any) -> Ids:
    # Ids of text are written as a list; a tuple comes back.
    return np.array(ids, dtype=object) if isinstance(ids, tuple) else np.asarray(ids)
