"""A small typed client: Python ids, names and lists in and out, and errors as sentences.

with Client("127.0.0.1:50051") as client:
    for item in client.recommend(user=42, k=10).items:
        print(item.item, item.score, item.sources)
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

import grpc
from pairlift.v1 import metrics_pb2, metrics_pb2_grpc, ranking_pb2_grpc
from pairlift.v1 import ranking_pb2 as pb

from features.errors import PairliftError
from ranker.asking.channel import Tls, open_channel, sentence_of
from ranker.asking.messages import column_message, id_list, id_message, ids_message

if TYPE_CHECKING:
    from ranker.recording.batch import Batch, Outcome

DEFAULT_ADDRESS = "127.0.0.1:50051"
Id = int | str
#: of one item in one request, a number or a text; None where it is not known
Shown = float | str | None


class ServerError(PairliftError):
    """The server could not be asked, or refused. code: the gRPC status, such as `INVALID_ARGUMENT`."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class Asked(TypedDict, total=False):
    """What may be said of a request beside the user."""

    surface: str
    query: str
    source_item: Id | None  # the item that the list is related to
    attributes: Mapping[str, str]  # device, locale …: see Context in ranking.proto
    as_of: int | None  # µs UTC; left out: the server's clock
    explain: bool
    request_id: str


@dataclass(frozen=True, slots=True)
class Ranked:
    """One item of an answer."""

    item: Id
    score: float  # greater is better
    sources: tuple[str, ...]  # which proposed it
    index: int  # its place in the request's items (Rank); -1 for Recommend
    features: tuple[tuple[str, float, float], ...]  # (name, value, contribution), the greatest first; explained only
    liked: float | None = None  # the score of the part that orders Rank; explained only
    wanted: float | None = None  # likewise of that which orders Recommend; None for Rank, and without that part
    propensity: float | None = None  # its chance given the items above; None where the order was not drawn


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. proposed, removed, stages and rules are empty unless explained."""

    request_id: str  # the request's own; empty where it had none
    bundle_version: str  # of the bundle that answered
    snapshot_time: int  # µs UTC, the end of the events that were known
    as_of: int  # µs UTC
    degraded: tuple[str, ...]  # what failed or was late
    items: tuple[Ranked, ...]  # best first
    proposed: tuple[tuple[str, int, int, str], ...]  # (source, proposed, scored, problem)
    removed: tuple[tuple[str, int], ...]  # (filter, items)
    stages: tuple[tuple[str, int], ...]  # (stage, µs)
    rules: tuple[tuple[str, int, tuple[int, ...]], ...] = ()  # (rule, candidates that it changed, places in `items`)
    reason: str = ""  # why a Recommend gives fewer than k items
    arm: str = ""  # of the experiment under way that the user is in; empty: none
    unknown_user: bool = False  # whether neither the bundle nor what was recorded knows the user, or none was named
    unknown_source_item: bool = False  # whether the source item that was named is not known, likewise
    exploration: str = ""  # how the order of the list was drawn (`[exploration] kind`); empty: it was not
    temperature: float | None = None  # of that draw; None where it did not read the scores
    unknown_items: tuple[Id, ...] = ()  # of a Rank, those items likewise, in the request's order


@dataclass(frozen=True, slots=True)
class Description:
    """What is served: see DescribeResponse in ranking.proto."""

    bundle_version: str  # hash of the bundle's manifest
    name: str  # `name` of the bundle's TOML
    snapshot_time: int  # µs UTC, the end of the events that are known
    clock: int  # µs UTC, the as_of of a request without one
    text_users: bool  # whether ids of users are text; else they are integers
    text_items: bool  # whether ids of items are text
    users: int  # how many are known, recorded new ones too
    items: int  # how many are known, recorded new ones too
    surfaces: tuple[str, ...]  # names that a request's `surface` may have
    source_names: tuple[str, ...]  # candidate sources of Recommend
    feature_names: tuple[str, ...]  # columns of the booster that orders Rank, in their order
    max_k: int  # the greatest k of a Recommend
    default_k: int  # the k of a Recommend without one
    max_items: int  # of a list of a request
    failures: dict[str, int]  # times each source or plugin (`sources.nearest`) failed or was late so far
    records: bool = False  # whether events are recorded
    recorded_events: int = 0  # how many are recorded and served; 0 where nothing is
    recording_problem: str = ""  # empty: all is well
    wanted_feature_names: tuple[str, ...] = ()  # of the booster that orders Recommend; empty where Rank's does
    context_attributes: dict[str, bool] = field(default_factory=dict)  # names of `attributes`, whether each is text
    candidate_columns: dict[str, bool] = field(default_factory=dict)  # names of `columns` of a Rank, likewise
    list_features: tuple[str, ...] = ()  # those of the features that compare an item with the others of its request
    time_zone: str = ""  # of the bundle's TOML: that of a time which says none; empty where an older server is asked


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot on the server's disk."""

    folder: str  # its path there
    time: int  # µs UTC, its end
    frame: int  # the last frame of the log that is in it


