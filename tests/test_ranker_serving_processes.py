"""Several processes behind one port: they share what was loaded and a log, and each may die without the others."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest
from pairlift.v1 import ranking_pb2 as pb
from pairlift.v1 import ranking_pb2_grpc
from served import ROOT, expected_state, pairlift, random_batches, recording, same, within
from world import TOML, write_world_bundle

from features.errors import PairliftError
from features.state.store import State
from ranker.bundle import load_bundle
from ranker.client import Client, ServerError
from ranker.recording.wire import batch_message
from ranker.server import Server
from ranker.serving.port import reserve

PATH = os.pathsep.join([str(ROOT), str(ROOT / "proto")])
#: connections that a test opens: of two processes, one that none of them reaches has odds of 1 to 32,000
MANY = 16


@pytest.fixture(scope="module")
def written(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    write_world_bundle(parts, folder)
    return folder


@contextlib.contextmanager
def serve(bundle, *words, errors=subprocess.DEVNULL):
    """A server in processes of its own; gives (the supervisor, its address)."""
    command = [sys.executable, "-m", "ranker.cli", "serve", str(bundle), "--clock", "snapshot", "--port", "0", *words]
    with subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env={**os.environ, "PYTHONPATH": PATH},
    ) as process:
        try:
            yield process, process.stdout.readline().split()[-1]
        finally:
            process.kill()


def processes_of(supervisor):
    """The ids of its processes, in the order of their births."""
    return [int(pid) for pid in Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split()]


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def stubs(address, n=MANY):
    """Stubs with a connection each, so that all processes are asked."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)]
    channels = [grpc.insecure_channel(address, options=options) for _ in range(n)]
    yield [ranking_pb2_grpc.RankingServiceStub(channel) for channel in channels]
    for channel in channels:
        channel.close()


def again(call, seconds=20):
    """What a client does that tries again where nobody answered."""
    until = time.monotonic() + seconds
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > until:
                raise
            time.sleep(0.02)


def test_events_that_one_process_takes_are_seen_by_all(written, world, tmp_path):
    bundle = load_bundle(written)
    batches = list(random_batches(np.random.default_rng(0), bundle, [30, 50, 20]))
    with serve(written, "--processes", 2, "--log", tmp_path / "log") as (supervisor, address), stubs(address) as many:
        assert len(processes_of(supervisor)) == 3
        for stub, some in zip(many, batches, strict=False):
            (outcome,) = stub.RecordEvents(iter([batch_message(some)]), timeout=20)
            assert outcome.recorded == len(some.events)
        begun = time.monotonic()
        assert within(5, lambda: all(s.Describe(pb.DescribeRequest()).recorded_events == 100 for s in many))
        assert time.monotonic() - begun < 1
        end = many[0].Describe(pb.DescribeRequest()).snapshot_time
        assert within(5, lambda: all(s.Describe(pb.DescribeRequest()).snapshot_time >= end for s in many))
        assert all(s.Describe(pb.DescribeRequest()).recording_problem == "" for s in many)
        bad = batch_message(batches[0])
        del bad.ts[0]
        with pytest.raises(grpc.RpcError, match="30 entries were expected") as refused:
            list(many[0].RecordEvents(iter([bad]), timeout=20))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        taken = many[1].TakeSnapshot(pb.TakeSnapshotRequest(), timeout=60)
        assert taken.frame == 3
        assert json.loads((Path(taken.folder) / "manifest.json").read_text())["frame"] == 3
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(20) == 0
    with recording(bundle, tmp_path / "log") as (server, _):
        same(server.follower.state, expected_state(bundle, world, batches))


