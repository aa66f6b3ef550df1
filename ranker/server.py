"""The gRPC server: a port, the bundle that answers behind it, the log of events, and their health."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from features.errors import PairliftError
from features.pairing.split import iso
from features.schema import HOUR, I64
from ranker.bundle import Bundle
from ranker.pipeline import Pipeline
from ranker.recording.featurelog import FeatureLog
from ranker.recording.follower import PATIENCE, Follower
from ranker.recording.recorder import Recorder
from ranker.recording.snapshots import Origin
from ranker.serving import clock as clocks
from ranker.serving.callers.access import ANYBODY_HERE, Access
from ranker.serving.deployment import Deployment
from ranker.serving.listener import Listener
from ranker.serving.one_thread import OneThread
from ranker.serving.processes.elsewhere import Elsewhere
from ranker.serving.refreshing import Refresher
from ranker.serving.renewing import LOOK_EVERY, Renewing
from ranker.serving.rollout.deployer import Deployer
from ranker.serving.rollout.following import Following
from ranker.serving.rollout.store import Store
from ranker.serving.served import FeaturesTo, Maker, Served
from ranker.serving.watching.readings import of_server

log = logging.getLogger(__name__)

CLOCKS = ("wall", "snapshot")
#: seconds between two looks at what another process may have written: a plan, or that a refresh is asked for
POLL_EVERY = 0.5
#: and at the place of a bundle that is followed
FOLLOW_EVERY = 1.0


@dataclass(frozen=True, slots=True)
class RecordTo:
    """Where events are recorded."""

    folder: Path  # of the log
    origin: Origin | None = None  # of the snapshot that is served; None: the bundle's own state is


class ArmsOf:
    """The arms of the users of recorded events: asks the deployment, once there is one."""

    deployment: Deployment | None = None

    def __call__(self, users: Sequence[Any], times: I64) -> Sequence[str | None]:
        """Return the name of each user's arm at a time: as `ranker.recording.events.ArmOf`."""
        return [None] * len(users) if self.deployment is None else self.deployment.arms_of(users, times)


class Prepared(NamedTuple):
    """What a server answers from."""

    served: Served
    recorder: Recorder | None  # not started; its log is this process's, and that of those that it forks
    maker: Maker  # makes the like of another bundle
    arms: ArmsOf  # of what it makes

    def pause(self) -> None:
        """End all threads, so that the process can be forked: a `Server` begins them again."""
        self.served.pipeline.close()
        if self.served.follower is not None:
            self.served.follower.pause()

    def close(self) -> None:
        """Let go of all."""
        if self.recorder is not None:
            self.recorder.close()
        self.served.close()


def prepare(
    bundle: Bundle, *, past: bool, record_to: RecordTo | None = None, features_to: FeaturesTo | None = None
) -> Prepared:
    """Make what answers: open the log where events are recorded, and catch up with it.

    PairliftError where the log cannot be opened. past: as for `Served`.
    """
    folder, origin = (None, None) if record_to is None else (record_to.folder, record_to.origin)
    recorder = None if folder is None else Recorder(bundle, folder, wall=clocks.now_wall, past=past)
    arms = ArmsOf()
    maker = Maker(past, features_to, folder, arms)
    try:
        served = maker.served(bundle, origin)
        if recorder is not None and served.follower is not None:
            recorder.use(served.follower)
    except BaseException:
        if recorder is not None:
            recorder.close()
        raise
    return Prepared(served, recorder, maker, arms)


@dataclass(frozen=True, slots=True)
class Forked:
    """What a process of several has from the one that forked it."""

    prepared: Prepared
    socket: Path | None = None  # where the process that records answers; None: it is this one, or nothing is recorded
    answers: bool = True  # whether it answers requests; else it records alone


