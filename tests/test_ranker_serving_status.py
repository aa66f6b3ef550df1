"""What is no message of a method is INVALID_ARGUMENT, of every method and kind of call: the caller must change it."""

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from served import recording, serving, within

from ranker.client import Client
from ranker.serving.port import THREADS

SERVICE = "/pairlift.v1.RankingService/"
#: a field that is longer than the message; a number that has no end
BROKEN = (b"\x12\xff\xff\x03", b"\xff" * 11)


@pytest.fixture(scope="module")
def recorded(bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with recording(bundle, tmp_path_factory.mktemp("decoding") / "log") as (server, _):
        yield server


@pytest.fixture
def channel(recorded: Any) -> Any:
    with grpc.insecure_channel(recorded.address) as channel:
        yield channel


METHODS = [f"{SERVICE}{name}" for name in ("Rank", "Recommend", "Describe", "TakeSnapshot")]


@pytest.mark.parametrize("data", BROKEN)
@pytest.mark.parametrize("method", [*METHODS, "/grpc.health.v1.Health/Check"])
def test_a_broken_message_is_the_callers_fault(channel: Any, method: str, data: bytes) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(method)(data, timeout=20)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "message" in caught.value.details()


def test_a_broken_message_ends_a_stream_behind_the_answers_before_it(channel: Any) -> None:
    for before in (0, 2):
        answers = channel.stream_stream(f"{SERVICE}RecordEvents")(iter([b""] * before + [BROKEN[0]]))
        assert len([next(answers) for _ in range(before)]) == before
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert list(channel.stream_stream(f"{SERVICE}RecordEvents")(iter([b""])))  # its place among the streams is free


def test_what_is_no_method_is_unimplemented(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"{SERVICE}Nothing")(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_calls_without_a_message_shut_nobody_out(bundle: Any) -> None:
    """Of a method that is open to all: more of them than there are threads."""
    done = threading.Event()

    def never() -> Iterator[bytes]:
        done.wait(60)
        yield from ()

    with serving(bundle, clock="snapshot") as server, grpc.insecure_channel(server.address) as channel:
        check = channel.stream_unary("/grpc.health.v1.Health/Check")
        held = [check.future(never()) for _ in range(THREADS + 50)]
        with Client(server.address, timeout=20) as client:
            assert client.rank(None, [10]).items
            assert within(20, lambda: sum(call.done() for call in held) >= THREADS)
            assert client.metrics()
        done.set()
        assert {call.code() for call in held} <= {
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.INVALID_ARGUMENT,
        }
