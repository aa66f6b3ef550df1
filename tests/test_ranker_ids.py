"""Ids on the wire, on disk, in memory and at the import: kinds, repeats, and the longest one."""

import gc
import itertools
import struct
import threading
import tracemalloc
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from pairlift.v1 import ranking_pb2 as pb
from test_ranker_record import batch, exported, imported_from, recording, shown
from test_ranker_uplift import write_world
from world import bundle_of, make_world, train_parts, with_config

from features.log.loading import load_repeats
from features.log.segments import segment_files
from features.newcomers import Newcomers, bytes_per_id
from features.schema import DAY, MINUTE
from features.state.live import empty_log
from ranker.cli.main import cli
from ranker.client import ServerError
from ranker.config import RecordSettings
from ranker.recording.memory import plan_memory
from ranker.recording.numbering import with_room

KINDS = ([0, 1, -5, 10**18, 2**63 - 1, -(2**63)], ["a", "é-日本", "007", "-0", "1e3", "9223372036854775808"])


@pytest.fixture(scope="module")
def bundle():
    return bundle_of(train_parts(make_world(n_users=20, n_items=40)))


@pytest.fixture(scope="module")
def texts():
    """A bundle whose ids are text."""
    return bundle_of(train_parts(make_world(n_users=20, n_items=40, text_ids=True)))


def events(bundle, ids, start=0):
    """A batch with the ids, of known users and items."""
    catalog, n = bundle.state.catalog, len(ids)
    users, items = catalog.user_ids[np.arange(n) % 20], catalog.item_ids[np.arange(n) % 40]
    return batch(ids, users, items, bundle.state.end + (start + np.arange(n)) * MINUTE)


def test_integer_and_text_event_ids_of_one_segment_are_exported_replayed_and_known(bundle, tmp_path):
    first, second = (events(bundle, ids, 10 * k) for k, ids in enumerate(KINDS))
    with recording(bundle, tmp_path / "log") as (_, client):
        assert [o.recorded for o in client.record([first, second])] == [6, 6]
        assert len(segment_files(tmp_path / "log")) == 1
    files = exported(bundle, tmp_path / "log")
    assert len(files) == 1
    assert pq.read_table(files[0])["event_id"].to_pylist() == [*map(str, KINDS[0]), *KINDS[1]]
    with recording(bundle, tmp_path / "log") as (server, client):
        assert server.recorder.count == 12
        assert [o.duplicates for o in client.record([first, second])] == [6, 6]


def test_an_integer_and_its_text_are_one_event_id(bundle, tmp_path):
    with recording(bundle, tmp_path / "log") as (_, client):
        assert [o.recorded for o in client.record([events(bundle, KINDS[0])])] == [6]
        (again,) = client.record([events(bundle, [str(i) for i in KINDS[0]])])
        assert (again.recorded, again.duplicates) == (0, 6)
        (others,) = client.record([events(bundle, ["00", "+1", "1.0", " 1", "-05", "1000000000000000000 "])])
        assert (others.recorded, others.duplicates) == (6, 0)


