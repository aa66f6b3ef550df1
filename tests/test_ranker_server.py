"""The server over the wire: answers, mistakes of callers, deadlines, health, reflection and the stop."""

import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pairlift.v1 import ranking_pb2 as pb
from pairlift.v1 import ranking_pb2_grpc
from served import ROOT, recording, serving, user_id
from world import TOML, bundle_of, make_world, train_parts, with_config

from features.errors import PairliftError
from features.log.writer import LogError
from features.schema import SECOND
from ranker.asking.messages import id_message, ids_message
from ranker.client import Client, ServerError
from ranker.config import Config
from ranker.pipeline import Pipeline
from ranker.recording.follower import LimitError
from ranker.request import Request, RequestError, awaited
from ranker.server import Server, warn_if_old
from ranker.serving.clock import now_wall
from ranker.serving.health import SERVICE
from ranker.serving.status import INTERNAL, status_of
from ranker.settings import SourcesSettings


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.address) as channel:
        yield ranking_pb2_grpc.RankingServiceStub(channel)


def test_recommend_over_the_wire_is_the_pipelines_answer(client, bundle, world):
    pipeline = Pipeline(bundle)
    for k in (0, 7, 21):
        expected = pipeline.recommend(Request(k, bundle.state.end, surface=1, state=bundle.state), 8)
        reply = client.recommend(user_id(world, k), 8, surface="search", request_id=f"r{k}")
        assert [item.item for item in reply.items] == world.catalog.item_ids[expected.item].tolist()
        assert [item.score for item in reply.items] == expected.score.tolist()
        assert (reply.request_id, reply.bundle_version, reply.degraded) == (f"r{k}", "world", ())
        assert reply.snapshot_time == reply.as_of == bundle.state.end
    pipeline.close()


def test_each_item_names_its_sources(client, world):
    reply = client.recommend(user_id(world, 3), 10)
    assert {name for item in reply.items for name in item.sources} <= {"popular", "cooccurrence", "nearest"}
    assert all(item.sources for item in reply.items)
    cold = client.recommend(999_999, 10)
    assert {item.sources for item in cold.items} == {("popular",)}
    assert len(cold.items) == 10


def test_an_anonymous_user_is_cold(client):
    anonymous, cold = client.recommend(None, 5), client.recommend(999_999, 5)
    assert [item.item for item in anonymous.items] == [item.item for item in cold.items]
    assert anonymous.unknown_user
    assert cold.unknown_user


def test_rank_answers_every_item_best_first(client, world):
    items = [*world.catalog.item_ids[:20].tolist(), 999_999, 10, 10]
    reply = client.rank(user_id(world, 2), items)
    assert sorted(item.index for item in reply.items) == list(range(23))
    assert all(items[item.index] == item.item for item in reply.items)
    scores = [item.score for item in reply.items]
    assert scores == sorted(scores, reverse=True)
    assert len({item.score for item in reply.items if item.item == 10}) == 1
    assert {item.sources for item in reply.items} == {("caller",)}
    assert (reply.unknown_user, reply.unknown_items) == (False, (999_999,))


def test_an_empty_list_is_answered(client, world):
    assert client.rank(user_id(world, 2), []).items == ()
    assert client.rank(user_id(world, 2), [], explain=True).items == ()


def test_every_user_gets_a_list_or_the_reason_why_not(client, bundle, world):
    """Users without history, k above the candidates, all excluded."""
    few = "fewer candidates than k = 50 were left: "
    cold = client.recommend(999_999, 50)
    assert (len(cold.items), cold.reason) == (20, few + "the sources proposed no more within their quotas")
    assert (len(client.recommend(None, 20).items), client.recommend(None, 20).reason) == (20, "")
    warm = client.recommend(user_id(world, 3), 50)
    assert 0 < len(warm.items) < 50
    assert re.fullmatch(few + r"removed: seen \d+; the sources proposed no more within their quotas", warm.reason)
    none = client.recommend(999_999, 5, exclude=world.catalog.item_ids.tolist(), explain=True)
    assert (none.items, none.reason) == ((), "all that was proposed was removed: excluded 80")
    assert sum(count for _, count, *_ in none.proposed) == 80


