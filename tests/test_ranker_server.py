import contextlib
import importlib.util
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pairlift.v1 import ranking_pb2 as pb
from pairlift.v1 import ranking_pb2_grpc
from world import bundle_of, make_world, train_parts, write_world_bundle

from features.counters.spec import Counter, Span
from features.errors import PairliftError
from features.state.snapshot import save_state
from features.state.store import State
from ranker.cli import serve as cli_serve
from ranker.bundle import load_bundle
from ranker.client import Client, ServerError
from ranker.pipeline import Pipeline
from ranker.recording.snapshots import with_snapshot
from ranker.request import Request
from ranker.server import SERVICE, Server, now_wall, warn_if_old
from ranker.wire import ids_message

ROOT = Path(__file__).parent.parent


@contextlib.contextmanager
def serving(bundle, **options):
    server = Server(bundle, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop(grace=0)


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "bundle"
    write_world_bundle(parts, folder)
    return folder


@pytest.fixture(scope="module")
def server(bundle):
    with serving(bundle, clock="snapshot") as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with Client(server.address, timeout=20) as client:
        yield client


@pytest.fixture(scope="module")
def texts():
    """A server whose ids are text."""
    with serving(bundle_of(train_parts(make_world(text_ids=True))), clock="snapshot") as server:
        yield server


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.address) as channel:
        yield ranking_pb2_grpc.RankingServiceStub(channel)


def user(world, k):
    return int(world.catalog.user_ids[k])


def test_recommend_over_the_wire_is_the_pipelines_answer(client, bundle, world):
    pipeline = Pipeline(bundle)
    for k in (0, 7, 21):
        expected = pipeline.recommend(Request(k, bundle.state.end, surface=1), 8)
        reply = client.recommend(user(world, k), 8, surface="search", request_id=f"r{k}")
        assert [item.item for item in reply.items] == world.catalog.item_ids[expected.item].tolist()
        assert [item.score for item in reply.items] == expected.score.tolist()
        assert (reply.request_id, reply.bundle_version, reply.degraded) == (f"r{k}", "world", ())
        assert reply.snapshot_time == reply.as_of == bundle.state.end
    pipeline.close()


def test_each_item_names_its_sources(client, world):
    reply = client.recommend(user(world, 3), 10)
    assert {name for item in reply.items for name in item.sources} <= {"popular", "cooccurrence", "nearest"}
    assert all(item.sources for item in reply.items)
    cold = client.recommend(999_999, 10)
    assert {item.sources for item in cold.items} == {("popular",)}
    assert len(cold.items) == 10


def test_an_anonymous_user_is_cold(client):
    anonymous, cold = client.recommend(None, 5), client.recommend(999_999, 5)
    assert [item.item for item in anonymous.items] == [item.item for item in cold.items]


def test_rank_answers_every_item_best_first(client, world):
    items = [*world.catalog.item_ids[:20].tolist(), 999_999, 10, 10]
    reply = client.rank(user(world, 2), items)
    assert sorted(item.index for item in reply.items) == list(range(23))
    assert all(items[item.index] == item.item for item in reply.items)
    scores = [item.score for item in reply.items]
    assert scores == sorted(scores, reverse=True)
    assert len({item.score for item in reply.items if item.item == 10}) == 1
    assert {item.sources for item in reply.items} == {("caller",)}


def test_an_empty_list_is_answered(client, world):
    assert client.rank(user(world, 2), []).items == ()
    assert client.rank(user(world, 2), [], explain=True).items == ()


def test_own_as_of_wins_over_the_clock(client, bundle, world):
    as_of = int(world.log.ts[1000])
    reply = client.rank(user(world, 2), [10, 13], as_of=as_of)
    assert reply.as_of == as_of
    pipeline = Pipeline(bundle)
    expected = pipeline.rank(Request(2, as_of), np.array([0, 1], np.int32))
    assert [item.score for item in reply.items] == expected.score.tolist()
    pipeline.close()


