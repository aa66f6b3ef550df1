"""The gRPC server: a port, the bundle that answers behind it, the log of events, and their health."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from pairlift.v1 import admin_pb2, admin_pb2_grpc, ranking_pb2_grpc
from pairlift.v1 import ranking_pb2 as pb

from features.errors import PairliftError
from features.pairing.split import iso
from features.schema import HOUR
from ranker.bundle import Bundle
from ranker.candidates.popular import Popular
from ranker.ids import IdTable
from ranker.lanes import source_lane
from ranker.pipeline import Pipeline
from ranker.port import bind, grpc_server
from ranker.recording.featurelog import FeatureLog
from ranker.recording.recorder import Recorder
from ranker.recording.snapshots import Origin
from ranker.serving import clock as clocks
from ranker.serving.deployment import Deployment
from ranker.serving.gate import Gate
from ranker.serving.rollout.admin import AdminService
from ranker.serving.rollout.deployer import Deployer
from ranker.serving.rollout.following import Following
from ranker.serving.rollout.store import Store
from ranker.serving.served import FeaturesTo, Served
from ranker.serving.service import RankingService
from ranker.wire import Wire

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["RankingService"].full_name
ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
#: the name by which health reports whether events can be recorded; only where the server records
RECORDING = "pairlift.v1.Recording"
CLOCKS = ("wall", "snapshot")
#: seconds after which the popular items are ordered anew, where events are recorded
REFRESH_EVERY = 30.0
#: seconds between two looks at a plan that another process may have written
POLL_EVERY = 0.5
#: and at the place of a bundle that is followed
FOLLOW_EVERY = 1.0


@dataclass(frozen=True, slots=True)
class RecordTo:
    """Where events are recorded."""

    folder: Path  # of the log
    origin: Origin | None = None  # of the snapshot that is served; None: the bundle's own state is


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
        bundles: Path | None = None,
        follow: Path | None = None,
    ) -> None:
        """Bind the port (0: any free one) and warm up; PairliftError where the port or the log cannot be opened.

        clock: of `CLOCKS`. record_to, features_to: None where nothing is recorded or logged. bundles: the folder that
        keeps what is deployed; None forgets it when the server stops. follow: the place of a bundle whose successors
        are deployed.
        """
        if clock not in CLOCKS:
            raise PairliftError(f"clock: one of {', '.join(CLOCKS)} was expected, found '{clock}'")
        past = clock == "snapshot"
        self._stopped = threading.Event()
        self._health = health.HealthServicer()
        serve, record = bundle.config.serve, bundle.config.record
        self._server = grpc_server(serve.workers, 0 if record_to is None else record.streams)
        self.address = bind(self._server, host, port)
        served = partial(Served.of, past=past, features_to=features_to)
        if record_to is None:
            self.recorder, first = None, served(bundle)
        else:
            catalog = bundle.state.catalog
            users, items = IdTable(catalog.user_ids), IdTable(catalog.item_ids)
            wire = Wire(catalog, users, items, limits=serve, max_id_bytes=record.max_id_bytes)
            self.recorder = self._open(record_to, bundle, wire, past)
            live = self.recorder.live
            first = Served(bundle, wire, past=past, state=lambda: live.state, features_to=features_to)
        self.deployment = Deployment(first)
        make = served if record_to is None else _refuse
        self.deployer = Deployer(self.deployment, make, None if bundles is None else Store(bundles))
        self._register(RankingService(self.deployment, Gate(serve.workers), self.recorder, record.streams))
        if bundle.wanted is None:
            log.warning(
                "the bundle has no part that knows what is wanted: Recommend is ordered as Rank; train it again"
            )
        for name in self.pipeline.warm():
            log.warning("%s failed while warming up: requests are answered without it", name)
        self.deployer.resume()
        self._following = None if follow is None else Following(self.deployer, follow)

    @property
    def pipeline(self) -> Pipeline:
        """The request path of the bundle that answers now."""
        return self.deployment.active.pipeline

    @property
    def feature_log(self) -> FeatureLog | None:
        """Where the feature values of the bundle that answers now go."""
        return self.deployment.active.feature_log

    def _open(self, record_to: RecordTo, bundle: Bundle, wire: Wire, past: bool) -> Recorder:
        """Open the log of events, and report its health."""
        self._report_recording(True)
        return Recorder(
            bundle,
            record_to.folder,
            wall=clocks.now_wall,
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
        admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminService(self.deployer), self._server)
        reflection.enable_server_reflection(
            (SERVICE, ADMIN, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )

    def start(self) -> None:
        """Report SERVING and answer."""
        self._report(health_pb2.HealthCheckResponse.SERVING)
        self._server.start()
        if self.recorder is not None:
            self._each(REFRESH_EVERY, self._refresh, "popular")
        if self.deployer.store is not None:
            self._each(POLL_EVERY, self.deployer.poll, "deployment")
        if self._following is not None:
            self._each(FOLLOW_EVERY, self._following.look, "follow")

    def _each(self, seconds: float, work: Callable[[], None], name: str) -> None:
        """Do something again and again on a thread of its own, until the server stops."""

        def turns() -> None:
            while not self._stopped.wait(seconds):
                try:
                    work()
                except Exception:
                    log.exception("%s: this turn failed; the next one tries again", name)

        threading.Thread(target=turns, name=name, daemon=True).start()

    def stop(self, grace: float = 5.0) -> None:
        """Report NOT_SERVING, refuse new calls, give those under way `grace` seconds, and end the threads."""
        self._health.enter_graceful_shutdown()
        self._stopped.set()
        self._server.stop(grace).wait()
        self.deployment.close()
        if self.recorder is not None:
            self.recorder.close()

    def _report(self, status: Any) -> None:
        """Set the health of the server and of the service."""
        for name in ("", SERVICE):
            self._health.set(name, status)

    def _report_recording(self, well: bool) -> None:
        status = health_pb2.HealthCheckResponse
        self._health.set(RECORDING, status.SERVING if well else status.NOT_SERVING)

    def _refresh(self) -> None:
        for served in self.deployment.standing.all:
            try:
                served.pipeline.refresh()
            except Exception as error:
                served.pipeline.failures.add(source_lane(Popular.name), error)


def _refuse(_: Bundle) -> Served:
    raise PairliftError("a server that records events cannot change its bundle yet: restart it with the new one")


def warn_if_old(bundle: Bundle, now: int) -> None:
    """Warn where the snapshot is older than `[serve] max_snapshot_age` at `now` (µs UTC)."""
    age, most = now - bundle.state.end, bundle.config.serve.max_snapshot_age
    if age > most:
        log.warning(
            "the snapshot ends at %s, %.0f h before the clock (at most %.0f h were expected): "
            "recent windows are empty. Load a newer one with --snapshot, or use --clock snapshot",
            *(iso(bundle.state.end), age / HOUR, most / HOUR),
        )