def test_a_small_catalogue_one_that_was_all_seen_and_sources_that_propose_nothing():
    world, config = make_world(n_items=9), Config(**tomllib.loads(TOML))
    seen_too = config.model_copy(update={"sources": SourcesSettings(exclude_seen=False)})  # else nothing to train on
    bundle = with_config(bundle_of(train_parts(world, seen_too)), sources=config.sources)
    few = "fewer candidates than k = 30 were left: the catalogue has 9 items"
    with serving(bundle, clock="snapshot") as server, Client(server.address, timeout=20) as client:
        small, seen = client.recommend(None, 30), client.recommend(user_id(world, 3), 30)
        assert (len(small.items), small.reason) == (9, few)
        assert (seen.items, seen.reason) == ((), "all that was proposed was removed: seen 9")
        assert len(client.rank(user_id(world, 3), [10, 13]).items) == 2
    related = with_config(bundle, sources=SourcesSettings(popular=False, nearest=False))
    with serving(related, clock="snapshot") as server, Client(server.address, timeout=20) as client:
        none = client.recommend(None, 5, explain=True)
        why = "the sources proposed nothing: cooccurrence had nothing for this user; [sources] popular has items for"
        assert (none.items, none.degraded) == ((), ())
        assert none.reason.startswith(why)
        assert none.proposed == (("cooccurrence", 0, 0, ""),)


def test_a_bundle_without_the_wanted_part_orders_recommend_as_rank_and_says_so_once(bundle, world, caplog):
    with serving(replace(bundle, wanted=None), clock="snapshot") as server, Client(server.address) as client:
        listed = client.recommend(user_id(world, 3), 8, explain=True)
        ranked = client.rank(user_id(world, 3), [item.item for item in listed.items])
        assert [(item.item, item.score) for item in listed.items] == [(item.item, item.score) for item in ranked.items]
        assert {item.wanted for item in listed.items} == {None}
        assert client.describe().wanted_feature_names == ()
    assert caplog.text.count("Recommend is ordered as Rank") == 1


def test_own_as_of_wins_over_the_clock(client, bundle, world):
    as_of = int(world.log.ts[1000])
    reply = client.rank(user_id(world, 2), [10, 13], as_of=as_of)
    assert reply.as_of == as_of
    pipeline = Pipeline(bundle)
    expected = pipeline.rank(Request(2, as_of, state=bundle.state), np.array([0, 1], np.int32))
    assert [item.score for item in reply.items] == expected.score.tolist()
    pipeline.close()


def test_the_wall_clock(bundle, world):
    before = now_wall()
    with serving(bundle, clock="wall") as server, Client(server.address) as client:
        assert before <= client.recommend(user_id(world, 2), 3).as_of <= now_wall()
        assert abs(now_wall() / 1e6 - time.time()) < 1
    with pytest.raises(PairliftError, match="wall, snapshot was expected, found 'sun'"):
        Server(bundle, clock="sun")


def test_the_source_item_is_related_and_not_answered(client, world):
    reply = client.recommend(999_999, 10, source_item=10)
    assert 10 not in [item.item for item in reply.items]
    assert any("cooccurrence" in item.sources for item in reply.items)


def test_explain(client, bundle, world):
    reply = client.recommend(user_id(world, 3), 5, explain=True)
    assert [name for name, *_ in reply.proposed] == ["popular", "cooccurrence", "nearest"]
    assert [name for name, _ in reply.removed] == ["unknown", "excluded", "seen"]
    assert all(took >= 0 for _, took in reply.stages)
    ranked = client.rank(user_id(world, 3), [item.item for item in reply.items], explain=True)
    liked = {item.item: item.liked for item in reply.items}
    assert [(item.score, item.liked, item.wanted) for item in ranked.items] == [
        (liked[item.item], liked[item.item], None) for item in ranked.items
    ]
    for item in reply.items:
        assert item.wanted == item.score != item.liked
        assert {name for name, *_ in item.features} == set(bundle.wanted_columns)
        parts = [abs(part) for *_, part in item.features]
        assert parts == sorted(parts, reverse=True)
    plain = client.recommend(user_id(world, 3), 5).items[0]
    assert (plain.features, plain.liked, plain.wanted) == ((), None, None)


