"""A snapshot is the state as of a frame of the log; a server goes on from it; one that does not fit is refused."""

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from served import expected_state, exported, random_batches, recording, same

from features.counters.spec import Counter, Span
from features.errors import PairliftError
from features.log.segments import segment_files
from features.schema import Attribute, empty_log
from features.state.live import Live
from features.state.snapshot import save_state
from features.state.store import State
from ranker.pipeline import Pipeline
from ranker.recording.numbering import with_room
from ranker.recording.snapshots import origin_of, with_snapshot, write_snapshot
from ranker.request import Request
from ranker.server import RecordTo, Server


def test_a_snapshot_is_the_state_and_a_server_goes_on_from_it(bundle, world, tmp_path):
    batches = list(random_batches(np.random.default_rng(3), bundle, [30, 30, 30]))
    with recording(bundle, tmp_path / "log") as (server, client):
        list(client.record(batches[:2]))
        taken = client.snapshot()
        list(client.record(batches[2:]))
    folder = Path(taken.folder)
    origin = origin_of(folder)
    assert origin.frame == taken.frame
    later = with_snapshot(bundle, folder)
    same(later.state, expected_state(bundle, world, batches[:2]))
    with recording(later, tmp_path / "log", origin=origin) as (server, client):
        assert server.recorder.count == 30
        same(server.pipeline.state, expected_state(bundle, world, batches))
        assert [o.duplicates for o in client.record(batches)] == [30, 30, 30]
        again = client.snapshot()
    same(with_snapshot(bundle, Path(again.folder)).state, expected_state(bundle, world, batches))
    with pytest.raises(PairliftError, match="another log"):
        Server(later, record_to=RecordTo(tmp_path / "other", origin))


def test_a_snapshot_is_the_served_bundles_own_and_replaces_no_other(bundle, world, tmp_path):
    batches = list(random_batches(np.random.default_rng(9), bundle, [30], low=0))
    with recording(bundle, tmp_path / "log") as (_, client):
        list(client.record(batches))
        first = client.snapshot()
        assert client.snapshot() == first  # nothing has come since
    less = State.build(world.log.select(world.log.user != 3), world.catalog, bundle.state.counters, bundle.state.grades)
    other = replace(bundle, version="other", state=replace(less, end=bundle.state.end))
    with recording(other, tmp_path / "log") as (_, client):
        second = client.snapshot()
    folders = [Path(taken.folder) for taken in (first, second)]
    assert [folder.name.rpartition("-")[2] for folder in folders] == ["world", "other"]
    assert (first.time, first.frame) == (second.time, second.frame)
    same(with_snapshot(bundle, folders[0]).state, expected_state(bundle, world, batches))
    assert len(with_snapshot(other, folders[1]).state.histories.ts) == len(less.histories.ts) + 30
    (folders[1].parent / ".killed.partial").mkdir()
    with recording(bundle, tmp_path / "log") as (_, client):  # started again: it cannot know that it is the same
        third = Path(client.snapshot().folder)
        folders[0].rename(tmp_path / "away")
        assert Path(client.snapshot().folder).name == third.name == f"{folders[0].name}-2"
    assert sorted(path.name for path in third.parent.iterdir()) == sorted([third.name, folders[1].name])


def test_a_snapshot_that_lost_its_manifest_is_taken_again(bundle, tmp_path):
    with recording(bundle, tmp_path / "log") as (_, client):
        list(client.record(list(random_batches(np.random.default_rng(9), bundle, [30]))))
        first = Path(client.snapshot().folder)
        (first / "manifest.json").unlink()
        second = Path(client.snapshot().folder)
        assert second != first
        assert origin_of(second).frame == 1


def test_a_snapshot_of_another_copy_of_the_log_is_refused(bundle, world, tmp_path):
    """Two servers went on from a copy: frame 2 of the one is not frame 2 of the other."""
    batches = list(random_batches(np.random.default_rng(10), bundle, [20, 15, 13], low=0))
    with recording(bundle, tmp_path / "one") as (_, client):
        list(client.record(batches[:1]))
        before = Path(client.snapshot().folder)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    with recording(bundle, tmp_path / "two") as (_, client):
        list(client.record(batches[2:]))
    with recording(bundle, tmp_path / "one") as (_, client):
        list(client.record(batches[1:2]))
        later = Path(client.snapshot().folder)
    with pytest.raises(PairliftError, match=r"the snapshot is of another log than .*two: serve it with its own"):
        Server(with_snapshot(bundle, later), record_to=RecordTo(tmp_path / "two", origin_of(later)), clock="snapshot")
    for taken, name, want in ((before, "two", [0, 2]), (before, "one", [0, 1]), (later, "one", [0, 1])):
        with recording(with_snapshot(bundle, taken), tmp_path / name, origin=origin_of(taken)) as (server, _):
            same(server.pipeline.state, expected_state(bundle, world, [batches[k] for k in want]))
    exported(bundle, tmp_path / "one")
    for path in segment_files(tmp_path / "one"):
        path.unlink()
    with recording(with_snapshot(bundle, later), tmp_path / "one", origin=origin_of(later)) as (_, client):
        again = origin_of(Path(client.snapshot().folder))  # of a frame that the log has no more
        assert (again.frame, again.checksum) == (2, origin_of(later).checksum)
    figures = json.loads((before / "manifest.json").read_text())
    del figures["checksum"]  # as Pairlift wrote it before
    (before / "manifest.json").write_text(json.dumps(figures))
    with recording(with_snapshot(bundle, before), tmp_path / "two", origin=origin_of(before)) as (server, _):
        assert server.recorder.count == 13


