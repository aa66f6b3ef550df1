"""Between the messages of `ranking.proto` and our arrays, ids and dense indexes included.

Bulk goes through packed repeated fields: `np.array(field)` in, `.tolist()` out, no loop over items for
integer ids.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pairlift.v1 import ranking_pb2 as pb

from features.ids import IdIndex
from features.newcomers import Newcomers
from features.schema import F32, I32, I64, NO_CONTEXT, NO_NEWCOMERS, Catalog, Ids, is_text
from ranker.config import MAX_ID_BYTES, ServeSettings
from ranker.recording.batch import Batch, Outcome
from ranker.request import Answer, Detail, Request, RequestError, too_long

if TYPE_CHECKING:  # the clients load this file, and need no counters
    from features.state.store import State

DEFAULT_K = 10
#: fields of RecordEventsRequest with ids, and the columns of a batch
_ID_FIELDS = {"event_ids": "event_id", "users": "user_id", "items": "item_id"}
#: as_of of a request: the years 1900 to 9998, in µs UTC; beyond them an hour of the day has no meaning
EARLIEST, LATEST = -2_208_988_800_000_000, 253_370_764_800_000_000


class IdTable:
    """The ids of the users or of the items of a bundle: one kind, and the dense index of each."""

    def __init__(self, ids: Ids) -> None:
        self.ids = ids
        self.text = is_text(ids)
        self._index = IdIndex.of(ids)

    @property
    def kind(self) -> str:
        """`text` or `integer`."""
        return "text" if self.text else "integer"

    def find(self, wanted: Sequence[Any], new: Newcomers = NO_NEWCOMERS) -> I32:
        """Return int32[n]: the index of each id, -1 where it is not known. new: those that the bundle does not know."""
        found = self._index.find(wanted)
        if new.count and (unknown := np.flatnonzero(found < 0)).size:
            number = new.find([wanted[k] for k in unknown.tolist()])
            found[unknown] = np.where(number < 0, -1, len(self.ids) + number)
        return found

    def refuse(self, place: str) -> RequestError:
        """Return the error of ids of the other kind."""
        found = "an integer" if self.text else "text"
        return RequestError(
            f"{place}: {self.kind} ids were expected, for such are the ids of this bundle; found {found}"
        )


class Wire:
    """Reads requests and writes answers for one catalogue."""

    def __init__(self, catalog: Catalog, limits: ServeSettings, max_id_bytes: int = MAX_ID_BYTES) -> None:
        self.limits, self._most, self._catalog = limits, max_id_bytes, catalog
        self.users = IdTable(catalog.user_ids)
        self.items = IdTable(catalog.item_ids)
        self._surfaces = catalog.surface_codes()
        self._contexts = {
            known.name: None if known.kind == "numeric" else {value: code for code, value in enumerate(known.values)}
            for known in catalog.contexts
        }

    def request(self, message: pb.RecommendRequest | pb.RankRequest, now: int, state: "State | None" = None) -> Request:
        """Read what RecommendRequest and RankRequest share, and `exclude`; RequestError where it is wrong.

        now: the as_of (µs UTC) of a request without one. state: what the request is to read, new users and items too.
        """
        catalog = self._known(state)
        context = message.context
        self._check_length("request_id", message.request_id)
        as_of = message.as_of if message.HasField("as_of") else now
        if not EARLIEST <= as_of <= LATEST:
            raise RequestError(
                f"as_of: microseconds UTC since 1970, of the years 1900 to 9998, were expected, found {as_of}"
            )
        exclude = message.exclude if isinstance(message, pb.RecommendRequest) else pb.Ids()
        return Request(
            self._one(self.users, catalog.new_users, "user", message.user),
            as_of,
            self._surfaces.get(context.surface, -1),
            self._one(self.items, catalog.new_items, "context.source_item", context.source_item),
            context.query,
            self._said(context.attributes),
            self._indexes(self.items, catalog.new_items, "exclude", self.values("exclude", exclude)),
            message.explain,
            state=state,
        )

    def _said(self, attributes: Mapping[str, str]) -> F32:
        """Return float32[1, c] of `Catalog.contexts`; a value that the log lacks counts as missing."""
        if not self._contexts:
            return NO_CONTEXT
        row = np.full((1, len(self._contexts)), np.nan, np.float32)
        for k, (name, codes) in enumerate(self._contexts.items()):
            if name in attributes:
                value = attributes[name]
                row[0, k] = _number(name, value) if codes is None else codes.get(value, np.nan)
        return row

    def k(self, message: pb.RecommendRequest) -> int:
        """Return the k of a RecommendRequest, or the default."""
        most = self.limits.max_k
        if not 0 <= message.k <= most:
            raise RequestError(f"k: 0 (for the default) to {most} was expected, found {message.k}")
        return message.k or self.default_k

    @property
    def default_k(self) -> int:
        """The k of a request without one."""
        return min(DEFAULT_K, self.limits.max_k)

    def values(self, place: str, ids: pb.Ids) -> Sequence[Any]:
        """Return the item ids of a list as the caller wrote them; RequestError for another kind, too many."""
        kind = ids.WhichOneof("kind")
        if kind is None:
            return ()
        values: Sequence[Any] = getattr(ids, kind).values
        if len(values) > self.limits.max_items:
            raise RequestError(f"{place}: at most {self.limits.max_items} items were expected, found {len(values)}")
        if len(values) and (kind == "texts") != self.items.text:
            raise self.items.refuse(place)
        return values

    def candidates(self, items: Sequence[Any], state: "State | None" = None) -> I32:
        """Return int32[n]: the indexes of what `values` gave. state: of the request."""
        return self._indexes(self.items, self._known(state).new_items, "items", items)

    def _one(self, table: IdTable, new: Newcomers, place: str, message: pb.Id) -> int:
        """Return the index of a single id, -1 where it is absent or not known."""
        kind = message.WhichOneof("kind")
        if kind is None:
            return -1
        if (kind == "text") != table.text:
            raise table.refuse(place)
        return int(self._indexes(table, new, place, [getattr(message, kind)])[0])

    def _indexes(self, table: IdTable, new: Newcomers, place: str, ids: Sequence[Any]) -> I32:
        """Return int32[n]: the index of each id, -1 where it is not known; RequestError for one that could not be."""
        found = table.find(ids, new)
        if table.text:
            for k in np.flatnonzero(found < 0).tolist():
                self._check_length(place, ids[k])
        return found

    def _check_length(self, place: str, text: str) -> None:
        size = len(text.encode())
        if size > self._most:
            raise RequestError(too_long(place, self._most, size))

    def _known(self, state: "State | None") -> Catalog:
        return self._catalog if state is None else state.catalog

    def recommended(self, answer: Answer, state: "State | None" = None) -> pb.RecommendResponse:
        """Return the RecommendResponse of an answer. state: of its request."""
        ids = self._known(state).ids_of_items(answer.item)
        return pb.RecommendResponse(items=self._ids(ids), **_common(answer))

    def ranked(self, answer: Answer, items: Sequence[Any]) -> pb.RankResponse:
        """Return the RankResponse of an answer; items: the ids of the request."""
        order = answer.index.tolist()
        ids = [items[k] for k in order] if self.items.text else np.array(items, np.int64)[answer.index].tolist()
        return pb.RankResponse(items=self._ids(ids), indexes=order, **_common(answer))

    def _ids(self, values: list[Any]) -> pb.Ids:
        if self.items.text:
            return pb.Ids(texts=pb.TextIds(values=values))
        return pb.Ids(integers=pb.IntegerIds(values=values))


def _number(name: str, value: str) -> float:
    """Return the number of an attribute, NaN for an unknown one; RequestError where a 32-bit float cannot hold it."""
    try:
        number = float(value)
    except ValueError:
        number = np.inf
    # As Python's floats: NumPy would make a 32-bit one of `number` first, and warn.
    if abs(number) > float(np.finfo(np.float32).max):
        expected = "a finite number" if np.isinf(number) else "a number within a 32-bit float (at most 3.4e+38)"
        raise RequestError(f"context.attributes '{name}': {expected} was expected, found {value!r}")
    return number


def _common(answer: Answer) -> dict[str, Any]:
    return {
        "degraded": answer.degraded,
        "scores": answer.score.tolist(),
        "sources": answer.sources.tolist(),
        "source_names": answer.source_names,
        "explanation": None if answer.detail is None else _explanation(answer.detail),
    }


def _explanation(detail: Detail) -> pb.Explanation:
    return pb.Explanation(
        feature_names=detail.columns,
        rows=len(detail.values),
        feature_values=detail.values.ravel().tolist(),
        contributions=detail.contributions.ravel().tolist(),
        base=detail.base,
        source_reports=[
            pb.SourceReport(name=s.name, proposed=s.proposed, scored=s.scored, problem=s.problem)
            for s in detail.sources
        ],
        filter_reports=[pb.FilterReport(name=name, removed=count) for name, count in detail.removed],
        stage_reports=[pb.StageReport(name=name, microseconds=took) for name, took in detail.stages],
    )


def id_message(value: int | str) -> pb.Id:
    """Return the Id of a Python int or str."""
    return pb.Id(text=value) if isinstance(value, str) else pb.Id(integer=value)


def ids_message(values: Iterable[int | str] | I64) -> pb.Ids:
    """Return the Ids of Python ints or strs, all of one kind, or of int64[n]; TypeError for a mixture."""
    plain: list[Any] = values.tolist() if isinstance(values, np.ndarray) else list(values)
    if plain and isinstance(plain[0], str):
        return pb.Ids(texts=pb.TextIds(values=plain))
    return pb.Ids(integers=pb.IntegerIds(values=plain))


def id_list(message: pb.Ids) -> list[Any]:
    """Return the ids of an Ids as Python ints or strs."""
    kind = message.WhichOneof("kind")
    return [] if kind is None else list(getattr(message, kind).values)


def batch_of(message: pb.RecordEventsRequest) -> Batch:
    """Return the batch of a message; RequestError where its arrays are not parallel."""
    columns = {name: _ids_array(getattr(message, field)) for field, name in _ID_FIELDS.items()}
    n = len(columns["event_id"])
    columns["ts"] = pa.array(np.array(message.ts, np.int64))
    codes, names = np.array(message.surfaces, np.int64), [None, *message.surface_names]
    if len(codes) and codes.max() >= len(names):
        raise RequestError(f"surfaces: at most {len(names) - 1} was expected, found {codes.max()}")
    columns["surface"] = pa.array(names, pa.string()).take(pa.array(codes)) if len(codes) else _none(n, pa.string())
    organic, position = np.array(message.organic, np.int64), np.array(message.positions, np.int32)
    columns["organic"] = pa.array(organic == 1, mask=organic < 0) if len(organic) else _none(n, pa.bool_())
    columns["request_id"] = _texts(message.request_ids, n)
    columns["position"] = pa.array(position, mask=position < 0) if len(position) else _none(n, pa.int32())
    feedback = {column.name: _feedback(column, n) for column in message.feedback}
    if len(feedback) < len(message.feedback):
        raise RequestError("feedback: each column once was expected, found a name twice")
    told = {"grades": message.grades} if message.grades else {}
    for name, values in {**columns, **{f"feedback '{name}'": v for name, v in feedback.items()}, **told}.items():
        if len(values) != n:
            raise RequestError(f"{name}: {n} entries were expected, one for each event id, found {len(values)}")
    return Batch(pa.table(columns), feedback, list(message.grades))


def _ids_array(ids: pb.Ids) -> pa.Array:
    if ids.WhichOneof("kind") == "texts":
        return pa.array(list(ids.texts.values), pa.string())
    return pa.array(np.array(ids.integers.values, np.int64))


def _none(n: int, kind: pa.DataType) -> pa.Array:
    return pa.nulls(n, kind)


def _texts(values: Sequence[str], n: int) -> pa.Array:
    return pa.array([text or None for text in values], pa.string()) if len(values) else _none(n, pa.string())


def _feedback(column: pb.FeedbackColumn, n: int) -> pa.Array:
    if column.texts and column.numbers:
        raise RequestError(f"feedback '{column.name}': numbers or texts were expected, found both")
    if column.texts:
        return _texts(column.texts, n)
    if not column.numbers:
        return _none(n, pa.float64())
    return pa.array(np.array(column.numbers, np.float64), from_pandas=True)  # NaN becomes null


def batch_message(batch: Batch) -> pb.RecordEventsRequest:
    """Return the message of a batch: what `batch_of` reads."""
    events = batch.events.combine_chunks()
    ids = {field: events[name].to_pylist() for field, name in _ID_FIELDS.items()}
    surface = events["surface"].combine_chunks().dictionary_encode()
    return pb.RecordEventsRequest(
        **{field: ids_message(values) for field, values in ids.items()},
        ts=events["ts"].to_pylist(),
        surfaces=[0 if code is None else code + 1 for code in surface.indices.to_pylist()],
        surface_names=surface.dictionary.to_pylist(),
        feedback=[_feedback_message(name, values) for name, values in batch.feedback.items()],
        request_ids=[text or "" for text in events["request_id"].to_pylist()],
        positions=[-1 if place is None else place for place in events["position"].to_pylist()],
        organic=[-1 if flag is None else int(flag) for flag in events["organic"].to_pylist()],
        grades=batch.grades,
    )


def _feedback_message(name: str, values: pa.Array) -> pb.FeedbackColumn:
    if pa.types.is_string(values.type):
        return pb.FeedbackColumn(name=name, texts=[text or "" for text in values.to_pylist()])
    return pb.FeedbackColumn(name=name, numbers=values.to_numpy(zero_copy_only=False).tolist())


def outcome_message(number: int, outcome: Outcome) -> pb.RecordEventsResponse:
    """Return the answer to the batch of that number."""
    places, reasons = zip(*outcome.refused, strict=True) if outcome.refused else ((), ())
    return pb.RecordEventsResponse(
        batch=number, recorded=outcome.recorded, duplicates=outcome.duplicates, refused=places, reasons=reasons
    )
