"""A snapshot: the state as of a time in a folder of memory-mapped arrays, immutable."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.arrays import load_array, load_arrays, save_arrays
from features.counters.distinct import Distinct, distinct_parts
from features.counters.plans import make_plans
from features.counters.spec import Counter, Span
from features.counters.timeline import Timeline
from features.newcomers import New, Newcomers
from features.schema import Attribute, Catalog, Ids
from features.state.histories import Histories
from features.state.store import Level, State

#: the attributes of a catalogue
SIDES = ("item_attributes", "user_attributes", "contexts", "candidates")
#: ids of new users and items, names of new arms, and the room for them; only where a server recorded
NEWCOMERS = "newcomers.json"


def save_state(folder: Path, state: State) -> None:
    """Write a state into an empty folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_arrays(folder / "histories", state.histories)
    np.save(folder / "first_seen.npy", state.first_seen)
    for place, level in enumerate(state.levels):
        for name in ("timelines", "distincts"):
            for number, arrays in enumerate(getattr(level, name)):
                save_arrays(folder / f"segment{place}" / f"{name}{number}", arrays)
    _save_catalog(folder / "catalog", state.catalog)
    came = state.catalog.new
    if any(side.room for side in came):
        new = {name: {"room": side.room, "ids": side.known} for name, side in came._asdict().items()}
        (folder / NEWCOMERS).write_text(json.dumps(new, ensure_ascii=False))
    written = {
        "end": state.end,
        "grades": state.grades,
        "segments": len(state.levels),
        "counters": [asdict(c) for c in state.counters],
    }
    (folder / "state.json").write_text(json.dumps(written, indent=1))


def load_state(folder: Path) -> State:
    """Map a state that `save_state` wrote."""
    written = json.loads((folder / "state.json").read_text())
    counters = tuple(Counter(**{**c, "key": tuple(c["key"]), "span": Span(**c["span"])}) for c in written["counters"])
    grades = tuple(written["grades"])
    plans = make_plans(counters, grades)
    indexes = len(distinct_parts(counters))
    levels = tuple(
        Level(
            tuple(load_arrays(folder / f"segment{k}" / f"timelines{n}", Timeline) for n in range(len(plans))),
            tuple(load_arrays(folder / f"segment{k}" / f"distincts{n}", Distinct) for n in range(indexes)),
        )
        for k in range(written["segments"])
    )
    catalog = _load_catalog(folder / "catalog")
    if (folder / NEWCOMERS).exists():
        new = json.loads((folder / NEWCOMERS).read_text())
        # Arms are missing where an older version wrote it.
        catalog = catalog.with_new(New(**{side: Newcomers.of(n["ids"], n["room"]) for side, n in new.items()}))
    return State(
        catalog=catalog,
        counters=counters,
        grades=grades,
        plans=plans,
        levels=levels,
        first_seen=load_array(folder / "first_seen.npy"),
        histories=load_arrays(folder / "histories", Histories),
        end=written["end"],
    )


@dataclass(frozen=True, slots=True)
class _Bare:
    """What the catalogue's own files have, by the names of `Catalog`; the attributes have files of their own."""

    user_ids: Ids | tuple[str, ...]  # sorted: integers as an array, text as a list
    item_ids: Ids | tuple[str, ...]  # as `user_ids`
    surfaces: tuple[str, ...]  # the name of each code
    arms: tuple[str, ...] = ()  # the name of each code
    # Always empty: the format has had them since its first version.
    item_attributes: tuple[Attribute, ...] = ()
    user_attributes: tuple[Attribute, ...] = ()
    contexts: tuple[Attribute, ...] = ()


def _save_catalog(folder: Path, catalog: Catalog) -> None:
    save_arrays(folder, _Bare(catalog.user_ids, catalog.item_ids, catalog.surfaces, catalog.arms))
    for side in SIDES:
        # Vectors are for fits alone: no bundle has them beside what a plugin made of them.
        attributes = tuple(a for a in getattr(catalog, side) if a.kind != "vector")
        (folder / f"{side}.json").write_text(json.dumps([a.name for a in attributes]))
        for number, attribute in enumerate(attributes):
            save_arrays(folder / f"{side}_{number}", attribute)


def _load_catalog(folder: Path) -> Catalog:
    def attributes(side: str) -> tuple[Attribute, ...]:
        if not (folder / f"{side}.json").exists():  # written before there were candidates
            return ()
        names = json.loads((folder / f"{side}.json").read_text())
        return tuple(load_arrays(folder / f"{side}_{number}", Attribute) for number in range(len(names)))

    bare = load_arrays(folder, _Bare)
    items, users, contexts, candidates = map(attributes, SIDES)
    return Catalog(
        user_ids=_ids(bare.user_ids),
        item_ids=_ids(bare.item_ids),
        surfaces=bare.surfaces,
        arms=bare.arms,
        item_attributes=items,
        user_attributes=users,
        contexts=contexts,
        candidates=candidates,
    )


def _ids(ids: Any) -> Ids:
    # Ids of text are written as a list; a tuple comes back.
    return np.array(ids, dtype=object) if isinstance(ids, tuple) else np.asarray(ids)
