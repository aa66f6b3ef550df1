import contextlib
import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import duckdb
import grpc
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given, settings
from hypothesis import strategies as st
from world import TOML, bundle_of, make_world, train_parts, with_config, write_world_bundle

from features.errors import PairliftError
from features.log.dataset import Mapping, import_log
from features.log.loading import load_log
from features.log.recorded import load_recorded
from features.log.segments import segment_files
from features.log.writer import LogWriter
from features.newcomers import Newcomers
from features.schema import DAY, HOUR, MINUTE, Requests
from features.settings import EventsSettings, Grade
from features.state.live import Live, empty_log, merged
from features.state.store import State
from ranker.bundle import load_bundle
from ranker.cli.main import cli
from ranker.client import Client, ServerError
from ranker.config import Config, RecordSettings
from ranker.recording.batch import Batch
from ranker.recording.events import EventReader
from ranker.recording.memory import plan_memory
from ranker.recording.numbering import Numbering, with_room
from ranker.recording.snapshots import origin_of, with_snapshot, write_snapshot
from ranker.server import RECORDING, SERVICE, Server, now_wall
from ranker.wire import IdTable, batch_message, batch_of

ROOT = Path(__file__).parent.parent
#: users and items that no bundle of this file was trained on
NEW = (1, 2, 5)


@pytest.fixture(scope="module")
def world():
    return make_world(surfaces=("feed", "search"), n_users=20, n_items=40)


@pytest.fixture(scope="module")
def parts(world):
    return train_parts(world)


@pytest.fixture(scope="module")
def bundle(parts):
    return bundle_of(parts)


@contextlib.contextmanager
def recording(bundle, folder, **options):
    server = Server(bundle, record_to=folder, **{"clock": "snapshot", **options})
    server.start()
    try:
        with Client(server.address, timeout=20) as client:
            yield server, client
    finally:
        server.stop(grace=0)


def batch(ids, users, items, ts, play=None, **columns):
    n = len(ids)
    table = {
        "event_id": ids,
        "user_id": users,
        "item_id": items,
        "ts": pa.array(np.asarray(ts, np.int64)),
        "surface": pa.array(columns.get("surface", [None] * n), pa.string()),
        "organic": pa.array(columns.get("organic", [None] * n), pa.bool_()),
        "request_id": pa.array(columns.get("request_id", [None] * n), pa.string()),
        "position": pa.array(columns.get("position", [None] * n), pa.int32()),
    }
    feedback = {"play": pa.array(play if play is not None else [0.5] * n, pa.float64())}
    return Batch(pa.table(table), {**feedback, **columns.get("feedback", {})}, columns.get("grades", []))


