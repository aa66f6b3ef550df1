"""AdminService: the calls that change which bundles answer, and what they computed ahead."""

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from pairlift.v1 import admin_pb2 as admin
from pairlift.v1 import admin_pb2_grpc

from features.errors import PairliftError
from ranker.serving.refreshing import Refreshed, Refresher
from ranker.serving.rollout.deployer import BusyError, Deployer, NotSeenError, Wanted
from ranker.serving.rollout.shadow import Shadow
from ranker.serving.rollout.store import RefreshAsked, Store
from ranker.serving.served import Served
from ranker.serving.status import INTERNAL

log = logging.getLogger(__name__)


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """The methods of admin.proto. The gate is shut until there are a `deployer` and a `refresher`."""

    deployer: Deployer
    refresher: Refresher

    def Deploy(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        """Try a bundle and put it where it is wanted: see admin.proto."""
        wanted = Wanted(
            folder=Path(request.folder) if request.folder else None,
            version=request.version,
            arm=request.arm,
            share=request.share,
            experiment=request.experiment,
            shadow=request.shadow,
            force=request.force,
        )
        for step, figures in _steps("deploy", partial(self.deployer.deploy, wanted), context):
            if step is not None:
                yield admin.DeployProgress(step=step)
            else:
                yield admin.DeployProgress(comparison=figures, deployed=self._deployed())

    def Refresh(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        """Compute ahead what plugins make of histories: see admin.proto."""
        asked = RefreshAsked(request.users, request.memory)

        def work(say: Callable[[tuple[int, int]], None]) -> list[Refreshed]:
            return self.refresher.refresh(asked, lambda done, total: say((done, total)))

        for step, found in _steps("refresh", work, context):
            if step is not None:
                yield admin.RefreshProgress(done=step[0], total=step[1])
            else:
                yield admin.RefreshProgress(plugins=map(_refreshed, found))

    def Offer(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Begin an upload: see admin.proto."""
        return admin.OfferResponse(missing=_done(context, lambda: self._store().offered(request.manifest)))

    def Upload(self, request_iterator: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Take files of a bundle: see admin.proto."""
        return _done(context, lambda: self._take(request_iterator))

    def _take(self, pieces: Iterator[Any]) -> Any:
        store, version, name = self._store(), "", ""
        for piece in pieces:
            version, name = version or piece.version, piece.path or name
            store.write(version, name, piece.chunk, bool(piece.path))
        return admin.UploadResponse(folder=str(store.folder / version))

    def _store(self) -> Store:
        if self.deployer.store is None:
            raise PairliftError(
                "this server keeps no bundles: name a folder that it sees, or start it with --bundles DIR"
            )
        return self.deployer.store

    def Rollback(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Exchange the active and the previous bundle: see admin.proto."""
        return self._changed(context, self.deployer.rollback)

    def Promote(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Let an arm's bundle answer all: see admin.proto."""
        return self._changed(context, lambda: self.deployer.promote(request.arm))

    def Drop(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """End an arm or the shadow: see admin.proto."""
        return self._changed(context, lambda: self.deployer.drop(request.arm))

    def Bundles(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Tell what is deployed: see admin.proto."""
        return _done(context, self._deployed)

    def _changed(self, context: grpc.ServicerContext, change: Callable[[], None]) -> Any:
        _done(context, change)
        return self._deployed()

    def _deployed(self) -> Any:
        """Return what is deployed."""
        standing = self.deployer.deployment.standing
        split = standing.split
        bundles = [_described(role, served, arm, split.share(arm)) for role, arm, served in standing.roles]
        if isinstance(standing.shadow, Shadow):
            bundles[-1].share = standing.shadow.share
            bundles[-1].comparison.CopyFrom(standing.shadow.agreement.figures())
        return admin.Deployed(bundles=bundles, experiment=split.experiment)


def _steps(name: str, work: Callable[[Callable[[Any], None]], Any], context: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (step, None) for each step of the work, then (None, what it returns); end the call where it raises.

    It is done on a thread of its own, so that a caller who goes away does not leave it half done.
    """
    said: queue.SimpleQueue[tuple[Any, Any, Exception | None]] = queue.SimpleQueue()

    def call() -> None:
        try:
            said.put((None, work(lambda step: said.put((step, None, None))), None))
        except Exception as error:
            said.put((None, None, error))

    threading.Thread(target=call, name=name, daemon=True).start()
    while True:
        step, found, error = said.get()
        if error is not None:
            _abort(context, error)
        yield step, found
        if step is None:
            return


def _refreshed(one: Refreshed) -> admin.RefreshedPlugin:
    states = one.states
    return admin.RefreshedPlugin(
        bundle_version=one.version,
        plugin=one.plugin,
        users=len(states),
        computed=states.computed,
        bytes=states.bytes,
        as_of=states.as_of,
    )


def _described(role: str, served: Served, arm: str, share: float) -> admin.DeployedBundle:
    bundle = served.bundle
    return admin.DeployedBundle(
        role=admin.Role.Value(f"ROLE_{role.upper()}"),
        version=bundle.version,
        name=bundle.config.name,
        folder=str(bundle.folder),
        snapshot_time=served.pipeline.state.end,
        arm=arm,
        share=share,
    )


def _done(context: grpc.ServicerContext, call: Callable[[], Any]) -> Any:
    """Return what a call returns, or end the gRPC call with the status of its error."""
    try:
        return call()
    except Exception as error:
        raised = error
    return _abort(context, raised)


def _abort(context: grpc.ServicerContext, error: Exception) -> None:
    if isinstance(error, NotSeenError):
        context.abort(grpc.StatusCode.NOT_FOUND, str(error))
    if isinstance(error, BusyError):
        context.abort(grpc.StatusCode.ABORTED, str(error))
    if isinstance(error, PairliftError):
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
    if isinstance(error, OSError):
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"the disk refused: {error}")
    log.error("an administration call failed", exc_info=error)
    context.abort(grpc.StatusCode.INTERNAL, INTERNAL)