def test_two_writers_of_one_snapshot_get_a_folder_each(bundle, tmp_path):
    live = Live(with_room(bundle.state, empty_log(("play",)), 5, 5), ("play",), empty_log(("play",)), 0)
    frozen = live.freeze().result(20)
    live.close()
    with ThreadPoolExecutor(4) as pool:
        made = [pool.submit(write_snapshot, tmp_path / "snapshots", frozen, "log", "v") for _ in range(4)]
    assert sorted(p.result().name[-4:] for p in made) == ["-0-v", "-v-2", "-v-3", "-v-4"]
    for done in made:
        with_snapshot(bundle, done.result())


def test_a_changed_byte_of_a_snapshot_is_refused_with_the_file(bundle, tmp_path):
    with recording(bundle, tmp_path / "log") as (_, client):
        folder = Path(client.snapshot().folder)
    path = folder / "histories" / "item.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(PairliftError, match=r"missing or changed: histories/item.npy"):
        with_snapshot(bundle, folder)


def test_a_snapshot_is_taken_while_events_flow(bundle, world, tmp_path):
    batches = list(random_batches(np.random.default_rng(4), bundle, [20] * 60))
    with recording(bundle, tmp_path / "log") as (server, client):
        done = []
        thread = threading.Thread(target=lambda: done.extend(client.record(batches)))
        thread.start()
        while not done:
            time.sleep(0.001)
        taken = [client.snapshot() for _ in range(3)]
        thread.join()
        server.follower.drain(5)
        assert len(done) == 60
        same(server.pipeline.state, expected_state(bundle, world, batches))
    for one in {t.folder: t for t in taken}.values():
        # One stream, a batch a frame: the frame tells how many batches are in it.
        assert 0 < one.frame <= 60
        same(with_snapshot(bundle, Path(one.folder)).state, expected_state(bundle, world, batches[: one.frame]))


def test_another_snapshot_is_served(bundle, parts, world, tmp_path):
    earlier = world.log.until(int(world.log.ts[2000]))
    save_state(tmp_path / "snap", State.build(earlier, world.catalog, parts.state.counters, world.grades))
    other = with_snapshot(bundle, tmp_path / "snap")
    assert other.state.end == int(earlier.ts[-1]) + 1
    one, both = Pipeline(other), Pipeline(bundle)
    items = np.arange(30, dtype=np.int32)
    answers = [p.rank(Request(4, other.state.end, state=p.state), items) for p in (one, both)]
    assert answers[0].score.tolist() == answers[1].score.tolist()
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
        ("words", other_words, counters, "the items' attributes differ"),
        ("surfaces", replace(world.catalog, surfaces=("feed",)), counters, "the surfaces differ"),
        ("counters", world.catalog, more, f"{len(counters)} counters were expected"),
    ):
        save_state(tmp_path / name, State.build(world.log, catalog, declared, world.grades))
        with pytest.raises(PairliftError, match=f"does not fit the bundle.*{sentence}"):
            with_snapshot(bundle, tmp_path / name)


def test_a_snapshot_of_other_values_of_the_context_is_refused_and_an_older_one_is_named(
    bundle, world, tmp_path, caplog
):
    def state(log, *values):
        contexts = (Attribute("device", "categorical", values=values),)
        return State.build(log, replace(world.catalog, contexts=contexts), bundle.state.counters, world.grades)

    log = replace(world.log, context=np.zeros((len(world.log), 1), np.float32))
    reading, texts = replace(bundle, state=state(log, "phone", "tv")), []
    save_state(tmp_path / "other", state(log, "pad", "phone"))
    with pytest.raises(PairliftError, match=r"the values of \[events.context\] differ"):
        with_snapshot(reading, tmp_path / "other")
    for name, one in (("same", state(log, "phone", "tv")), ("older", state(world.log, "phone", "tv"))):
        caplog.clear()
        save_state(tmp_path / name, one)
        with_snapshot(reading, tmp_path / name)
        texts.append("was written before snapshots had [events.context]" in caplog.text)
    assert texts == [False, True]


def test_what_is_no_snapshot_is_refused(bundle, tmp_path):
    with pytest.raises(PairliftError, match="is not a snapshot"):
        with_snapshot(bundle, tmp_path)
    save_state(tmp_path / "cut", bundle.state)
    (tmp_path / "cut" / "histories" / "ts.npy").unlink()
    with pytest.raises(PairliftError, match="is not a snapshot, or a damaged one"):
        with_snapshot(bundle, tmp_path / "cut")