def random_batches(rng, bundle, sizes, first=0, low=-2 * DAY, high=3 * HOUR):
    """Batches in any order of time, with unknown users and items, ties and nulls; ids count on from `first`."""
    catalog, end = bundle.state.catalog, bundle.state.end
    users, items = np.append(catalog.user_ids, NEW), np.append(catalog.item_ids, NEW)
    for n in sizes:
        ts = end + rng.integers(low // MINUTE, high // MINUTE, n) * MINUTE
        play = [None if rng.random() < 0.1 else float(v) for v in rng.choice([0.1, 0.5, 1.0], n)]
        surface = [("feed", "search", None, "elsewhere")[k] for k in rng.integers(0, 4, n)]
        yield batch(
            list(range(first, first + n)), rng.choice(users, n), rng.choice(items, n), ts, play, surface=surface
        )
        first += n


def log_of(bundle, batches, catalog=None):
    """The same events by another way: straight into an EventLog."""
    catalog = catalog or bundle.state.catalog
    reader = EventReader(bundle, IdTable(catalog.user_ids).find, IdTable(catalog.item_ids).find)
    return merged([reader.read(pa.table({**_columns(b.events), "play": b.feedback["play"]})) for b in batches])


def _columns(table):
    return {name: table[name] for name in table.column_names}


def padded(attribute, n):
    """The attribute with n more users or items, of which nothing is known."""
    return replace(
        attribute,
        codes=attribute.codes if attribute.kind == "multi" else np.append(attribute.codes, np.full(n, -1, np.int32)),
        offsets=np.append(attribute.offsets, np.repeat(attribute.offsets[-1:], n)),
        numbers=np.append(attribute.numbers, np.full(n, np.nan, np.float32)),
    )


def knowing(catalog, batches):
    """The catalogue with the new users and items of batches, in their order, behind its own."""
    users, items = (
        [one for b in batches for one in dict.fromkeys(b.events[name].to_pylist()) if one not in known]
        for name, known in (("user_id", catalog.user_ids), ("item_id", catalog.item_ids))
    )
    users, items = list(dict.fromkeys(users)), list(dict.fromkeys(items))
    return replace(
        catalog,
        user_ids=np.append(catalog.user_ids, np.array(users, np.int64)),
        item_ids=np.append(catalog.item_ids, np.array(items, np.int64)),
        item_attributes=tuple(padded(a, len(items)) for a in catalog.item_attributes),
    )


def expected_state(bundle, world, batches):
    catalog = knowing(world.catalog, batches)
    log = merged([world.log, log_of(bundle, batches, catalog)])
    return State.build(log, catalog, bundle.state.counters, world.grades)


def same(state, want):
    n_users, n_items = want.catalog.n_users, want.catalog.n_items
    for as_of in (want.end - 2 * DAY, want.end - 1, want.end, want.end + DAY):
        requests = Requests(
            np.arange(n_users, dtype=np.int32), np.full(n_users, as_of, np.int64), np.zeros(n_users, np.int16),
            np.arange(n_users + 1, dtype=np.int64) * n_items, np.tile(np.arange(n_items, dtype=np.int32), n_users),
        )  # fmt: skip
        np.testing.assert_allclose(state.counter_values(requests), want.counter_values(requests), rtol=1e-6, atol=1e-6)
        (a, b), (c, d) = (
            state.histories.before(requests.user, requests.as_of),
            want.histories.before(requests.user, requests.as_of),
        )
        assert n_users <= state.catalog.all_users or not (d - c)[state.catalog.all_users :].any()
        for user in range(n_users):
            assert sorted(state.histories.item[a[user] : b[user]]) == sorted(want.histories.item[c[user] : d[user]])


def test_recorded_events_are_in_the_features_histories_and_filters(bundle, world, tmp_path):
    batches = list(random_batches(np.random.default_rng(0), bundle, [30, 1, 50]))
    with recording(bundle, tmp_path / "log") as (server, client):
        before = server.pipeline.state
        outcomes = list(client.record(batches))
        begun = time.monotonic()
        server.recorder.live.drain(5)
        assert time.monotonic() - begun < 1
        assert [o.recorded for o in outcomes] == [30, 1, 50]
        assert not any(o.refused or o.duplicates for o in outcomes)
        same(server.pipeline.state, expected_state(bundle, world, batches))
        same(before, bundle.state)
        told = client.describe()
        assert told.records
        assert told.recorded_events == 81
        assert told.snapshot_time == server.pipeline.state.end


def test_an_item_that_was_just_seen_is_no_longer_recommended(bundle, tmp_path):
    with recording(bundle, tmp_path / "log") as (server, client):
        user = int(bundle.state.catalog.user_ids[3])
        first = client.recommend(user, 1).items[0].item
        list(client.record([batch(["e"], [user], [first], [bundle.state.end])]))
        server.recorder.live.drain(5)
        assert first not in [item.item for item in client.recommend(user, 50).items]
        end = bundle.state.end
        assert first in [item.item for item in client.recommend(user, 50, as_of=end).items]  # ts < as_of alone counts


def shown(client, user, item, surface="feed"):
    """The features of one item for one user, by name, as `rank --explain` shows them."""
    answer = client.rank(user, [item], surface=surface, explain=True)
    return {name: value for name, value, _ in answer.items[0].features}


def alike(found, want):
    for one, other in zip(found, want, strict=True):
        assert one == pytest.approx(other, rel=1e-6, nan_ok=True)


def of_newcomers(bundle):
    """Events of a new user with a new item and known ones, and 41 of a known user with the new item."""
    user, item, end = int(bundle.state.catalog.user_ids[3]), int(bundle.state.catalog.item_ids[5]), bundle.state.end
    users, items = [1, 1, 1, *[user] * 41], [2, 2, item, *[2] * 41]
    play = [1.0, 1.0, 0.5, *[0.1] * 41]
    return batch(list(range(44)), users, items, end + np.arange(44) * MINUTE, play)


def test_a_new_user_and_a_new_item_are_served_as_known_ones(bundle, tmp_path):
    """Within a second; after a restart; from a snapshot; and by --snapshot without the log."""
    events, log = of_newcomers(bundle), tmp_path / "log"
    user, item = int(bundle.state.catalog.user_ids[3]), int(bundle.state.catalog.item_ids[5])

    def told(server, client):
        assert client.describe().users == len(bundle.state.catalog.user_ids) + 1
        assert client.describe().items == len(bundle.state.catalog.item_ids) + 1
        return [shown(client, *pair) for pair in ((1, 2), (1, item), (user, 2), (-7, 2), (1, -7))]

    with recording(bundle, log) as (server, client):
        cold = shown(client, 1, 2)
        list(client.record([events]))
        begun = time.monotonic()
        server.recorder.live.drain(5)
        assert time.monotonic() - begun < 1
        want = told(server, client)
        new, nobody = want[0], want[3]
        assert (cold["user__impression__all__count"], new["user__impression__all__count"]) == (0, 3)
        assert (cold["item__impression__all__count"], new["item__impression__all__count"]) == (0, 43)
        assert nobody["user__impression__all__count"] == 0
        assert nobody["item__impression__all__count"] == 43
        assert want[1]["als__dot"] == want[1]["als__dot"]  # folded in from the item that ALS knows
        assert new["als__dot"] != new["als__dot"]  # of the new item it knows nothing
        seen = [one.item for one in client.recommend(1, 50).items]
        assert 2 not in seen
        assert item not in seen
        folder = Path(client.snapshot().folder)
        server.pipeline.refresh()
        assert 2 in [one.item for one in client.recommend(-7, 50).items]  # popular now
        assert 2 not in [one.item for one in client.recommend(-7, 50, exclude=[2]).items]
        related = client.recommend(1, 50, source_item=2)
        assert 2 not in [one.item for one in related.items]
        assert not related.degraded
    later, origin = with_snapshot(bundle, folder), origin_of(folder)
    rooms = with_config(later, record=RecordSettings(new_users=50, new_items=7))
    for served, options in ((bundle, {}), (later, {"origin": origin}), (rooms, {"origin": origin})):
        with recording(served, log, **options) as (server, client):
            alike(told(server, client), want)
            catalog = server.pipeline.state.catalog
            assert (catalog.new_users.known, catalog.new_items.known) == ([1], [2])
            assert 2 in [one.item for one in client.recommend(-7, 50).items]
    server = Server(later, clock="snapshot")
    server.start()
    with Client(server.address) as client:
        alike(told(server, client), want)
    server.stop(0)


def test_new_ids_beyond_the_room_are_recorded_and_stay_cold(bundle, tmp_path, caplog):
    small = with_config(bundle, record=RecordSettings(new_users=2, new_items=0))
    user, item, end = int(bundle.state.catalog.user_ids[3]), int(bundle.state.catalog.item_ids[5]), bundle.state.end
    first = batch(list(range(5)), [1, 2, 3, 2, user], [item, item, item, 5, 5], end + np.arange(5))
    again = batch([7, 8], [3, 4], [item, 6], end + np.arange(2))

    def counts(client):
        return [shown(client, one, item)["user__impression__all__count"] for one in (1, 2, 3, 4, user)]

    with recording(small, tmp_path / "log") as (server, client):
        before = counts(client)
        assert [o.recorded for o in client.record([first, again])] == [5, 2]
        server.recorder.live.drain(5)
        found = counts(client)
        assert found == [1, 2, 0, 0, before[-1] + 1]  # an item without room counts for the keys that do not name it
        assert shown(client, 1, 5)["item__impression__all__count"] == 0
    assert caplog.text.count("new_users = 2 is full") == 1
    assert caplog.text.count("new_items = 0 is full") == 1
    with recording(small, tmp_path / "log") as (server, client):
        assert counts(client) == found
    with recording(bundle, tmp_path / "log") as (server, client):  # with more room, all are served
        assert counts(client) == [1, 2, 2, 1, before[-1] + 1]
        assert shown(client, 1, 5)["item__impression__all__count"] == 2


def test_numbers_of_new_ids_follow_the_log_and_not_the_time_or_the_batches(bundle, tmp_path):
    rng, end = np.random.default_rng(0), bundle.state.end
    users, items = rng.integers(1, 60, 300), rng.integers(1, 9, 300)
    whole = batch(list(range(300)), users, items, end - rng.integers(0, DAY, 300))
    parts = [Batch(whole.events[k : k + 7], {"play": whole.feedback["play"][k : k + 7]}, []) for k in range(0, 300, 7)]
    order = [list(dict.fromkeys(ids.tolist())) for ids in (users, items)]
    for name, batches in (("one", [whole]), ("many", parts)):
        for _ in range(2):  # the second time from the log
            with recording(bundle, tmp_path / name) as (server, client):
                list(client.record(batches))
                server.recorder.live.drain(5)
                catalog = server.pipeline.state.catalog
                assert [catalog.new_users.known, catalog.new_items.known] == order
                assert catalog.ids_of_users(np.array([-1, 0, catalog.n_users + 4], np.int32)) == [
                    None, bundle.state.catalog.user_ids[0], order[0][4],
                ]  # fmt: skip


def test_ids_of_another_kind_than_the_bundles_get_no_numbers(bundle):
    numbering = Numbering(replace(bundle.state.catalog, new_users=Newcomers(room=5), new_items=Newcomers(room=5)))
    table = pa.table({"user_id": ["a", "b"], "item_id": [1, 2]})
    events = numbering.numbered(empty_log(("play",), 2), table)
    assert events.user.tolist() == [-1, -1]
    assert (events.item - bundle.state.catalog.n_items).tolist() == [0, 1]
    assert [new.count for new in numbering.new] == [0, 2]


def test_what_was_served_of_new_ids_is_logged_by_their_ids(bundle, tmp_path):
    with recording(bundle, tmp_path / "log", features_to=(tmp_path / "features", 1.0)) as (server, client):
        list(client.record([of_newcomers(bundle)]))
        server.recorder.live.drain(5)
        client.rank(1, [2, int(bundle.state.catalog.item_ids[5]), -7], request_id="r")
    rows = pq.read_table(next((tmp_path / "features").glob("*.parquet")))
    assert rows["user_id"].to_pylist() == [1] * 3
    assert set(rows["item_id"].to_pylist()) == {2, int(bundle.state.catalog.item_ids[5]), None}


def test_resends_count_once_and_are_told(bundle, world, tmp_path):
    batches = list(random_batches(np.random.default_rng(1), bundle, [20, 20]))
    with recording(bundle, tmp_path / "log") as (server, client):
        list(client.record(batches))
        assert [(o.recorded, o.duplicates) for o in client.record(batches)] == [(0, 20), (0, 20)]
        server.recorder.live.drain(5)
        same(server.pipeline.state, expected_state(bundle, world, batches))
    with recording(bundle, tmp_path / "log") as (server, client):
        assert [o.duplicates for o in client.record(batches)] == [20, 20]
        same(server.pipeline.state, expected_state(bundle, world, batches))


def test_bad_events_are_refused_with_index_and_reason_and_the_rest_is_kept(bundle, tmp_path):
    end, user, item = bundle.state.end, int(bundle.state.catalog.user_ids[0]), int(bundle.state.catalog.item_ids[0])
    n = 10
    ts = [end] * n
    ts[1], ts[2], ts[3] = -5, now_wall() + HOUR, end - 8 * DAY
    inf = [0.5] * n
    inf[4] = float("inf")
    extra = {"plya": pa.array([None] * 5 + [1.0] + [None] * 4, pa.float64())}
    grades = [""] * n
    grades[6], grades[7], grades[8] = "liek", "like", "listen"
    mixed = batch([f"e{k}" for k in range(n)], [user] * n, [item] * n, ts, inf, feedback=extra, grades=grades)
    with recording(bundle, tmp_path / "log") as (_server, client):
        (outcome,) = client.record([mixed])
        assert outcome.recorded == 3  # 0, 8 and 9
        reasons = dict(outcome.refused)
        assert sorted(reasons) == [1, 2, 3, 4, 5, 6, 7]
        for place, text in {
            1: "µs since 1970 were expected, found -5",
            2: "in the future, beyond",
            3: r"older than \[record\] dedupe_days = 7",
            4: "'play': a finite number was expected",
            5: r"feedback column 'plya' is unknown \(did you mean 'play'\?\)",
            6: r"grade 'liek' is unknown \(did you mean 'like'\?\)",
            7: r"grade 'like': the conditions of \[\[grades\]\] give 'listen'",
        }.items():
            assert re.search(text, reasons[place]), reasons[place]
        (outcome,) = client.record([batch(["x", "y"], ["one", "two"], [item] * 2, [end] * 2)])
        assert dict(outcome.refused) == dict.fromkeys(
            (0, 1), "user: integer ids were expected, for such are the ids of this bundle; found text"
        )
        (outcome,) = client.record([batch(["", "z"], [user] * 2, [item] * 2, [end] * 2)])
        assert (outcome.recorded, [k for k, _ in outcome.refused]) == (1, [0])
        text = {"play": pa.array(["much", None])}
        (outcome,) = client.record([batch(["t", "u"], [user] * 2, [item] * 2, [end] * 2, feedback=text)])
        assert outcome.refused == ((0, "feedback column 'play': numbers were expected, found texts"),)


SUMS = """
[[counters]]
key = ["item"]
event = "play"
spans = ["all", "w7d", "h3d"]
stats = ["sum", "mean"]
"""


def test_feedback_that_sums_cannot_bear_is_refused_and_later_windows_stay_right(world, tmp_path, monkeypatch):
    summing = bundle_of(train_parts(world, Config(**tomllib.loads(TOML + SUMS))))
    user, item, end = (
        int(summing.state.catalog.user_ids[0]),
        int(summing.state.catalog.item_ids[0]),
        summing.state.end,
    )
    now = [end]
    monkeypatch.setattr("ranker.server.now_wall", lambda: now[0])
    play = [3.3e38, 3.3e38, 1e17, -1e30, 1.0000001e12, 1e12, -1e12, 1e12]
    with recording(summing, tmp_path / "log", clock="wall") as (server, client):
        (outcome,) = client.record([batch(list("abcdefgh"), [user] * 8, [item] * 8, [end] * 8, play)])
        told = (
            "feedback column 'play': at most 1e+12 either way was expected, found {!r}: running sums would lose later "
        )
        told += "values beside a larger one; scale the column, for example seconds in place of microseconds"
        assert dict(outcome.refused) == {k: told.format(play[k]) for k in range(5)}
        server.recorder.live.drain(5)
        now[0] = end + 1
        assert shown(client, user, item)["item__play__all__sum"] == pytest.approx(1e12, rel=1e-6)
        now[0] = end + 20 * DAY
        list(client.record([batch(["x", "y"], [user] * 2, [item] * 2, [now[0] - 1] * 2, [0.5, 0.25])]))
        server.recorder.live.drain(5)
        found = shown(client, user, item)
        assert found["item__play__w7d__sum"] == pytest.approx(0.75, abs=1e-3)
        assert not any(np.isinf(list(found.values())))


def test_feedback_beyond_the_bound_in_an_older_log_is_not_known_and_told(bundle, world, tmp_path, caplog):
    user, item, end = int(bundle.state.catalog.user_ids[0]), int(bundle.state.catalog.item_ids[0]), bundle.state.end
    events = batch(["a", "b", "c"], [user] * 3, [item] * 3, [end] * 3, [1e300, 0.5, -1e13])
    writer = LogWriter(tmp_path / "log", DAY, lambda: end)
    list(writer.replay(0))
    writer.start()
    writer.append(events.events.append_column("play", events.feedback["play"])).result()
    writer.close()
    with recording(bundle, tmp_path / "log") as (server, _client):
        assert server.recorder.count == 3
        unknown = Batch(events.events, {"play": pa.array([None, 0.5, None], pa.float64())}, [])
        same(server.pipeline.state, expected_state(bundle, world, [unknown]))
    told = "recorded feedback 'play' is beyond 1e+12 in 2 events and counts as unknown: event id 'a' (1e+300), "
    assert (
        told + "'c' (-1e+13); running sums would lose later values beside a larger one; scale the column" in caplog.text
    )
    (file,) = exported(bundle, tmp_path / "log")
    for source, row in (
        ("log/events/*.parquet", f"row 3 of log/events/{file.name}: ("),
        ("(FROM 'log/events/*.parquet')", "row 3: ("),
    ):
        with pytest.raises(
            PairliftError, match=r"\[events.feedback\] play of .*: a number beyond .* in 2 rows"
        ) as caught:
            imported_from(bundle, tmp_path, source)
        assert row in str(caught.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m.ts.append(3), "batch 0: ts: 2 entries were expected, one for each event id, found 3"),
        (lambda m: m.feedback.add(name="play", numbers=[1, 2]), "each column once was expected"),
        (lambda m: m.feedback.add(name="x", numbers=[1]), "feedback 'x': 2 entries were expected"),
        (lambda m: m.surfaces.extend([0, 9]) or m.surfaces.__delitem__(slice(0, 2)), "surfaces: at most 0"),
        (lambda m: m.grades.append("like"), "grades: 2 entries were expected"),
    ],
)
def test_a_batch_whose_arrays_are_not_parallel_ends_the_stream(bundle, tmp_path, change, text):
    message = batch_message(batch([1, 2], [1000, 1007], [10, 13], [bundle.state.end] * 2))
    change(message)
    with recording(bundle, tmp_path / "log") as (_server, client):
        with pytest.raises(grpc.RpcError) as caught:
            list(client._stub.RecordEvents(iter([message])))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert text in caught.value.details()


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


