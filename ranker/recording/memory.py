"""How much memory the served state takes: bytes per key and per event, and the most that recording can add.

Counters and histories are counted, what sources hold of them, and new ids. The catalogue, the plugins and
the rest of a bundle are not: they stay as they are while events are recorded.
"""

import math
import os
from dataclasses import fields
from typing import Any, NamedTuple

from features.counters.distinct import Distinct, distinct_parts
from features.counters.keys import key_attribute, name_of, radix
from features.counters.latest import has_table, row_bytes, table_bytes, tables_of
from features.counters.timeline import Timeline
from features.errors import PairliftError
from features.hashing import SLOT_BYTES
from features.log.dedupe import BYTES_PER_KEY
from features.newcomers import bytes_per_id
from features.schema import BY_ARM, GIB, is_text
from features.state.histories import COLUMNS
from features.state.store import State
from ranker.settings import MAX_ID_BYTES, RecordSettings

#: bytes of an int64
WORD = 8
#: arrays of a `Timeline` or a `Distinct` that have an entry for each key; the others grow with the events
OF_KEYS = ("codes", "offsets")
#: bytes of a key: its code, and where its events begin
KEY = 2 * WORD
#: share of the machine's memory that is the limit where none is given
SHARE = 0.75
#: events below which a state says nothing about the bytes of an event
FEW = 1000
#: bytes of an event for one key, and entries of it in one timeline, where the state is too small to measure them
GUESS, ENTRIES = 40, 2
#: bytes of an event in an `EventLog` that a history lacks: user, request, pairable
BESIDE = 13
#: bytes of an entry of a timeline while it is built, at most: its row and code, and both twice while they are sorted
SORTED = 64
#: times the rows of the histories that their buffer takes, at most: gaps of blocks that moved, blocks with twice their
#: rows, and the buffer before it while all is moved
BUFFER = 4
#: bytes of an event that a count of demand holds, at most; twice while it is made anew
POPULAR = 12


class OfKey(NamedTuple):
    """What the timeline of a key of counters, its table, or an index of distinct values takes."""

    name: str  # that the server prints, such as `user_x_item`
    keys: int  # how many different ones occur
    each: float  # bytes per key


class Kept(NamedTuple):
    """A timeline or an index of distinct values."""

    name: str  # `user_x_item`, `distinct 0`
    key: tuple[str, ...]
    part: Timeline | Distinct

    @property
    def keys(self) -> int:
        """How many different ones occur."""
        return len(self.part.offsets) - 1


class Room(NamedTuple):
    """What new users, or new items, take."""

    name: str  # `new users` or `new items`
    room: int  # how many there can be
    each: int  # bytes of one, at most


class MemoryPlan(NamedTuple):
    """What the state takes, and the most that it can come to."""

    keys: tuple[OfKey, ...]  # all timelines, then the indexes of distinct values, then the tables
    event: float  # bytes per event, of all keys and the history
    further: int  # keys of a user and an item together that recorded events can add, of all timelines
    new: tuple[Room, ...]  # users, then items
    ids: int  # event ids that are known without an event to serve
    now: int  # bytes that the state takes at the start
    most: int  # bytes, the most that it can come to


def _bytes(arrays: Any, names: tuple[str, ...]) -> int:
    return sum(getattr(arrays, name).nbytes for name in names)


def _of_newcomers(state: State, max_events: int, max_id_bytes: int) -> tuple[Room, ...]:
    """Return what new users and items take; none comes without an event.

    Each has a key in the base's timelines that name its side (code and offset), and a row in their tables, both twice
    while the base is rebuilt. A user has bounds of a history (3), two of which are copied with each fold; an item the
    time of its first event.
    """
    catalog = state.catalog
    rooms = {"user": catalog.new_users.room, "item": catalog.new_items.room}
    each = {
        "user": bytes_per_id(is_text(catalog.user_ids), max_id_bytes) + 5 * WORD,
        "item": bytes_per_id(is_text(catalog.item_ids), max_id_bytes) + 2 * WORD,
    }
    for plan in state.plans:
        row = (row_bytes(plan) + 4 * SLOT_BYTES) * tables_of(plan, catalog) if has_table(plan, catalog) else 0
        for side in set(plan.key) & rooms.keys():
            each[side] += 2 * (2 * WORD + row)
    return tuple(Room(f"new {side}s", min(room, max_events), each[side]) for side, room in rooms.items())


