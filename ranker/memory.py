"""How much memory the served state takes: bytes per key and per event, and the most that recording can add."""

import os
from dataclasses import fields
from typing import Any, NamedTuple

from features.dedupe import BYTES_PER_KEY
from features.errors import PairliftError
from features.histories import COLUMNS
from features.ids import SLOT_BYTES
from features.latest import row_bytes, table_bytes
from features.newcomers import bytes_per_id
from features.store import State
from ranker.config import MAX_ID_BYTES, RecordSettings

GIB = 1 << 30
#: bytes of an int64
WORD = 8
#: arrays of a timeline that have an entry for each key; the others have one for each event, or a share of it
OF_KEYS = ("codes", "offsets", "mark_offsets")
#: share of the machine's memory that is the limit where none is given
SHARE = 0.75
#: events below which a state says nothing about the bytes of an event
FEW = 1000
#: bytes of an event for one key where the state is too small to tell
GUESS = 40


class Plan(NamedTuple):
    """keys: (name, keys, bytes per key). event: bytes per event, all keys and the history. new: (name, room, bytes of
    each) of new users and items. now, most: bytes.
    """

    keys: tuple[tuple[str, int, float], ...]
    event: float
    new: tuple[tuple[str, int, int], ...]
    now: int
    most: int


def _bytes(arrays: Any, names: tuple[str, ...]) -> int:
    return sum(getattr(arrays, name).nbytes for name in names)


def _of_newcomers(state: State, max_events: int, max_id_bytes: int) -> tuple[tuple[str, int, int], ...]:
    """Return (name, room, bytes of each) of new users and items; none comes without an event.

    Each has a key in the base's timelines that name its side (code and offset), and a row in their tables, both twice
    while the base is rebuilt. A user has bounds of a history (3), two of which are copied with each fold; an item the
    time of its first event.
    """
    catalog = state.catalog
    rooms = {"user": catalog.new_users.room, "item": catalog.new_items.room}
    each = {
        "user": bytes_per_id(catalog.user_ids.dtype == object, max_id_bytes) + 5 * WORD,
        "item": bytes_per_id(catalog.item_ids.dtype == object, max_id_bytes) + 2 * WORD,
    }
    for number, plan in enumerate(state.plans):
        row = row_bytes(plan) + 4 * SLOT_BYTES if number in state.kinds().tabled else 0
        for side in set(plan.key) & rooms.keys():
            each[side] += 2 * (2 * WORD + row)
    return tuple((f"new {side}s", min(room, max_events), each[side]) for side, room in rooms.items())


def plan_memory(state: State, max_events: int, max_id_bytes: int = MAX_ID_BYTES) -> Plan:
    """Return what the state takes, and the most with `max_events` recorded ones: twice, for the base is rebuilt
    beside the served one, and the ids, of at most `max_id_bytes` where they are text.
    """
    events = max(len(state.histories.item), 1)
    keys, of_events, of_keys = [], 0, state.histories.offsets.nbytes
    base = state.segments[0]
    named: list[tuple[str, Any]] = [
        ("_x_".join(plan.key), t) for plan, t in zip(state.plans, base.timelines, strict=True)
    ]
    for name, part in [*named, *((f"distinct {k}", d) for k, d in enumerate(base.distincts))]:
        arrays = tuple(f.name for f in fields(part))
        per_key = _bytes(part, tuple(a for a in arrays if a in OF_KEYS))
        total = _bytes(part, arrays)
        count = max(len(part.offsets) - 1, 1)
        keys.append((name, count, total / count))
        of_keys, of_events = of_keys + per_key, of_events + total - per_key
    of_events += _bytes(state.histories, COLUMNS)
    for number in state.kinds().tabled:
        plan, timeline = state.plans[number], base.timelines[number]
        size, count = table_bytes(plan, timeline), len(timeline.offsets) - 1
        keys.append((f"table of {'_x_'.join(plan.key)}", count, size / max(count, 1)))
        of_keys += size
    event = of_events / events if events >= FEW else float(GUESS * (len(named) + 1))
    now = of_events + of_keys
    # A history's block may have as much room as it has rows.
    most = 2 * (now + max_events * event) + max_events * (event + BYTES_PER_KEY)
    new = _of_newcomers(state, max_events, max_id_bytes)
    most += sum(room * size for _, room, size in new)
    return Plan(tuple(keys), event, new, now, round(most))


def described(plan: Plan, limit: float, max_events: int) -> list[str]:
    """Return the lines that a server prints at its start."""
    lines = [f"memory: {name}: {count:,} keys, {size:.0f} bytes per key" for name, count, size in plan.keys]
    lines += [f"memory: {name}: room for {room:,}, {size} bytes each" for name, room, size in plan.new]
    return [
        *lines,
        f"memory: {plan.event:.0f} bytes per event; the state takes {plan.now / GIB:.2f} GiB, and at most "
        f"{plan.most / GIB:.2f} GiB with {max_events:,} recorded events (the limit is {limit:.2f} GiB)",
    ]


def memory_lines(state: State, settings: RecordSettings) -> list[str]:
    """Return the lines to print; PairliftError where the most is above `memory` (GiB; None: 3/4 of the machine's)."""
    limit, max_events = settings.memory, settings.max_events
    if limit is None:
        limit = SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    plan = plan_memory(state, max_events, settings.max_id_bytes)
    if plan.most > limit * GIB:
        raise PairliftError(
            f"the state with {max_events:,} recorded events may take {plan.most / GIB:.2f} GiB and the limit is "
            f"{limit:.2f} GiB: lower [record] max_events, new_users, new_items or max_id_bytes, or raise memory"
        )
    return described(plan, limit, max_events)