def test_two_clients_of_different_kinds_in_one_commit_are_both_recorded(bundle, tmp_path, monkeypatch):
    with recording(bundle, tmp_path / "log") as (server, client):
        writer, taken, done = server.recorder._writer, [], []
        one = writer._group

        def two():
            """Take the next two batches for one commit."""
            first, last = one()
            if last or len(first[0].keys) == 1:  # the end; or the one event below, where the thread did not wait yet
                return first, last
            # Both batches may have come before the thread looked: then they are taken together already.
            second, last = ([], False) if len(first) > 1 else one()
            taken.append(len(first) + len(second))
            return first + second, last

        monkeypatch.setattr(writer, "_group", two)
        list(client.record([events(bundle, [99])]))  # the thread may have waited for this one before it was patched
        threads = [
            threading.Thread(target=lambda ids=ids: done.extend(client.record([events(bundle, ids)]))) for ids in KINDS
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert [o.recorded for o in done] == [6, 6]
        assert taken == [2]
    rows = pq.read_table(exported(bundle, tmp_path / "log")[0])
    assert sorted(rows["event_id"].to_pylist()) == sorted([*map(str, KINDS[0]), *KINDS[1], "99"])


def old_segment(folder, tables, arrival):
    """Write the log's first segment as Pairlift 0.1 wrote it: a frame for each table, event ids of the wire's kind."""
    folder.mkdir(parents=True)
    data = b"pairlift-log-1\n\0"
    for number, table in enumerate(tables, 1):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        payload = bytes(sink.getvalue())
        rest = struct.pack("<QqQ", number, arrival, len(payload))
        data += struct.pack("<4sIQqQ", b"\xf6PLf", zlib.crc32(rest + payload), number, arrival, len(payload)) + payload
    (folder / f"{1:020d}.log").write_bytes(data)


def test_a_segment_with_ids_of_both_kinds_is_still_read(bundle, tmp_path):
    batches = [events(bundle, ids, 10 * k) for k, ids in enumerate((*KINDS, [7, 8]))]
    tables = [b.events.append_column("play", b.feedback["play"]).combine_chunks() for b in batches]
    assert [t.schema.field("event_id").type for t in tables] == [pa.int64(), pa.string(), pa.int64()]
    old_segment(tmp_path / "log", tables, bundle.state.end)
    with recording(bundle, tmp_path / "log") as (server, client):
        assert server.recorder.count == 14
        assert [o.duplicates for o in client.record(batches)] == [6, 6, 2]
        (again,) = client.record([events(bundle, ["7", "8", "9"])])
        assert (again.recorded, again.duplicates) == (1, 2)
    files = exported(bundle, tmp_path / "log")
    ids = [i for file in files for i in pq.read_table(file)["event_id"].to_pylist()]
    assert ids == [*map(str, KINDS[0]), *KINDS[1], "7", "8", "9"]


@pytest.mark.parametrize("days", [0, 30])
def test_an_integer_and_its_text_in_an_old_log_are_served_once_as_they_are_trained_on(bundle, tmp_path, days):
    """Also where the log is older than ids are known for."""
    one, other = (events(bundle, ids) for ids in ([7, 8], ["7", "9"]))
    tables = [b.events.append_column("play", b.feedback["play"]).combine_chunks() for b in (one, other)]
    old_segment(tmp_path / "log", tables, bundle.state.end - days * DAY)
    with recording(bundle, tmp_path / "log") as (server, _):
        assert server.recorder.count == 3
    exported(bundle, tmp_path / "log")
    assert len(imported_from(bundle, tmp_path, "log/events/*.parquet")[0]) == 3


def test_old_files_with_integer_ids_and_new_ones_are_read_together(bundle, tmp_path):
    with recording(bundle, tmp_path / "log") as (_, client):
        list(client.record([events(bundle, [1]), events(bundle, ["x"], 1)]))
    (new,) = exported(bundle, tmp_path / "log")
    old = pq.read_table(new)
    old = old.set_column(0, "event_id", pa.array([1, 2]))  # as it was exported before: event 1 is in both
    pq.write_table(old, tmp_path / "log" / "events" / f"{0:020d}.parquet")
    source = "read_parquet('log/events/*.parquet', union_by_name=true)"
    log, _ = imported_from(bundle, tmp_path, source)
    assert len(log) == 3


LIMIT = 64
#: the id of so many bytes of UTF-8 that takes the most memory: one character makes all of them four bytes wide
WIDEST = "\N{GRINNING FACE}"


def test_ids_beyond_the_limit_are_refused_one_by_one_with_a_reason(texts, tmp_path):
    short = with_config(texts, record=RecordSettings(max_id_bytes=LIMIT))
    fits, long = "é" * (LIMIT // 2), "é" * (LIMIT // 2) + "x"
    users, items, end = ["user-0001"] * 6, ["item-0001"] * 6, texts.state.end
    ids, requests = [f"e{k}" for k in range(6)], [None] * 6
    users[1], items[2], ids[3], requests[4], users[5] = long, long, long, long, fits
    requests[0] = items[0] = fits
    with recording(short, tmp_path / "log") as (server, client):
        (outcome,) = client.record([batch(ids, users, items, end + np.arange(6), request_id=requests)])
        assert outcome.recorded == 2
        told = f"an id of at most {LIMIT} bytes in UTF-8 ([record] max_id_bytes) was expected, found one of {LIMIT + 1}"
        assert dict(outcome.refused) == {
            1: f"user: {told}", 2: f"item: {told}", 3: f"event id: {told}", 4: f"request id: {told}",
        }  # fmt: skip
        server.recorder.live.drain(5)
        assert server.pipeline.state.catalog.new_users.known == [fits]
        assert server.pipeline.state.catalog.new_items.known == [fits]


@pytest.mark.parametrize(
    ("ask", "place"),
    [
        (lambda c, i: c.rank(i, ["item-0001"]), "user"),
        (lambda c, i: c.rank("user-0001", ["item-0001", i]), "items"),
        (lambda c, i: c.recommend(i), "user"),
        (lambda c, i: c.recommend("user-0001", exclude=[i]), "exclude"),
        (lambda c, i: c.recommend("user-0001", source_item=i), "context.source_item"),
        (lambda c, i: c.rank("user-0001", ["item-0001"], request_id=i), "request_id"),
    ],
)
def test_ids_beyond_the_limit_are_refused_in_requests_too(served, ask, place):
    ask(served, "é" * (LIMIT // 2))
    told = rf"^{place}: an id of at most 64 bytes in UTF-8 \(\[record\] max_id_bytes\) was expected, found one of 65$"
    with pytest.raises(ServerError, match=told) as caught:
        ask(served, "é" * (LIMIT // 2) + "x")
    assert caught.value.code == "INVALID_ARGUMENT"


@pytest.fixture(scope="module")
def served(texts, tmp_path_factory):
    short = with_config(texts, record=RecordSettings(max_id_bytes=LIMIT))
    with recording(short, tmp_path_factory.mktemp("log")) as (_, client):
        yield client


def test_an_id_that_the_bundle_knows_is_never_too_long(texts, tmp_path):
    tiny = with_config(texts, record=RecordSettings(max_id_bytes=4))
    with recording(tiny, tmp_path / "log") as (_, client):
        assert len(client.rank("user-0001", ["item-0001", "item-0002"]).items) == 2
        (outcome,) = client.record([batch(["e"], ["user-0001"], ["item-0001"], [texts.state.end])])
        assert outcome.recorded == 1


def test_longer_ids_of_an_older_log_are_replayed_and_stay_cold(texts, tmp_path, caplog):
    long, item = "é" * LIMIT, "item-0001"
    with recording(texts, tmp_path / "log") as (server, client):
        before = shown(client, "user-0001", item)["item__impression__all__count"]
        list(client.record([batch(["a", "b"], [long, "new"], [item] * 2, [texts.state.end] * 2)]))
    short = with_config(texts, record=RecordSettings(max_id_bytes=LIMIT))
    with recording(short, tmp_path / "log") as (server, client):
        assert server.recorder.count == 2
        assert server.pipeline.state.catalog.new_users.known == ["new"]
        assert shown(client, "new", item)["item__impression__all__count"] == before + 2
    assert "the log has new users with ids of more than [record] max_id_bytes = 64: they stay cold until" in caplog.text


@pytest.mark.parametrize("limit", [16, 36, 256])
@pytest.mark.parametrize("text", [True, False])
def test_the_budget_of_new_ids_is_what_they_take_at_the_limit(bundle, texts, text, limit):
    state = (texts if text else bundle).state
    state = with_room(state, empty_log(("play",)), 10**6, 10**6)
    (_, _, budget), *_ = plan_memory(state, 10_000_000, limit).new
    # The dict is largest, beside its entries, when it has just grown.
    sizes = [87_382, 174_763]
    measured = max(bytes_each(ids_at(limit, n) if text else range(2**40, 2**40 + n), text) for n in sizes)
    assert measured <= bytes_per_id(text, limit) <= budget
    assert bytes_per_id(text, limit) < 2 * measured  # a budget, and no guess


def test_a_server_full_of_ids_at_the_limit_stays_within_its_budget(texts, tmp_path):
    n, limit = 20_000, 256
    full = with_config(texts, record=RecordSettings(max_id_bytes=limit, max_events=n, new_users=n, new_items=n))
    state = with_room(texts.state, empty_log(("play",)), n, n)
    plan = plan_memory(state, n, limit)
    gc.collect()
    tracemalloc.start()
    try:
        with recording(full, tmp_path / "log") as (server, client):
            before = tracemalloc.get_traced_memory()[0]
            for k in range(0, n, 5000):
                ids = list(itertools.islice(ids_at(limit, k + 5000), k, None))
                (outcome,) = client.record([batch(ids, ids, ids, [texts.state.end] * 5000)])
                assert outcome.recorded == 5000
            server.recorder.live.drain(60)
            assert server.pipeline.state.catalog.new_items.count == n
            assert len(client.rank(ids[0], ids[:200]).items) == 200
            del ids, outcome
            gc.collect()
            taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken < plan.most - plan.now
    assert taken > 2 * n * 4 * limit  # it is the ids that were measured


def ids_at(limit, n):
    """n different ids of so many bytes in UTF-8, as wide in memory as can be."""
    return (WIDEST + str(k).rjust(limit - len(WIDEST.encode()), "0") for k in range(n))


def bytes_each(ids, text):
    """Measured bytes of an id in Newcomers, after it was in an answer too (which keeps its UTF-8 beside it)."""
    array = pa.array(ids, pa.string() if text else pa.int64())
    gc.collect()
    tracemalloc.start()
    try:
        _, new = Newcomers(room=len(array)).extended(array.to_pylist())
        if text:
            pb.Ids(texts=pb.TextIds(values=new.known))
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / len(new.known)
    finally:
        tracemalloc.stop()


def test_a_batch_sent_again_to_another_servers_log_trains_once(bundle, tmp_path):
    sent = [events(bundle, ids, 10 * k) for k, ids in enumerate(KINDS)]
    again = [events(bundle, [str(i) for i in KINDS[0]]), events(bundle, ["other"], 40)]
    for name, batches in (("one", sent), ("two", again)):
        with recording(bundle, tmp_path / name) as (_, client):
            list(client.record(batches))
        exported(bundle, tmp_path / name)
    source = "read_parquet(['one/events/*.parquet', 'two/events/*.parquet'], union_by_name=true)"
    log, _ = imported_from(bundle, tmp_path, source)
    assert len(log) == 13
    assert load_repeats(tmp_path / "log.duckdb") == 6


def test_validate_tells_how_many_rows_repeat_an_event_id_also_when_the_import_is_reused(tmp_path):
    path = write_world(tmp_path)
    rows = pq.read_table(tmp_path / "log.parquet")
    rows = rows.append_column("event_id", pa.array(range(len(rows))))
    pq.write_table(pa.concat_tables([rows, rows.slice(5, 20)]), tmp_path / "log.parquet")
    for _ in range(2):
        done = CliRunner().invoke(cli, ["validate", str(path)])
        assert done.exit_code == 0, done.output
        assert "9,600 events, 60 users" in done.output
        assert "20 rows repeated the event_id of another and were dropped, the first of each kept" in done.output
