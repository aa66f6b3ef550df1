"""Events as they come in: checked one by one, graded, and put into the arrays that the state is built from."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import PairliftError
from features.given import counted
from features.log.grading import GradeError, Grading
from features.schema import F32, I8, I16, I32, I64, OTHER_ARM, EventLog, is_text
from ranker.bundle import Bundle
from ranker.config import counted_of
from ranker.recording.batch import NEEDED, OPTIONAL, Batch
from ranker.recording.checks import LARGER, Checks, Find, Refusals, Side, beyond
from ranker.recording.columns import ARM, ARM_COLUMN, Column, conditions_of, recorded_columns

log = logging.getLogger(__name__)

#: events that a line of the log names
FIRST_FEW = 3
#: gives the arm of an experiment that each of n users (their own ids) is in at a time (int64[n], µs UTC): a name, or
#: None for none. It is called once for a batch, before it is written to the log (read again, events have the arm of
#: then), from several threads, and must not raise. An event that names an arm itself keeps that
ArmOf = Callable[[Sequence[Any], I64], Sequence[str | None]]
#: rank of an event that the conditions cannot be evaluated on
FAILED = -2


def no_arm(users: Sequence[Any], ts: I64) -> Sequence[str | None]:
    """The `ArmOf` of a server without experiments."""
    return [None] * len(users)


class Checked(NamedTuple):
    """A checked batch: m good events, and the rest."""

    table: pa.Table  # [m], the good ones as the log has them
    refused: tuple[tuple[int, str], ...]  # (index in the batch, reason) of the rest


class EventReader:
    """Checks and grades events for one bundle; safe to call from several threads."""

    def __init__(self, bundle: Bundle, users: Find, items: Find, arm_of: ArmOf = no_arm) -> None:
        """users, items: give the dense index of each id, -1 where unknown. PairliftError where grades need more."""
        config, catalog = bundle.config, bundle.state.catalog
        self._sides = {"user": Side(is_text(catalog.user_ids), users), "item": Side(is_text(catalog.item_ids), items)}
        self._surfaces = catalog.surface_codes()
        codes: dict[str | None, int] = {name: code for code, name in enumerate(catalog.arms)}
        self._arms = codes | {None: -1, "": -1}
        self._arm_of = arm_of
        self._catalog = catalog
        # A bundle from before histories had the context of their events has none of theirs, and nothing that reads it.
        self.contexts = bundle.state.histories.context.shape[1]
        self._context_codes = {a.name: a.value_codes() for a in catalog.contexts if a.kind == "categorical"}
        self._counted = counted_of(config, catalog)
        #: columns of `EventLog.feedback`: the log's own, then what counters count of candidates
        self.feedback = (*config.events.feedback, *self._counted)
        self._columns, read = recorded_columns(bundle), conditions_of(bundle)
        self.grades = config.grade_names
        kinds = {name: condition.kind for name, condition in read.items()}
        self._grading = Grading(tuple(config.grades), kinds, {name: c.column for name, c in read.items()})
        of_requests = () if config.events.request_id is None else tuple(config.events.context)
        self._checks = Checks(config.record, self._sides, self._columns, self.grades, of_requests)
        self.keep = self._checks.keep

    def checked(self, batch: Batch, now: int, latest: int, since: int = 0) -> Checked:
        """Refuse what is bad and return the rest. now: the log's time; latest: the greatest `ts` (µs UTC).

        since: the ids of earlier events may be forgotten (µs UTC).
        """
        refusals = self._checks.refused(batch, now, latest, since)
        table = self._with_arms(self._with_feedback(batch))
        places = np.flatnonzero(refusals.good)
        rank = np.full(table.num_rows, FAILED, np.int8)
        for place, found in zip(places, self._graded(table.take(pa.array(places))), strict=True):
            if isinstance(found, str):
                refusals.reasons[int(place)] = found
            else:
                rank[place] = found
        if batch.grades:
            self._compare(batch.grades, rank, refusals)
        return Checked(table.filter(pa.array(refusals.good)), tuple(sorted(refusals.reasons.items())))

    def read(self, table: pa.Table) -> EventLog:
        """Return recorded events as the state has them. PairliftError where a bundle's conditions do not fit them."""
        mine = {name: column for name, column in self._columns.items() if name in table.column_names}
        known = table.select([*NEEDED, *OPTIONAL, *mine])
        for name, column in mine.items():
            try:
                known = known.set_column(known.column_names.index(name), name, known[name].cast(_type(column)))
            except pa.ArrowInvalid as error:
                raise PairliftError(f"recorded events do not fit the bundle: column '{name}': {error}") from error
            known = known if column.text else _within_bound(known, name, column)
        return self._log(known, self._grading.ranks(known))

    def _with_feedback(self, batch: Batch) -> pa.Table:
        # All columns always, in one order: the whole log has one schema for as long as the TOML stays.
        table = batch.events
        for name, column in self._columns.items():
            kind, values = _type(column), batch.feedback.get(name)
            fits = values is not None and values.type == kind
            table = table.append_column(name, values if fits else pa.nulls(table.num_rows, kind))
        return table

    def _with_arms(self, table: pa.Table) -> pa.Table:
        """Return a batch with the arm of each event's user, where the event does not say it."""
        if self._columns.get(ARM) != ARM_COLUMN:
            return table
        arms = self._arm_of(table["user_id"].to_pylist(), table["ts"].to_numpy())
        known = pc.coalesce(table[ARM], pa.array(arms, pa.string()))
        return table.set_column(table.column_names.index(ARM), ARM, known)

    def _graded(self, table: pa.Table) -> Iterator[int | str]:
        """Yield each event's rank, or why it has none: a condition that fails on an event refuses that event alone."""
        try:
            yield from self._grading.ranks(table).tolist()
        except GradeError as error:
            half = table.num_rows // 2
            if half == 0:
                yield f"the grades' conditions cannot be evaluated: {error}"
                return
            yield from self._graded(table.slice(0, half))
            yield from self._graded(table.slice(half))

    def _compare(self, names: Sequence[str], rank: I8, refusals: Refusals) -> None:
        expected = np.array([self.grades.index(n) if n in self.grades else FAILED for n in names], np.int8)
        found = (*self.grades, "none")
        refusals.add(
            (expected != FAILED) & (rank != FAILED) & (expected != rank),
            lambda k: f"grade '{names[k]}': the conditions of [[grades]] give '{found[rank[k]]}'",
        )

    def _log(self, table: pa.Table, rank: I8) -> EventLog:
        n = table.num_rows
        code = [self._surfaces.get(name, -1) for name in table["surface"].to_pylist()]
        own = self.feedback[: len(self.feedback) - len(self._counted)]
        log = EventLog(
            user=self._indexes("user", table["user_id"]),
            item=self._indexes("item", table["item_id"]),
            ts=table["ts"].to_numpy().copy(),  # else a whole segment is held that it was read from
            grade=rank,
            surface=np.array(code, np.int16),
            arm=self._arm_codes(table),
            organic=table["organic"].cast(pa.int8()).fill_null(-1).to_numpy(),
            request=np.full(n, -1, np.int64),
            pairable=np.ones(n, bool),
            feedback=_numbers(table, own),
            feedback_names=own,
            context=self._context(table),
        )
        return counted(log, self._given(table), self._counted, self._catalog, self.grades)

    def _arm_codes(self, table: pa.Table) -> I16:
        """Return int16[n] codes of arms, `OTHER_ARM` of those that the bundle does not know."""
        if ARM not in table.column_names or self._columns.get(ARM) != ARM_COLUMN:
            return np.full(table.num_rows, -1, np.int16)
        return np.array([self._arms.get(name, OTHER_ARM) for name in table[ARM].to_pylist()], np.int16)

    def _indexes(self, side: str, ids: pa.ChunkedArray) -> I32:
        text, find = self._sides[side]
        if pa.types.is_string(ids.type) != text:
            return np.full(len(ids), -1, np.int32)  # another bundle's kind of ids: all are unknown
        return find(ids.to_pylist() if text else ids.to_numpy())

    def _context(self, table: pa.Table) -> F32:
        """Return float32[n, contexts] in the codes of a request's context; a text that the bundle lacks is unknown."""
        names = [known.name for known in self._catalog.contexts][: self.contexts]
        context = _numbers(table, names)
        for k, name in enumerate(names):
            if name in self._context_codes and name in table.column_names:
                code = self._context_codes[name]
                context[:, k] = [code.get(text, np.nan) for text in table[name].to_pylist()]
        return context

    def _given(self, table: pa.Table) -> F32:
        """Return float32[n, c] of `Catalog.candidates`, without the codes of text: counters count numbers alone."""
        return _numbers(table, [known.name for known in self._catalog.candidates])


