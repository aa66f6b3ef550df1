"""Events as they come in: checked one by one, graded, and put into the arrays that the state is built from."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import PairliftError, did_you_mean
from features.log.grading import GradeError, Grading
from features.pairing.split import iso
from features.schema import DAY, F32, F64, I8, I32, LARGEST_FEEDBACK, Bool, EventLog
from ranker.bundle import Bundle
from ranker.recording.batch import Batch
from ranker.request import too_long

log = logging.getLogger(__name__)

Find = Callable[[Sequence[Any]], I32]
#: events that a line of the log names
FIRST_FEW = 3
#: rank of an event that the conditions cannot be evaluated on
FAILED = -2
#: why feedback is bounded, and what to do
LARGER = (
    "running sums would lose later values beside a larger one; scale the column, for example seconds in place of "
    "microseconds"
)
#: columns of ids, and what their refusals call them
IDS = {"user_id": "user", "item_id": "item", "event_id": "event id", "request_id": "request id"}


class Checked(NamedTuple):
    """The m good events of a batch as the log has them and as the state has them, and (index, reason) of the rest."""

    table: pa.Table
    log: EventLog
    refused: tuple[tuple[int, str], ...]


class _Refusals:
    """The first reason against each event of a batch."""

    def __init__(self, n: int) -> None:
        self.reasons: dict[int, str] = {}
        self._n = n

    def add(self, bad: Any, reason: Callable[[int], str] | str) -> None:
        for place in np.flatnonzero(bad).tolist():
            self.reasons.setdefault(place, reason if isinstance(reason, str) else reason(place))

    @property
    def good(self) -> Bool:
        keep = np.ones(self._n, bool)
        keep[list(self.reasons)] = False
        return keep


class EventReader:
    """Checks and grades events for one bundle; safe to call from several threads."""

    def __init__(self, bundle: Bundle, users: Find, items: Find) -> None:
        """users, items: give the dense index of each id, -1 where unknown. PairliftError where grades need more."""
        config, catalog = bundle.config, bundle.state.catalog
        self.settings = config.record
        self._find = {"user": users, "item": items}
        self._text = {"user": catalog.user_ids.dtype == object, "item": catalog.item_ids.dtype == object}
        self._surfaces = {name: code for code, name in enumerate(catalog.surfaces)}
        self.feedback = tuple(config.events.feedback)
        texts = set(self.settings.texts)
        unknown = texts - set(config.events.columns)
        if unknown:
            raise PairliftError(f"[record] texts: '{min(unknown)}'{did_you_mean(min(unknown), config.events.columns)}")
        self._kinds = dict.fromkeys(self.feedback, "DOUBLE")
        self._kinds |= {name: "VARCHAR" if name in texts else "DOUBLE" for name in config.events.columns}
        self.grades = config.grade_names
        self._grading = Grading(tuple(config.grades), self._kinds)
        self.keep = round(self.settings.dedupe_days * DAY)

    def checked(self, batch: Batch, now: int, latest: int) -> Checked:
        """Refuse what is bad and return the rest. now: the log's time; latest: the greatest `ts` (µs UTC)."""
        refusals = _Refusals(batch.events.num_rows)
        self._check_ids(batch.events, refusals)
        self._check_times(batch.events["ts"].to_numpy(), now, latest, refusals)
        for name, values in batch.feedback.items():
            self._check_feedback(name, values, refusals)
        if batch.grades:
            known = {"", *self.grades}
            bad = [name not in known for name in batch.grades]
            refusals.add(bad, lambda k: f"grade '{batch.grades[k]}' is unknown{did_you_mean(batch.grades[k], known)}")
        table = self._with_feedback(batch)
        places = np.flatnonzero(refusals.good)
        rank = np.full(table.num_rows, FAILED, np.int8)
        for place, found in zip(places, self._graded(table.take(pa.array(places))), strict=True):
            if isinstance(found, str):
                refusals.reasons[int(place)] = found
            else:
                rank[place] = found
        if batch.grades:
            self._compare(batch.grades, rank, refusals)
        table = table.filter(pa.array(refusals.good))
        events = self._log(table, rank[refusals.good])
        return Checked(table, events, tuple(sorted(refusals.reasons.items())))

    def read(self, table: pa.Table) -> EventLog:
        """Return recorded events as the state has them. PairliftError where a bundle's conditions do not fit them."""
        mine = [name for name in table.column_names if name in self._kinds]
        contract = ["event_id", "user_id", "item_id", "ts", "surface", "organic", "request_id", "position"]
        known = table.select([*contract, *mine])
        for name in mine:
            kind = pa.string() if self._kinds[name] == "VARCHAR" else pa.float64()
            try:
                known = known.set_column(known.column_names.index(name), name, known[name].cast(kind))
            except pa.ArrowInvalid as error:
                raise PairliftError(f"recorded events do not fit the bundle: column '{name}': {error}") from error
        for name in self.feedback:
            known = _within_bound(known, name) if name in mine else known
        return self._log(known, self._grading.ranks(known))

    def _with_feedback(self, batch: Batch) -> pa.Table:
        # All columns always, in one order: the whole log has one schema for as long as the TOML stays.
        table = batch.events
        for name, kind in self._kinds.items():
            type_ = pa.string() if kind == "VARCHAR" else pa.float64()
            values = batch.feedback.get(name)
            fits = values is not None and values.type == type_
            table = table.append_column(name, values if fits else pa.nulls(table.num_rows, type_))
        return table

    def _check_ids(self, events: pa.Table, refusals: _Refusals) -> None:
        for side in ("user", "item"):
            found = pa.types.is_string(events[f"{side}_id"].type)
            if found != self._text[side]:
                kinds = ("integer", "text")
                expected, got = kinds[self._text[side]], kinds[found]
                refusals.add(
                    np.ones(len(events), bool),
                    f"{side}: {expected} ids were expected, for such are the ids of this bundle; found {got}",
                )
        ids = events["event_id"]
        if pa.types.is_string(ids.type):
            refusals.add(pc.equal(ids, "").to_numpy(), "event id: a name was expected, found an empty text")
        for name, place in IDS.items():
            if pa.types.is_string(events[name].type):
                self._check_lengths(place, events[name], refusals)

    def _check_lengths(self, place: str, ids: pa.ChunkedArray, refusals: _Refusals) -> None:
        """Refuse ids that are too long, but for users and items that the bundle knows."""
        most, size = self.settings.max_id_bytes, pc.fill_null(pc.binary_length(ids), 0).to_numpy()
        long = np.flatnonzero(size > most)
        if len(long) and self._text.get(place):
            long = long[self._find[place](ids.take(pa.array(long)).to_pylist()) < 0]
        bad = np.zeros(len(ids), bool)
        bad[long] = True
        refusals.add(bad, lambda k: too_long(place, most, size[k]))

    def _check_times(self, ts: Any, now: int, latest: int, refusals: _Refusals) -> None:
        refusals.add(ts < 0, lambda k: f"ts: µs since 1970 were expected, found {ts[k]}")
        refusals.add(ts > latest, lambda k: f"ts {_time(ts[k])} is in the future, beyond [record] tolerance")
        days = self.settings.dedupe_days
        refusals.add(
            (ts >= 0) & (ts < now - self.keep),
            lambda k: f"ts {_time(ts[k])} is older than [record] dedupe_days = {days:g}: a resend could not be known",
        )

    def _check_feedback(self, name: str, values: pa.Array, refusals: _Refusals) -> None:
        given = values.is_valid().to_numpy(zero_copy_only=False)
        if name not in self._kinds:
            hint = did_you_mean(name, self._kinds)
            refusals.add(given, f"feedback column '{name}' is unknown{hint}")
            return
        text = pa.types.is_string(values.type)
        if text != (self._kinds[name] == "VARCHAR"):
            expected, found = ("numbers", "texts") if text else ("texts", "numbers")
            refusals.add(given, f"feedback column '{name}': {expected} were expected, found {found}")
        elif not text:
            numbers = values.to_numpy(zero_copy_only=False)
            finite = f"feedback column '{name}': a finite number was expected, found an infinite one"
            refusals.add(np.isinf(numbers), finite)
            if name in self.feedback:
                within = f"feedback column '{name}': at most {LARGEST_FEEDBACK:g} either way was expected, found "
                refusals.add(_beyond(numbers), lambda k: f"{within}{float(numbers[k])!r}: {LARGER}")

    def _graded(self, table: pa.Table) -> Iterator[int | str]:
        """Yield each event's rank, or why it has none: a condition that fails on one event is that event's matter."""
        try:
            yield from self._grading.ranks(table).tolist()
        except GradeError as error:
            half = table.num_rows // 2
            if half == 0:
                yield f"the grades' conditions cannot be evaluated: {error}"
                return
            yield from self._graded(table.slice(0, half))
            yield from self._graded(table.slice(half))

    def _compare(self, names: Sequence[str], rank: I8, refusals: _Refusals) -> None:
        expected = np.array([self.grades.index(n) if n in self.grades else FAILED for n in names], np.int8)
        found = (*self.grades, "none")
        refusals.add(
            (expected != FAILED) & (rank != FAILED) & (expected != rank),
            lambda k: f"grade '{names[k]}': the conditions of [[grades]] give '{found[rank[k]]}'",
        )

    def _log(self, table: pa.Table, rank: I8) -> EventLog:
        n = table.num_rows
        code = [self._surfaces.get(name, -1) for name in table["surface"].to_pylist()]
        return EventLog(
            user=self._indexes("user", table["user_id"]),
            item=self._indexes("item", table["item_id"]),
            ts=table["ts"].to_numpy().copy(),  # else a whole segment is held that it was read from
            grade=rank,
            surface=np.array(code, np.int16),
            organic=table["organic"].cast(pa.int8()).fill_null(-1).to_numpy(),
            request=np.full(n, -1, np.int64),
            pairable=np.ones(n, bool),
            feedback=self._feedback(table),
            feedback_names=self.feedback,
        )

    def _indexes(self, side: str, ids: pa.ChunkedArray) -> I32:
        if pa.types.is_string(ids.type) != self._text[side]:
            return np.full(len(ids), -1, np.int32)  # another bundle's kind of ids: all are unknown
        return self._find[side](ids.to_pylist() if self._text[side] else ids.to_numpy())

    def _feedback(self, table: pa.Table) -> F32:
        out = np.full((table.num_rows, len(self.feedback)), np.nan, np.float32)
        for k, name in enumerate(self.feedback):
            if name in table.column_names:
                out[:, k] = table[name].to_numpy()
        return out