def test_a_process_that_is_killed_under_load_is_started_again_and_clients_go_on(written, tmp_path):
    bundle = load_bundle(written)
    user, items = int(bundle.state.catalog.user_ids[3]), [int(i) for i in bundle.state.catalog.item_ids[:5]]
    request = pb.RankRequest(user=pb.Id(integer=user), items=pb.Ids(integers=pb.IntegerIds(values=items)))
    answered, failed, stop = [], [], threading.Event()

    def goes_on():
        n = len(answered)
        return within(20, lambda: len(answered) > n + 50)

    def ask(stub):
        while not stop.is_set():
            try:
                answered.append(len(again(lambda: stub.Rank(request, timeout=20)).scores))
            except grpc.RpcError as error:
                failed.append(error)

    with serve(written, "--processes", 2) as (supervisor, address), stubs(address, 6) as many:
        before = processes_of(supervisor)
        threads = [threading.Thread(target=ask, args=(stub,), daemon=True) for stub in many]
        for thread in threads:
            thread.start()
        for pid in before:
            assert goes_on()
            os.kill(pid, signal.SIGKILL)
            assert within(
                20, lambda pid=pid: len(processes_of(supervisor)) == 2 and pid not in processes_of(supervisor)
            )
        assert goes_on()
        stop.set()
        for thread in threads:
            thread.join(30)
        assert not failed
        assert set(answered) == {5}
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(20) == 0


def test_the_process_that_records_is_killed_and_nothing_is_lost_or_counted_twice(written, world, tmp_path):
    bundle = load_bundle(written)
    batches = list(random_batches(np.random.default_rng(3), bundle, [10] * 60))
    with (
        serve(written, "--processes", 2, "--log", tmp_path / "log") as (supervisor, address),
        stubs(address, 4) as many,
    ):
        recorder = processes_of(supervisor)[0]
        refused = []
        for k, some in enumerate(batches):
            if k in (20, 40):
                os.kill(processes_of(supervisor)[0] if k == 40 else recorder, signal.SIGKILL)
            stub = many[k % 4]

            def send(stub=stub, some=some):
                try:
                    return list(stub.RecordEvents(iter([batch_message(some)]), timeout=20))
                except grpc.RpcError as error:
                    refused.append(error)
                    raise

            (outcome,) = again(send)
            assert outcome.recorded + outcome.duplicates == 10
            rank = pb.RankRequest(user=pb.Id(integer=5), items=pb.Ids(integers=pb.IntegerIds(values=[1])))
            many[0].Rank(rank, timeout=20)  # whatever becomes of recording
        assert refused
        assert {error.code() for error in refused} == {grpc.StatusCode.UNAVAILABLE}
        assert within(5, lambda: all(s.Describe(pb.DescribeRequest()).recorded_events == 600 for s in many))
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(20) == 0
    with recording(bundle, tmp_path / "log") as (server, _):
        assert server.recorder.count == 600
        same(server.follower.state, expected_state(bundle, world, batches))


def test_processes_end_with_a_supervisor_that_is_killed(written):
    with serve(written, "--processes", 2) as (supervisor, address):
        pids = processes_of(supervisor)
        assert len(pids) == 2
        supervisor.kill()
        supervisor.wait(10)
        assert within(20, lambda: not any(alive(pid) for pid in pids))
        with pytest.raises(ServerError), Client(address, timeout=2) as client:
            client.describe()


def test_a_port_that_is_taken_is_an_error_also_where_it_is_shared(bundle, written):
    server = Server(bundle, clock="snapshot")
    port = server.address.rpartition(":")[2]
    code, output = pairlift("serve", written, "--clock", "snapshot", "--port", port, "--processes", 2)
    assert code == 2
    assert f"127.0.0.1:{port} cannot be listened on: the port is taken" in output
    server.stop(0)
    held, bound = reserve("127.0.0.1", 0)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", bound))
        other.listen()
        with pytest.raises(PairliftError, match="the port is taken"):
            reserve("127.0.0.1", bound)
    held.close()
    again_held, again_bound = reserve("127.0.0.1", bound)
    assert again_bound == bound
    again_held.close()


SUPERVISOR = """
import logging, os, signal, sys, time
from ranker.serving.processes import supervisor
logging.basicConfig(level=logging.INFO, format="%(message)s")
supervisor.HEALTHY, supervisor.GRACE = float(sys.argv[2]), 1.0
def work(number, on_ready):
    with open(sys.argv[1], "a") as file:
        file.write(f"{number} {os.getpid()} {time.monotonic()}\\n")
    if sys.argv[3] == "never":
        raise SystemExit(3)
    if sys.argv[3] == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    on_ready()
    if sys.argv[3] == "dies" and number:
        time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()
try:
    supervisor.Supervisor(work, [0, 1]).run(lambda: print("ready", flush=True))
except supervisor.PairliftError as error:
    print(error, flush=True)
    sys.exit(9)
"""