def health_of(server, name):
    with grpc.insecure_channel(server.address) as channel:
        request = health_pb2.HealthCheckRequest(service=name)
        status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


def within(seconds, true):
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.02)
    return true()


def test_an_export_that_fails_is_seen(bundle, tmp_path, monkeypatch, caplog):
    """By Describe, a health name of its own, and one line of the log for each problem; ranking goes on."""
    monkeypatch.setattr("ranker.recording.recorder.EXPORT_EVERY", 0.02)
    caplog.set_level("INFO")
    small = with_config(bundle, record=RecordSettings(segment_mb=0.001))
    batches = list(random_batches(np.random.default_rng(2), bundle, [20] * 3))
    events = tmp_path / "log" / "events"
    with recording(small, tmp_path / "log") as (server, client):
        assert health_of(server, RECORDING) == "SERVING"
        events.write_text("in the way")
        list(client.record(batches[:2]))
        assert within(5, lambda: health_of(server, RECORDING) == "NOT_SERVING")
        told = client.describe().recording_problem
        assert re.search(r"0001\.log could not be written as Parquet into .*/events \(.*File exists", told)
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
    monkeypatch.setattr("ranker.recording.recorder.EXPORT_EVERY", 0.02)
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
    monkeypatch.setattr("ranker.recording.recorder.EXPORT_EVERY", 0.02)
    batches = list(random_batches(np.random.default_rng(2), bundle, [20] * 2))
    with recording(bundle, tmp_path / "log") as (server, client):
        for code, status in ((errno.ENOSPC, "RESOURCE_EXHAUSTED"), (errno.EIO, "UNAVAILABLE")):

            def failing(_, __, code=code):
                raise OSError(code, os.strerror(code))

            with monkeypatch.context() as broken:
                broken.setattr("features.log.writer._write", failing)
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
    monkeypatch.setattr("ranker.recording.recorder.EXPORT_EVERY", 0.02)
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
    monkeypatch.setattr("ranker.server.now_wall", lambda: now[0])
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
        Server(bundle, record_to=tmp_path / "log")
    poor = with_config(bundle, record=RecordSettings(memory=0.1))
    with pytest.raises(PairliftError, match=r"10,000,000 recorded events may take .* the limit is 0.10 GiB: lower"):
        Server(poor, record_to=tmp_path / "log")