def _numbers(table: pa.Table, names: Sequence[str]) -> F32:
    """Return float32[n, len(names)] of columns, NaN where a table lacks one or it is text."""
    out = np.full((table.num_rows, len(names)), np.nan, np.float32)
    for k, name in enumerate(names):
        if name in table.column_names and not pa.types.is_string(table[name].type):
            out[:, k] = table[name].to_numpy()
    return out


def _type(column: Column) -> pa.DataType:
    return pa.string() if column.text else pa.float64()


def _within_bound(events: pa.Table, name: str, column: Column) -> pa.Table:
    """Return recorded events with NULL for numbers beyond the bound, which another bundle or version accepted."""
    numbers = events[name].to_numpy()
    bad = np.flatnonzero(beyond(numbers, column.most))
    if not len(bad):
        return events
    ids = events["event_id"].take(pa.array(bad[:FIRST_FEW])).to_pylist()
    shown = ", ".join(f"{one!r} ({numbers[k]:g})" for one, k in zip(ids, bad, strict=False))
    log.warning(
        "recorded %s '%s' is beyond %g in %s events and counts as unknown: event id %s%s",
        *(column.table, name, column.most, f"{len(bad):,}", shown, f"; {LARGER}" if column.summed else ""),
    )
    kept = np.ones(len(numbers), bool)
    kept[bad] = False
    values = pc.if_else(pa.array(kept), events[name], pa.scalar(None, pa.float64()))
    return events.set_column(events.column_names.index(name), name, values)