@contextlib.contextmanager
def supervised(tmp_path, how, healthy=10.0):
    births = tmp_path / "births"
    births.touch()
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(births), str(healthy), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": PATH},
    ) as process:
        try:
            yield (
                process,
                lambda number: [line.split() for line in births.read_text().splitlines() if line[0] == number],
            )
        finally:
            process.kill()


def test_one_that_dies_at_once_is_started_later_and_later_and_that_is_said(tmp_path):
    with supervised(tmp_path, "dies") as (process, births):
        assert process.stdout.readline() == "ready\n"
        assert within(20, lambda: len(births("1")) >= 5)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
        born = [float(at) for _, _, at in births("1")]
        gaps = np.diff(born)[:4]
        assert (np.diff(gaps) > 0).all(), gaps
        assert gaps[3] > 1.0
        assert len(births("0")) == 1
        assert re.search(
            r"process 1 \(pid \d+\) was killed by signal 9, for the 3th time at once; it is started", errors
        )


def test_one_that_lived_long_is_started_at_once(tmp_path):
    with supervised(tmp_path, "dies", healthy=0.0) as (process, births):
        assert process.stdout.readline() == "ready\n"
        assert within(20, lambda: len(births("1")) >= 5)
        gaps = np.diff([float(at) for _, _, at in births("1")])
        assert np.median(gaps) < 0.5


def test_one_that_ends_before_it_is_ready_ends_the_server(tmp_path):
    with supervised(tmp_path, "never") as (process, births):
        output, _ = process.communicate(timeout=20)
        assert re.match(r"process \d of the server ended with exit status 1 before it was ready", output)
        assert process.returncode == 9
        assert not any(alive(int(pid)) for number in "01" for _, pid, _ in births(number))


def test_one_that_does_not_end_is_killed(tmp_path):
    with supervised(tmp_path, "deaf") as (process, births):
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "process 1 does not end, and is killed" in errors
        assert not any(alive(int(pid)) for number in "01" for _, pid, _ in births(number))


def test_what_one_process_deploys_all_answer_with_also_those_that_are_started_again(written, parts, world, tmp_path):
    """Events go on meanwhile: each counts once, whichever bundle is active."""
    older, early = tmp_path / "older", world.log.until(parts.split.t1)
    state = State.build(early, world.catalog, parts.state.counters, world.grades)
    write_world_bundle(parts._replace(state=state), older)
    longer = tmp_path / "longer"
    write_world_bundle(parts, longer, toml=f"{TOML}\n[record]\ndedupe_days = 300\n")
    bundle, version = load_bundle(written), load_bundle(older).version
    batches = list(random_batches(np.random.default_rng(1), bundle, [20] * 6))
    words = ("--processes", 2, "--log", tmp_path / "log", "--bundles", tmp_path / "kept")
    with serve(written, *words) as (supervisor, address), stubs(address) as many:

        def answered():
            return {again(partial(s.Rank, pb.RankRequest(), timeout=20)).bundle_version for s in many}

        def record(some):
            assert list(again(lambda: list(many[0].RecordEvents(iter([batch_message(some)]), timeout=60))))

        assert answered() == {bundle.version}
        record(batches[0])
        # What the process that records could not take is refused by the one that is asked.
        code, said = pairlift("deploy", longer, "--to", address, "--force")
        assert (code, "dedupe_days and tolerance of at most 7" in said) == (2, True), said
        code, said = pairlift("deploy", older, "--to", address, "--force")
        assert code == 0, said
        record(batches[1])
        assert within(20, lambda: answered() == {version})
        record(batches[2])
        before = processes_of(supervisor)
        os.kill(before[1], signal.SIGKILL)
        record(batches[3])
        assert within(90, lambda: before[1] not in processes_of(supervisor) and len(processes_of(supervisor)) == 3)
        assert within(90, lambda: answered() == {version})
        # One that was started again may still be loading, and says so to who asks it.
        assert within(90, lambda: pairlift("rollback", "--to", address)[0] == 0)
        assert within(20, lambda: answered() == {bundle.version})
        record(batches[4])
        os.kill(processes_of(supervisor)[0], signal.SIGKILL)
        record(batches[5])
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(30) == 0
    with recording(bundle, tmp_path / "log") as (server, _):
        same(server.follower.state, expected_state(bundle, world, batches))