def test_the_memory_is_printed(bundle, tmp_path, caplog):
    with caplog.at_level("INFO"), recording(bundle, tmp_path / "log"):
        pass
    assert re.search(r"memory: user: 20 keys, \d+ bytes per key", caplog.text)
    assert re.search(r"memory: new users: room for 1,000,000, \d+ bytes each", caplog.text)
    assert re.search(r"memory: new items: room for 100,000, \d+ bytes each", caplog.text)
    without, roomy = (
        plan_memory(with_room(bundle.state, empty_log(("play",)), *room), 10_000_000).most
        for room in ((0, 0), (3_000_000, 10_000))
    )
    assert roomy - without > 3_000_000 * 200 + 10_000 * 200
    assert re.search(r"memory: table of item: \d+ keys, \d+ bytes per key", caplog.text)
    assert re.search(r"\d+ bytes per event; the state takes .* at most .* GiB with 10,000,000 recorded", caplog.text)


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
        Server(later, record_to=tmp_path / "other", origin=origin)


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
        Server(with_snapshot(bundle, later), record_to=tmp_path / "two", origin=origin_of(later), clock="snapshot")
    for taken, name, want in ((before, "two", [0, 2]), (before, "one", [0, 1]), (later, "one", [0, 1])):
        with recording(with_snapshot(bundle, taken), tmp_path / name, origin=origin_of(taken)) as (server, _):
            same(server.pipeline.state, expected_state(bundle, world, [batches[k] for k in want]))
    exported(bundle, tmp_path / "one")
    for path in segment_files(tmp_path / "one"):
        path.unlink()
    with recording(with_snapshot(bundle, later), tmp_path / "one", origin=origin_of(later)) as (_, client):
        again = origin_of(Path(client.snapshot().folder))  # of a frame that the log has no more
        assert (again.frame, again.checksum) == (2, origin_of(later).checksum)
    told = json.loads((before / "manifest.json").read_text())
    del told["checksum"]  # as Pairlift wrote it before
    (before / "manifest.json").write_text(json.dumps(told))
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
        server.recorder.live.drain(5)
        assert len(done) == 60
        same(server.pipeline.state, expected_state(bundle, world, batches))
    for one in {t.folder: t for t in taken}.values():
        # One stream, a batch a frame: the frame tells how many batches are in it.
        assert 0 < one.frame <= 60
        same(with_snapshot(bundle, Path(one.folder)).state, expected_state(bundle, world, batches[: one.frame]))


