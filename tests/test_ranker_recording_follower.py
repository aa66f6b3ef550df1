"""Followers of one log: several bundles beside each other, and other processes; only what is durable is seen."""

import errno
import multiprocessing
import os

import numpy as np
import pyarrow as pa
import pytest
from served import batch, expected_state, random_batches, recording, same, within
from world import with_config, write_world_bundle

from features.errors import PairliftError
from features.log.reader import DURABLE, LogReader
from features.log.segments import segment_files
from features.log.writer import LogWriter
from features.schema import DAY
from ranker.bundle import load_bundle
from ranker.ids import IdTable
from ranker.recording.follower import Follower, LimitError
from ranker.settings import RecordSettings

NOW = 20_000 * DAY


def following(bundle, folder):
    catalog = bundle.state.catalog
    return Follower(bundle, folder, users=IdTable(catalog.user_ids).find, items=IdTable(catalog.item_ids).find)


def table(ids):
    return pa.table({"event_id": pa.array(ids, pa.string()), "ts": pa.array([NOW] * len(ids), pa.int64())})


def test_a_second_bundle_follows_the_log_beside_the_first_and_takes_its_place(bundle, world, tmp_path):
    batches = list(random_batches(np.random.default_rng(0), bundle, [30, 1, 50, 20]))
    strict = with_config(bundle, record=RecordSettings(max_batch=25))
    with recording(bundle, tmp_path / "log") as (server, client):
        list(client.record(batches[:2]))
        second = following(strict, tmp_path / "log")
        second.catch_up()
        assert (second.frame, second.position.served, second.behind) == (2, 31, 0)
        list(client.record(batches[2:3]))
        assert within(5, lambda: second.frame == server.follower.frame == 3)
        server.recorder.use(second)
        with pytest.raises(Exception, match="at most 25 events in a batch were expected, found 50"):
            list(client.record([batches[2]]))
        assert [o.recorded for o in client.record(batches[3:])] == [20]
        assert server.recorder.count == 101
        for follower in (second, server.follower):
            follower.drain(5)
            same(follower.state, expected_state(bundle, world, batches))
        second.close()


def test_a_bundle_that_knows_ids_for_longer_is_not_used(bundle, tmp_path):
    longer = with_config(bundle, record=RecordSettings(dedupe_days=8))
    with recording(bundle, tmp_path / "log") as (server, _):
        second = following(longer, tmp_path / "log")
        with pytest.raises(PairliftError, match=r"dedupe_days and tolerance of at most 7.00347 days together"):
            server.recorder.use(second)
        second.close()


def test_a_follower_with_too_many_events_to_serve_stops_and_says_so(bundle, tmp_path):
    few = with_config(bundle, record=RecordSettings(max_events=40))
    batches = list(random_batches(np.random.default_rng(0), bundle, [30, 30]))
    with recording(bundle, tmp_path / "log") as (_, client):
        list(client.record(batches[:1]))
        second = following(few, tmp_path / "log")
        second.catch_up()
        list(client.record(batches[1:]))
        assert within(5, lambda: "60 events are recorded and [record] max_events = 40" in second.problem)
        assert second.frame == 1
        with pytest.raises(LimitError):
            second.wait(2, 5)
        second.close()
        with pytest.raises(LimitError, match="train a bundle on them"):
            following(few, tmp_path / "log").catch_up()


def _follow(written, folder, told):
    follower = following(load_bundle(written), folder)
    follower.catch_up()
    told.send(follower.frame)
    follower.wait(told.recv(), 10)
    told.send((follower.state.end, follower.state.catalog.new_users.known, len(follower.state.histories.log(()).ts)))
    follower.close()