def test_describe(client, bundle, world):
    figures = client.describe()
    assert (figures.bundle_version, figures.name, figures.text_users, figures.text_items) == (
        "world",
        "world",
        False,
        False,
    )
    assert (figures.users, figures.items, figures.surfaces) == (40, 80, ("feed", "search"))
    assert figures.feature_names == bundle.columns
    assert figures.wanted_feature_names == (*bundle.columns, *(f"source__{name}" for name in figures.source_names))
    assert figures.snapshot_time == figures.clock == bundle.state.end
    assert (figures.max_k, figures.default_k, figures.max_items, figures.failures) == (50, 10, 200, {})
    assert figures.source_names == ("popular", "cooccurrence", "nearest")


def test_text_ids(text_server):
    with Client(text_server.address) as client:
        assert client.describe().text_users
        assert client.describe().text_items
        reply = client.recommend("user-0003", 5, exclude=["item-0001"])
        assert len(reply.items) == 5
        assert all(item.item.startswith("item-") for item in reply.items)
        assert {item.item for item in client.rank("user-0003", ["item-0007", "nobody"]).items} == {
            "item-0007",
            "nobody",
        }
        with pytest.raises(ServerError, match=r"^user: text ids were expected.*found an integer") as caught:
            client.recommend(3, 5)
        assert caught.value.code == "INVALID_ARGUMENT"


BAD = [
    (lambda c: c.recommend("ann"), "^user: integer ids were expected"),
    (lambda c: c.recommend(1, exclude=["x"]), "^exclude: integer ids were expected"),
    (lambda c: c.recommend(1, source_item="x"), "^context.source_item: integer ids were expected"),
    (lambda c: c.rank(1, ["x"]), "^items: integer ids were expected"),
    (lambda c: c.rank(1, [1] * 201), "^items: at most 200 items were expected, found 201"),
    (lambda c: c.recommend(1, exclude=[1] * 201), "^exclude: at most 200 items were expected, found 201"),
    (lambda c: c.recommend(1, 51), "^k: .*50 was expected, found 51"),
    (lambda c: c.recommend(1, -1), "^k: .*50 was expected, found -1"),
    (lambda c: c.recommend(1, as_of=2**62), "^as_of: microseconds"),
    (lambda c: c.rank(1, [10], as_of=1_700_000_500), "2023-11-14T22:21:40Z in seconds: send 1700000500000000$"),
    (lambda c: c.rank(1, [2**70]), "^the request cannot be written"),
    (lambda c: c.rank(1, ["a", 1]), "^the request cannot be written"),
]


@pytest.mark.parametrize(("ask", "sentence"), BAD)
def test_a_callers_mistake_is_told(client, ask, sentence):
    with pytest.raises(ServerError, match=sentence) as caught:
        ask(client)
    assert caught.value.code == "INVALID_ARGUMENT"


def test_an_unexpected_error_is_internal_logged_and_survived(client, server, world, monkeypatch, caplog):
    def broken(self, matrix):
        raise ZeroDivisionError("a secret of the house")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(type(server.pipeline.bundle), "score", broken)
        with pytest.raises(ServerError, match="its log has the traceback") as caught:
            client.rank(user_id(world, 2), [10])
    assert caught.value.code == "INTERNAL"
    assert "secret" not in str(caught.value)
    assert "ZeroDivisionError: a secret of the house" in caplog.text
    assert len(client.rank(user_id(world, 2), [10]).items) == 1


def test_what_is_degraded_is_named_and_counted(bundle, world):
    class Broken:
        columns = ("dot",)

        def values(self, requests, histories):
            raise RuntimeError("no vector today")

    with serving(replace(bundle, plugins={"als": Broken()})) as server, Client(server.address) as client:
        assert client.recommend(user_id(world, 1), 5).degraded == ("plugins.als",)
        assert client.describe().failures["plugins.als"] >= 1


def test_many_clients_at_once(server, client, world):
    users = [user_id(world, k % 40) for k in range(120)]
    alone = {u: [item.item for item in client.recommend(u, 10).items] for u in set(users)}
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda u: [item.item for item in client.recommend(u, 10).items], users))
    assert together == [alone[u] for u in users]


def test_health(server):
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            status = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status
            assert status == health_pb2.HealthCheckResponse.SERVING
    assert SERVICE == "pairlift.v1.RankingService"