def test_the_wall_clock(bundle, world):
    before = now_wall()
    with serving(bundle, clock="wall") as server, Client(server.address) as client:
        assert before <= client.recommend(user(world, 2), 3).as_of <= now_wall()
        assert abs(now_wall() / 1e6 - time.time()) < 1
    with pytest.raises(PairliftError, match="wall, snapshot was expected, found 'sun'"):
        Server(bundle, clock="sun")


def test_the_source_item_is_related_and_not_answered(client, world):
    reply = client.recommend(999_999, 10, source_item=10)
    assert 10 not in [item.item for item in reply.items]
    assert any("cooccurrence" in item.sources for item in reply.items)


def test_explain(client, bundle, world):
    reply = client.recommend(user(world, 3), 5, explain=True)
    assert [name for name, *_ in reply.proposed] == ["popular", "cooccurrence", "nearest"]
    assert [name for name, _ in reply.removed] == ["unknown", "excluded", "seen"]
    assert all(took >= 0 for _, took in reply.stages)
    for item in reply.items:
        assert {name for name, *_ in item.features} == set(bundle.columns)
        parts = [abs(part) for *_, part in item.features]
        assert parts == sorted(parts, reverse=True)
    assert client.recommend(user(world, 3), 5).items[0].features == ()


def test_describe(client, bundle, world):
    told = client.describe()
    assert (told.bundle_version, told.name, told.text_users, told.text_items) == (
        "world",
        "world",
        False,
        False,
    )
    assert (told.users, told.items, told.surfaces) == (40, 80, ("feed", "search"))
    assert told.feature_names == bundle.columns
    assert told.snapshot_time == told.clock == bundle.state.end
    assert (told.max_k, told.default_k, told.max_items, told.failures) == (50, 10, 200, {})
    assert told.source_names == ("popular", "cooccurrence", "nearest")


def test_text_ids(texts):
    with Client(texts.address) as client:
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
            client.rank(user(world, 2), [10])
    assert caught.value.code == "INTERNAL"
    assert "secret" not in str(caught.value)
    assert "ZeroDivisionError: a secret of the house" in caplog.text
    assert len(client.rank(user(world, 2), [10]).items) == 1


def test_what_is_degraded_is_named_and_counted(bundle, world):
    class Broken:
        columns = ("dot",)

        def values(self, requests, histories):
            raise RuntimeError("no vector today")

    with serving(replace(bundle, plugins={"als": Broken()})) as server, Client(server.address) as client:
        assert client.recommend(user(world, 1), 5).degraded == ("plugins.als",)
        assert client.describe().failures["plugins.als"] >= 1


def test_many_clients_at_once(server, client, world):
    users = [user(world, k % 40) for k in range(120)]
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
    """Let every Rank wait: `asked` are the users whose call has begun, `go` lets them through."""
    real, asked, go = Pipeline.rank, [], threading.Event()

    def held(self, request, item):
        asked.append(request.user)
        go.wait(20)
        return real(self, request, item)

    monkeypatch.setattr(Pipeline, "rank", held)
    return asked, go


def wait_for(condition):
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not come to pass within 20 s")


def test_calls_under_way_are_finished_when_it_stops(bundle, world, held_rank):
    asked, go = held_rank
    server = Server(bundle)
    server.start()
    with Client(server.address, timeout=20) as client, ThreadPoolExecutor(2) as pool:
        call = pool.submit(client.rank, user(world, 1), [10])
        wait_for(lambda: asked)
        stopping = pool.submit(server.stop, 20)
        time.sleep(0.1)
        assert not stopping.done()
        go.set()
        assert len(call.result().items) == 1
        stopping.result()


