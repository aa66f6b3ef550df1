"""Between the messages of `ranking.proto` and our requests and answers, ids and dense indexes included.

Bulk goes through packed repeated fields: `np.array(field)` in, their bytes out (`ranker.packed`), no loop over items
for integer ids. Batches of events are read and written in `ranker.recording.wire`.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from pairlift.v1 import ranking_pb2 as pb

from features.newcomers import Newcomers
from features.pairing.split import iso
from features.schema import F32, I32, I64, NO_CONTEXT, NO_GIVEN, Attribute, Catalog
from ranker.packed import packed_lists, packed_signed
from ranker.request import (
    MAX_QUERY,
    NEAR,
    NO_ITEMS,
    QUERY,
    UNITS,
    Answer,
    Check,
    Detail,
    Request,
    RequestError,
    awaited,
    too_long,
)

if TYPE_CHECKING:
    from features.state.store import State
    from ranker.ids import IdTable
    from ranker.settings import ServeSettings

DEFAULT_K = 10
#: numbers of packed fields; scores and sources are those of both responses, indexes are of a RankResponse alone
NUMBERS = (
    pb.RankResponse.SCORES_FIELD_NUMBER,
    pb.RankResponse.SOURCES_FIELD_NUMBER,
    pb.RankResponse.INDEXES_FIELD_NUMBER,
)
VALUES = pb.IntegerIds.VALUES_FIELD_NUMBER
NO_INDEXES = np.empty(0, np.int64)
#: of a categorical attribute the code of each value, of a numeric one None
Codes = dict[str, int] | None
#: as_of of a request: the years 1900 to 9998, in µs UTC; beyond them an hour of the day has no meaning
EARLIEST, LATEST = -2_208_988_800_000_000, 253_370_764_800_000_000


class Wire:
    """Reads requests and writes answers for one bundle.

    What the bundle knows is looked up in tables that are made once; new users and items are those of the state that a
    request carries.
    """

    def __init__(
        self,
        catalog: Catalog,
        users: "IdTable",
        items: "IdTable",
        *,
        limits: "ServeSettings",
        max_id_bytes: int,
        ks: Mapping[str, int] | None = None,
    ) -> None:
        """catalog: of the bundle; users, items: its ids. max_id_bytes: of a text id that is not known.

        ks: by surface, the k of its requests that name none.
        """
        self._ks = ks or {}
        self.users, self.items = users, items
        self.limits, self._most = limits, max_id_bytes
        self._surfaces = catalog.surface_codes()
        self._contexts = contexts_of(catalog)
        self._candidates = {
            known.name: (place, _codes(known), pb.CandidateColumn(name=known.name).SerializeToString())
            for place, known in enumerate(catalog.candidates)
        }

    def request(
        self,
        message: pb.RecommendRequest | pb.RankRequest,
        now: int,
        state: "State",
        *,
        arm: int = -1,
        keep_values: bool = False,
        may_explore: bool = False,
        check: Check = awaited,
    ) -> Request:
        """Read what RecommendRequest and RankRequest share, and `exclude`; RequestError where it is wrong.

        now: the as_of (µs UTC) of a request without one. state: what the request is to read. The others are those of
        `Request`.
        """
        catalog, context = state.catalog, message.context
        attributes = self._attributes(context)
        self._check_length("request_id", message.request_id)
        as_of = message.as_of if message.HasField("as_of") else now
        if not EARLIEST <= as_of <= LATEST:
            raise RequestError(
                f"as_of: microseconds UTC since 1970, of the years 1900 to 9998, were expected, found {as_of}"
            )
        if 0 < as_of < LATEST // min(UNITS.values()):
            _refuse_other_unit(as_of, state.start, max(state.end, now))
        source_item = self._one(self.items, catalog.new_items, "context.source_item", context.source_item)
        return Request(
            user=self._one(self.users, catalog.new_users, "user", message.user),
            as_of=as_of,
            state=state,
            surface=self._surfaces.get(context.surface, -1),
            source_item=source_item,
            unknown_source_item=source_item < 0 and context.source_item.WhichOneof("kind") is not None,
            query=attributes.get(QUERY, context.query),
            context=context_row(self._contexts, attributes),
            texts={name: said for name, said in attributes.items() if self._contexts.get(name) is not None},
            exclude=self._excluded(message, catalog.new_items),
            explain=message.explain,
            request_id=message.request_id,
            arm=arm,
            keep_values=keep_values,
            may_explore=may_explore,
            check=check,
        )

    def _attributes(self, context: pb.Context) -> Mapping[str, str]:
        """Return the attributes of a request; what the user typed is the one of [events.context] `query`, if there is
        one, and the attribute of that name wins. RequestError for a query that is too long.
        """
        said = context.attributes
        for place, text in (("context.query", context.query), (f"context.attributes '{QUERY}'", said.get(QUERY, ""))):
            if len(text) > MAX_QUERY // 4 and (size := len(text.encode())) > MAX_QUERY:
                raise RequestError(f"{place}: at most {MAX_QUERY} bytes in UTF-8 were expected, found {size}")
        if context.query and QUERY not in said and self._contexts.get(QUERY) is not None:
            return {**said, QUERY: context.query}
        return said

    def _excluded(self, message: pb.RecommendRequest | pb.RankRequest, new: Newcomers) -> I32:
        if not isinstance(message, pb.RecommendRequest) or not message.HasField("exclude"):
            return NO_ITEMS
        return self._indexes(self.items, new, "exclude", self.values("exclude", message.exclude))

    def given(self, columns: Sequence[pb.CandidateColumn], n: int) -> F32:
        """Return float32[n, c] of `Catalog.candidates` for n items, NaN where unknown; RequestError where it is wrong.

        Columns of other names have no effect.
        """
        if not columns or not self._candidates:
            return NO_GIVEN
        head, names = _head(n), set()
        values = [_missing(n)] * len(self._candidates)
        for column in columns:
            name = column.name
            if name in names:
                raise RequestError(f"columns '{name}': each column once was expected, found it twice")
            names.add(name)
            if name in self._candidates:
                place, codes, begin = self._candidates[name]
                values[place] = _numbers(column, begin + head, n) if codes is None else _coded(column, codes, n)
        given = np.frombuffer(bytearray().join(values), "<f4").reshape(len(values), n).T
        if np.isinf(given).any():
            row, place = np.argwhere(np.isinf(given))[0]
            found = f"found {given[row, place]} for item {row}"
            raise RequestError(f"columns '{list(self._candidates)[place]}': finite numbers were expected, {found}")
        return given

    def k(self, message: pb.RecommendRequest) -> int:
        """Return the k of a RecommendRequest, or the default."""
        most = self.limits.max_k
        if not 0 <= message.k <= most:
            raise RequestError(f"k: 0 (for the default) to {most} was expected, found {message.k}")
        return message.k or self._ks.get(message.context.surface) or self.default_k

    @property
    def default_k(self) -> int:
        """The k of a request without one."""
        return min(DEFAULT_K, self.limits.max_k)

    def values(self, place: str, ids: pb.Ids) -> Sequence[str] | I64:
        """Return the item ids of a list as the caller wrote them: texts or int64[n]; RequestError for another kind, too
        many.
        """
        kind = ids.WhichOneof("kind")
        if kind is None:
            return ()
        values = getattr(ids, kind).values
        if len(values) > self.limits.max_items:
            raise RequestError(f"{place}: at most {self.limits.max_items} items were expected, found {len(values)}")
        if len(values) and (kind == "texts") != self.items.text:
            raise self.items.refuse(place)
        found: Sequence[str] | I64 = values if self.items.text else np.array(values, np.int64)
        return found

    def candidates(self, items: Sequence[str] | I64, state: "State") -> I32:
        """Return int32[n]: the indexes of what `values` gave. state: of the request."""
        return self._indexes(self.items, state.catalog.new_items, "items", items)

    def _one(self, table: "IdTable", new: Newcomers, place: str, message: pb.Id) -> int:
        """Return the index of a single id, -1 where it is absent or not known."""
        kind = message.WhichOneof("kind")
        if kind is None:
            return -1
        if (kind == "text") != table.text:
            raise table.refuse(place)
        return int(self._indexes(table, new, place, [getattr(message, kind)])[0])

    def _indexes(self, table: "IdTable", new: Newcomers, place: str, ids: Sequence[Any] | I64) -> I32:
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

    def recommended(self, answer: Answer, request: Request) -> pb.RecommendResponse:
        """Return the RecommendResponse of an answer to a request."""
        message = pb.RecommendResponse(reason=answer.reason, **_common(answer, request))
        self._write_ids(message.items, request.state.catalog.ids_of_items(answer.item))
        message.MergeFromString(packed_lists(NUMBERS, answer.score, answer.sources, NO_INDEXES))
        if answer.explored is not None:
            drawn = answer.explored
            message.exploration.kind = drawn.kind
            message.exploration.propensities.extend(drawn.propensity.tolist())
            if drawn.temperature is not None:
                message.exploration.temperature = drawn.temperature
        return message

    def ranked(self, answer: Answer, request: Request, items: Sequence[str] | I64) -> pb.RankResponse:
        """Return the RankResponse of an answer to a request; items: what `values` gave."""
        message = pb.RankResponse(**_common(answer, request))
        if (unknown := answer.item < 0).any():
            message.unknown_items.extend(np.sort(answer.index[unknown]).tolist())
        ids = items[answer.index] if isinstance(items, np.ndarray) else [items[k] for k in answer.index.tolist()]
        self._write_ids(message.items, ids)
        message.MergeFromString(packed_lists(NUMBERS, answer.score, answer.sources, answer.index))
        return message

    def _write_ids(self, message: pb.Ids, ids: Any) -> None:
        """Write a list of texts, or integers as a list or int64[n]."""
        if self.items.text:
            message.texts.values.extend(ids)
        else:
            message.integers.MergeFromString(packed_signed(VALUES, np.asarray(ids, np.int64)))


def _refuse_other_unit(as_of: int, start: int, end: int) -> None:
    """Raise RequestError for an as_of before the log that lies about within [start, end) in seconds or milliseconds."""
    for unit, size in UNITS.items():
        if as_of < start and start - NEAR <= as_of * size <= end + NEAR:
            raise RequestError(
                f"as_of: microseconds UTC since 1970 were expected, found {as_of}, which lies before the log's first "
                f"event and is {iso(as_of * size)} in {unit}: send {as_of * size}"
            )


def _codes(attribute: Attribute) -> Codes:
    return None if attribute.kind == "numeric" else attribute.value_codes()


@lru_cache(maxsize=4096)
def _head(n: int) -> bytes:
    """Return the bytes that stand before n packed numbers in a CandidateColumn: tag and length."""
    packed = pb.CandidateColumn(numbers=[0.0] * n).SerializeToString()
    return packed[: len(packed) - 4 * n]


@lru_cache(maxsize=4096)
def _missing(n: int) -> bytes:
    """Return n unknown numbers, as `_numbers`."""
    return np.full(n, np.nan, "<f4").tobytes()


def _numbers(column: pb.CandidateColumn, head: bytes, n: int) -> bytes:
    """Return the n numbers of a column, 4 bytes each; RequestError where it has others.

    head: what stands before them in the bytes of such a column. There they lie as in memory, and are taken as they are:
    a Python number for each would cost three times as much.
    """
    packed: bytes = column.SerializeToString()
    if len(packed) == len(head) + 4 * n and packed.startswith(head):
        return packed[len(head) :]
    _check_column(column, "numbers", n)
    return np.array(column.numbers, "<f4").tobytes()  # with fields of a later version


def _coded(column: pb.CandidateColumn, codes: dict[str, int], n: int) -> bytes:
    """Return the codes of the n texts of a column likewise, NaN for unknown ones; RequestError where it has others."""
    _check_column(column, "texts", n)
    return np.array([codes.get(text, np.nan) for text in column.texts], "<f4").tobytes()


def _check_column(column: pb.CandidateColumn, expected: str, n: int) -> None:
    other = "texts" if expected == "numbers" else "numbers"
    place, found = f"columns '{column.name}'", len(getattr(column, expected))
    if len(getattr(column, other)):
        raise RequestError(f"{place}: {expected} were expected, found {other}")
    if found != n:
        raise RequestError(f"{place}: {n} {expected} were expected, one for each item, found {found}")


def contexts_of(catalog: Catalog) -> dict[str, Codes]:
    """Return the codes of each of `Catalog.contexts`, by name: what `context_row` reads by."""
    return {known.name: _codes(known) for known in catalog.contexts}


def context_row(contexts: Mapping[str, Codes], attributes: Mapping[str, str]) -> F32:
    """Return float32[1, c] of `Catalog.contexts`; a value that the log lacks counts as missing."""
    if not contexts:
        return NO_CONTEXT
    row = np.full((1, len(contexts)), np.nan, np.float32)
    for k, (name, codes) in enumerate(contexts.items()):
        if name in attributes:
            value = attributes[name]
            row[0, k] = _number(name, value) if codes is None else codes.get(value, np.nan)
    return row


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


def _common(answer: Answer, request: Request) -> dict[str, Any]:
    """Return what both responses have of a list; versions and times are those that the answer was computed with."""
    return {
        "request_id": request.request_id,
        "bundle_version": answer.bundle_version,
        "snapshot_time": request.state.end,
        "as_of": request.as_of,
        "degraded": answer.degraded,
        "unknown_user": request.user < 0,
        "unknown_source_item": request.unknown_source_item,
        "source_names": answer.source_names,
        "explanation": None if answer.detail is None else _explanation(answer.detail),
    }


def _explanation(detail: Detail) -> pb.Explanation:
    return pb.Explanation(
        feature_names=detail.columns,
        rows=len(detail.values),
        feature_values=detail.values.ravel().tolist(),
        contributions=() if detail.contributions is None else detail.contributions.ravel().tolist(),
        base=detail.base,
        liked=detail.liked.tolist(),
        wanted=() if detail.wanted is None else detail.wanted.tolist(),
        source_reports=[
            pb.SourceReport(name=s.name, proposed=s.proposed, scored=s.scored, problem=s.problem)
            for s in detail.sources
        ],
        filter_reports=[pb.FilterReport(name=name, removed=count) for name, count in detail.removed],
        rule_reports=[pb.RuleReport(name=rule.name, changed=rule.changed, places=rule.places) for rule in detail.rules],
        stage_reports=[pb.StageReport(name=name, microseconds=took) for name, took in detail.stages],
    )


def attribute_messages(known: Iterable[Attribute]) -> list[pb.Attribute]:
    """Return what Describe says of attributes of a request or of candidates."""
    kinds = {True: pb.VALUE_KIND_NUMBER, False: pb.VALUE_KIND_TEXT}
    return [pb.Attribute(name=one.name, kind=kinds[one.kind == "numeric"]) for one in known]