def test_reflection_names_the_service_even_while_streams_stay_open(server, client):
    """A stream holds a thread of the pool: more open ones than there are workers must not stop the server."""
    with grpc.insecure_channel(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)

        def forever():
            yield reflection_pb2.ServerReflectionRequest(list_services="")
            time.sleep(2)

        streams = [stub.ServerReflectionInfo(forever()) for _ in range(4)]
        for stream in streams:
            names = {service.name for service in next(stream).list_services_response.service}
            assert {SERVICE, "grpc.health.v1.Health"} <= names
        assert len(client.recommend(1, 3).items) == 3
        for stream in streams:
            stream.cancel()


def test_a_taken_port_is_refused(server, bundle):
    port = int(server.address.rpartition(":")[2])
    with pytest.raises(PairliftError, match=f"127.0.0.1:{port} cannot be listened on"):
        Server(bundle, port=port)


def test_a_stopped_server_is_unreachable(bundle):
    with serving(bundle) as server:
        address = server.address
    with (
        Client(address) as client,
        pytest.raises(ServerError, match=f"no server answers at {address}") as caught,
    ):
        client.describe()
    assert caught.value.code == "UNAVAILABLE"


@pytest.fixture
def held_rank(monkeypatch):
    """Let every Rank of a call wait: `asked` are the users whose call has begun, `go` lets them through."""
    real, asked, go = Pipeline.rank, [], threading.Event()

    def held(self, request, item, given):
        if request.check is awaited:
            return real(self, request, item, given)
        asked.append(request.user)
        go.wait(20)
        return real(self, request, item, given)

    monkeypatch.setattr(Pipeline, "rank", held)
    return asked, go


def wait_for(condition):
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not come to pass within 20 s")


def test_what_a_stopping_server_cannot_finish_is_unavailable(bundle, world, held_rank, tmp_path):
    """A call under way, and an open stream; gRPC by itself would say CANCELLED, which nobody tries again."""
    asked, go = held_rank
    with recording(bundle, tmp_path / "log") as (server, _), grpc.insecure_channel(server.address) as channel:
        stub = ranking_pb2_grpc.RankingServiceStub(channel)
        begun = stub.Rank.future(
            pb.RankRequest(user=id_message(user_id(world, 1)), items=ids_message([10])), timeout=30
        )
        stream = stub.RecordEvents(iter(go.wait, True), timeout=30)
        wait_for(lambda: asked and len(server._listener._under_way._contexts) == 2)
        server.stop(grace=1.0)
        assert begun.code() is stream.code() is grpc.StatusCode.UNAVAILABLE
        go.set()


def test_calls_under_way_are_finished_when_it_stops(bundle, world, held_rank):
    asked, go = held_rank
    server = Server(bundle)
    server.start()
    with Client(server.address, timeout=20) as client, ThreadPoolExecutor(2) as pool:
        call = pool.submit(client.rank, user_id(world, 1), [10])
        wait_for(lambda: asked)
        stopping = pool.submit(server.stop, 20)
        time.sleep(0.1)
        assert not stopping.done()
        go.set()
        assert len(call.result().items) == 1
        stopping.result()


def test_a_call_that_its_caller_gave_up_is_not_computed(bundle, world, held_rank):
    asked, go = held_rank
    waits = with_config(bundle, serve=bundle.config.serve.model_copy(update={"max_wait": 20 * SECOND}))
    with serving(waits) as server, Client(server.address, timeout=20) as patient, ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(patient.rank, user_id(world, 1), [10]) for _ in range(2)]
        wait_for(lambda: len(asked) == 2)  # both workers are busy
        with Client(server.address, 0.3) as hasty, pytest.raises(ServerError, match=r"did not answer within 0\.3 s"):
            hasty.rank(user_id(world, 2), [10])
        go.set()
        assert all(call.result().items for call in calls)
        patient.rank(user_id(world, 3), [10])
    assert asked == [1, 1, 3]


def test_an_old_snapshot_is_warned_of(bundle, caplog):
    day = 24 * 3600 * 1_000_000
    warn_if_old(bundle, bundle.state.end + day)
    assert not caplog.records
    warn_if_old(bundle, bundle.state.end + 3 * day)
    assert "72 h before the clock (at most 24 h were expected)" in caplog.text


NO_TORCH = """
import sys
from pathlib import Path
from ranker.bundle import load_bundle
from ranker.client import Client
from ranker.server import Server
server = Server(load_bundle(Path(sys.argv[1])), clock="snapshot")
server.start()
with Client(server.address, timeout=20) as client:
    assert len(client.recommend(1000, 5, explain=True).items) == 5
    assert len(client.rank(1000, [10, 13]).items) == 2
server.stop(0)
loaded = {name.partition(".")[0] for name in sys.modules}
print(sorted(loaded & {"torch", "neural", "implicit", "pandas", "sklearn"}))
"""


