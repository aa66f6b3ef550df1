"""The process that records, as the other processes of a server see it: what comes to them is sent on over a socket."""

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from pairlift.v1 import ranking_pb2 as pb
from pairlift.v1 import ranking_pb2_grpc

from ranker.recording.follower import Follower
from ranker.serving.port import MAX_MESSAGE

log = logging.getLogger(__name__)

#: seconds that a question about the recording may take, and between two of them
PATIENCE, LOOK_EVERY = 1.0, 2.0
#: milliseconds between tries to reach the process, while it is started again
RETRY = (100, 1000)
AWAY = "the process that records is being started again: send the batch again in some seconds"


class Elsewhere:
    """Stands in a worker for the `Recorder`, which is in another process of the same server."""

    def __init__(
        self,
        socket: Path,
        follower: Follower,
        on_health: Callable[[bool], None],
        check: Callable[[Follower], None],
    ) -> None:
        """socket: where that process answers. follower: of this process. on_health: called with whether events can be
        recorded, when it changes. check: raises PairliftError where that process could not record for a bundle.
        """
        first, most = RETRY
        self._channel = grpc.insecure_channel(
            f"unix:{socket}",
            options=[
                ("grpc.initial_reconnect_backoff_ms", first),
                ("grpc.min_reconnect_backoff_ms", first),
                ("grpc.max_reconnect_backoff_ms", most),
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._stub = ranking_pb2_grpc.RankingServiceStub(self._channel)
        self._on_health, self._well = on_health, True
        self._follower, self._check = follower, check
        self._stop = threading.Event()
        threading.Thread(target=self._look, name="recording", daemon=True).start()

    def use(self, follower: Follower) -> None:
        """Count by another follower. What comes in is checked by the process that records.

        PairliftError where that could not do so for its bundle.
        """
        self._check(follower)
        self._follower = follower

    def record(self, messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        """Send the messages of a RecordEvents call on, and yield the answers; its errors are the call's."""
        call = self._stub.RecordEvents(messages)
        context.add_callback(call.cancel)
        try:
            yield from call
        except grpc.RpcError as error:
            _end(context, error)

    def snapshot(self, message: pb.TakeSnapshotRequest, context: grpc.ServicerContext) -> Any:
        """Send a TakeSnapshot call on."""
        try:
            return self._stub.TakeSnapshot(message, timeout=context.time_remaining())
        except grpc.RpcError as error:
            _end(context, error)

    @property
    def count(self) -> int:
        """Events that were recorded and are served here."""
        return self._follower.position.served

    @property
    def problem(self) -> str:
        """What is wrong with the recording at the moment, here or in the process that records; empty: nothing."""
        try:
            theirs = self._stub.Describe(pb.DescribeRequest(), timeout=PATIENCE).recording_problem
        except grpc.RpcError as error:
            theirs = f"the process that records does not answer ({_code(error).name})"
        return "; ".join(filter(None, [self._follower.problem, theirs]))

    def close(self) -> None:
        """Let the process go."""
        self._stop.set()
        self._channel.close()

    def _look(self) -> None:
        while not self._stop.wait(LOOK_EVERY):
            try:
                well = not self.problem
            except ValueError:  # the channel was closed meanwhile
                return
            if well != self._well:
                self._well = well
                self._on_health(well)


def _code(error: Any) -> grpc.StatusCode:
    code: grpc.StatusCode = error.code()
    return code


def _end(context: grpc.ServicerContext, error: Any) -> None:
    """End a call as the process that records ended it. Of one that is away, nothing is known but that."""
    away = _code(error) is grpc.StatusCode.UNAVAILABLE and not str(error.details()).startswith("batch ")
    context.abort(_code(error), AWAY if away else error.details())
