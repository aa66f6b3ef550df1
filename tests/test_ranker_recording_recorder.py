"""Recorded events are in the features, histories and filters, once; what fails is reported, and seen in the health."""

import contextlib
import errno
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
from served import ROOT, batch, expected_state, health_of, random_batches, recording, same, within
from world import with_config, write_world_bundle

from features.errors import PairliftError
from features.log.segments import read_segment, segment_files
from features.schema import DAY, HOUR, MINUTE
from ranker.bundle import load_bundle
from ranker.client import Client, ServerError
from ranker.server import RecordTo, Server
from ranker.serving.health import RECORDING, SERVICE
from ranker.serving.served import FeaturesTo
from ranker.settings import RecordSettings


def test_recorded_events_are_in_the_features_histories_and_filters(bundle, world, tmp_path):
    batches = list(random_batches(np.random.default_rng(0), bundle, [30, 1, 50]))
    with recording(bundle, tmp_path / "log") as (server, client):
        before = server.pipeline.state
        outcomes = list(client.record(batches))
        begun = time.monotonic()
        server.follower.drain(5)
        assert time.monotonic() - begun < 1
        assert [o.recorded for o in outcomes] == [30, 1, 50]
        assert not any(o.refused or o.duplicates for o in outcomes)
        same(server.pipeline.state, expected_state(bundle, world, batches))
        same(before, bundle.state)
        result = client.describe()
        assert result.records
        assert result.recorded_events == 81
        assert result.snapshot_time == server.pipeline.state.end


def test_an_item_that_was_just_seen_is_no_longer_recommended(bundle, tmp_path):
    with recording(bundle, tmp_path / "log") as (server, client):
        user = int(bundle.state.catalog.user_ids[3])
        first = client.recommend(user, 1).items[0].item
        list(client.record([batch(["e"], [user], [first], [bundle.state.end])]))
        server.follower.drain(5)
        assert first not in [item.item for item in client.recommend(user, 50).items]
        end = bundle.state.end
        assert first in [item.item for item in client.recommend(user, 50, as_of=end).items]  # ts < as_of alone counts


def test_resends_count_once_and_are_told(bundle, world, tmp_path):
    batches = list(random_batches(np.random.default_rng(1), bundle, [20, 20]))
    with recording(bundle, tmp_path / "log") as (server, client):
        list(client.record(batches))
        assert [(o.recorded, o.duplicates) for o in client.record(batches)] == [(0, 20), (0, 20)]
        server.follower.drain(5)
        same(server.pipeline.state, expected_state(bundle, world, batches))
    with recording(bundle, tmp_path / "log") as (server, client):
        assert [o.duplicates for o in client.record(batches)] == [20, 20]
        same(server.pipeline.state, expected_state(bundle, world, batches))


def test_without_a_log_recording_is_a_failed_precondition(bundle):
    server = Server(bundle, clock="snapshot")
    server.start()
    with Client(server.address) as client:
        for call in (lambda: list(client.record([batch([1], [1000], [10], [0])])), client.snapshot):
            with pytest.raises(ServerError, match="start it with `pairlift serve BUNDLE --log DIR`") as caught:
                call()
            assert caught.value.code == "FAILED_PRECONDITION"
        assert not client.describe().records
    server.stop(0)