class Client:
    """Asks one server. Every failure of a call is a ServerError."""

    def __init__(
        self, address: str = DEFAULT_ADDRESS, timeout: float = 5.0, *, tls: Tls | None = None, token: str | None = None
    ) -> None:
        """timeout: seconds that a call may take. tls: None for plain text. token: for a server that asks for one.

        PairliftError where a file of `tls` cannot be read, and where a token would go over a network in plain text.
        """
        self.address, self.timeout = address, timeout
        self._channel = open_channel(address, tls, token)
        self._stub = ranking_pb2_grpc.RankingServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def channel(self) -> grpc.Channel:
        """The connection, for calls of other services."""
        return self._channel

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def recommend(
        self, user: Id | None = None, k: int = 0, *, exclude: Sequence[Id] = (), **asked: Unpack[Asked]
    ) -> Reply:
        """Ask for a user's list. k: 0 is the server's default. exclude: items that must not be in it."""
        return _reply(
            self._call(
                self._stub.Recommend,
                lambda: pb.RecommendRequest(k=k, exclude=ids_message(exclude), **_common(user, asked)),
            )
        )

    def rank(
        self,
        user: Id | None,
        items: Sequence[Id],
        *,
        columns: Mapping[str, Sequence[Shown]] | None = None,
        **asked: Unpack[Asked],
    ) -> Reply:
        """Ask for the order of one's own items; all of them come back, best first.

        columns: what is shown of each item, by the names of [events.candidate]: `{"price": [9.5, None, 12]}`.
        """

        def message() -> pb.RankRequest:
            # Of a column without a known value it cannot be told whether it is of numbers.
            known = {name: values for name, values in (columns or {}).items() if any(v is not None for v in values)}
            shown = [column_message(name, values) for name, values in known.items()]
            return pb.RankRequest(items=ids_message(items), columns=shown, **_common(user, asked))

        return _reply(self._call(self._stub.Rank, message))

    def record(self, batches: Iterable["Batch"]) -> Iterator["Outcome"]:
        """Record batches of events over one stream; yield what became of each, in order, once it is on disk.

        A batch whose outcome did not come may be sent again as it is: its events count once. No timeout. What the
        iterable raises is raised here, behind the outcomes of the batches before it.
        """
        # Here and not above: events are Arrow tables, and who asks only needs no Arrow.
        from ranker.recording.batch import Outcome
        from ranker.recording.wire import batch_message

        problems: list[Exception] = []

        def messages() -> Iterator[Any]:
            try:
                for batch in batches:
                    yield batch_message(batch)
            except Exception as error:  # gRPC would print a traceback; so the stream ends, and it is raised below
                problems.append(error)

        try:
            for r in self._stub.RecordEvents(messages()):
                yield Outcome(r.recorded, r.duplicates, tuple(zip(r.refused, r.reasons, strict=True)))
        except grpc.RpcError as error:
            raise (problems[0] if problems else self.explained(error)) from error
        if problems:
            raise problems[0]

    def snapshot(self) -> Snapshot:
        """Have the server write a snapshot of the recorded state; waits for as long as that takes."""
        try:
            r = self._stub.TakeSnapshot(pb.TakeSnapshotRequest())
        except grpc.RpcError as error:
            raise self.explained(error) from error
        return Snapshot(r.folder, r.snapshot_time, r.frame)

    def metrics(self) -> str:
        """Ask for the server's metrics, in Prometheus' text format."""
        stub = metrics_pb2_grpc.MetricsServiceStub(self._channel)
        text: str = self._call(stub.Metrics, metrics_pb2.MetricsRequest).text
        return text

    def describe(self) -> Description:
        """Ask what is served."""
        r = self._call(self._stub.Describe, pb.DescribeRequest)
        plain = {
            name: getattr(r, name)
            for name in (
                "bundle_version",
                "name",
                "snapshot_time",
                "clock",
                "users",
                "items",
                "max_k",
                "default_k",
                "max_items",
                "records",
                "recorded_events",
                "recording_problem",
            )
        }
        return Description(
            **plain,
            text_users=r.user_ids == pb.ID_KIND_TEXT,
            text_items=r.item_ids == pb.ID_KIND_TEXT,
            surfaces=tuple(r.surfaces),
            source_names=tuple(r.source_names),
            feature_names=tuple(r.feature_names),
            wanted_feature_names=tuple(r.wanted_feature_names),
            context_attributes={one.name: one.kind == pb.VALUE_KIND_TEXT for one in r.context_attributes},
            candidate_columns={one.name: one.kind == pb.VALUE_KIND_TEXT for one in r.candidate_columns},
            list_features=tuple(r.list_features),
            failures=dict(r.failures),
            time_zone=r.time_zone,
        )

    def _call(self, method: Any, message: Any) -> Any:
        try:
            built = message()
        except (TypeError, ValueError) as error:
            raise ServerError("INVALID_ARGUMENT", f"the request cannot be written: {error}") from error
        try:
            return method(built, timeout=self.timeout)
        except grpc.RpcError as error:
            raise self.explained(error) from error

    def explained(self, error: Any) -> ServerError:
        """Return what to raise for a call's `grpc.RpcError`."""
        return ServerError(error.code().name, sentence_of(error, self.address, self.timeout))