def test_another_process_sees_what_is_recorded(parts, tmp_path):
    write_world_bundle(parts, tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    batches = list(random_batches(np.random.default_rng(0), bundle, [30, 50]))
    ours, theirs = multiprocessing.Pipe()
    with recording(bundle, tmp_path / "log") as (server, client):
        list(client.record(batches[:1]))
        where = (tmp_path / "bundle", tmp_path / "log", theirs)
        other = multiprocessing.get_context("spawn").Process(target=_follow, args=where)
        other.start()
        assert ours.recv() == 1
        list(client.record(batches[1:]))
        ours.send(2)
        server.follower.drain(5)
        state = server.follower.state
        assert ours.recv() == (state.end, state.catalog.new_users.known, len(state.histories.log(()).ts))
        other.join(10)


def test_a_frame_that_is_not_durable_is_not_seen(tmp_path, monkeypatch):
    """Neither while it is written, nor after its fsync failed; nor by one who reads what a torn write left."""
    writer = LogWriter(tmp_path, DAY, lambda: NOW)
    writer.learn()
    reader = LogReader(tmp_path, 0)
    writer.start()
    writer.append(table(["a"])).result()
    assert [f.number for f in reader.frames(0)] == [1]
    seen = []

    def fsync(_):
        assert b"never" in segment_files(tmp_path)[-1].read_bytes()
        seen.append((list(reader.frames(0))[-1].number, reader.last))
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("features.log.tail.os.fsync", fsync)
        assert writer.append(table(["never"])).exception() is not None
    assert seen == [(1, 1)]
    assert [f.number for f in reader.frames(0)] == [1]
    (tmp_path / DURABLE).write_bytes(b"\0" * 16)  # a torn note: what was known stays
    assert reader.last == 1
    writer.close()


def test_what_a_killed_writer_left_is_seen_once_the_next_has_synced_it(tmp_path, monkeypatch):
    writer = LogWriter(tmp_path, DAY, lambda: NOW)
    writer.learn()
    writer.start()
    writer.append(table(["a"])).result()
    writer.close()
    (tmp_path / DURABLE).write_bytes((0).to_bytes(8, "little") + (2**64 - 1).to_bytes(8, "little"))
    reader = LogReader(tmp_path, 0)
    assert list(reader.frames(0)) == []
    synced, real = [], os.fsync
    monkeypatch.setattr(
        "features.files.os.fsync", lambda handle: (synced.append(os.readlink(f"/proc/self/fd/{handle}")), real(handle))
    )
    writer = LogWriter(tmp_path, DAY, lambda: NOW)
    writer.learn()
    assert str(segment_files(tmp_path)[-1]) in synced
    assert [f.number for f in reader.frames(0)] == [1]
    writer.close()


def test_a_reader_goes_on_through_segments_and_tells_of_damage(tmp_path):
    writer = LogWriter(tmp_path, DAY, lambda: NOW, segment_bytes=1)
    writer.learn()
    with pytest.raises(PairliftError, match="no server has opened this log yet"):
        LogReader(tmp_path / "..", 0)
    reader = LogReader(tmp_path, 0)
    writer.start()
    found = 0
    for k in range(4):
        writer.append(table([f"e{k}"])).result()
        for frame in reader.frames(found):
            found = frame.number
    assert found == 4
    assert [f.number for f in reader.frames(1)] == [2, 3, 4]  # again from an earlier one, where taking them failed
    path = segment_files(tmp_path)[2]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PairliftError, match=f"{path.name}: frame 3 was expected and is missing or damaged"):
        list(reader.frames(1))
    writer.close()


def test_what_cannot_be_taken_is_told_and_taken_later(bundle, tmp_path, monkeypatch):
    """Nothing of it is lost, or counted twice."""
    (some,) = random_batches(np.random.default_rng(0), bundle, [30])
    with recording(bundle, tmp_path / "log") as (server, client):
        with monkeypatch.context() as broken:
            broken.setattr(server.follower.reader, "read", lambda _: 1 / 0)
            list(client.record([some]))
            assert within(5, lambda: "ZeroDivisionError" in client.describe().recording_problem)
            assert server.recorder.count == 30
        assert within(5, lambda: server.follower.frame == 1)
        assert server.recorder.count == server.follower.position.served == 30
        assert client.describe().recording_problem == ""


def test_a_resend_after_a_restart_is_known_where_the_last_segment_is_empty(bundle, tmp_path):
    user, item = int(bundle.state.catalog.user_ids[0]), int(bundle.state.catalog.item_ids[0])
    sent = batch(["e"], [user], [item], [bundle.state.end])
    with recording(bundle, tmp_path / "log") as (_, client):
        list(client.record([sent]))
    for _ in range(2):  # each leaves a segment without a frame
        with recording(bundle, tmp_path / "log") as (_, client):
            assert [o.duplicates for o in client.record([sent])] == [1]
