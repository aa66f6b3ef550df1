"""Connections are renewed without a failed call, and kept alive by pings; a client tries again what may be tried."""

import contextlib
import json
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from pairlift.v1 import ranking_pb2 as pb
from pairlift.v1 import ranking_pb2_grpc
from served import ROOT

from ranker.asking.channel import SERVICE_CONFIG
from ranker.client import Client, ServerError
from ranker.serving.port import bind, grpc_server


class Said(ranking_pb2_grpc.RankingServiceServicer):
    """Describes nothing, `seconds` later, once it has refused as often as it was told to; counts by connection."""

    def __init__(self) -> None:
        self.peers: Counter[str] = Counter()
        self.refuse: list[grpc.StatusCode] = []
        self.seconds = 0.0

    def Describe(self, request, context):  # noqa: N802
        self.peers[context.peer()] += 1
        time.sleep(self.seconds)
        if self.refuse:
            context.abort(self.refuse.pop(), "a sentence")
        return pb.DescribeResponse(name="said")

    def RecordEvents(self, request_iterator, context):  # noqa: N802
        context.abort(self.refuse.pop(), "a sentence")


@contextlib.contextmanager
def said(age=60_000):
    server, service = grpc_server((), age), Said()
    ranking_pb2_grpc.add_RankingServiceServicer_to_server(service, server)
    address = bind(server, "127.0.0.1", 0)
    server.start()
    try:
        yield address, service
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize("seconds", [0.0, 0.7])
def test_connections_are_renewed_without_a_failed_call(seconds):
    """Callers that never pause, over connections of 0.4 s; calls that last longer than these end on the old one."""
    until = time.monotonic() + 3

    def call(address):
        with Client(address, timeout=10) as client:
            while time.monotonic() < until:
                assert client.describe().name == "said"

    with said(age=400) as (address, service), ThreadPoolExecutor(4) as pool:
        service.seconds = seconds
        for caller in [pool.submit(call, address) for _ in range(4)]:
            caller.result()
    assert len(service.peers) >= 4, service.peers  # the callers share one, as all of a process do
    print(f"{sum(service.peers.values())} calls over {len(service.peers)} connections")


def test_a_call_that_no_server_took_is_tried_again_and_no_other():
    unavailable, exhausted = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED
    with said() as (address, service), Client(address, timeout=10) as client:
        service.refuse = [unavailable, unavailable]
        assert client.describe().name == "said"
        for code, calls in ((unavailable, 3), (exhausted, 1)):
            service.peers.clear()
            service.refuse = [code] * 5
            with pytest.raises(ServerError, match="a sentence"):
                client.describe()
            assert service.peers.total() == calls
        service.refuse = [unavailable] * 2
        with pytest.raises(ServerError, match="a sentence"):
            list(client.record([]))
        assert len(service.refuse) == 1


def test_the_readme_has_the_service_config_of_our_client():
    (text,) = re.findall(r"```json\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert json.loads(text) == SERVICE_CONFIG