CONDITIONS = [
    "play < 0.3",
    "NOT liked",
    "liked AND play >= 0.5",
    "liked OR tab = 'x'",
    "play IS NULL AND ts >= TIMESTAMP '2020-01-01'",
]
maybe = st.none() | st.sampled_from([0.0, 0.3, 0.5, 1.0])


@given(
    rows=st.lists(
        st.tuples(maybe, st.none() | st.booleans(), st.sampled_from([None, "x", "y"])), min_size=1, max_size=12
    ),
    whens=st.lists(st.sampled_from(CONDITIONS), min_size=1, max_size=3),
)
@settings(max_examples=20, deadline=None)
def test_grades_are_those_of_the_import(bundle, tmp_path_factory, rows, whens):
    folder = tmp_path_factory.mktemp("parity")
    play, liked, tab = zip(*rows, strict=True)
    ts = pa.array(1_600_000_000_000_000 + np.arange(len(rows)) * HOUR)
    users, items = [1000] * len(rows), [10] * len(rows)
    columns = {
        "user_id": users,
        "item_id": items,
        "play": pa.array(play, pa.float64()),
        "tab": pa.array(tab, pa.string()),
    }
    pq.write_table(
        pa.table({**columns, "ts": ts.cast(pa.timestamp("us")), "liked": pa.array(liked, pa.bool_())}),
        folder / "e.parquet",
    )
    grades = tuple(Grade(name=f"g{k}", when=when) for k, when in enumerate(whens))
    events = EventsSettings(source="e.parquet", feedback={"play": "play", "liked": "liked"}, columns={"tab": "tab"})
    import_log(Mapping(folder, "UTC", events, None, None, grades, None), folder / "log.duckdb")
    imported, _ = load_log(folder / "log.duckdb")
    config = bundle.config.model_copy(
        update={"events": events, "grades": list(grades), "record": RecordSettings(texts=["tab"])}
    )
    reader = EventReader(
        replace(bundle, config=config),
        lambda ids: np.zeros(len(ids), np.int32),
        lambda ids: np.zeros(len(ids), np.int32),
    )
    feedback = {
        "liked": pa.array(liked, pa.bool_()).cast(pa.int8()).cast(pa.float64()),
        "tab": pa.array(tab, pa.string()),
    }
    given_ = batch(list(range(len(rows))), users, items, ts.to_numpy(), list(play), feedback=feedback)
    checked = reader.checked(batch_of(batch_message(given_)), 1_600_000_000_000_000, 2**60)
    assert not checked.refused
    assert checked.log.grade.tolist() == imported.grade.tolist()
    np.testing.assert_array_equal(checked.log.feedback, imported.feedback)