def _beyond(numbers: F64) -> Bool:
    """Return bool[n]: which are larger than sums can bear, either way."""
    return np.abs(numbers) > LARGEST_FEEDBACK


def _within_bound(events: pa.Table, name: str) -> pa.Table:
    """Return recorded events with NULL for feedback beyond LARGEST_FEEDBACK: once, such was acknowledged."""
    numbers = events[name].to_numpy()
    bad = np.flatnonzero(_beyond(numbers))
    if not len(bad):
        return events
    ids = events["event_id"].take(pa.array(bad[:FIRST_FEW])).to_pylist()
    told = ", ".join(f"{one!r} ({numbers[k]:g})" for one, k in zip(ids, bad, strict=False))
    log.warning(
        "recorded feedback '%s' is beyond %g in %s events and counts as unknown: event id %s; %s",
        *(name, LARGEST_FEEDBACK, f"{len(bad):,}", told, LARGER),
    )
    kept = np.ones(len(numbers), bool)
    kept[bad] = False
    values = pc.if_else(pa.array(kept), events[name], pa.scalar(None, pa.float64()))
    return events.set_column(events.column_names.index(name), name, values)


def _time(ts: int) -> str:
    try:
        return iso(int(ts))
    except (OverflowError, ValueError):
        return f"{ts} µs"
