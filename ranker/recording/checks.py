"""What is refused of a batch that comes in, event by event, with the first reason against each."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import did_you_mean
from features.pairing.split import iso
from features.schema import DAY, F64, I32, Bool
from ranker.recording.batch import Batch
from ranker.recording.columns import ARM_COLUMN, Column
from ranker.request import NEAR, UNITS, too_long
from ranker.settings import RecordSettings

Find = Callable[[Sequence[Any]], I32]
#: why feedback is bounded, and what to do
LARGER = (
    "running sums would lose later values beside a larger one; scale the column, for example seconds in place of "
    "microseconds"
)
ONE = "one value for a request was expected"
#: columns of ids, and what their refusals call them
IDS = {"user_id": "user", "item_id": "item", "event_id": "event id", "request_id": "request id"}


class Side(NamedTuple):
    """The users, or the items, of a bundle."""

    text: bool  # whether their ids are text
    find: Find  # gives the dense index of each id, -1 where the bundle does not know it


class Refusals:
    """The first reason against each event of a batch."""

    def __init__(self, n: int) -> None:
        self.reasons: dict[int, str] = {}  # by the event's index
        self._n = n

    def add(self, bad: Any, reason: Callable[[int], str] | str) -> None:
        """Refuse the events of a mask, for a reason that may be made of an event's index."""
        for place in np.flatnonzero(bad).tolist():
            self.reasons.setdefault(place, reason if isinstance(reason, str) else reason(place))

    @property
    def good(self) -> Bool:
        """bool[n]: which events have no reason against them."""
        keep = np.ones(self._n, bool)
        keep[list(self.reasons)] = False
        return keep


class Checks:
    """What a bundle expects of the columns of a batch."""

    def __init__(
        self,
        settings: RecordSettings,
        sides: Mapping[str, Side],
        columns: Mapping[str, Column],
        grades: Sequence[str],
        of_requests: Collection[str],
    ) -> None:
        """sides: `user` and `item`. columns: of `recorded_columns`. of_requests: those with one value for a request."""
        self._settings, self._sides, self._columns, self._grades = settings, sides, columns, grades
        self._of_requests = of_requests
        self.keep = round(settings.dedupe_days * DAY)  # µs for which an event may come after its time

    def refused(self, batch: Batch, now: int, latest: int, since: int) -> Refusals:
        """Return what is bad in a batch. now: the log's time; latest: the greatest `ts` (µs UTC).

        since: the ids of earlier events may be forgotten (µs UTC).
        """
        refusals = Refusals(batch.events.num_rows)
        self._check_ids(batch.events, refusals)
        self._check_times(batch.events["ts"].to_numpy(), now, latest, since, refusals)
        place = pc.fill_null(batch.events["position"], 1).to_numpy()
        refusals.add(place < 1, lambda k: f"position: 1 (the first place) or more was expected, found {place[k]}")
        for name, values in batch.feedback.items():
            self._check_feedback(name, values, refusals)
            if name in self._of_requests:
                _check_requests(name, values, batch.events["request_id"], refusals)
        if batch.grades:
            known = {"", *self._grades}
            bad = [name not in known for name in batch.grades]
            refusals.add(bad, lambda k: f"grade '{batch.grades[k]}' is unknown{did_you_mean(batch.grades[k], known)}")
        return refusals

    def _check_ids(self, events: pa.Table, refusals: Refusals) -> None:
        for side in ("user", "item"):
            found = pa.types.is_string(events[f"{side}_id"].type)
            if found != self._sides[side].text:
                kinds = ("integer", "text")
                expected, got = kinds[self._sides[side].text], kinds[found]
                refusals.add(
                    np.ones(len(events), bool),
                    f"{side}: {expected} ids were expected, as this bundle has them; found {got}",
                )
        ids = events["event_id"]
        if pa.types.is_string(ids.type):
            refusals.add(pc.equal(ids, "").to_numpy(), "event id: a name was expected, found an empty text")
        for name, place in IDS.items():
            if pa.types.is_string(events[name].type):
                self._check_lengths(place, events[name], refusals)

    def _check_lengths(self, place: str, ids: pa.ChunkedArray, refusals: Refusals) -> None:
        """Refuse ids that are too long, but for users and items that the bundle knows."""
        most, size = self._settings.max_id_bytes, pc.fill_null(pc.binary_length(ids), 0).to_numpy()
        long = np.flatnonzero(size > most)
        side = self._sides.get(place)
        if len(long) and side is not None and side.text:
            long = long[side.find(ids.take(pa.array(long)).to_pylist()) < 0]
        bad = np.zeros(len(ids), bool)
        bad[long] = True
        refusals.add(bad, lambda k: too_long(place, most, size[k]))

    def _check_times(self, ts: Any, now: int, latest: int, since: int, refusals: Refusals) -> None:
        refusals.add(ts < 0, lambda k: f"ts: µs since 1970 were expected, found {ts[k]}")
        _check_unit(ts, now - self.keep, latest, refusals)
        refusals.add(ts > latest, lambda k: f"ts {_time(ts[k])} is in the future, beyond [record] tolerance")
        days = self._settings.dedupe_days
        refusals.add(
            (ts >= 0) & (ts < now - self.keep),
            lambda k: f"ts {_time(ts[k])} is older than [record] dedupe_days = {days:g}: a resend could not be known",
        )
        refusals.add(
            (ts >= 0) & (ts < since),
            lambda k: (
                f"ts {_time(ts[k])} lies before {_time(since)}: the clock was ahead when the server started, or is "
                "behind now, and a resend could not be known"
            ),
        )

    def _check_feedback(self, name: str, values: pa.Array, refusals: Refusals) -> None:
        given = values.is_valid().to_numpy(zero_copy_only=False)
        column = self._columns.get(name)
        if column is None:
            refusals.add(given, f"column '{name}' is unknown{did_you_mean(name, self._columns)}")
            return
        place, text = f"{column.table} column '{name}'", pa.types.is_string(values.type)
        if text != column.text:
            expected, found = ("numbers", "texts") if text else ("texts", "numbers")
            refusals.add(given, f"{place}: {expected} were expected, found {found}")
        elif column == ARM_COLUMN:
            most, size = self._settings.max_id_bytes, pc.fill_null(pc.binary_length(values), 0).to_numpy()
            refusals.add(size > most, lambda k: too_long(name, most, size[k]))
        elif not text:
            numbers = values.to_numpy(zero_copy_only=False)
            refusals.add(np.isinf(numbers), f"{place}: a finite number was expected, found an infinite one")
            within = f"{place}: at most {column.most:g} either way was expected, found "
            why = f": {LARGER}" if column.summed else ""
            refusals.add(beyond(numbers, column.most), lambda k: f"{within}{float(numbers[k])!r}{why}")


