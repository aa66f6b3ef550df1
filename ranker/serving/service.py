"""The methods of the contract, each on one screen: a bundle answers, an error becomes a status."""

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import grpc
from pairlift.v1 import metrics_pb2, metrics_pb2_grpc, ranking_pb2_grpc
from pairlift.v1 import ranking_pb2 as pb

from ranker.recording.batch import Outcome
from ranker.recording.recorder import Recorder
from ranker.recording.wire import batch_of, outcome_message
from ranker.serving.deployment import Deployment
from ranker.serving.gate import Awaited
from ranker.serving.processes.elsewhere import Elsewhere
from ranker.serving.status import finished
from ranker.serving.watching.meters import Meters

NO_LOG = "this server records nothing: start it with `pairlift serve BUNDLE --log DIR`"


class RankingService(ranking_pb2_grpc.RankingServiceServicer):
    """The methods of ranking.proto. Its gate is shut until `use` has said what answers."""

    deployment: Deployment
    recorder: Recorder | Elsewhere | None

    def use(self, deployment: Deployment, recorder: Recorder | Elsewhere | None, streams: int) -> None:
        """Answer from a deployment. streams: RecordEvents calls that may be open at a time."""
        self.deployment, self.recorder = deployment, recorder
        self._most_streams = streams
        self._streams = threading.BoundedSemaphore(streams)

    def Recommend(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Propose and rank: see ranking.proto."""
        return finished(context, lambda: self.deployment.recommend(request, Awaited(context)))

    def Rank(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Rank the caller's items: see ranking.proto."""
        return finished(context, lambda: self.deployment.rank(request, Awaited(context)))

    def Describe(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Describe what is served: see ranking.proto."""

        def answer() -> Any:
            recorder = self.recorder
            return pb.DescribeResponse(
                **self.deployment.active.described(),
                records=recorder is not None,
                recorded_events=recorder.count if recorder else 0,
                recording_problem=recorder.problem if recorder else "",
            )

        return finished(context, answer)

    def RecordEvents(self, request_iterator: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        """Record batches: see ranking.proto."""
        if self.recorder is None:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, NO_LOG)
            return
        if not self._streams.acquire(blocking=False):
            most = self._most_streams
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{most} RecordEvents streams are open, and [record] streams is {most}: use one for many batches",
            )
            return
        try:
            if isinstance(self.recorder, Elsewhere):
                yield from self.recorder.record(request_iterator, context)
                return
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
        if isinstance(self.recorder, Elsewhere):
            return self.recorder.snapshot(request, context)
        follower = self.deployment.active.follower
        assert follower is not None
        folder, state, frame = finished(context, follower.snapshot, writes=True)
        return pb.TakeSnapshotResponse(folder=str(folder.resolve()), snapshot_time=state.end, frame=frame)


class MetricsService(metrics_pb2_grpc.MetricsServiceServicer):
    """The method of metrics.proto. It passes no gate: under overload, too, it is to be seen what goes on."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters

    def Metrics(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Return the page: see metrics.proto."""
        return finished(context, lambda: metrics_pb2.MetricsResponse(text=self._meters.page()))


def _record_message(recorder: Recorder, message: Any) -> Outcome:
    return recorder.record(batch_of(message))