def record_and_export(bundle, folder, batches):
    """Record in small segments, and start again: what was open is closed, and all are written as Parquet."""
    small = with_config(bundle, record=RecordSettings(segment_mb=0.001))
    with recording(small, folder) as (_, client):
        list(client.record(batches))
    with recording(small, folder):
        until = time.monotonic() + 5
        while len(list((folder / "events").glob("*.parquet"))) < len(batches) and time.monotonic() < until:
            time.sleep(0.05)


def exported(bundle, folder):
    """Start a server on a log, and return its Parquet files once every segment that was closed has one."""
    with recording(bundle, folder):
        closed = {path.stem for path in segment_files(folder)[:-1]}
        until = time.monotonic() + 5
        while {p.stem for p in (folder / "events").glob("*.parquet")} != closed and time.monotonic() < until:
            time.sleep(0.05)
    return sorted((folder / "events").glob("*.parquet"))


def imported_from(bundle, folder, source, zone="UTC"):
    """The events of a source as a training reads them."""
    events = bundle.config.events.model_copy(update={"source": source, "surface": "surface"})
    import_log(Mapping(folder, zone, events, None, None, tuple(bundle.config.grades), None), folder / "log.duckdb")
    return load_log(folder / "log.duckdb")


def test_closed_segments_can_be_trained_on(bundle, tmp_path):
    batches = list(random_batches(np.random.default_rng(6), bundle, [20] * 5))
    record_and_export(bundle, tmp_path / "log", batches)
    imported, _ = imported_from(bundle, tmp_path, "log/events/*.parquet")
    wanted = log_of(bundle, batches)
    assert imported.ts.tolist() == wanted.ts.tolist()
    assert sorted(imported.grade.tolist()) == sorted(wanted.grade.tolist())
    count = duckdb.sql(f"SELECT count(DISTINCT event_id) FROM '{tmp_path}/log/events/*.parquet'").fetchall()
    assert count == [(100,)]


