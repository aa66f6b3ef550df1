"""The gRPC server: a synchronous one, with a thread for each request up to `[serve] workers`."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from pairlift.v1 import ranking_pb2 as pb
from pairlift.v1 import ranking_pb2_grpc

from features.errors import PairliftError
from features.pairing.split import iso
from features.schema import HOUR
from features.state.store import State
from ranker.bundle import Bundle
from ranker.candidates.popular import Popular
from ranker.ids import IdTable
from ranker.pipeline import Pipeline, source_lane
from ranker.port import bind, grpc_server
from ranker.recording.batch import Outcome
from ranker.recording.featurelog import FeatureLog
from ranker.recording.recorder import Recorder
from ranker.recording.snapshots import Origin
from ranker.recording.wire import batch_of, outcome_message
from ranker.request import Answer, Request
from ranker.status import finished
from ranker.wire import Wire, attribute_messages

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["RankingService"].full_name
#: the name by which health reports whether events can be recorded; only where the server records
RECORDING = "pairlift.v1.Recording"
CLOCKS = ("wall", "snapshot")
#: seconds after which the popular items are ordered anew, where events are recorded
REFRESH_EVERY = 30.0
NO_LOG = "this server records nothing: start it with `pairlift serve BUNDLE --log DIR`"


def now_wall() -> int:
    """Return the wall clock in µs UTC."""
    return time.time_ns() // 1000


@dataclass(frozen=True, slots=True)
class RecordTo:
    """Where events are recorded."""

    folder: Path  # of the log
    origin: Origin | None = None  # of the snapshot that is served; None: the bundle's own state is


@dataclass(frozen=True, slots=True)
class FeaturesTo:
    """Where the feature values that requests used are logged."""

    folder: Path
    share: float  # of the requests that are taken, in (0, 1]


class RankingService(ranking_pb2_grpc.RankingServiceServicer):
    """The methods of the contract."""

    def __init__(
        self,
        pipeline: Pipeline,
        wire: Wire,
        clock: Callable[[State], int],
        recorder: Recorder | None,
        feature_log: FeatureLog | None,
    ) -> None:
        """clock: gives the as_of (µs UTC) of a request that has none, given its state."""
        self.pipeline = pipeline
        self.wire = wire
        self.clock = clock
        self.recorder = recorder
        self.feature_log = feature_log
        settings = pipeline.bundle.config
        # The pool has threads to spare for streams, so the number of requests at work is kept here.
        self._workers = threading.BoundedSemaphore(settings.serve.workers)
        self._streams = threading.BoundedSemaphore(settings.record.streams)

    def Recommend(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Propose and rank: see ranking.proto."""

        def answer() -> Any:
            k = self.wire.k(request)
            asked = self._asked(request)
            found = self.pipeline.recommend(asked, k)
            self._log_features(asked, found)
            return self.wire.recommended(found, asked)

        return self._answered(context, answer)

    def Rank(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Rank the caller's items: see ranking.proto."""

        def answer() -> Any:
            items = self.wire.values("items", request.items)
            asked = self._asked(request)
            given = self.wire.given(request.columns, len(items))
            found = self.pipeline.rank(asked, self.wire.candidates(items, asked.state), given)
            self._log_features(asked, found)
            return self.wire.ranked(found, asked, items)

        return self._answered(context, answer)

    def _asked(self, request: Any) -> Request:
        """Read a request. The state of now is taken here, once: the request carries it, and the answer is of it."""
        state = self.pipeline.state
        asked = self.wire.request(request, self.clock(state), state)
        wanted = self.feature_log is not None and self.feature_log.wants(asked.request_id)
        return replace(asked, keep_values=True) if wanted else asked

    def _log_features(self, asked: Request, found: Answer) -> None:
        if self.feature_log is not None and found.values is not None:
            self.feature_log.offer(asked, found, found.values)

    def Describe(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Describe what is served: see ranking.proto."""

        def answer() -> Any:
            bundle, limits = self.pipeline.bundle, self.wire.limits
            state = self.pipeline.state
            catalog = state.catalog
            kinds = {False: pb.ID_KIND_INTEGER, True: pb.ID_KIND_TEXT}
            return pb.DescribeResponse(
                bundle_version=bundle.version,
                name=bundle.config.name,
                snapshot_time=state.end,
                clock=self.clock(state),
                user_ids=kinds[self.wire.users.text],
                item_ids=kinds[self.wire.items.text],
                users=catalog.all_users,
                items=catalog.all_items,
                surfaces=catalog.surfaces,
                source_names=self.pipeline.source_names,
                feature_names=bundle.columns,
                wanted_feature_names=bundle.wanted_columns,
                context_attributes=attribute_messages(catalog.contexts),
                candidate_columns=attribute_messages(catalog.candidates),
                list_features=bundle.spec.listed,
                max_k=limits.max_k,
                default_k=self.wire.default_k,
                max_items=limits.max_items,
                failures=self.pipeline.failures.counts(),
                records=self.recorder is not None,
                recorded_events=self.recorder.count if self.recorder else 0,
                recording_problem=self.recorder.problem if self.recorder else "",
            )

        return self._answered(context, answer)

    def RecordEvents(self, request_iterator: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        """Record batches: see ranking.proto."""
        if self.recorder is None:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, NO_LOG)
            return
        if not self._streams.acquire(blocking=False):
            most = self.pipeline.bundle.config.record.streams
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{most} RecordEvents streams are open, and [record] streams is {most}: use one for many batches",
            )
            return
        try:
            for number, message in enumerate(request_iterator):
                outcome = finished(
                    context, partial(_record_message, self.recorder, message), f"batch {number}: ", writes=True
                )
                yield outcome_message(number, outcome)
        finally:
            self._streams.release()

    def TakeSnapshot(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Write a snapshot: see ranking.proto."""
        if self.recorder is None:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, NO_LOG)
            return None
        folder, state, frame = finished(context, self.recorder.snapshot, writes=True)
        return pb.TakeSnapshotResponse(folder=str(folder.resolve()), snapshot_time=state.end, frame=frame)

    def _answered(self, context: grpc.ServicerContext, answer: Callable[[], Any]) -> Any:
        """Return the answer, as soon as a worker is free, or end the call with a status."""
        with self._workers:
            if not context.is_active():
                context.abort(grpc.StatusCode.CANCELLED, "the caller gave up while the call waited")
            return finished(context, answer)


def _record_message(recorder: Recorder, message: Any) -> Outcome:
    return recorder.record(batch_of(message))


class Server:
    """A pipeline behind a port. Warmed before the port answers: a client sees nothing or a ready server."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        clock: str = "wall",
        host: str = "127.0.0.1",
        port: int = 0,
        record_to: RecordTo | None = None,
        features_to: FeaturesTo | None = None,
    ) -> None:
        """Bind the port (0: any free one) and warm up; PairliftError where the port or the log cannot be opened.

        clock: of `CLOCKS`. record_to, features_to: None where nothing is recorded or logged.
        """
        if clock not in CLOCKS:
            raise PairliftError(f"clock: one of {', '.join(CLOCKS)} was expected, found '{clock}'")
        past = clock == "snapshot"
        self._stopped = threading.Event()
        self._health = health.HealthServicer()
        serve, record = bundle.config.serve, bundle.config.record
        self._server = grpc_server(serve.workers, 0 if record_to is None else record.streams)
        self.address = bind(self._server, host, port)
        catalog = bundle.state.catalog
        users, items = IdTable(catalog.user_ids), IdTable(catalog.item_ids)
        wire = Wire(catalog, users, items, limits=serve, max_id_bytes=record.max_id_bytes)
        self.recorder = None if record_to is None else self._open(record_to, bundle, wire, past)
        live = None if self.recorder is None else self.recorder.live
        self.pipeline = Pipeline(bundle, state=None if live is None else lambda: live.state)
        self.feature_log = None
        if features_to is not None:
            self.feature_log = FeatureLog(
                features_to.folder, columns=bundle.columns, version=bundle.version, share=features_to.share
            )
        now: Callable[[State], int] = (lambda state: state.end) if past else (lambda _: now_wall())
        self._register(RankingService(self.pipeline, wire, now, self.recorder, self.feature_log))
        if bundle.wanted is None:
            log.warning(
                "the bundle has no part that knows what is wanted: Recommend is ordered as Rank; train it again"
            )
        for name in self.pipeline.warm():
            log.warning("%s failed while warming up: requests are answered without it", name)

    def _open(self, record_to: RecordTo, bundle: Bundle, wire: Wire, past: bool) -> Recorder:
        """Open the log of events, and report its health."""
        self._report_recording(True)
        return Recorder(
            bundle,
            record_to.folder,
            wall=now_wall,
            users=wire.users.find,
            items=wire.items.find,
            past=past,
            origin=record_to.origin,
            on_health=self._report_recording,
        )

    def _register(self, service: RankingService) -> None:
        """Add the service, and health and reflection beside it, to the gRPC server."""
        self._report(health_pb2.HealthCheckResponse.NOT_SERVING)
        ranking_pb2_grpc.add_RankingServiceServicer_to_server(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    def start(self) -> None:
        """Report SERVING and answer."""
        self._report(health_pb2.HealthCheckResponse.SERVING)
        self._server.start()
        if self.recorder is not None:
            threading.Thread(target=self._refresh, name="popular", daemon=True).start()

    def stop(self, grace: float = 5.0) -> None:
        """Report NOT_SERVING, refuse new calls, give those under way `grace` seconds, and end the threads."""
        self._health.enter_graceful_shutdown()
        self._stopped.set()
        self._server.stop(grace).wait()
        self.pipeline.close()
        if self.recorder is not None:
            self.recorder.close()
        if self.feature_log is not None:
            self.feature_log.close()

    def _report(self, status: Any) -> None:
        """Set the health of the server and of the service."""
        for name in ("", SERVICE):
            self._health.set(name, status)

    def _report_recording(self, well: bool) -> None:
        status = health_pb2.HealthCheckResponse
        self._health.set(RECORDING, status.SERVING if well else status.NOT_SERVING)

    def _refresh(self) -> None:
        while not self._stopped.wait(REFRESH_EVERY):
            try:
                self.pipeline.refresh()
            except Exception as error:
                self.pipeline.failures.add(source_lane(Popular.name), error)


def warn_if_old(bundle: Bundle, now: int) -> None:
    """Warn where the snapshot is older than `[serve] max_snapshot_age` at `now` (µs UTC)."""
    age, most = now - bundle.state.end, bundle.config.serve.max_snapshot_age
    if age > most:
        log.warning(
            "the snapshot ends at %s, %.0f h before the clock (at most %.0f h were expected): "
            "recent windows are empty. Load a newer one with --snapshot, or use --clock snapshot",
            *(iso(bundle.state.end), age / HOUR, most / HOUR),
        )
