"""The gRPC server: a synchronous one, with a thread for each request up to `[serve] workers`."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from pairlift.v1 import ranking_pb2 as pb
from pairlift.v1 import ranking_pb2_grpc

from features.errors import PairliftError
from features.schema import Attribute, Catalog
from features.snapshot import load_state
from features.split import iso
from features.store import State
from ranker.bundle import Bundle
from ranker.pipeline import Pipeline
from ranker.request import Answer, RequestError
from ranker.wire import Wire

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["RankingService"].full_name
CLOCKS = ("wall", "snapshot")
#: threads beside the workers', for health checks and open reflection streams (a stream holds its thread)
SPARE_THREADS = 8
#: calls under way or waiting; further ones get RESOURCE_EXHAUSTED instead of an ever longer queue
MAX_CALLS = 1000
INTERNAL = "the server failed on this request; its log has the traceback"


def now_wall() -> int:
    """Return the wall clock in µs UTC."""
    return time.time_ns() // 1000


class RankingService(ranking_pb2_grpc.RankingServiceServicer):
    """The methods of the contract. clock: gives the as_of (µs UTC) of a request without one."""

    def __init__(self, pipeline: Pipeline, clock: Callable[[], int]) -> None:
        self.pipeline = pipeline
        self.clock = clock
        bundle = pipeline.bundle
        self.wire = Wire(bundle.state.catalog, bundle.config.serve)
        # The pool has threads to spare for streams, so the number of requests at work is kept here.
        self._workers = threading.BoundedSemaphore(bundle.config.serve.workers)

    def Recommend(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Propose and rank: see ranking.proto."""

        def answer() -> Any:
            k = self.wire.k(request)
            asked = self.wire.request(request, self.clock())
            found = self.pipeline.recommend(asked, k)
            return self._stamped(self.wire.recommended(found), request, asked.as_of)

        return self._answered(context, answer)

    def Rank(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Rank the caller's items: see ranking.proto."""

        def answer() -> Any:
            items = self.wire.values("items", request.items)
            asked = self.wire.request(request, self.clock())
            found: Answer = self.pipeline.rank(asked, self.wire.items.find(items))
            return self._stamped(self.wire.ranked(found, items), request, asked.as_of)

        return self._answered(context, answer)

    def Describe(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Tell what is served: see ranking.proto."""

        def answer() -> Any:
            bundle, limits = self.pipeline.bundle, self.wire.limits
            catalog = bundle.state.catalog
            kinds = {False: pb.ID_KIND_INTEGER, True: pb.ID_KIND_TEXT}
            return pb.DescribeResponse(
                bundle_version=bundle.version,
                name=bundle.config.name,
                snapshot_time=bundle.state.end,
                clock=self.clock(),
                user_ids=kinds[self.wire.users.text],
                item_ids=kinds[self.wire.items.text],
                users=catalog.n_users,
                items=catalog.n_items,
                surfaces=catalog.surfaces,
                source_names=self.pipeline.source_names,
                feature_names=bundle.columns,
                max_k=limits.max_k,
                default_k=self.wire.default_k,
                max_items=limits.max_items,
                failures=self.pipeline.failures.counts(),
            )

        return self._answered(context, answer)

    def _stamped(self, response: Any, request: Any, as_of: int) -> Any:
        """Add what every answer says of its request and of what served it."""
        response.request_id = request.request_id
        response.bundle_version = self.pipeline.bundle.version
        response.snapshot_time = self.pipeline.bundle.state.end
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


class Server:
    """A pipeline behind a port. Warmed before the port answers: a client sees nothing or a ready server."""

    def __init__(self, bundle: Bundle, clock: str = "wall", host: str = "127.0.0.1", port: int = 0) -> None:
        """Bind the port (0: any free one) and warm up; PairliftError where the port cannot be had."""
        if clock not in CLOCKS:
            raise PairliftError(f"clock: one of {', '.join(CLOCKS)} was expected, found '{clock}'")
        now = now_wall if clock == "wall" else lambda: bundle.state.end
        self._server = grpc.server(
            ThreadPoolExecutor(bundle.config.serve.workers + SPARE_THREADS, thread_name_prefix="grpc"),
            # Without this a second server on a taken port would be given half of the calls in silence.
            options=[("grpc.so_reuseport", 0)],
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        self.address = self._bind(host, port)
        self.pipeline = Pipeline(bundle)
        self._health = health.HealthServicer()
        self._names = ("", SERVICE)
        for name in self._names:
            self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        ranking_pb2_grpc.add_RankingServiceServicer_to_server(RankingService(self.pipeline, now), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        for name in self.pipeline.warm():
            log.warning("%s failed while warming up: requests are answered without it", name)

    def start(self) -> None:
        """Report SERVING and answer."""
        for name in self._names:
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._server.start()

    def stop(self, grace: float = 5.0) -> None:
        """Report NOT_SERVING, refuse new calls, give those under way `grace` seconds, and end the threads."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace).wait()
        self.pipeline.close()

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


def with_snapshot(bundle: Bundle, folder: Path) -> Bundle:
    """Return the bundle with the state of another snapshot; PairliftError where that does not fit."""
    try:
        state = load_state(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PairliftError(f"{folder} is no snapshot, or a damaged one: {error}") from error
    differing = _differences(bundle.state, state)
    if differing:
        raise PairliftError(
            f"the snapshot {folder} does not fit the bundle {bundle.folder}: {'; '.join(differing)}. "
            "Make it with the same TOML and the same users and items, or train the bundle again"
        )
    return replace(bundle, state=state)


def _differences(expected: State, found: State) -> list[str]:
    # Plugins and the co-occurrence table count items and users by dense index, and the booster knows
    # categories by code: one id more, and every number behind it would mean another thing without an error.
    problems = []
    if expected.counters != found.counters:
        problems.append(f"{len(expected.counters)} counters were expected, found {len(found.counters)} or other ones")
    for side in ("user", "item"):
        ours, theirs = (getattr(state.catalog, f"{side}_ids") for state in (expected, found))
        if ours.dtype != theirs.dtype or not np.array_equal(ours, theirs):
            problems.append(f"{len(ours):,} {side}s were expected, found {len(theirs):,} or other ids")
        if _vocabulary(expected.catalog, side) != _vocabulary(found.catalog, side):
            problems.append(f"the {side}s' attributes are others")
    if expected.catalog.surfaces != found.catalog.surfaces:
        problems.append("the surfaces are others")
    if expected.histories.feedback.shape[1:] != found.histories.feedback.shape[1:]:
        problems.append("the histories have other feedback columns")
    return problems


def _vocabulary(catalog: Catalog, side: str) -> list[tuple[str, str, tuple[str, ...]]]:
    attributes: tuple[Attribute, ...] = getattr(catalog, f"{side}_attributes")
    return [(a.name, a.kind, () if a.kind == "text" else tuple(a.values)) for a in attributes]


def warn_if_old(bundle: Bundle, now: int) -> None:
    """Warn where the snapshot is older than `[serve] max_snapshot_age` at `now` (µs UTC)."""
    age, most = now - bundle.state.end, bundle.config.serve.max_snapshot_age
    if age > most:
        hours = 3_600_000_000
        log.warning(
            "the snapshot ends at %s, %.0f h before the clock (at most %.0f h were expected): "
            "recent windows are empty. Load a newer one with --snapshot, or use --clock snapshot",
            iso(bundle.state.end),
            age / hours,
            most / hours,
        )
