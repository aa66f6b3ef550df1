"""The gRPC server: a port, the bundle that answers behind it, the log of events, and their health."""

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

from threadpoolctl import threadpool_limits

from features.errors import PairliftError
from features.pairing.split import iso
from features.schema import HOUR
from ranker.bundle import Bundle
from ranker.candidates.popular import Popular
from ranker.ids import IdTable
from ranker.lanes import source_lane
from ranker.pipeline import Pipeline
from ranker.recording.featurelog import FeatureLog
from ranker.recording.follower import Follower
from ranker.recording.recorder import Recorder
from ranker.recording.snapshots import Origin
from ranker.serving import clock as clocks
from ranker.serving.access import ANYBODY_HERE, Access
from ranker.serving.deployment import Deployment
from ranker.serving.listener import Listener
from ranker.serving.served import FeaturesTo, Served
from ranker.serving.watching.readings import of_server
from ranker.wire import Wire

log = logging.getLogger(__name__)

CLOCKS = ("wall", "snapshot")
#: seconds after which the popular items are ordered anew, where events are recorded
REFRESH_EVERY = 30.0


@dataclass(frozen=True, slots=True)
class RecordTo:
    """Where events are recorded."""

    folder: Path  # of the log
    origin: Origin | None = None  # of the snapshot that is served; None: the bundle's own state is


class Server:
    """A bundle behind a port: warm before its first answer. Until then, and while it stops, health says so."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        clock: str = "wall",
        host: str = "127.0.0.1",
        port: int = 0,
        record_to: RecordTo | None = None,
        features_to: FeaturesTo | None = None,
        access: Access = ANYBODY_HERE,
        listener: Listener | None = None,
    ) -> None:
        """Bind the port (0: any free one) and warm up; PairliftError where the port or the log cannot be opened.

        clock: of `CLOCKS`. record_to, features_to: None where nothing is recorded or logged. access: who may call.
        listener: one that was made before the bundle was loaded, so that health answered meanwhile; None makes one of
        host, port and access.
        """
        if clock not in CLOCKS:
            raise PairliftError(f"clock: one of {', '.join(CLOCKS)} was expected, found '{clock}'")
        # A request has one thread: those of BLAS and OpenMP wait for one another, spinning, on cores that others need.
        threadpool_limits(1)
        past = clock == "snapshot"
        self._stopped = threading.Event()
        self._serve, record = bundle.config.serve, bundle.config.record
        self._listener = Listener(host, port, self._serve, access) if listener is None else listener
        self.address, self.gate, self.health = self._listener.address, self._listener.gate, self._listener.health
        catalog = bundle.state.catalog
        users, items = IdTable(catalog.user_ids), IdTable(catalog.item_ids)
        wire = Wire(catalog, users, items, limits=self._serve, max_id_bytes=record.max_id_bytes)
        self.recorder, follower = None, None
        if record_to is not None:
            self.recorder, follower = self._open(record_to, bundle, wire, past)
        self.deployment = Deployment(Served(bundle, wire, past=past, follower=follower, features_to=features_to))
        self._listener.meters.read(lambda: of_server(self.deployment, self.recorder))
        self._listener.service.use(self.deployment, self.recorder, record.streams)
        if bundle.wanted is None:
            log.warning(
                "the bundle has no part that knows what is wanted: Recommend is ordered as Rank; train it again"
            )
        for name in self.pipeline.warm():
            log.warning("%s failed while warming up: requests are answered without it", name)

    @property
    def pipeline(self) -> Pipeline:
        """The request path of the bundle that answers now."""
        return self.deployment.active.pipeline

    @property
    def feature_log(self) -> FeatureLog | None:
        """Where the feature values of the bundle that answers now go."""
        return self.deployment.active.feature_log

    @property
    def follower(self) -> Follower | None:
        """What keeps the state of the bundle that answers now; None where nothing is recorded."""
        return self.deployment.active.follower

    def _open(self, record_to: RecordTo, bundle: Bundle, wire: Wire, past: bool) -> tuple[Recorder, Follower]:
        """Open the log of events and catch up with it, and report its health."""
        report = self.health.report_recording
        report(True)
        recorder = Recorder(bundle, record_to.folder, wall=clocks.now_wall, past=past, on_health=report)
        follower = None
        try:
            users, items = wire.users.find, wire.items.find
            follower = Follower(bundle, record_to.folder, users=users, items=items, origin=record_to.origin)
            follower.catch_up()
            recorder.use(follower)
            recorder.start()
        except BaseException:
            recorder.close()
            if follower is not None:
                follower.close()
            raise
        return recorder, follower

    def start(self) -> None:
        """Let calls in, and report SERVING."""
        self.gate.open(self._serve)
        self.health.report_ready(True)
        if self.recorder is not None:
            threading.Thread(target=self._refresh, name="popular", daemon=True).start()

    def drain(self) -> None:
        """Report NOT_SERVING, so that others are asked, and answer what comes all the same."""
        self.health.drain(self.recorder is not None)

    def stop(self, grace: float = 5.0) -> None:
        """Report NOT_SERVING, refuse new calls, give those under way `grace` seconds, and end the threads."""
        self.drain()
        self._stopped.set()
        self._listener.stop(grace)
        if self.recorder is not None:
            self.recorder.close()
        self.deployment.close()

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
