"""Numbers of users, items and arms that the bundle does not know: given in the order of the event log, so always the
same.
"""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.newcomers import New, Newcomers
from features.schema import I16, I32, I64, OTHER_ARM, Catalog, EventLog, is_text, merged
from features.state.store import State
from ranker.settings import MAX_ID_BYTES

log = logging.getLogger(__name__)

SIDES = ("users", "items")
#: arms of experiments that the bundle does not know, at most
NEW_ARMS = 100
FURTHER_ARMS = (
    "events of more than %d arms that the bundle does not know are recorded, and count for no request's counters "
    "by_arm until a bundle is trained on them"
)


def with_room(state: State, unplaced: EventLog, users: int, items: int) -> State:
    """Return a state with room for so many new users and items, or as many as it has, and for new arms.

    Codes of keys with new ones depend on the room, so a snapshot's state that has new ones is built anew where its room
    differs. unplaced: its events of users or items for which there was no room; they are not in its histories.
    """
    was = state.catalog
    # Copies: what a state has must not grow because a server was started on it.
    new_users, new_items = Newcomers.of(was.new_users.known, users), Newcomers.of(was.new_items.known, items)
    # The arm is the first part of a key, so no code depends on the room for arms.
    catalog = was.with_new(New(new_users, new_items, Newcomers.of(was.new_arms.known, NEW_ARMS)))
    moved = (was.new_users.room, was.new_items.room) != (new_users.room, new_items.room)
    if not moved or not was.new_users.count + was.new_items.count:
        return replace(state, catalog=catalog)
    log.info("[record] new_users or new_items differs from the snapshot's: its counters are built anew")
    events = merged([state.histories.log(unplaced.feedback_names), unplaced])
    built = State.build(events, catalog, state.counters, state.grades, state.histories)
    return replace(built, end=state.end)


class Numbering:
    """Gives the indexes of new users and items, and the codes of new arms. For one thread, in the order of the log."""

    def __init__(self, catalog: Catalog, max_id_bytes: int = MAX_ID_BYTES) -> None:
        """catalog: with room, and what a snapshot had already. max_id_bytes: of a new text id in UTF-8."""
        self._known = catalog.n_users, catalog.n_items, len(catalog.arms)
        self._text = is_text(catalog.user_ids), is_text(catalog.item_ids)
        self._most = max_id_bytes
        self._warned: set[str] = set()  # warnings already logged
        self.new = catalog.new

    def numbered(self, events: EventLog, table: pa.Table) -> EventLog:
        """Return events of the state with the indexes of new ids for -1, and the codes of new arms for `OTHER_ARM`.

        table: the same events as the log has them. Where there is no room, or the id is of the other kind (integer,
        text) than the bundle's, or too long, as it may be in an older log, -1 stays.
        """
        user, new_users = self._side(0, events.user, table["user_id"])
        item, new_items = self._side(1, events.item, table["item_id"])
        arm, new_arms = self._arm(events.arm, table)
        self.new = New(new_users, new_items, new_arms)
        return replace(events, user=user, item=item, arm=arm)

    def _arm(self, code: I16, table: pa.Table) -> tuple[I16, Newcomers]:
        rows, new = np.flatnonzero(code == OTHER_ARM), self.new.arms
        if not len(rows):  # an older log has no column of arms
            return code, new
        found, new = new.extended(table["arm"].take(pa.array(rows)).to_pylist())
        if (found < 0).any():
            self._warn_once(FURTHER_ARMS % new.room)
        out = code.copy()
        out[rows] = np.where(found < 0, OTHER_ARM, self._known[2] + found)
        return out, new

    def _side(self, side: int, index: I32, ids: pa.ChunkedArray) -> tuple[I32, Newcomers]:
        new = self.new[side]
        rows = np.flatnonzero(index < 0)
        if not len(rows) or pa.types.is_string(ids.type) != self._text[side]:
            return index, new
        rows = self._fitting(side, ids, rows) if self._text[side] else rows
        wanted: list[Any] = ids.take(pa.array(rows)).to_pylist()
        found, new = new.extended(wanted)
        if (found < 0).any():
            name = SIDES[side]
            self._warn(f"[record] new_{name} = {new.room:,} is full: further new {name} are recorded, and", "the room")
        out = index.copy()
        out[rows] = np.where(found < 0, -1, self._known[side] + found)
        return out, new

    def _fitting(self, side: int, ids: pa.ChunkedArray, rows: I64) -> I64:
        """Return those rows whose text ids are not too long, or have a number already."""
        size = pc.binary_length(ids.take(pa.array(rows))).to_numpy()
        long = rows[size > self._most]
        if not len(long):
            return rows
        long = long[self.new[side].find(ids.take(pa.array(long)).to_pylist()) < 0]
        if len(long):
            self._warn(
                f"the log has new {SIDES[side]} with ids of more than [record] max_id_bytes = {self._most}: they",
                "the limit",
            )
        return np.setdiff1d(rows, long)

    def _warn(self, what: str, limit: str) -> None:
        """Log, once, who stays cold and until when."""
        self._warn_once(f"{what} stay cold until a bundle is trained on them, or {limit} is raised")

    def _warn_once(self, sentence: str) -> None:
        if sentence not in self._warned:
            self._warned.add(sentence)
            log.warning("%s", sentence)