def _check_unit(ts: Any, first: int, latest: int, refusals: Refusals) -> None:
    """Refuse times outside [first, latest] that lie about there when they are read in another unit."""
    outside = (ts < first) | (ts > latest)
    if not outside.any():
        return
    for unit, size in UNITS.items():
        near = outside & (ts >= (first - NEAR) // size) & (ts <= latest // size)
        refusals.add(near, partial(_read_in, ts, unit, size))
    near = outside & (ts // 1000 >= first - NEAR) & (ts // 1000 <= latest)
    refusals.add(near, lambda k: _in_unit(int(ts[k]), "nanoseconds", int(ts[k]) // 1000))


def _read_in(ts: Any, unit: str, size: int, k: int) -> str:
    return _in_unit(int(ts[k]), unit, int(ts[k]) * size)


def _in_unit(ts: int, unit: str, meant: int) -> str:
    return f"ts: µs since 1970 were expected, found {ts}, which is {iso(meant)} in {unit}: send {meant}"


def _check_requests(name: str, values: pa.Array, request_id: pa.ChunkedArray, refusals: Refusals) -> None:
    """Refuse events whose value is another than an earlier event of the batch gives for the same request.

    A training would stop at such a log, and what is recorded stays.
    """
    place = np.flatnonzero(pc.and_(values.is_valid(), request_id.is_valid()).to_numpy())
    if not len(place):
        return
    requests, said = request_id.take(pa.array(place)).combine_chunks(), values.take(pa.array(place))
    code, value = (column.dictionary_encode().indices.to_numpy() for column in (requests, said))
    _, first = np.unique(code, return_index=True)  # codes count on from 0
    bad = np.flatnonzero(value != value[first[code]])
    for k in bad.tolist():
        one, other = said[int(first[code[k]])].as_py(), said[k].as_py()
        reason = f"request {requests[k].as_py()!r} has {one!r} and {other!r}"
        refusals.reasons.setdefault(int(place[k]), f"context column '{name}': {ONE}, {reason}")


def beyond(numbers: F64, most: float) -> Bool:
    """Return bool[n]: which are larger than `most`, either way."""
    return np.abs(numbers) > most


def _time(ts: int) -> str:
    try:
        return iso(int(ts))
    except (OverflowError, ValueError):
        return f"{ts} µs"
