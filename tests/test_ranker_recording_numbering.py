"""New users and items are numbered behind those of the bundle, and served as known ones."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from served import batch, recording, shown
from world import with_config

from features.newcomers import Newcomers
from features.schema import DAY, MINUTE, empty_log
from ranker.client import Client
from ranker.recording.batch import Batch
from ranker.recording.numbering import Numbering
from ranker.recording.snapshots import origin_of, with_snapshot
from ranker.server import Server
from ranker.serving.served import FeaturesTo
from ranker.settings import RecordSettings


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

    def result(server, client):
        assert client.describe().users == len(bundle.state.catalog.user_ids) + 1
        assert client.describe().items == len(bundle.state.catalog.item_ids) + 1
        return [shown(client, *pair) for pair in ((1, 2), (1, item), (user, 2), (-7, 2), (1, -7))]

    with recording(bundle, log) as (server, client):
        cold = shown(client, 1, 2)
        list(client.record([events]))
        begun = time.monotonic()
        server.follower.drain(5)
        assert time.monotonic() - begun < 1
        want = result(server, client)
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
            alike(result(server, client), want)
            catalog = server.pipeline.state.catalog
            assert (catalog.new_users.known, catalog.new_items.known) == ([1], [2])
            assert 2 in [one.item for one in client.recommend(-7, 50).items]
    server = Server(later, clock="snapshot")
    server.start()
    with Client(server.address) as client:
        alike(result(server, client), want)
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
        server.follower.drain(5)
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
                server.follower.drain(5)
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
    assert [new.count for new in numbering.new] == [0, 2, 0]


def test_what_was_served_of_new_ids_is_logged_by_their_ids(bundle, tmp_path):
    with recording(bundle, tmp_path / "log", features_to=FeaturesTo(tmp_path / "features", 1.0)) as (server, client):
        list(client.record([of_newcomers(bundle)]))
        server.follower.drain(5)
        client.rank(1, [2, int(bundle.state.catalog.item_ids[5]), -7], request_id="r")
    rows = pq.read_table(next((tmp_path / "features").glob("*.parquet")))
    assert rows["user_id"].to_pylist() == [1] * 3
    assert set(rows["item_id"].to_pylist()) == {2, int(bundle.state.catalog.item_ids[5]), None}


def test_longer_ids_of_an_older_log_are_replayed_and_stay_cold(text_bundle, tmp_path, caplog):
    long, item = "é" * 64, "item-0001"
    with recording(text_bundle, tmp_path / "log") as (server, client):
        before = shown(client, "user-0001", item)["item__impression__all__count"]
        list(client.record([batch(["a", "b"], [long, "new"], [item] * 2, [text_bundle.state.end] * 2)]))
    short = with_config(text_bundle, record=RecordSettings(max_id_bytes=64))
    with recording(short, tmp_path / "log") as (server, client):
        assert server.recorder.count == 2
        assert server.pipeline.state.catalog.new_users.known == ["new"]
        assert shown(client, "new", item)["item__impression__all__count"] == before + 2
    assert "the log has new users with ids of more than [record] max_id_bytes = 64: they stay cold until" in caplog.text
