"""The gate: what it lets in under load (simulated), and that a real server refuses cheaply, in order, and drains."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pairlift.v1 import ranking_pb2 as pb
from queueing import Gradient2, bare, capacity, simulated
from served import ROOT, health_of, serving, user_id, within
from world import with_config

from ranker.asking.messages import ids_message
from ranker.client import Client, ServerError
from ranker.pipeline import Pipeline
from ranker.request import GoneError
from ranker.server import Server
from ranker.serving.admission import Admission
from ranker.serving.gate import PRIORITY
from ranker.serving.health import LIVE, SERVICE
from ranker.serving.limiter import FORGET, ROUND, Limiter, Typical
from ranker.serving.listener import Listener
from ranker.serving.port import MAX_UNSEEN

RANK = f"/{SERVICE}/Rank"
LONGEST = 0.2


def rules(cores=1, limiter=None):
    return Admission(limiter or Limiter(cores, 8), LONGEST)


@pytest.mark.parametrize("deadline", [0.02, 0.1, 1.0])
def test_an_overload_takes_little_of_what_can_be_answered(deadline):
    three, ten = simulated(rules(), 3, deadline), simulated(rules(), 10, deadline)
    assert three.goodput > 0.85
    assert ten.goodput > 0.9 * bare(10)
    assert max(three.p99, ten.p99) < 0.015
    assert max(three.unseen, ten.unseen) < 0.01
    assert three.lost == ten.lost == 0


def test_answers_are_fast_also_where_only_some_more_come_than_can_be_answered():
    for rate in (1.2, 1.35, 1.6):
        found = simulated(rules(), rate, 0.1, seconds=12)
        assert found.goodput > 0.9
        assert found.p99 < LONGEST / 8 + 0.01


def test_on_two_cores_one_thread_takes_all_calls_and_grpc_ends_what_that_one_does_not_come_to():
    three, ten = (simulated(rules(2), rate, 0.1, cores=2) for rate in (3, 10))
    assert three.goodput > 0.85
    assert three.lost == 0
    assert ten.goodput > 0.8 * bare(10)
    assert ten.unseen < 0.06


@pytest.mark.parametrize(("deadline", "unseen_most"), [(0.05, MAX_UNSEEN), (1.0, (1000, 3000))])
def test_netflixs_gradient_follows_the_overload_and_starves_the_thread_that_refuses(deadline, unseen_most):
    other = simulated(rules(limiter=Gradient2(8)), 10, deadline, unseen_most=unseen_most)
    own = simulated(rules(), 10, deadline, unseen_most=unseen_most)
    assert (other.unseen, other.p99) > (0.05, 0.05) > (10 * own.unseen, own.p99)
    assert own.goodput > 0.9 * bare(10)
    assert deadline == 1 or other.goodput < 0.1


def test_below_capacity_calls_wait_in_order_and_none_is_refused():
    half, most = simulated(rules(), 0.5, 1.0), simulated(rules(), 0.9, 1.0)
    assert not half.over
    assert not most.over
    waits = [job.begun - job.came for job in most.good]
    assert [job.came for job in most.good] == sorted(job.came for job in most.good)
    assert max(waits) < LONGEST


def test_low_priority_is_refused_first():
    found = simulated(rules(), 1.5, 0.1, low=0.5)
    answered, refused = ([job.low for job in jobs] for jobs in (found.good, found.over))
    assert answered.count(False) > 20 * refused.count(False)
    assert refused.count(True) > 0.4 * capacity()


@pytest.mark.parametrize(("cores", "waits", "low", "high"), [(1, 0.0, 1, 2), (2, 0.0, 2, 3), (1, 0.02, 6, 16)])
def test_the_limit_is_where_more_at_once_gives_no_more(cores, waits, low, high):
    """Calls that need a core: as many as there are cores. Calls that wait for something else: more."""
    limiter = Limiter(1, 16)
    found = simulated(rules(limiter=limiter), 2, 1.0, cores=cores, waits=waits, seconds=10)
    assert low <= limiter.limit <= high
    assert found.goodput > 0.75


def ended(limiter, seconds, rounds):
    """Let calls of a time given by the limit end, all at the limit."""
    for _ in range(rounds * ROUND):
        limiter.took(seconds(limiter.limit), limiter.limit)


def test_the_limit_falls_when_calls_come_to_share_one_thing_and_rises_again():
    limiter = Limiter(1, 12)
    ended(limiter, lambda n: 0.01, 3 * FORGET)  # each as fast as alone
    assert limiter.limit >= 8
    ended(limiter, lambda n: 0.01 * n, 3 * FORGET)  # all share a core
    assert limiter.limit <= 2
    ended(limiter, lambda n: 0.01, 3 * FORGET)
    assert limiter.limit >= 8


def test_calls_that_the_limit_does_not_hold_back_say_nothing():
    limiter = Limiter(4, 8)
    for _ in range(20 * ROUND):
        limiter.took(0.01, 3)
    assert limiter.limit == 4
    assert Limiter(4, 1).limit == 1


def test_the_typical_time_is_the_median_and_gives_way_to_doubt():
    typical = Typical()
    for k in range(300):
        typical.add((0.01, 0.01, 5.0)[k % 3])
    assert 0.009 < typical.seconds < 0.013
    stuck = Typical()
    stuck.add(10.0)
    for _ in range(100):
        stuck.doubt()
    assert stuck.seconds < 0.1


@pytest.fixture
def held(monkeypatch):
    """Let every Rank wait: `asked` are the users whose call has begun, `go` lets them through."""
    real, asked, go = Pipeline.rank, [], threading.Event()

    def rank(self, request, item, given):
        if threading.current_thread().name.startswith("call-"):  # and not while it warms up
            asked.append(request.user)
            go.wait(20)
        return real(self, request, item, given)

    monkeypatch.setattr(Pipeline, "rank", rank)
    yield asked, go
    go.set()


def narrow(bundle, workers=1, max_wait=20_000_000):
    return with_config(bundle, serve=bundle.config.serve.model_copy(update={"workers": workers, "max_wait": max_wait}))


def message(user):
    return pb.RankRequest(user=pb.Id(integer=user), items=ids_message([10, 13])).SerializeToString()


class Raw:
    """Calls of bytes."""

    def __init__(self, server):
        self.channel = grpc.insecure_channel(server.address)
        self.rank = self.channel.unary_unary(RANK)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()

    def start(self, message, *, low=False, timeout=20):
        return self.rank.future(message, timeout=timeout, metadata=[(PRIORITY, "low")] if low else None)


def test_what_is_over_is_told_when_to_ask_again_and_its_message_is_not_read(bundle, world, held):
    asked, go = held
    with serving(narrow(bundle)) as server, Raw(server) as raw:
        server.gate._admission._typical.add(12.0)  # so that one may wait for 20 s
        first = raw.start(message(user_id(world, 1)))
        assert within(20, lambda: asked)
        waits = raw.start(message(user_id(world, 2)))
        assert within(20, lambda: server.gate.waiting == 1)
        over = raw.start(b"no message at all")
        assert waits.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # the newest is next
        assert "ask again in about a second" in waits.details()
        assert dict(waits.trailing_metadata())["grpc-retry-pushback-ms"].isdigit()
        assert (server.gate.limit, server.gate.at_work, server.gate.waiting) == (1, 1, 1)
        assert dict(server.gate.refused) == {"busy": 1}
        assert health_of(server, SERVICE) == health_of(server, LIVE) == "SERVING"
        go.set()
        assert first.code() is grpc.StatusCode.OK
        assert over.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert over.details().startswith(f"{RANK}: one message was expected")
        assert within(20, lambda: server.gate.at_work == 0)


def test_a_call_without_a_deadline_is_answered_and_none_ends_a_worker(bundle, world, monkeypatch):
    with serving(narrow(bundle)) as server, Raw(server) as raw:
        with monkeypatch.context() as patch:
            patch.setattr(Pipeline, "rank", lambda *_: sys.exit(1))
            assert raw.start(message(user_id(world, 1)), timeout=0.3).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert within(20, lambda: server.gate.at_work == 0)
        assert raw.start(message(user_id(world, 1)), timeout=None).code() is grpc.StatusCode.OK


def test_callers_that_send_no_message_do_not_keep_the_workers(bundle, world):
    go = threading.Event()

    def nothing():
        go.wait(20)
        yield from ()

    with serving(narrow(bundle)) as server, Raw(server) as raw, Raw(server) as other:
        send = raw.channel.stream_unary(RANK)
        silent = [send.future(nothing(), timeout=20) for _ in range(2)]
        assert within(20, lambda: server.gate.at_work == 1)
        assert other.start(message(user_id(world, 1))).code() is grpc.StatusCode.OK
        assert all(call.code() is grpc.StatusCode.CANCELLED for call in silent)
        assert within(20, lambda: server.gate.at_work == 0)
        go.set()


def test_low_priority_waits_behind_the_others_and_is_refused_for_them(bundle, world, held):
    asked, go = held
    with serving(narrow(bundle)) as server, Raw(server) as raw:
        server.gate._admission._typical.add(5.0)  # so that four may wait for 20 s
        calls = [raw.start(message(user_id(world, 1)))]
        assert within(20, lambda: asked)
        for user, low in ((2, True), (3, False), (4, True), (5, False), (6, False)):
            calls.append(raw.start(message(user_id(world, user)), low=low))
            assert within(20, lambda: sum(server.gate.refused.values()) + server.gate.waiting == len(calls) - 1)
        go.set()
        ok, over = grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED
        assert [call.code() for call in calls] == [ok, over, ok, ok, ok, ok]
        assert [world.catalog.user_ids[user] for user in asked] == [user_id(world, k) for k in (1, 3, 5, 6, 4)]


def test_a_call_that_waits_too_long_or_has_too_little_time_is_not_begun(bundle, world, held):
    asked, go = held
    with serving(narrow(bundle, max_wait=300_000)) as server, Raw(server) as raw:
        first = raw.start(message(user_id(world, 1)))
        assert within(20, lambda: asked)
        late = raw.start(message(user_id(world, 2)))
        time.sleep(0.4)
        go.set()
        assert late.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "max_wait" in late.details()
        assert first.code() is grpc.StatusCode.OK
        hopeless = raw.start(message(user_id(world, 3)), timeout=0.3)  # the first one took longer
        assert hopeless.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert within(20, lambda: dict(server.gate.refused) == {"late": 1, "deadline": 1})
        assert asked == [1]
        while raw.start(message(user_id(world, 4)), timeout=0.3).code() is not grpc.StatusCode.OK:
            pass  # each refusal lowers the estimate, until one shows that it was wrong
        assert asked[:2] == [1, 4]


def test_a_call_that_waits_too_long_is_told_though_no_other_comes_or_ends(bundle, world, held):
    asked, go = held
    with serving(narrow(bundle, max_wait=100_000)) as server, Raw(server) as raw:
        first = raw.start(message(user_id(world, 1)))
        assert within(20, lambda: asked)
        late = raw.start(message(user_id(world, 2)))
        assert late.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "max_wait" in late.details()
        assert not first.done()
        go.set()
        assert first.code() is grpc.StatusCode.OK


def test_work_stops_between_stages_when_nobody_waits(bundle, world, monkeypatch, caplog):
    stages = []

    def features(self, request, candidates, trace):
        stages.append("features")
        assert within(20, lambda: raises(request.check))
        return real(self, request, candidates, trace)

    def raises(check):
        try:
            check()
        except GoneError:
            return True
        return False

    real = Pipeline._features
    with serving(narrow(bundle)) as server, Raw(server) as raw:
        monkeypatch.setattr(Pipeline, "_features", features)
        monkeypatch.setattr(type(bundle), "score", lambda *_: stages.append("score"))
        given_up = raw.start(message(user_id(world, 1)))
        assert within(20, lambda: stages)
        given_up.cancel()
        assert within(20, lambda: server.gate.at_work == 0)
        late = raw.start(message(user_id(world, 1)), timeout=0.5)
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert within(20, lambda: server.gate.at_work == 0)
        with Client(server.address, timeout=20) as client:
            page = client.metrics()
    for code in ("CANCELLED", "DEADLINE_EXCEEDED"):
        assert re.search(rf'^pairlift_calls_total{{.*code="{code}".*method="Rank".*}} 1.0$', page, re.M), page
    assert stages == ["features", "features"]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_before_the_bundle_is_there_the_process_lives_and_is_not_ready(bundle, world):
    with Listener("127.0.0.1", 0, bundle.config.serve) as listener, Client(listener.address, timeout=20) as client:
        assert health_of(listener, LIVE) == "SERVING"
        assert health_of(listener, SERVICE) == health_of(listener, "") == "NOT_SERVING"
        for ask in (lambda: client.rank(1, [10]), client.describe, client.snapshot, lambda: list(client.record([]))):
            with pytest.raises(ServerError, match="loading its bundle: ask again") as caught:
                ask()
            assert caught.value.code == "UNAVAILABLE"
        server = Server(bundle, listener=listener)
        assert health_of(listener, SERVICE) == "NOT_SERVING"
        server.start()
        assert health_of(listener, SERVICE) == health_of(listener, "") == "SERVING"
        assert len(client.rank(user_id(world, 1), [10]).items) == 1
        server.stop(0)


def test_a_server_that_drains_says_so_and_answers(bundle, world):
    with (
        serving(bundle) as server,
        Client(server.address, timeout=20) as client,
        grpc.insecure_channel(server.address) as channel,
    ):
        # As gRPC's clients watch it that check the health of what they call (healthCheckConfig).
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=20)
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        server.drain()
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert health_of(server, SERVICE) == health_of(server, "") == "NOT_SERVING"
        assert health_of(server, LIVE) == "SERVING"
        assert len(client.rank(user_id(world, 1), [10]).items) == 1


def test_no_call_fails_while_a_process_drains(bundle_folder, world):
    """Calls under way and calls that still come while it drains are answered; then it exits with 0."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "proto")])
    words = [sys.executable, "-m", "ranker.cli", "serve", str(bundle_folder), "--clock", "snapshot", "--port", "0"]
    process = subprocess.Popen(
        [*words, "--drain", "1"], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    )
    try:
        address = process.stdout.readline().rpartition(" on ")[2].strip()
        stop, answers = threading.Event(), []
        with Client(address, timeout=20) as client, ThreadPoolExecutor(2) as pool:

            def asks():
                while not stop.is_set():
                    answers.append((time.monotonic(), len(client.rank(user_id(world, 1), [10, 13]).items)))

            asking = [pool.submit(asks) for _ in range(2)]
            assert within(20, lambda: len(answers) > 20 or any(one.done() for one in asking))
            told = time.monotonic()
            process.send_signal(signal.SIGTERM)
            time.sleep(0.8)
            stop.set()
            for one in asking:
                one.result()
        assert max(when for when, _ in answers) > told + 0.5
        assert {n for _, n in answers} == {2}
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.stdout.close()