def test_a_call_that_its_caller_gave_up_is_not_computed(bundle, world, held_rank):
    asked, go = held_rank
    with serving(bundle) as server, Client(server.address, timeout=20) as patient, ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(patient.rank, user(world, 1), [10]) for _ in range(2)]
        wait_for(lambda: len(asked) == 2)  # both workers are busy
        with Client(server.address, 0.3) as hasty, pytest.raises(ServerError, match=r"did not answer within 0\.3 s"):
            hasty.rank(user(world, 2), [10])
        go.set()
        assert all(call.result().items for call in calls)
        patient.rank(user(world, 3), [10])
    assert asked == [1, 1, 3]


# Snapshots


def test_another_snapshot_is_served(bundle, parts, world, tmp_path):
    earlier = world.log.until(int(world.log.ts[2000]))
    save_state(tmp_path / "snap", State.build(earlier, world.catalog, parts.state.counters, world.grades))
    other = with_snapshot(bundle, tmp_path / "snap")
    assert other.state.end == int(earlier.ts[-1]) + 1
    request = Request(4, other.state.end)
    one, both = Pipeline(other), Pipeline(bundle)
    items = np.arange(30, dtype=np.int32)
    assert one.rank(request, items).score.tolist() == both.rank(request, items).score.tolist()
    one.close()
    both.close()


def test_a_snapshot_that_does_not_fit_is_refused(bundle, world, tmp_path):
    counters = bundle.state.counters
    fewer_ids = replace(world.catalog, item_ids=world.catalog.item_ids + 1)
    other_words = replace(
        world.catalog,
        item_attributes=(
            replace(world.catalog.item_attributes[0], values=tuple("efgh")),
            *world.catalog.item_attributes[1:],
        ),
    )
    more = (*counters, Counter(("item",), "like", Span("all", 0), "count"))
    for name, catalog, declared, sentence in (
        ("ids", fewer_ids, counters, "80 items were expected, found 80 or other ids"),
        ("words", other_words, counters, "the items' attributes are others"),
        ("surfaces", replace(world.catalog, surfaces=("feed",)), counters, "the surfaces are others"),
        ("counters", world.catalog, more, f"{len(counters)} counters were expected"),
    ):
        save_state(tmp_path / name, State.build(world.log, catalog, declared, world.grades))
        with pytest.raises(PairliftError, match=f"does not fit the bundle.*{sentence}"):
            with_snapshot(bundle, tmp_path / name)


def test_what_is_no_snapshot_is_refused(bundle, tmp_path):
    with pytest.raises(PairliftError, match="is no snapshot"):
        with_snapshot(bundle, tmp_path)
    save_state(tmp_path / "cut", bundle.state)
    (tmp_path / "cut" / "histories" / "ts.npy").unlink()
    with pytest.raises(PairliftError, match="is no snapshot, or a damaged one"):
        with_snapshot(bundle, tmp_path / "cut")


def test_an_old_snapshot_is_warned_of(bundle, caplog):
    day = 24 * 3600 * 1_000_000
    warn_if_old(bundle, bundle.state.end + day)
    assert not caplog.records
    warn_if_old(bundle, bundle.state.end + 3 * day)
    assert "72 h before the clock (at most 24 h were expected)" in caplog.text


# The command line


def run(command, *arguments):
    return CliRunner().invoke(command, list(arguments))


def test_the_recommend_command(server, world, client):
    result = run(cli_serve.recommend, "--user", str(user(world, 3)), "--k", "4", "--address", server.address)
    assert result.exit_code == 0, result.output
    head, *rows, foot = result.stdout.splitlines()
    assert head.split() == ["rank", "item", "score", "sources"]
    expected = client.recommend(user(world, 3), 4)
    assert [row.split()[1] for row in rows] == [str(item.item) for item in expected.items]
    assert "bundle world, snapshot 2023-" in foot


def test_the_commands_explain(server, world):
    result = run(
        cli_serve.recommend,
        "--user",
        str(user(world, 3)),
        "--explain",
        "--surface",
        "feed",
        "--address",
        server.address,
    )
    assert "source popular:" in result.stdout
    assert "filter seen:" in result.stdout
    assert "took sources" in result.stdout
    assert "item__" in result.stdout or "als__dot" in result.stdout