def test_a_limit_of_events_a_full_disk_and_too_many_streams_are_told(bundle, tmp_path):
    small = with_config(bundle, record=RecordSettings(max_events=25, streams=1, max_batch=20))
    batches = list(random_batches(np.random.default_rng(2), bundle, [20, 20, 5, 21]))
    with recording(small, tmp_path / "log") as (_server, client):
        list(client.record(batches[:1]))
        with pytest.raises(ServerError, match=r"20 events are recorded and .record. max_events = 25") as caught:
            list(client.record(batches[1:2]))
        assert caught.value.code == "RESOURCE_EXHAUSTED"
        with pytest.raises(ServerError, match="at most 20 events in a batch were expected, found 21"):
            list(client.record(batches[3:]))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (segment_files(tmp_path / "log")[-1].stat().st_size + 10, hard))
        try:
            with pytest.raises(ServerError, match="make room, then send the batch again") as caught:
                list(client.record(batches[2:3]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.code == "RESOURCE_EXHAUSTED"
        assert [o.recorded for o in client.record(batches[2:3])] == [5]
        hold = threading.Event()
        stream = client._stub.RecordEvents(iter(lambda: hold.wait(10) or None, True))
        time.sleep(0.2)
        with pytest.raises(ServerError, match="1 RecordEvents streams are open"):
            list(client.record([]))
        hold.set()
        stream.cancel()


def test_an_export_that_fails_is_seen(bundle, tmp_path, monkeypatch, caplog):
    """By Describe, a health name of its own, and one line of the log for each problem; ranking goes on."""
    monkeypatch.setattr("ranker.recording.exports.EXPORT_EVERY", 0.02)
    caplog.set_level("INFO")
    small = with_config(bundle, record=RecordSettings(segment_mb=0.001))
    batches = list(random_batches(np.random.default_rng(2), bundle, [20] * 3))
    events = tmp_path / "log" / "events"
    with recording(small, tmp_path / "log") as (server, client):
        assert health_of(server, RECORDING) == "SERVING"
        events.write_text("in the way")
        list(client.record(batches[:2]))
        assert within(5, lambda: health_of(server, RECORDING) == "NOT_SERVING")
        result = client.describe().recording_problem
        assert re.search(r"0001\.log could not be written as Parquet into .*/events \(.*not a folder", result)
        assert [health_of(server, name) for name in ("", SERVICE)] == ["SERVING"] * 2
        assert client.rank(int(bundle.state.catalog.user_ids[3]), [int(bundle.state.catalog.item_ids[5])]).items
        list(client.record(batches[2:]))
        assert within(5, lambda: "and 1 more" in client.describe().recording_problem)
        time.sleep(0.2)
        assert caplog.text.count("could not be written as Parquet") == 2  # of two segments, however often it is tried
        events.unlink()
        assert within(5, lambda: health_of(server, RECORDING) == "SERVING")
        assert client.describe().recording_problem == ""
        assert caplog.text.count("is exported again or no longer there") == 2
        assert len(list(events.glob("*.parquet"))) == 2


def test_a_disk_that_fails_and_a_state_that_stands_still_are_seen_too(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("ranker.recording.exports.EXPORT_EVERY", 0.02)
    batches = list(random_batches(np.random.default_rng(2), bundle, [20] * 2))
    with recording(bundle, tmp_path / "log") as (server, client), monkeypatch.context() as broken:
        broken.setattr("features.state.live.Live._turn", lambda _: 1 / 0)
        list(client.record(batches[:1]))
        assert within(5, lambda: health_of(server, RECORDING) == "NOT_SERVING")
        assert "ZeroDivisionError" in client.describe().recording_problem
        broken.undo()
        assert within(5, lambda: health_of(server, RECORDING) == "SERVING")

        def failing(_):
            raise OSError(5, "Input/output error")

        broken.setattr("features.log.writer.os.fsync", failing)
        with pytest.raises(ServerError, match="fsync failed"):
            list(client.record(batches[1:]))
        assert within(5, lambda: health_of(server, RECORDING) == "NOT_SERVING")
        assert "mend the disk, then start the server again" in client.describe().recording_problem


def test_writes_that_fail_are_seen_until_one_succeeds(bundle, tmp_path, monkeypatch):
    """A client is told the server's own words: that is there, and answers."""
    monkeypatch.setattr("ranker.recording.exports.EXPORT_EVERY", 0.02)
    batches = list(random_batches(np.random.default_rng(2), bundle, [20] * 2))
    with recording(bundle, tmp_path / "log") as (server, client):
        for code, status in ((errno.ENOSPC, "RESOURCE_EXHAUSTED"), (errno.EIO, "UNAVAILABLE")):

            def failing(_, __, code=code):
                raise OSError(code, os.strerror(code))

            with monkeypatch.context() as broken:
                broken.setattr("features.log.tail._write", failing)
                with pytest.raises(ServerError, match=os.strerror(code)) as caught:
                    list(client.record(batches[:1]))
                assert caught.value.code == status
                assert "no server answers" not in str(caught.value)
                assert within(5, lambda: health_of(server, RECORDING) == "NOT_SERVING")
                assert os.strerror(code) in client.describe().recording_problem
            assert [o.recorded for o in client.record(batches[:1])] == [20]
            assert within(5, lambda: health_of(server, RECORDING) == "SERVING")
            assert client.describe().recording_problem == ""
            batches = batches[1:]


def test_a_look_for_segments_that_fails_is_told_and_the_next_exports(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("ranker.recording.exports.EXPORT_EVERY", 0.02)
    small = with_config(bundle, record=RecordSettings(segment_mb=0.001))
    batches = list(random_batches(np.random.default_rng(2), bundle, [20] * 3))
    with recording(small, tmp_path / "log") as (server, client):
        with monkeypatch.context() as broken:
            broken.setattr(server.recorder._writer, "closed_segments", lambda: int("1-backup"))
            assert within(5, lambda: health_of(server, RECORDING) == "NOT_SERVING")
            assert "1-backup" in client.describe().recording_problem
        (tmp_path / "log" / f"{1:020d}-backup.log").write_bytes(b"a stray file")
        list(client.record(batches))
        assert within(5, lambda: health_of(server, RECORDING) == "SERVING")
        assert within(5, lambda: len(list((tmp_path / "log" / "events").glob("*.parquet"))) == 2)
        assert client.describe().recording_problem == ""


def test_an_event_from_the_future_counts_once_for_as_long_as_it_is_taken(bundle, tmp_path, monkeypatch):
    """At the end of `dedupe_days` behind its time, which is up to `tolerance` behind its arrival."""
    settings, now = bundle.config.record, [bundle.state.end // DAY * DAY + DAY - 1]  # ids are forgotten day by day
    monkeypatch.setattr("ranker.serving.clock.now_wall", lambda: now[0])
    user, item = int(bundle.state.catalog.user_ids[0]), int(bundle.state.catalog.item_ids[0])
    early = batch(["early"], [user], [item], [now[0] + settings.tolerance])
    with recording(bundle, tmp_path / "log", clock="wall") as (_, client):
        assert [o.recorded for o in client.record([early])] == [1]
        now[0] += round(settings.dedupe_days * DAY) + settings.tolerance
        list(client.record([batch(["other"], [user], [item], [now[0]])]))
        assert [o.duplicates for o in client.record([early])] == [1]
    with recording(bundle, tmp_path / "log", clock="wall") as (_, client):
        assert [o.duplicates for o in client.record([early])] == [1]
        now[0] += 1
        assert [len(o.refused) for o in client.record([early])] == [1]  # from here on it is too old


def test_a_server_that_records_nothing_has_no_health_of_recording(bundle):
    server = Server(bundle, clock="snapshot")
    server.start()
    with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
        health_of(server, RECORDING)
    server.stop(0)


def test_a_locked_log_and_too_little_memory_are_refused_at_the_start(bundle, tmp_path):
    with recording(bundle, tmp_path / "log"), pytest.raises(PairliftError, match="is locked: process"):
        Server(bundle, record_to=RecordTo(tmp_path / "log"))
    poor = with_config(bundle, record=RecordSettings(memory=0.1))
    with pytest.raises(PairliftError, match=r"10,000,000 recorded events may take .* the limit is 0.10 GiB: lower"):
        Server(poor, record_to=RecordTo(tmp_path / "log"))


def test_kill_9_of_a_server_that_records(world, parts, tmp_path):
    """What was acknowledged is there after a kill; the rest is sent again; the state is that of all events, once."""
    folder = tmp_path / "bundle"
    write_world_bundle(parts, folder)
    bundle = load_bundle(folder)
    batches = list(random_batches(np.random.default_rng(7), bundle, [40] * 400))
    command = [
        sys.executable, "-m", "ranker.cli", "serve", str(folder), "--log", str(tmp_path / "log"), "--port", "0",
        "--clock", "snapshot",
    ]  # fmt: skip
    path = os.pathsep.join([str(ROOT), str(ROOT / "proto")])
    acknowledged = 0
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as process:
        line = process.stdout.readline()
        threading.Timer(0.4, lambda: process.send_signal(signal.SIGKILL)).start()
        with Client(line.split()[-1], timeout=20) as client, contextlib.suppress(ServerError):
            for _ in client.record(batches):
                acknowledged += 1
    assert 0 < acknowledged < len(batches)
    with recording(bundle, tmp_path / "log") as (server, client):
        assert server.recorder.count >= 40 * acknowledged
        rest = [o.recorded for o in client.record(batches)]
        assert rest[:acknowledged] == [0] * acknowledged
        server.follower.drain(10)
        same(server.pipeline.state, expected_state(bundle, world, batches))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_stops_recording_and_not_ranking(bundle, world, small_disk, tmp_path, monkeypatch):
    monkeypatch.setattr("ranker.recording.exports.EXPORT_EVERY", 0.02)
    monkeypatch.setattr("features.log.writer.LOOK_EVERY", 0.05)
    batches = list(random_batches(np.random.default_rng(3), bundle, [20, 300, 300]))  # the larger need new pages
    log, filler = small_disk / "log", small_disk / "filler"
    to = FeaturesTo(small_disk / "served", 1.0)

    def fill():
        with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
            while file.write(bytes(512)):
                pass

    def refused(client, server, sent):
        with pytest.raises(ServerError, match="make room, then send the batch again") as caught:
            list(client.record([sent]))
        assert caught.value.code == "RESOURCE_EXHAUSTED"
        assert within(5, lambda: health_of(server, RECORDING) == "NOT_SERVING")
        with pytest.raises(ServerError) as caught:
            client.snapshot()
        assert caught.value.code in ("RESOURCE_EXHAUSTED", "UNAVAILABLE")
        ranked = client.rank(int(bundle.state.catalog.user_ids[3]), [int(bundle.state.catalog.item_ids[5])])
        assert ranked.items
        assert [health_of(server, name) for name in ("", SERVICE)] == ["SERVING"] * 2
        assert not list((log / "snapshots").glob("*.partial"))

    def comes_back(client, server):
        filler.unlink()
        assert within(5, lambda: health_of(server, RECORDING) == "SERVING")  # though nobody sends anything
        assert client.describe().recording_problem == ""

    with recording(bundle, log, features_to=to) as (server, client):
        list(client.record(batches[:1]))
        fill()
        refused(client, server, batches[1])
        comes_back(client, server)
        assert [o.recorded for o in client.record(batches[1:2])] == [300]
        fill()
    with recording(bundle, log, features_to=to) as (server, client):  # a start on a full disk
        fill()
        refused(client, server, batches[2])
        comes_back(client, server)
        assert [(o.recorded, o.duplicates) for o in client.record(batches)] == [(0, 20), (0, 300), (300, 0)]
        server.follower.drain(5)
        same(server.pipeline.state, expected_state(bundle, world, batches))
        assert client.snapshot()


HOURS = (-30, -3, 3, 30, 24 * 9)


@pytest.mark.parametrize("clock", ["wall", "snapshot"])
@pytest.mark.parametrize("hours", HOURS)
def test_a_clock_that_steps_changes_no_past_and_counts_nothing_twice(bundle, tmp_path, monkeypatch, clock, hours):
    """Forward or back, and right again; with a start before, in between and after, and without."""
    true, step = [bundle.state.end], [0]
    monkeypatch.setattr("ranker.serving.clock.now_wall", lambda: true[0] + step[0])
    users, items = (ids[:3].tolist() for ids in (bundle.state.catalog.user_ids, bundle.state.catalog.item_ids))
    sent, past = {}, bundle.state.end - 5 * DAY  # before all that is recorded

    def send(client, name, ts):
        one = batch([name], users[:1], items[:1], [ts])
        (outcome,) = client.record([one])
        assert outcome.recorded + len(outcome.refused) == 1
        if outcome.recorded:
            sent[name] = one

    def live(name):
        with recording(bundle, tmp_path / "log", clock=clock) as (server, client):
            before = client.rank(users[1], items, as_of=past).items
            for at, stepped in enumerate((0, hours * HOUR, 0)):
                step[0] = stepped
                send(client, f"{name} {at}", true[0] - MINUTE)
                send(client, f"{name} {at} by the clock", true[0] + step[0])
                assert [o.recorded for o in client.record(sent.values())] == [0] * len(sent)
                true[0] += MINUTE
                assert client.rank(users[1], items, as_of=past).items == before
            server.follower.drain(5)
            assert server.recorder.count == len(sent)

    for name, stepped in (("first", 0), ("stepped", hours * HOUR), ("right again", 0)):
        step[0] = stepped
        live(name)
    step[0] = 0
    frames = [frame for path in segment_files(tmp_path / "log") for frame in read_segment(path, last=False)]
    arrivals = [frame.arrival for frame in frames]
    assert arrivals == sorted(arrivals)
    assert sorted(one for frame in frames for one in frame.events["event_id"].to_pylist()) == sorted(sent)
    if clock == "wall":  # what happens now is recorded, whatever the clock has said before
        assert {"first 0", "first 2", "right again 0", "right again 2"} <= sent.keys()