def test_serving_loads_neither_torch_nor_neural(bundle_folder):
    path = os.pathsep.join([str(ROOT), str(ROOT / "proto")])
    made = subprocess.run(
        [sys.executable, "-c", NO_TORCH, str(bundle_folder)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "torch" not in made.stdout
    assert "neural" not in made.stdout
    assert importlib.util.find_spec("ranker") is not None


def test_the_contract_is_what_feed_services_compile(stub):
    response = stub.Rank(pb.RankRequest(items=ids_message([10, 13]), request_id="x"), timeout=20)
    assert response.request_id == "x"
    assert list(response.indexes) in ([0, 1], [1, 0])


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (RequestError("k: 1 was expected"), grpc.StatusCode.INVALID_ARGUMENT, "k: 1 was expected"),
        (LimitError("10 events are recorded"), grpc.StatusCode.RESOURCE_EXHAUSTED, "10 events are recorded"),
        (LogError("no space", full=True), grpc.StatusCode.RESOURCE_EXHAUSTED, "no space"),
        (LogError("a lost disk"), grpc.StatusCode.UNAVAILABLE, "a lost disk"),
        (OSError("a lost disk"), grpc.StatusCode.UNAVAILABLE, "the disk refused: a lost disk"),
        (ValueError("secret"), grpc.StatusCode.INTERNAL, INTERNAL),
    ],
)
def test_each_error_has_one_status(error, code, sentence):
    assert status_of(error, writes=True) == (code, sentence)


def test_a_lost_connection_or_file_is_the_disks_only_where_a_call_writes() -> None:
    assert status_of(ConnectionResetError("gone")) == (grpc.StatusCode.INTERNAL, INTERNAL)


def test_servers_use_one_native_thread_and_give_back_the_others(bundle_folder):
    """Asked in a process of its own, in which no variable says so; two servers overlap."""
    code = f"""
import json
from pathlib import Path
from threadpoolctl import threadpool_info
from ranker.bundle import load_bundle
from ranker.server import Server

def threads():
    return sorted((pool["filepath"], pool["user_api"], pool["num_threads"]) for pool in threadpool_info())

one, two = (Server(load_bundle(Path({str(bundle_folder)!r})), clock="snapshot") for _ in range(2))
found = [threads()]
for step in (one.start, two.start, lambda: one.stop(0), lambda: two.stop(0), lambda: two.stop(0)):
    step()
    found.append(threads())
print(json.dumps(found))
"""
    env = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    before, *held, after, again = json.loads(done.stdout)
    assert {"blas", "openmp"} <= {api for _, api, _ in before}
    assert max(threads for *_, threads in before) > 1 or len(os.sched_getaffinity(0)) == 1
    assert {threads for of in held for *_, threads in of} == {1}
    assert before == after == again


UNWARMED = """
import sys
import numba
from pathlib import Path
from numba.core.dispatcher import Dispatcher
from ranker.bundle import load_bundle
from ranker.client import Client
from ranker.server import Server

def kernels():
    modules = [m for name, m in sorted(sys.modules.items()) if name.startswith(("features", "neural", "ranker"))]
    found = {id(k): k for m in modules for k in vars(m).values() if isinstance(k, Dispatcher)}
    return {f"{k.py_func.__module__}.{k.__name__}": len(k.overloads) for k in found.values()}

server = Server(load_bundle(Path(sys.argv[1])), clock="snapshot")
server.start()
before = kernels()
with Client(server.address, timeout=60) as client:
    for user in (1000, 1007, None, -5):
        client.rank(user, [10, 13, -7, 13], surface="feed", source_item=13)
        client.recommend(user, k=3, exclude=[10], surface="search")
print([name for name, count in kernels().items() if count > before.get(name, 0)])
server.stop()
"""


def test_no_request_waits_for_a_compiler(bundle_folder):
    """What a first request compiled, the requests of a cold machine waited for: 20 s were seen."""
    done = subprocess.run(
        [sys.executable, "-c", UNWARMED, bundle_folder],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.strip() == "[]"