def test_the_rank_command_and_its_json(server, world):
    arguments = [
        "--user",
        str(user(world, 3)),
        "--items",
        "10, 13,999999",
        "--address",
        server.address,
        "--json",
    ]
    told = json.loads(run(cli_serve.rank, *arguments, "--explain").stdout)
    assert {item["item"] for item in told["items"]} == {10, 13, 999999}
    assert set(told["items"][0]["features"][0]) == {"name", "value", "contribution"}
    assert told["as_of"] == told["snapshot_time"]
    at = json.loads(run(cli_serve.rank, *arguments, "--as-of", "2023-11-20T10:00:00+02:00").stdout)
    assert at["as_of"] == "2023-11-20T08:00:00+00:00"


def test_the_commands_take_text_ids_as_they_are(texts):
    result = run(cli_serve.rank, "--user", "user-0001", "--items", "item-0002,7", "--address", texts.address)
    assert result.exit_code == 0, result.output
    assert "item-0002" in result.stdout
    assert "caller" in result.stdout


def test_the_commands_tell_what_is_wrong(server):
    result = run(cli_serve.recommend, "--user", "ann", "--address", server.address)
    assert isinstance(result.exception, PairliftError)
    assert str(result.exception) == "'ann' is no id: the user ids of the served bundle are integers"
    result = run(cli_serve.recommend, "--user", "1", "--as-of", "noon", "--address", server.address)
    assert result.exit_code == 2
    assert "a time such as 1998-04-22" in result.output
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    result = run(cli_serve.recommend, "--user", "1", "--address", address)
    assert isinstance(result.exception, PairliftError)
    assert "`pairlift serve BUNDLE` starts one" in str(result.exception)


@pytest.mark.parametrize("command", [cli_serve.serve, cli_serve.recommend, cli_serve.rank])
def test_help_teaches(command):
    text = run(command, "--help").output
    assert "Examples:" in text
    assert all(parameter.help for parameter in command.params if parameter.param_type_name == "option")


SERVE = "import sys; from ranker.cli.serve import serve; serve(sys.argv[1:], standalone_mode=False)"


def spawn(*arguments):
    path = os.pathsep.join([str(ROOT), str(ROOT / "proto"), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-u", "-c", SERVE, *map(str, arguments)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_serve_command_prints_its_address_answers_and_stops(folder, world, number):
    process = spawn(folder, "--port", "0", "--clock", "snapshot")
    try:
        line = process.stdout.readline()
        assert "pairlift serves bundle" in line, process.stderr.read() if process.poll() else line
        with Client(line.split()[-1], timeout=20) as client:
            assert len(client.recommend(user(world, 3), 5).items) == 5
            assert client.describe().bundle_version == load_bundle(folder).version
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 0, err
        assert "is stopping" in out
        assert "older" not in err
        assert "h before the clock" not in err
    finally:
        process.kill()
        process.communicate()


def test_the_serve_command_refuses_a_taken_port_and_warns_of_an_old_snapshot(folder, server):
    port = server.address.rpartition(":")[2]
    process = spawn(folder, "--port", port)
    _, err = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "cannot be listened on" in err
    assert "h before the clock" in err


def test_the_serve_command_refuses_a_damaged_bundle(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "bad")
    with (tmp_path / "bad" / "booster.txt").open("a") as file:
        file.write(" ")
    result = run(cli_serve.serve, str(tmp_path / "bad"), "--port", "0")
    assert isinstance(result.exception, PairliftError)
    assert "booster.txt: changed" in str(result.exception)


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


def test_serving_loads_neither_torch_nor_neural(folder):
    path = os.pathsep.join([str(ROOT), str(ROOT / "proto")])
    made = subprocess.run(
        [sys.executable, "-c", NO_TORCH, str(folder)],
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