def _common(user: Id | None, asked: Asked) -> dict[str, Any]:
    """Return the fields that both requests share."""
    context = pb.Context(
        surface=asked.get("surface", ""),
        query=asked.get("query", ""),
        source_item=_id_or_none(asked.get("source_item")),
        attributes=asked.get("attributes", {}),
    )
    rest = {name: asked.get(name) for name in ("as_of", "explain", "request_id")}
    return {"user": _id_or_none(user), "context": context, **rest}


def _id_or_none(value: Id | None) -> pb.Id | None:
    return None if value is None else id_message(value)


def _reply(r: Any) -> Reply:
    ids = id_list(r.items)
    indexes = list(r.indexes) if isinstance(r, pb.RankResponse) else [-1] * len(ids)
    names = tuple(r.source_names)
    e = r.explanation
    features = _features(e) + [()] * len(ids)
    drawn = r.exploration if isinstance(r, pb.RecommendResponse) and r.HasField("exploration") else pb.Exploration()
    parts = ([*found, *[None] * (len(ids) - len(found))] for found in (e.liked, e.wanted, drawn.propensities))
    items = tuple(
        Ranked(item, score, tuple(name for bit, name in enumerate(names) if mask >> bit & 1), index, *explained)
        for item, score, mask, index, *explained in zip(
            ids, r.scores, r.sources, indexes, features, *parts, strict=False
        )
    )
    unknown = set(r.unknown_items) if isinstance(r, pb.RankResponse) else ()
    by_index = sorted((item.index, item.item) for item in items if item.index in unknown)
    return Reply(
        request_id=r.request_id,
        bundle_version=r.bundle_version,
        snapshot_time=r.snapshot_time,
        as_of=r.as_of,
        degraded=tuple(r.degraded),
        items=items,
        proposed=tuple((s.name, s.proposed, s.scored, s.problem) for s in e.source_reports),
        removed=tuple((f.name, f.removed) for f in e.filter_reports),
        stages=tuple((s.name, s.microseconds) for s in e.stage_reports),
        rules=tuple((rule.name, rule.changed, tuple(rule.places)) for rule in e.rule_reports),
        reason=r.reason if isinstance(r, pb.RecommendResponse) else "",
        arm=r.arm,
        unknown_user=r.unknown_user,
        unknown_source_item=r.unknown_source_item,
        exploration=drawn.kind,
        temperature=drawn.temperature if drawn.HasField("temperature") else None,
        unknown_items=tuple(item for _, item in by_index),
    )


def _features(e: Any) -> list[tuple[tuple[str, float, float], ...]]:
    """Return the features of each explained item, the greatest contribution (in size) first.

    Where a network scored there are no contributions: they are NaN, and the features in their own order.
    """
    names, c = list(e.feature_names), len(e.feature_names)
    values, parts = list(e.feature_values), list(e.contributions) or [nan] * len(e.feature_values)
    rows = [zip(names, values[i * c : i * c + c], parts[i * c : i * c + c], strict=True) for i in range(e.rows)]
    return [tuple(sorted(row, key=lambda feature: -abs(feature[2]))) for row in rows]