@pytest.mark.parametrize(
    ("source", "names"),
    [
        (
            "read_parquet(['old.parquet', 'log/events/*.parquet'], union_by_name=true)",
            ["user_id", "item_id", "ts", "play"],
        ),
        (
            "(SELECT who AS user_id, what AS item_id, seen_at AS ts, share AS play FROM 'old.parquet'"
            " UNION ALL BY NAME FROM 'log/events/*.parquet')",
            ["who", "what", "seen_at", "share"],
        ),
    ],
)
def test_recorded_events_are_trained_on_behind_the_old_log(bundle, world, tmp_path, source, names):
    log, catalog = world.log, world.catalog
    utc = pa.array(log.ts, pa.timestamp("us", "UTC"))
    users, items = catalog.user_ids[log.user].astype(np.int32), catalog.item_ids[log.item]
    plays = pa.array(log.feedback[:, 0], from_pandas=True)
    wall = pc.local_timestamp(utc.cast(pa.timestamp("us", "America/New_York")))  # as the old log has it: without a zone
    pq.write_table(pa.table([users, items, wall, plays], names), tmp_path / "old.parquet")
    batches = list(random_batches(np.random.default_rng(7), bundle, [20] * 3))
    record_and_export(bundle, tmp_path / "log", batches)
    found, ids = imported_from(bundle, tmp_path, source, "America/New_York")

    recorded = [pa.table({**_columns(b.events), "play": b.feedback["play"]}) for b in batches]
    recorded = pa.concat_tables(recorded).select(["user_id", "item_id", "ts", "play", "surface"])
    old = {"user_id": users.astype(np.int64), "item_id": items, "ts": log.ts, "play": plays.cast(pa.float64())}
    both = pa.concat_tables([pa.table(old), recorded], promote_options="default")
    both = both.set_column(2, "ts", both["ts"].cast(pa.timestamp("us", "UTC")))
    pq.write_table(both, tmp_path / "both.parquet")
    wanted, wanted_ids = imported_from(bundle, tmp_path, "both.parquet")
    assert len(found) == len(log) + 60
    for name in ("user", "item", "ts", "grade", "surface", "feedback"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
    np.testing.assert_array_equal(ids.item_ids, wanted_ids.item_ids)


def test_old_segments_that_a_bundle_was_trained_on_may_be_deleted(bundle, tmp_path):
    batches = list(random_batches(np.random.default_rng(8), bundle, [20] * 4, low=0))
    record_and_export(bundle, tmp_path / "log", batches)
    first, second = sorted((tmp_path / "log" / "events").glob("*.parquet"))[:2]
    imported_from(bundle, tmp_path, f"read_parquet(['{first}', '{second}'])")
    trained = replace(bundle, recorded=load_recorded(tmp_path / "log.duckdb"), state=State.build(
        merged([bundle.state.histories.log(("play",)), log_of(bundle, batches[:2])]),
        bundle.state.catalog, bundle.state.counters, bundle.state.grades,
    ))  # fmt: skip
    for path in segment_files(tmp_path / "log")[:2]:
        path.unlink()
    with recording(trained, tmp_path / "log") as (server, client):
        assert server.recorder.count == 40
        assert next(iter(client.record([batches[3]]))).recorded == 0  # its ids are known still


def test_the_commands_record_a_file_and_take_a_snapshot(bundle, tmp_path):
    end = bundle.state.end
    table = pa.table(
        {
            "event_id": ["a", "b", "c"],
            "user_id": [1000, 1007, 1014],
            "item_id": [10, 13, 16],
            "ts": pa.array([end, end + 1, -7]).cast(pa.timestamp("us")),
            "play": [0.2, None, 1.0],
            "surface": ["feed", None, "feed"],
        }
    )
    pq.write_table(table, tmp_path / "today.parquet")
    run = CliRunner()
    with recording(bundle, tmp_path / "log") as (server, _client):
        done = run.invoke(cli, ["record", str(tmp_path / "today.parquet"), "--address", server.address, "--batch", "2"])
        assert "2 events recorded, 0 were recorded before, 1 refused" in done.output
        assert "row 2: ts: µs since 1970 were expected, found -7" in done.output
        assert done.exit_code == 2
        done = run.invoke(cli, ["record", str(tmp_path / "today.parquet"), "--address", server.address])
        assert "0 events recorded, 2 were recorded before, 1 refused" in done.output
        done = run.invoke(cli, ["snapshot", "--address", server.address])
        assert done.exit_code == 0, done.output
        assert Path(done.output.strip().split("\n")[-1]).is_dir()
        pq.write_table(table.drop_columns(["event_id"]), tmp_path / "nameless.parquet")
        done = run.invoke(cli, ["record", str(tmp_path / "nameless.parquet"), "--address", server.address])
        assert done.exit_code == 2
        assert "the column 'event_id' was expected, found user_id" in done.output


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
        server.recorder.live.drain(10)
        same(server.pipeline.state, expected_state(bundle, world, batches))
