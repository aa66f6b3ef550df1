"""The gRPC server: a synchronous one, with a thread for each request up to `[serve] workers`."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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
from ranker.bundle import Bundle
from ranker.pipeline import Pipeline
from ranker.recording.batch import Outcome
from ranker.recording.featurelog import FeatureLog
from ranker.recording.recorder import Recorder
from ranker.recording.snapshots import Origin
from ranker.request import Answer, Request, RequestError
from ranker.status import INTERNAL, finished
from ranker.wire import Wire, batch_of, outcome_message

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["RankingService"].full_name
#: the name by which health tells whether recording is well; only where the server records
RECORDING = "pairlift.v1.Recording"
CLOCKS = ("wall", "snapshot")
#: threads beside the workers', for health checks and open reflection streams (a stream holds its thread)
SPARE_THREADS = 8
#: calls under way or waiting; further ones get RESOURCE_EXHAUSTED instead of an ever longer queue
MAX_CALLS = 1000
#: bytes of a message: a full batch of events with long texts
MAX_MESSAGE = 64 << 20
#: seconds between the orders of the popular items, where events are recorded
REFRESH_EVERY = 30.0
NO_LOG = "this server records nothing: start it with `pairlift serve BUNDLE --log DIR`"


def now_wall() -> int:
    """Return the wall clock in µs UTC."""
    return time.time_ns() // 1000


class RankingService(ranking_pb2_grpc.RankingServiceServicer):
    """The methods of the contract. clock: gives the as_of (µs UTC) of a request without one."""

    def __init__(
        self,
        pipeline: Pipeline,
        clock: Callable[[], int],
        wire: Wire,
        recorder: Recorder | None,
        feature_log: FeatureLog | None,
    ) -> None:
        self.feature_log = feature_log
        self.pipeline = pipeline
        self.clock = clock
        self.wire = wire
        self.recorder = recorder
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
            self._log_features(request, asked, found)
            return self._stamped(self.wire.recommended(found, asked.state), request, asked.as_of)

        return self._answered(context, answer)

    def Rank(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Rank the caller's items: see ranking.proto."""

        def answer() -> Any:
            items = self.wire.values("items", request.items)
            asked = self._asked(request)
            found: Answer = self.pipeline.rank(asked, self.wire.candidates(items, asked.state))
            self._log_features(request, asked, found)
            return self._stamped(self.wire.ranked(found, items), request, asked.as_of)

        return self._answered(context, answer)

    def _asked(self, request: Any) -> Request:
        # Ids, counters and histories of one moment.
        asked = self.wire.request(request, self.clock(), self.pipeline.state)
        wanted = self.feature_log is not None and self.feature_log.wants(request.request_id)
        return replace(asked, keep_values=True) if wanted else asked

    def _log_features(self, request: Any, asked: Request, found: Answer) -> None:
        if self.feature_log is not None and found.values is not None:
            self.feature_log.offer(request.request_id, asked, found, found.values)

    def Describe(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Tell what is served: see ranking.proto."""

        def answer() -> Any:
            bundle, limits = self.pipeline.bundle, self.wire.limits
            catalog = self.pipeline.state.catalog
            kinds = {False: pb.ID_KIND_INTEGER, True: pb.ID_KIND_TEXT}
            return pb.DescribeResponse(
                bundle_version=bundle.version,
                name=bundle.config.name,
                snapshot_time=self.pipeline.state.end,
                clock=self.clock(),
                user_ids=kinds[self.wire.users.text],
                item_ids=kinds[self.wire.items.text],
                users=catalog.all_users,
                items=catalog.all_items,
                surfaces=catalog.surfaces,
                source_names=self.pipeline.source_names,
                feature_names=bundle.columns,
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
                outcome = finished(context, partial(_recorded, self.recorder, message), f"batch {number}: ")
                yield outcome_message(number, outcome)
        finally:
            self._streams.release()

    def TakeSnapshot(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Write a snapshot: see ranking.proto."""
        if self.recorder is None:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, NO_LOG)
            return None
        folder, state, frame = finished(context, self.recorder.snapshot)
        return pb.TakeSnapshotResponse(folder=str(folder.resolve()), snapshot_time=state.end, frame=frame)

    def _stamped(self, response: Any, request: Any, as_of: int) -> Any:
        """Add what every answer says of its request and of what served it."""
        response.request_id = request.request_id
        response.bundle_version = self.pipeline.bundle.version
        response.snapshot_time = self.pipeline.state.end
        response.as_of = as_of
        return response

    def _answered(self, context: grpc.ServicerContext, answer: Callable[[], Any]) -> Any:
        """Return the answer, or end the call with a status: a caller's mistake, or ours, which is logged."""
        with self._workers:
            try:
                if context.is_active():
                    return answer()
                code, sentence = grpc.StatusCode.CANCELLED, "the caller gave up while the call waited"
            except RequestError as error:
                code, sentence = grpc.StatusCode.INVALID_ARGUMENT, str(error)
            except Exception:
                log.exception("a request failed")
                code, sentence = grpc.StatusCode.INTERNAL, INTERNAL
        context.abort(code, sentence)
        return None