class Server:
    """A bundle behind a port: warm before its first answer. Until then, and while it stops, health says so."""

    deployment: Deployment  # which bundle answers

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
        forked: Forked | None = None,
        bundles: Path | None = None,
        follow: Path | None = None,
    ) -> None:
        """Bind the port (0: any free one) and warm up; PairliftError where the port or the log cannot be opened.

        clock: of `CLOCKS`. record_to, features_to: None where nothing is recorded or logged. access: who may call.
        listener: one that was made before the bundle was loaded, so that health answered meanwhile; None makes one of
        host, port and access. forked: in one of several processes, what the one before them prepared. bundles:
        the folder that keeps what is deployed; None forgets it when the server stops. follow: the place of a bundle
        whose successors are deployed; None: nothing is.
        """
        if clock not in CLOCKS:
            raise PairliftError(f"clock: one of {', '.join(CLOCKS)} was expected, found '{clock}'")
        past = clock == "snapshot"
        self._stopped, self._one_thread = threading.Event(), OneThread()
        self._listener = Listener(host, port, bundle.config.serve, access) if listener is None else listener
        self.address, self.gate, self.health = self._listener.address, self._listener.gate, self._listener.health
        if forked is None:
            forked = Forked(prepare(bundle, past=past, record_to=record_to, features_to=features_to))
        served, _, maker, arms = forked.prepared
        self.recorder = self._begun(forked)
        self.deployment = arms.deployment = Deployment(served)
        store = None if bundles is None else Store(bundles)
        self.deployer = Deployer(self.deployment, maker.served, self._record_for, store)
        self._listener.meters.read(lambda: of_server(self.deployment, self.recorder))
        self._listener.service.use(self.deployment, self.recorder, bundle.config.record.streams)
        self._listener.admin.deployer = self.deployer
        self._listener.admin.refresher = self._refresher = Refresher(self.deployment, store if forked.answers else None)
        if bundle.wanted is None:
            log.warning(
                "the bundle has no part that knows what is wanted: Recommend is ordered as Rank; train it again"
            )
        for name in self.deployment.active.warm():
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

    @property
    def follower(self) -> Follower | None:
        """What keeps the state of the bundle that answers now; None where nothing is recorded."""
        return self.deployment.active.follower

    def _begun(self, forked: Forked) -> Recorder | Elsewhere | None:
        """Begin to follow the log, and to record, here or by another process; report its health."""
        served, recorder, report = forked.prepared.served, forked.prepared.recorder, self.health.report_recording
        follower = served.follower
        if follower is None or recorder is None:
            return None
        report(True)
        try:
            follower.start()
            follower.drain(PATIENCE)
            if forked.socket is not None:
                return Elsewhere(forked.socket, follower, report, recorder.check)
            recorder.start(report)
        except BaseException:
            forked.prepared.close()
            raise
        return recorder

    def _record_for(self, served: Served) -> None:
        """Check what is recorded from now on as a bundle expects it, which is about to be the active one."""
        if self.recorder is not None and served.follower is not None:
            self.recorder.use(served.follower)

    def start(self) -> None:
        """Let calls in, and report SERVING."""
        # A request has one thread: those of BLAS and OpenMP wait for one another, spinning, on cores that others need.
        self._one_thread.begin()
        self.gate.open()
        self.health.report_ready(True)
        if self.recorder is not None:
            renewing = Renewing()
            self._each(LOOK_EVERY, lambda: renewing.look(self._pipelines()), "popular")
        if self.deployer.store is not None:
            self._each(POLL_EVERY, self.deployer.poll, "deployment")
            self._each(POLL_EVERY, self._refresher.poll, "refresh")
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

    def drain(self) -> None:
        """Report NOT_SERVING, so that others are asked, and answer what comes all the same."""
        self.health.drain(self.recorder is not None)

    def stop(self, grace: float = 5.0) -> None:
        """Report NOT_SERVING, refuse new calls, give those under way `grace` seconds, and end the threads."""
        self.drain()
        self._stopped.set()
        self._refresher.close()  # first: its caller is a call under way
        self._listener.stop(grace)
        if self.recorder is not None:
            self.recorder.close()
        self.deployment.close()
        self._one_thread.end()

    def _pipelines(self) -> list[Pipeline]:
        return [served.pipeline for served in self.deployment.standing.all]


def warn_if_old(bundle: Bundle, now: int) -> None:
    """Warn where the snapshot is older than `[serve] max_snapshot_age` at `now` (µs UTC)."""
    age, most = now - bundle.state.end, bundle.config.serve.max_snapshot_age
    if age > most:
        log.warning(
            "the snapshot ends at %s, %.0f h before the clock (at most %.0f h were expected): "
            "recent windows are empty. Load a newer one with --snapshot, or use --clock snapshot",
            *(iso(bundle.state.end), age / HOUR, most / HOUR),
        )