def plan_memory(
    state: State, max_events: int, max_id_bytes: int = MAX_ID_BYTES, ids: int = 0, sources: int = 0
) -> MemoryPlan:
    """Return what the state takes, and the most with `max_events` recorded ones, ids of at most `max_id_bytes` where
    they are text, and `ids` event ids beside those of these events. sources: bytes of an event that those of
    [sources.NAME] take.

    The most is that of a rebuild: the state of the start, which the bundle holds (mapped, where it is of a file), the
    served one, the one that is built, and what building it takes until it is done.
    """
    events = max(len(state.histories.item), 1)
    keys, of_events, of_keys = [], 0, state.histories.offsets.nbytes
    kept = _kept(state)
    for one in kept:
        names = tuple(f.name for f in fields(one.part))
        per_key = _bytes(one.part, tuple(name for name in names if name in OF_KEYS))
        total = _bytes(one.part, names)
        keys.append(OfKey(one.name, one.keys, total / max(one.keys, 1)))
        of_keys, of_events = of_keys + per_key, of_events + total - per_key
    of_events += _bytes(state.histories, COLUMNS)
    for plan, timeline in zip(state.plans, state.levels[0].timelines, strict=True):
        if not has_table(plan, state.catalog):
            continue
        size, count = table_bytes(plan, timeline) * tables_of(plan, state.catalog), len(timeline.offsets) - 1
        keys.append(OfKey(f"table of {name_of(plan.key)}", count, size / max(count, 1)))
        of_keys += size
    event = of_events / events if events >= FEW else float(GUESS * (len(state.plans) + 1))
    further = sum(_further_keys(one, state, max_events) for one in kept)
    now = of_events + of_keys
    most = 3 * now + 2 * (max_events * event + further * KEY) + (max_events + ids) * BYTES_PER_KEY
    most += (events + max_events) * _rebuild_bytes_per_event(state) + max_events * _row_bytes(state)
    most += (2 * POPULAR + sources) * (events + max_events)
    new = _of_newcomers(state, max_events, max_id_bytes)
    most += sum(side.room * side.each for side in new)
    return MemoryPlan(tuple(keys), event, further, new, ids, now, round(most))


def _kept(state: State) -> list[Kept]:
    """Return the timelines of the base, then its indexes of distinct values."""
    base = state.levels[0]
    timelines = [Kept(name_of(p.key), p.key, t) for p, t in zip(state.plans, base.timelines, strict=True)]
    parts = zip(distinct_parts(state.counters), base.distincts, strict=True)
    return timelines + [Kept(f"distinct {k}", key, index) for k, ((key, *_), index) in enumerate(parts)]


def _further_keys(kept: Kept, state: State, max_events: int) -> int:
    """Return how many keys recorded events can add: each can have new ones of a user and an item together, or by arm.

    The other keys of a side alone come with new users and items (`_of_newcomers`).
    """
    sides = {found[0] if (found := key_attribute(part, state.catalog)) else part for part in kept.key}
    if BY_ARM not in sides and not {"user", "item"} <= sides:
        return 0
    events = len(state.histories.item)
    share = len(kept.part.ts) / events if events >= FEW else ENTRIES
    there_can_be = math.prod(radix(part, state.catalog).wide for part in kept.key)
    return min(round(max_events * share), there_can_be - kept.keys)


def _row_bytes(state: State) -> int:
    """Return the bytes of an event in an `EventLog`: runs keep theirs, to be merged."""
    return _history_bytes(state) + BESIDE


def _history_bytes(state: State) -> int:
    columns = [getattr(state.histories, name) for name in COLUMNS]
    return sum(column.itemsize * math.prod(column.shape[1:]) for column in columns)


def _rebuild_bytes_per_event(state: State) -> float:
    """Return the bytes for each event that a rebuild takes until it is done, beside both states: the log that it reads,
    the largest timeline while it is sorted, and the histories' buffer.
    """
    events, base = len(state.histories.item), state.levels[0]
    parts = *(t.ts for t in base.timelines), *(d.ts for d in base.distincts)
    entries = max((len(ts) for ts in parts), default=0)
    share = entries / events if events >= FEW else ENTRIES
    return _row_bytes(state) + SORTED * share + (BUFFER - 1) * _history_bytes(state)


def described(plan: MemoryPlan, limit: float, max_events: int) -> list[str]:
    """Return the lines that a server prints at its start."""
    lines = [f"memory: {key.name}: {key.keys:,} keys, {key.each:.0f} bytes per key" for key in plan.keys]
    lines += [f"memory: {side.name}: room for {side.room:,}, {side.each} bytes each" for side in plan.new]
    if plan.further:
        lines += [f"memory: at most {plan.further:,} further keys of a user and an item, {KEY} bytes each"]
    lines += [f"memory: {plan.ids:,} event ids beside those of recorded events to serve, {BYTES_PER_KEY} bytes each"]
    return [
        *lines,
        f"memory: {plan.event:.0f} bytes per event; the state takes {plan.now / GIB:.2f} GiB, and at most "
        f"{plan.most / GIB:.2f} GiB with {max_events:,} recorded events (the limit is {limit:.2f} GiB)",
    ]


def memory_lines(plan: MemoryPlan, settings: RecordSettings, ids: int = 0) -> list[str]:
    """Return the lines to print; PairliftError where the most is above `memory` (GiB; None: 3/4 of the machine's).

    ids: event ids that are known beside those of the plan.
    """
    limit, max_events = settings.memory, settings.max_events
    if limit is None:
        limit = SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    plan = plan._replace(ids=plan.ids + ids, most=plan.most + ids * BYTES_PER_KEY)
    if plan.most > limit * GIB:
        further = f" and the {plan.ids:,} event ids that the log has beside them" if plan.ids else ""
        raise PairliftError(
            f"the state with {max_events:,} recorded events{further} may take {plan.most / GIB:.2f} GiB and the limit "
            f"is {limit:.2f} GiB: lower [record] max_events, new_users, new_items or max_id_bytes, or raise memory"
        )
    return described(plan, limit, max_events)