def _recorded(recorder: Recorder, message: Any) -> Outcome:
    return recorder.record(batch_of(message))


def _pool(bundle: Bundle, records: bool) -> Any:
    """Return a gRPC server with threads for the requests at once, and for the streams that may stay open."""
    settings = bundle.config
    threads = settings.serve.workers + SPARE_THREADS + (settings.record.streams if records else 0)
    return grpc.server(
        ThreadPoolExecutor(threads, thread_name_prefix="grpc"),
        # Without so_reuseport = 0 a second server on a taken port would be given half of the calls in silence.
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MAX_MESSAGE)],
        maximum_concurrent_rpcs=MAX_CALLS,
    )


class Server:
    """A pipeline behind a port. Warmed before the port answers: a client sees nothing or a ready server."""

    def __init__(
        self,
        bundle: Bundle,
        clock: str = "wall",
        host: str = "127.0.0.1",
        port: int = 0,
        record_to: Path | None = None,
        origin: Origin | None = None,
        features_to: tuple[Path, float] | None = None,
    ) -> None:
        """Bind the port (0: any free one) and warm up; PairliftError where the port or the log cannot be had.

        record_to: folder of the recorded log; None: nothing is recorded. origin: of the snapshot that is served.
        features_to: folder of the feature log, and the share of the requests that it takes.
        """
        if clock not in CLOCKS:
            raise PairliftError(f"clock: one of {', '.join(CLOCKS)} was expected, found '{clock}'")
        past = clock == "snapshot"
        self._server = _pool(bundle, record_to is not None)
        self.address = self._bind(host, port)
        wire = Wire(bundle.state.catalog, bundle.config.serve, bundle.config.record.max_id_bytes)
        self.recorder = None
        self._health = health.HealthServicer()
        if record_to is not None:
            self._tell_recording(True)
            self.recorder = Recorder(
                bundle,
                record_to,
                wall=now_wall,
                users=wire.users.find,
                items=wire.items.find,
                past=past,
                origin=origin,
                health=self._tell_recording,
            )
        live = self.recorder.live if self.recorder else None
        self.pipeline = Pipeline(bundle, state=(lambda: live.state) if live else None)
        self.feature_log = None
        if features_to is not None:
            folder, share = features_to
            self.feature_log = FeatureLog(
                folder, columns=bundle.columns, catalog=bundle.state.catalog, version=bundle.version, share=share
            )
        now = (lambda: self.pipeline.state.end) if past else now_wall
        service = RankingService(self.pipeline, now, wire, self.recorder, self.feature_log)
        self._stopped = threading.Event()
        self._names = ("", SERVICE)
        for name in self._names:
            self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        ranking_pb2_grpc.add_RankingServiceServicer_to_server(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        for name in self.pipeline.warm():
            log.warning("%s failed while warming up: requests are answered without it", name)

    def start(self) -> None:
        """Report SERVING and answer."""
        for name in self._names:
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
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

    def _tell_recording(self, well: bool) -> None:
        status = health_pb2.HealthCheckResponse
        self._health.set(RECORDING, status.SERVING if well else status.NOT_SERVING)

    def _refresh(self) -> None:
        while not self._stopped.wait(REFRESH_EVERY):
            try:
                self.pipeline.refresh()
            except Exception as error:
                self.pipeline.failures.add("sources.popular", error)

    def _bind(self, host: str, port: int) -> str:
        shown = f"[{host}]" if ":" in host else host
        try:
            bound = self._server.add_insecure_port(f"{shown}:{port}")
        except RuntimeError:
            bound = 0
        if not bound:
            raise PairliftError(
                f"{shown}:{port} cannot be listened on: the port is taken, or the host is not ours; "
                "choose another --port (0: any free one) or --host"
            )
        return f"{shown}:{bound}"


def warn_if_old(bundle: Bundle, now: int) -> None:
    """Warn where the snapshot is older than `[serve] max_snapshot_age` at `now` (µs UTC)."""
    age, most = now - bundle.state.end, bundle.config.serve.max_snapshot_age
    if age > most:
        hours = 3_600_000_000
        log.warning(
            "the snapshot ends at %s, %.0f h before the clock (at most %.0f h were expected): "
            "recent windows are empty. Load a newer one with --snapshot, or use --clock snapshot",
            *(iso(bundle.state.end), age / hours, most / hours),
        )
